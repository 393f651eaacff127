//! Pools: guests of a template that are ready before anyone asks for them.

use std::fs;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tests::ctl::{Host, PoolEnds};
use tests::driven::until;
use tests::executable::job_kernel;
use tests::live::Live;
use tests::monitor::Running;
use tests::terminal::Session;

/// A template, on a host of its own.
fn with_template() -> Host {
    let host = Host::new();
    make(&host, &["--memory", "32m"]);
    host
}

fn make(host: &Host, options: &[&str]) {
    let kernel = host.write("kernel", job_kernel());
    let initrd = host.write("initrd", "none");
    let create = [
        "template", "create", "t", "--kernel", &kernel, "--initrd", &initrd,
    ];
    let console = ["--console", "serial"];
    assert_eq!(host.ask(&[&create[..], &console, options].concat()), "t\n");
}

/// Waits until as many guests wait as are to.
fn full(host: &Host) {
    until("all guests", || {
        let pool = host.pool();
        (pool["ready"] == pool["count"]).then_some(())
    });
}

/// Processes of this host's guests that wait, or get ready.
fn guests(host: &Host) -> usize {
    let pool = host.pool();
    let pid = pool["pid"].as_u64().unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().count()
}

const RUN: [&str; 3] = ["run", "--template", "t"];

pub(super) fn jobs() {
    let host = with_template();
    let _ends = PoolEnds(&host);
    assert_eq!(host.ask(&["pool", "start", "t", "-n", "2"]), "t\n");
    assert_eq!(host.pool()["ready"], 2);
    host.mote(&["pool", "start", "t"])
        .expect_error(125, &["a pool of 't' already", "mote pool stop t"]);
    // Each is a new one, and has what it was given.
    for index in 0..5_u64 {
        full(&host);
        assert_eq!(host.taken(), index);
        let word = format!("job-{index}");
        let ended = host.mote(&[&RUN[..], &["--id", "me", "--", &word]].concat());
        assert_eq!(u64::try_from(ended.status), Ok(index), "{ended:?}");
        assert!(ended.text().contains(&word), "{ended:?}");
        assert!(ended.text().contains("hme"), "{ended:?}");
        assert!(ended.stderr.is_empty(), "{ended:?}");
    }
    // More than there are: the others start by themselves, or wait.
    let many: Vec<Running> = (0..9)
        .map(|status| {
            let word = status.to_string();
            let mut command = host.command(&[&RUN[..], &["--", &word]].concat());
            command.stdin(Stdio::null());
            Running::start(command)
        })
        .collect();
    for (status, one) in (0..).zip(many) {
        assert_eq!(one.wait().status, status);
    }
    // What those do not do is done without.
    full(&host);
    let before = host.taken();
    let file = host.path().join("output");
    let console = format!("serial,file={}", file.display());
    let ended = host.mote(&[&RUN[..], &["--console", &console, "--", "4"]].concat());
    assert_eq!(ended.status, 4, "{ended:?}");
    assert!(fs::read_to_string(file).unwrap().contains("a4"));
    assert_eq!(host.taken(), before);

    let table = host.ask(&["pool", "ls"]);
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("t ") && line.contains("2/2")),
        "{table}"
    );
    assert_eq!(host.ask(&["ps", "-q"]), "");
    assert_eq!(host.ask(&["pool", "stop", "t"]), "t\n");
    assert_eq!(host.ask(&["pool", "ls", "--json"]), "");
    assert_eq!(fs::read_dir(host.run_dir()).unwrap().count(), 0);
    host.mote(&["pool", "stop", "t"])
        .expect_error(125, &["no pool of 't'", "mote pool start t"]);
    assert_eq!(host.mote(&[&RUN[..], &["--", "6"]].concat()).status, 6);
}

pub(super) fn console() {
    let host = with_template();
    let _ends = PoolEnds(&host);
    host.ask(&["pool", "start", "t", "-n", "1"]);
    let typed = |index| {
        full(&host);
        assert_eq!(host.taken(), index);
        host.command(&[&RUN[..], &["--", "i"]].concat())
    };
    let mut pipes = Live::start(typed(0));
    pipes.expect("ai");
    pipes.send("through a pipe");
    pipes.expect("through a pipe");
    // It stays when its pool goes, and the next one too.
    host.ask(&["pool", "stop", "t"]);
    host.ask(&["pool", "start", "t", "-n", "1"]);
    pipes.send("still");
    pipes.expect("still");
    pipes.send("q");
    assert_eq!(pipes.wait().status, 0);

    let mut session = Session::start(typed(0));
    session.expect("ai");
    assert!(session.is_raw());
    session.type_in("keys\x03");
    session.expect("keys\x03");
    session.type_in("q");
    session.expect_end(0);
    // Keys of `mote run`, and signals.
    let mut session = Session::start(typed(1));
    session.expect("ai");
    session.type_in("\x01x");
    session.expect_end(0);
    let mut session = Session::start(typed(2));
    session.expect("ai");
    session.signal(Signal::TERM);
    session.expect("stopped by signal 15");
    session.expect_end(143);
    full(&host);
    let ended = host.mote(&[&RUN[..], &["--timeout", "100ms", "--", "x"]].concat());
    assert_eq!(ended.status, 124, "{ended:?}");
    assert!(ended.stderr.contains("within --timeout"), "{ended:?}");
    assert_eq!(host.taken(), 4);
}

