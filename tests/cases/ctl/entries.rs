//! Names, and the folders behind them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use rustix::process::{Signal, kill_process};
use serde_json::json;
use tests::ctl::{Host, kill};
use tests::driven::until;
use tests::live::Live;
use tests::monitor::files;

pub(super) fn prefixes() {
    let host = Host::new();
    host.mote(&["inspect", "db"])
        .expect_error(125, &["no guest 'db', nor any other"]);
    let names = ["db", "db-2", "web-1", "web-2"];
    let lives = names.map(|id| host.vmm(id, &[]));
    let id = |name: &str| host.ask_json(&["inspect", name])["id"].clone();
    assert_eq!(id("db"), "db");
    assert_eq!(id("db-"), "db-2");
    assert_eq!(id("web-1"), "web-1");
    host.mote(&["inspect", "web"])
        .expect_error(125, &["'web' may be any of web-1, web-2"]);
    host.mote(&["inspect", "x"])
        .expect_error(125, &["no guest 'x'", "db, db-2, web-1, web-2"]);
    host.mote(&["inspect", ""])
        .expect_error(125, &["no guest ''"]);
    host.ask(&[&["kill"][..], &names].concat());
    for live in lives {
        assert_eq!(live.wait().status, 0);
    }
}

pub(super) fn dead() {
    let host = Host::new();
    let first = host.idle("first", &[]);
    let second = host.idle("second", &[]);
    let third = host.vmm("third", &[]);
    kill(first);
    kill(second);
    // They have left all, which is gone as soon as someone looks.
    assert_eq!(files(host.run_dir()), ["first", "second", "third"]);
    assert!(host.run_dir().join("first/api.sock").exists());
    host.mote(&["inspect", "first"])
        .expect_error(125, &["'first' is dead"]);
    assert_eq!(files(host.run_dir()), ["third"]);
    host.mote(&["inspect", "first"])
        .expect_error(125, &["no guest 'first'", "third"]);
    // Its name is free, even if nobody has looked.
    kill(third);
    let third = host.vmm("third", &[]);
    assert_eq!(host.state("third"), "Not started");
    // Half of an entry, as of one that was killed at the wrong moment; and what is none.
    fs::create_dir(host.run_dir().join("half")).unwrap();
    fs::create_dir(host.run_dir().join("other")).unwrap();
    fs::write(host.run_dir().join("other/lock"), "").unwrap();
    fs::write(host.run_dir().join("other/info.json"), "{").unwrap();
    fs::write(host.run_dir().join("note"), "mine").unwrap();
    assert_eq!(host.ask(&["ps", "-q"]), "third\n");
    assert_eq!(files(host.run_dir()), ["note", "third"]);
    kill_process(third.pid(), Signal::TERM).unwrap();
    assert_eq!(third.wait().status, 143);
    assert_eq!(files(host.run_dir()), ["note"]);
}

pub(super) fn same_name() {
    let host = Host::new();
    let live = host.vmm("twin", &[]);
    let pid = format!("process {}", live.pid().as_raw_nonzero());
    let socket = host.path().join("other.sock");
    let socket = socket.to_str().unwrap();
    for options in [
        &["vmm", "--id", "twin"][..],
        &["vmm", "--id", "twin", "--api-sock", socket],
        &["run", "--id", "twin", "--api-sock", "--kernel", "/no/such"],
    ] {
        let ended = host.mote(options).expect_status(125);
        if options[0] == "vmm" {
            ended.expect_error(125, &["a guest 'twin' already", &pid]);
        }
    }
    assert!(!fs::exists(socket).unwrap());
    // It has not suffered.
    assert_eq!(host.state("twin"), "Not started");
    // Under the other name, many are called the same, and nobody hears of it.
    let link = host.path().join("firecracker");
    symlink(tests::monitor::path(), &link).unwrap();
    let start = |socket: &str| {
        let mut command = std::process::Command::new(&link);
        command
            .args(["--api-sock", socket, "--log-path", "/dev/null"])
            .env("XDG_RUNTIME_DIR", host.path().join("run"));
        let live = Live::start(command);
        until("the socket", || fs::exists(socket).unwrap().then_some(()));
        live
    };
    let [first, second] = ["fc1", "fc2"].map(|name| host.path().join(name));
    let first = start(first.to_str().unwrap());
    let second = start(second.to_str().unwrap());
    until("the first", || {
        let ids = host.ask(&["ps", "-q"]);
        (ids == "anonymous-instance\ntwin\n").then_some(())
    });
    for other in [first, second] {
        kill_process(other.pid(), Signal::TERM).unwrap();
        let ended = other.wait();
        assert_eq!((ended.status, &*ended.stderr), (143, ""));
    }
    host.ask(&["kill", "twin"]);
    assert_eq!(live.wait().status, 0);
}

