//! Copies of guests, from the command line.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::ctl::{Host, kill};
use tests::driven::until;
use tests::executable::{counting_kernel, generation_kernel, idle_kernel};
use tests::live::Live;

use super::snapshot::start;

/// Names of all guests.
pub(super) fn guests(host: &Host) -> BTreeSet<String> {
    let ids = host.ask(&["ps", "-q"]);
    ids.lines().map(str::to_owned).collect()
}

/// Whoever is at the console of a guest.
pub(super) fn attach(host: &Host, id: &str) -> Live {
    Live::start(host.command(&["attach", id]))
}

/// Copies are nobody's children: a case that fails would leave them.
pub(super) struct Leftovers<'a>(pub(super) &'a Host);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        let entries = fs::read_dir(self.0.run_dir()).into_iter().flatten();
        for entry in entries.flatten() {
            let info = fs::read(entry.path().join("info.json")).unwrap_or_default();
            let info: Value = serde_json::from_slice(&info).unwrap_or_default();
            let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Waits until nothing is left in the run-time directory, or anything of mote's in the folder but these.
pub(super) fn nothing_left(host: &Host, files: &[&str]) {
    until("the end of all", || {
        // Many that end at once leave some of it to whoever looks next.
        guests(host);
        let there = fs::read_dir(host.run_dir()).unwrap();
        (there.count() == 0).then_some(())
    });
    let there = fs::read_dir(host.path()).unwrap();
    let mut there: Vec<_> = there
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.retain(|name| name != "run" && !files.contains(&name.as_str()));
    assert_eq!(there, [""; 0]);
}

/// What the event device of a [`generation_kernel`] has to tell, and its VM generation ID.
#[track_caller]
fn generation(guest: &mut Live) -> (String, String) {
    guest.send("");
    let line = guest.expect("=");
    let (event, id) = line.trim_start_matches('=').split_once(':').unwrap();
    assert_eq!(id.len(), 32, "{line}");
    (event.to_owned(), id.to_owned())
}

/// No two guests that go on from one have the same VM generation ID, whichever way they do.
pub(super) fn differ() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let mut parent = start(&host, "parent", &[], &generation_kernel(), false);
    let (event, first) = generation(&mut parent);
    assert_eq!(event, "0");
    let mut seen = BTreeSet::from([first.clone()]);
    let mut is_new = |guest: &mut Live| {
        let (event, id) = generation(guest);
        assert_eq!(event, "4", "the event of a new generation");
        assert!(seen.insert(id.clone()), "{id} again: {seen:?}");
    };
    for _ in 0..2 {
        let copies = host.ask(&["fork", "parent", "-n", "3"]);
        for id in copies.lines() {
            let mut copy = attach(&host, id);
            is_new(&mut copy);
            drop(copy.kill());
        }
    }
    let saved = host.path().join("saved");
    let saved = saved.to_str().unwrap();
    host.ask(&["snapshot", "parent", saved, "--resume"]);
    for id in ["a", "b", "c"] {
        let mut restored = Live::start(host.command(&["restore", saved, "--id", id]));
        is_new(&mut restored);
        host.ask(&["kill", id]);
        assert_eq!(restored.wait().status, 0);
    }
    for id in host.ask(&["fork", "--from", saved, "-n", "3"]).lines() {
        let mut copy = attach(&host, id);
        is_new(&mut copy);
        drop(copy.kill());
    }
    assert_eq!(seen.len(), 13);
    // Nothing has happened to the first one.
    assert_eq!(generation(&mut parent), ("0".into(), first));
    host.ask(&["kill", "parent"]);
    assert_eq!(parent.wait().status, 0);
}