/// Whoever dies takes nobody along but who is of no use without.
pub(super) fn killed() {
    let host = with_template();
    let _ends = PoolEnds(&host);
    host.ask(&["pool", "start", "t", "-n", "2"]);
    // Who has asked: then nobody waits for the guest.
    let mut asking = Live::start(host.command(&[&RUN[..], &["--", "x"]].concat()));
    asking.expect("ax");
    full(&host);
    assert_eq!(guests(&host), 3);
    asking.kill();
    until("the end of the guest", || {
        (guests(&host) == 2).then_some(())
    });
    // A guest that has a job.
    let keeper = i32::try_from(host.pool()["pid"].as_u64().unwrap()).unwrap();
    let children = || {
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
        pids.collect::<Vec<i32>>()
    };
    let waiting = children();
    let mut asking = Live::start(host.command(&[&RUN[..], &["--", "x"]].concat()));
    asking.expect("ax");
    full(&host);
    // Of those that waited before one is idle still: whoever of both has no pipe to its keeper has been taken.
    let reports = |pid: &i32| {
        let link = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap();
        link.to_string_lossy().into_owned()
    };
    let asked = fs::read_link(format!("/proc/{}/fd/1", asking.pid().as_raw_nonzero())).unwrap();
    let is_taken = |pid: &&i32| reports(pid) == asked.to_string_lossy();
    let guest = *waiting.iter().find(is_taken).unwrap();
    kill_process(Pid::from_raw(guest).unwrap(), Signal::KILL).unwrap();
    let ended = asking.wait();
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("monitor was killed"), "{ended:?}");
    // Guests that wait: others take their places.
    full(&host);
    let waiting = children();
    for pid in &waiting {
        kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
    }
    until("others", || {
        let pool = host.pool();
        let others = children().iter().all(|pid| !waiting.contains(pid));
        (others && pool["ready"] == 2).then_some(())
    });
    assert_eq!(host.mote(&[&RUN[..], &["--", "3"]].concat()).status, 3);
    // The pool: its guests go, and whoever comes starts by himself.
    full(&host);
    let waiting = children();
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    for pid in waiting {
        until("the end of a guest", || {
            test_kill_process(Pid::from_raw(pid).unwrap())
                .is_err()
                .then_some(())
        });
    }
    assert_eq!(host.mote(&[&RUN[..], &["--", "5"]].concat()).status, 5);
    assert_eq!(host.ask(&["pool", "ls", "--json"]), "");
    assert_eq!(fs::read_dir(host.run_dir()).unwrap().count(), 0);
    host.ask(&["pool", "start", "t"]);
    assert_eq!(host.pool()["ready"], 4);
}

/// A pool follows its template.
pub(super) fn changed() {
    let host = with_template();
    let _ends = PoolEnds(&host);
    host.mote(&["pool", "start", "none"])
        .expect_error(125, &["no template 'none'"]);
    host.mote(&["pool", "start", "t", "-n", "0"])
        .expect_status(125);
    host.ask(&["pool", "start", "t", "-n", "2"]);
    let run = |status: i32| {
        full(&host);
        let ended = host.mote(&[&RUN[..], &["--", &status.to_string()]].concat());
        assert_eq!(ended.status, status, "{ended:?}");
        ended
    };
    run(1);
    make(&host, &["--memory", "48m", "--replace"]);
    run(2);
    assert_eq!(host.taken(), 2);
    // Made again by the first one that comes across it.
    host.write("kernel", [&job_kernel()[..], b"more"].concat());
    assert!(run(3).stderr.contains("made again"));
    run(4);
    assert_eq!(host.taken(), 4);
    // Behind its back.
    let folder = host.path().join("data/mote/templates/t");
    let state = fs::read(folder.join("state")).unwrap();
    fs::write(folder.join("state.new"), state).unwrap();
    fs::rename(folder.join("state.new"), folder.join("state")).unwrap();
    run(5);
    assert_eq!(host.taken(), 4);
    run(6);
    assert_eq!(host.taken(), 5);
    // One that cannot get ready any more.
    let memory = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|file| file.path());
    let memory = memory
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("memory-")
        })
        .find(|path| path.extension().is_none());
    let memory = memory.unwrap();
    full(&host);
    fs::rename(&memory, folder.join("away")).unwrap();
    for status in [1, 2] {
        assert_eq!(
            host.mote(&[&RUN[..], &["--", &status.to_string()]].concat())
                .status,
            status
        );
    }
    until("a failure", || host.pool()["failure"].as_str().map(drop));
    let table = host.ask(&["pool", "ls"]);
    assert!(table.contains("memory"), "{table}");
    fs::rename(folder.join("away"), &memory).unwrap();
    run(7);
    assert_eq!(host.ask(&["template", "rm", "t"]), "t\n");
    assert_eq!(host.ask(&["pool", "ls", "--json"]), "");
}