/// All at once.
pub(super) fn race() {
    const MANY: usize = 12;
    let host = Host::new();
    let start = |_| Live::start(host.command(&["vmm", "--id", "same"]));
    let lives: Vec<Live> = (0..MANY).map(start).collect();
    until("one of them", || {
        (host.ask(&["ps", "-q"]) == "same\n").then_some(())
    });
    let winner = host.ask_json(&["inspect", "same"])["pid"].clone();
    let (winners, losers): (Vec<Live>, Vec<Live>) =
        (lives.into_iter()).partition(|live| winner == live.pid().as_raw_nonzero().get());
    assert_eq!(winners.len(), 1);
    for loser in losers {
        loser.wait().expect_error(125, &["a guest 'same' already"]);
    }
    host.ask(&["kill", "same"]);
    for winner in winners {
        assert_eq!(winner.wait().status, 0);
    }
    assert_eq!(files(host.run_dir()), [""; 0]);
}

pub(super) fn unnamed() {
    let host = Host::new();
    let start = || Live::start(host.command(&["vmm"]));
    let lives = [start(), start(), start()];
    let ids = until("all of them", || {
        let ids = host.ask(&["ps", "-q"]);
        (ids.lines().count() == 3).then_some(ids)
    });
    for id in ids.lines() {
        let random = id.strip_prefix("mote-").unwrap();
        assert!(random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(host.ask_json(&["inspect", id])["instance"]["id"], id);
        host.ask(&["kill", id]);
    }
    for live in lives {
        let ended = live.wait();
        assert_eq!(ended.status, 0);
        // It says where it is.
        let said = ended.stderr.lines().next().unwrap();
        let (name, path) = said.split_once(": API on ").unwrap();
        let id = name.strip_prefix("mote: guest ").unwrap();
        assert!(ids.contains(id), "{said}");
        assert_eq!(
            path,
            host.run_dir().join(id).join("api.sock").to_str().unwrap()
        );
    }
}

pub(super) fn no_directory() {
    let host = Host::new();
    fs::remove_dir(host.path().join("run")).unwrap();
    assert_eq!(host.ask_json(&["ps", "--json"]), json!([]));
    host.mote(&["pause", "x"])
        .expect_error(125, &["no guest 'x'"]);
    host.mote(&["vmm"])
        .expect_error(125, &["Cannot make", "run/mote"]);
    // Whoever says where the socket is can do without.
    let socket = host.path().join("api.sock");
    let socket = socket.to_str().unwrap();
    let live = Live::start(host.command(&["vmm", "--id", "lost", "--api-sock", socket]));
    until("the socket", || fs::exists(socket).unwrap().then_some(()));
    let instance = host.ask_json(&["api", "--socket", socket, "GET", "/"]);
    assert_eq!(instance["id"], "lost");
    let stop = r#"{"action_type": "Stop"}"#;
    host.ask(&["api", "--socket", socket, "PUT", "/actions", stop]);
    let ended = live.wait();
    assert_eq!(ended.status, 0);
    assert!(
        ended.stderr.contains("will not show this guest"),
        "{ended:?}"
    );
    // A relative one is as good as none.
    let mut command = host.command(&["ps", "-q"]);
    command.env("XDG_RUNTIME_DIR", "run");
    tests::monitor::Running::start(command)
        .wait()
        .expect_status(0);
    assert!(!host.path().join("run").exists());
}

pub(super) fn foreign_directory() {
    let host = Host::new();
    let refused = |why: &str| {
        for command in [&["ps"][..], &["vmm"], &["inspect", "x"]] {
            host.mote(command).expect_error(125, &["run/mote", why]);
        }
        // Under the other name nobody hears of it.
        let link = host.path().join("firecracker");
        let _ = symlink(tests::monitor::path(), &link);
        let mut command = std::process::Command::new(&link);
        command
            .args(["--version"])
            .env("XDG_RUNTIME_DIR", host.path().join("run"));
        tests::monitor::Running::start(command)
            .wait()
            .expect_status(0);
    };
    fs::write(host.run_dir(), "").unwrap();
    refused("it is not a folder");
    fs::remove_file(host.run_dir()).unwrap();
    fs::create_dir(host.path().join("elsewhere")).unwrap();
    symlink(host.path().join("elsewhere"), host.run_dir()).unwrap();
    refused("it is not a folder");
    fs::remove_file(host.run_dir()).unwrap();
    fs::create_dir(host.run_dir()).unwrap();
    fs::set_permissions(host.run_dir(), fs::Permissions::from_mode(0o750)).unwrap();
    refused("others have access to it");
    fs::set_permissions(host.run_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(host.ask(&["ps", "-q"]), "");
    // Only root can give it away.
    if chown(host.run_dir(), Some(12345), None).is_ok() {
        refused("it belongs to another user");
    }
}