pub(super) fn goes_on() {
    for options in [&[][..], &["--enable-pci"]] {
        let host = Host::new();
        let _leftovers = Leftovers(&host);
        let mut parent = start(&host, "parent", options, &counting_kernel(), false);
        assert_eq!(parent.count(), 1);
        let printed = host.ask(&["fork", "parent", "-n", "2"]);
        let copies: Vec<_> = printed.lines().collect();
        assert_eq!(copies.len(), 2);
        assert!(copies.iter().all(|id| id.starts_with("parent-")));
        let mut all: BTreeSet<String> = copies.iter().map(ToString::to_string).collect();
        all.insert("parent".into());
        assert_eq!(all.len(), 3);
        assert_eq!(guests(&host), all);
        // Nothing of what they came from is there any more.
        let there = fs::read_dir(host.run_dir()).unwrap();
        let there: BTreeSet<_> = there
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(there, all);

        // Each goes on by itself, and so does the parent.
        for id in &copies {
            let mut copy = attach(&host, id);
            assert_eq!(copy.count(), 2);
            assert_eq!(copy.count(), 3);
            drop(copy.kill());
            host.ask(&["pause", id]);
        }
        assert_eq!(parent.count(), 2);
        host.ask(&["kill", "parent"]);
        assert_eq!(parent.wait().status, 0);

        // A copy has copies too, which have names that were given, and stay paused if they are to.
        let first = copies[0];
        let answer = host.ask_json(&[
            "fork", first, "-n", "2", "--id", "next", "--paused", "--json",
        ]);
        for (number, copy) in answer.as_array().unwrap().iter().enumerate() {
            let id = format!("next-{}", number + 1);
            assert_eq!(copy["id"], id.as_str());
            assert_eq!(host.state(&id), "Paused");
            let command = fs::read(format!("/proc/{}/cmdline", copy["pid"])).unwrap();
            let command = String::from_utf8(command).unwrap();
            assert!(command.starts_with("mote\0restore\0"), "{command}");
            assert!(Path::new(copy["socket"].as_str().unwrap()).exists());
        }
        host.ask(&["resume", "next-2"]);
        let mut next = attach(&host, "next-2");
        assert_eq!(next.count(), 4);
        drop(next.kill());
        assert!(host.ask(&["logs", "next-2"]).is_empty());

        // A guest that is paused stays so.
        assert_eq!(host.ask(&["fork", copies[1], "--id", "awake"]), "awake\n");
        assert_eq!(host.state(copies[1]), "Paused");
        assert_eq!(host.state("awake"), "Running");
        let rest: Vec<_> = guests(&host).into_iter().collect();
        let rest = rest.iter().map(String::as_str);
        host.ask(&[&["kill"], &rest.collect::<Vec<_>>()[..]].concat());
        nothing_left(&host, &["kernel"]);
    }
}

/// As many as are asked for, of a guest in files.
pub(super) fn of_files() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let mut parent = start(&host, "parent", &[], &counting_kernel(), false);
    assert_eq!(parent.count(), 1);
    let saved = host.path().join("saved");
    let saved = saved.to_str().unwrap();
    host.ask(&["snapshot", "parent", saved]);
    host.ask(&["kill", "parent"]);
    // They would all be busy, on the CPUs that there are.
    let printed = host.ask(&[
        "fork", "--from", saved, "-n", "100", "--id", "c", "--paused",
    ]);
    let expected: String = (1..=100).map(|number| format!("c-{number}\n")).collect();
    assert_eq!(printed, expected);
    assert_eq!(guests(&host).len(), 100);
    for id in ["c-1", "c-100"] {
        host.ask(&["resume", id]);
        let mut copy = attach(&host, id);
        assert_eq!(copy.count(), 2);
        drop(copy.kill());
    }
    let ids: Vec<_> = printed.lines().collect();
    host.ask(&[&["kill"], &ids[..]].concat());
    nothing_left(&host, &["kernel", "saved"]);
}

/// A later snapshot of what changed is of what changed since the one before, not since a fork; and one of a copy, whose file
/// nobody has, is whole.
pub(super) fn and_what_changed() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let mut parent = start(&host, "parent", &[], &counting_kernel(), true);
    assert_eq!(parent.count(), 1);
    let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let (base, diff, copied) = (at("base"), at("diff"), at("copied"));
    host.ask(&["snapshot", "parent", &base, "--resume"]);
    assert_eq!(parent.count(), 2);
    host.ask(&["fork", "parent", "--id", "copy"]);
    assert_eq!(parent.count(), 3);
    host.ask(&["snapshot", "parent", &diff, "--diff"]);
    host.ask(&["snapshot", "copy", &copied, "--diff"]);
    host.ask(&["kill", "parent", "copy"]);
    let info = host.ask_json(&["snapshot", "info", &copied, "--json"]);
    assert_eq!(info["base_memory_id"], Value::Null);
    host.ask(&["snapshot", "merge", &base, &diff]);
    for (directory, count) in [(&base, 4), (&copied, 3)] {
        let mut guest = Live::start(host.command(&["restore", directory, "--id", "last"]));
        assert_eq!(guest.count(), count);
        host.ask(&["kill", "last"]);
        assert_eq!(guest.wait().status, 0);
    }
}

/// What only one guest can have: its disk, its ports, its socket.
pub(super) fn devices() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let disk = host.write("disk", [7; 1 << 16]);
    let pmem = host.write("pmem", vec![7; 2 << 20]);
    let vsock = host.path().join("vsock");
    let vsock = vsock.to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let options = [
        "--disk".into(),
        format!("{disk},overlay=temp,id=temporary"),
        "--disk".into(),
        format!("{disk},ro"),
        "--pmem".into(),
        format!("{pmem},ro"),
        "--net".into(),
        format!("user,forward=127.0.0.1:{port}:22"),
        "--vsock".into(),
        format!("3:{vsock}"),
    ];
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let parent = host.run("parent", &idle_kernel(), &options);
    host.ask(&["fork", "parent", "-n", "2", "--id", "copy"]);
    for id in ["copy-1", "copy-2"] {
        let config = host.ask(&["api", "--id", id, "GET", "/vm/config"]);
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["network-interfaces"][0]["backend"], "user");
        assert_eq!(config["network-interfaces"][0].get("forwards"), None);
        let socket = format!("{vsock}-{id}");
        assert_eq!(config["vsock"]["uds_path"], socket.as_str());
        assert!(Path::new(&socket).exists());
    }
    let pattern = format!("{vsock}.{{}}");
    host.ask(&["fork", "copy-1", "-n", "2", "--vsock", &pattern]);
    for number in 1..=2 {
        assert!(Path::new(&format!("{vsock}.{number}")).exists());
    }
    let all = guests(&host);
    assert_eq!(all.len(), 5);
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    host.ask(&[&["kill"], &all[..]].concat());
    assert_eq!(parent.wait().status, 0);
    nothing_left(&host, &["disk", "pmem", "initrd", "parent-kernel"]);
}

/// Asks the guest `counts` for what is refused.
#[track_caller]
fn asked(host: &Host, body: &Value, parts: &[&str]) {
    let body = body.to_string();
    let ended = host.mote(&["api", "--id", "counts", "PUT", "/fork", &body]);
    assert_eq!(ended.status, 22, "{body}: {ended:?}");
    for part in parts {
        assert!(ended.text().contains(part), "no {part:?}: {ended:?}");
    }
}

pub(super) fn refused() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let refused = |arguments: &[&str], parts: &[&str]| {
        let ended = host.mote(arguments);
        assert_eq!(ended.status, 125, "{arguments:?}: {ended:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
        }
    };
    let disk = host.write("disk", [7; 1 << 16]);
    let writes = host.run(
        "writes",
        &idle_kernel(),
        &["--disk", &format!("{disk},id=d")],
    );
    refused(&["fork", "writes"], &["drive 'd'", "overlay=temp"]);
    let pmem = host.write("pmem", vec![7; 2 << 20]);
    let keeps = host.run("keeps", &idle_kernel(), &["--pmem", &pmem]);
    refused(&["fork", "keeps"], &["persistent memory", "read-only"]);
    let mut counts = start(&host, "counts", &[], &counting_kernel(), false);
    for (arguments, parts) in [
        (&["fork"][..], &["ID"][..]),
        (&["fork", "nobody"], &["There is no guest 'nobody'"]),
        (&["fork", "counts", "-n", "0"], &["1..=1000"]),
        (&["fork", "counts", "-n", "1001"], &["1..=1000"]),
        (&["fork", "counts", "--id", "a_b"], &["letters, digits"]),
        (
            &["fork", "counts", "--net", "e=tap1"],
            &["no network interface 'e'"],
        ),
        (
            &["fork", "counts", "-n", "2", "--net", "e=tap1"],
            &["tap of its own"],
        ),
        (&["fork", "counts", "--vsock", "v"], &["no vsock device"]),
        (&["fork", "--from", "nowhere"], &["nowhere", "No such file"]),
    ] {
        refused(arguments, parts);
    }
    for (body, parts) in [
        (json!({"count": 0}), &["`count`"][..]),
        (json!({"count": 1001}), &["`count`"]),
        (json!({"count": -1}), &["`count`"]),
        (json!({"count": 2, "ids": ["a"]}), &["`ids`", "as many"]),
        (json!({"ids": ["a", "a"]}), &["`ids`", "twice"]),
        (json!({"ids": ["../a"]}), &["`ids`", "letters"]),
        (
            json!({"vsock_override": {"uds_path": ""}}),
            &["`vsock_override`", "empty"],
        ),
        (json!({"counts": 1}), &["counts"]),
        (json!([]), &["invalid type"]),
    ] {
        asked(&host, &body, parts);
    }
    // One of the names is taken: none of the others stays.
    let before = guests(&host);
    let body = json!({"ids": ["a", "b", "c", "keeps", "d", "e"]});
    asked(
        &host,
        &body,
        &["The copy 'keeps'", "There is a guest 'keeps' already"],
    );
    assert_eq!(guests(&host), before);
    assert_eq!(counts.count(), 1);
    host.ask(&["kill", "counts", "writes", "keeps"]);
    for guest in [counts, writes, keeps] {
        assert_eq!(guest.wait().status, 0);
    }
    nothing_left(
        &host,
        &[
            "disk",
            "pmem",
            "initrd",
            "kernel",
            "writes-kernel",
            "keeps-kernel",
        ],
    );
    // Before there is a guest there is none to copy.
    let empty = host.vmm("empty", &[]);
    refused(&["fork", "empty"], &["before starting"]);
    kill(empty);
}

/// A monitor that is killed while copies of its guest are begun leaves none that are half there.
pub(super) fn killed() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let mut parent = start(&host, "parent", &[], &counting_kernel(), false);
    assert_eq!(parent.count(), 1);
    let fork = Live::start(host.command(&["fork", "parent", "-n", "100"]));
    until("the first copy", || (guests(&host).len() > 1).then_some(()));
    kill(parent);
    assert_eq!(fork.wait().status, 125);
    until("the end of all", || guests(&host).is_empty().then_some(()));
    nothing_left(&host, &["kernel"]);
}
