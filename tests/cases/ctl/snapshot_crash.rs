//! Snapshots that do not come to be: what was there before still is, and nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, kill_process, prlimit};
use tests::ctl::{Host, kill};
use tests::executable::counting_kernel;
use tests::live::Live;
use tests::monitor;

use super::snapshot::start;

/// How often something is killed, each time somewhat later. A guest counts to 9.
const ROUNDS: u32 = 6;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The state file and one memory file, and what guests have noted beside that, or were about to when they were killed.
#[track_caller]
pub(super) fn expect_tidy(directory: &Path) {
    let mut names = names(directory);
    names.retain(|name| !name.contains(".pages") && !name.contains(".restored"));
    let [memory, state] = &names[..] else {
        panic!("{names:?}");
    };
    assert!(
        memory.starts_with("memory-") && state == "state",
        "{names:?}"
    );
}

/// The count of a copy that is restored from a directory.
#[track_caller]
fn count_of(host: &Host, directory: &str) -> u64 {
    let mut copy = Live::start(host.command(&["restore", directory, "--id", "copy"]));
    let count = copy.count();
    kill(copy);
    count
}

/// Starts a command and kills it after a time, if it is still there.
fn killed(mut command: Command, after: Duration) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(after);
    let _ = child.kill();
    child.wait().unwrap();
}

pub(super) fn create() {
    let host = Host::new();
    let saved = host.path().join("saved");
    let directory = saved.to_str().unwrap();
    let mut first = start(&host, "first", &[], &counting_kernel(), true);
    assert_eq!(first.count(), 1);
    host.ask(&["snapshot", "first", directory]);
    host.ask(&["kill", "first"]);
    let mut last = 2;
    for round in 0..ROUNDS {
        let id = format!("guest-{round}");
        let mut guest = Live::start(host.command(&["restore", directory, "--id", &id]));
        let count = guest.count();
        // What was there, or what was being written.
        assert!(count == last || count == last + 1, "{count} {last}");
        last = count;
        let options: &[&str] = if round % 2 == 0 { &["--resume"] } else { &[] };
        let mut command = host.command(&[&["snapshot", &id, directory], options].concat());
        let mut client = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(u64::from(round) * 10));
        kill(guest);
        client.wait().unwrap();
    }
    let count = count_of(&host, directory);
    assert!(count == last || count == last + 1, "{count} {last}");
    // Whoever writes next leaves nothing of that.
    let mut guest = Live::start(host.command(&["restore", directory, "--id", "guest"]));
    assert_eq!(guest.count(), count);
    host.ask(&["snapshot", "guest", directory]);
    host.ask(&["kill", "guest"]);
    expect_tidy(&saved);
    assert_eq!(count_of(&host, directory), count + 1);
}

pub(super) fn merge() {
    let host = Host::new();
    let saved = host.path().join("saved");
    let directory = saved.to_str().unwrap();
    let diff = host.path().join("diff");
    let diff = diff.to_str().unwrap();
    let mut first = start(&host, "first", &[], &counting_kernel(), true);
    let mut count = first.count();
    host.ask(&["snapshot", "first", directory, "--resume"]);
    for round in 0..ROUNDS {
        count = first.count();
        host.ask(&["snapshot", "first", diff, "--diff", "--resume"]);
        let command = host.command(&["snapshot", "merge", directory, diff]);
        killed(command, Duration::from_millis(u64::from(round) * 5));
        // What was there, or what has become of it.
        let found = count_of(&host, directory);
        assert!(found == count || found == count + 1, "{found} {count}");
        if found == count {
            host.ask(&["snapshot", "merge", directory, diff]);
            assert_eq!(count_of(&host, directory), count + 1);
        }
        fs::remove_dir_all(diff).unwrap();
    }
    host.ask(&["snapshot", "first", diff, "--diff"]);
    host.ask(&["snapshot", "merge", directory, diff]);
    expect_tidy(&saved);
    assert_eq!(count_of(&host, directory), count + 1);
    host.ask(&["kill", "first"]);
}

fn limit(pid: Pid, bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit).unwrap();
}

/// Nothing that was to be written is lost, and the guest goes on.
pub(super) fn full() {
    let host = Host::new();
    let saved = host.path().join("saved");
    let directory = saved.to_str().unwrap();
    let [one, two] = ["one", "two"].map(|name| host.path().join(name));
    let [one_name, two_name] = [&one, &two].map(|path| path.to_str().unwrap());
    let mut first = start(&host, "first", &[], &counting_kernel(), true);
    assert_eq!(first.count(), 1);
    host.ask(&["snapshot", "first", directory, "--resume"]);
    assert_eq!(first.count(), 2);
    let before = names(&saved);
    // There is no room for all of memory, or for any.
    for bytes in [64 << 20, 100] {
        limit(first.pid(), Some(bytes));
        for arguments in [
            &["snapshot", "first", directory, "--resume"][..],
            &["snapshot", "first", directory],
            &["snapshot", "first", one_name, "--diff", "--resume"],
        ] {
            let ended = host.mote(arguments);
            assert_eq!(ended.status, 125, "{arguments:?}: {ended:?}");
            assert!(ended.stderr.contains("File too large"), "{ended:?}");
            assert_eq!(host.state("first"), "Running");
        }
        assert_eq!(names(&saved), before);
        assert!(!one.exists());
    }
    limit(first.pid(), None);
    assert_eq!(count_of(&host, directory), 2);
    host.ask(&["snapshot", "first", one_name, "--diff", "--resume"]);
    assert_eq!(first.count(), 3);
    host.ask(&["snapshot", "first", two_name, "--diff"]);
    host.ask(&["kill", "first"]);
    host.ask(&["snapshot", "merge", directory, one_name]);
    assert_eq!(count_of(&host, directory), 3);
    // Nor has the merge.
    let mut command = Command::new("prlimit");
    command.args(["--fsize=1048576", "--"]);
    command.arg(monitor::path());
    command.args(["snapshot", "merge", directory, two_name]);
    let ended = monitor::Running::start(command).wait();
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("File too large"), "{ended:?}");
    expect_tidy(&saved);
    assert_eq!(count_of(&host, directory), 3);
    host.ask(&["snapshot", "merge", directory, two_name]);
    assert_eq!(count_of(&host, directory), 4);
}

/// Without the right to write wherever one likes, which root has.
pub(super) fn without_rights(command: &Command) -> Command {
    if !geteuid().is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    }
    let mut limited = Command::new("setpriv");
    limited.args(["--bounding-set=-dac_override", "--"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

pub(super) fn read_only() {
    let host = Host::new();
    let run = host.path().join("run");
    let saved = host.path().join("saved");
    let directory = saved.to_str().unwrap();
    let diff = host.path().join("diff");
    let diff = diff.to_str().unwrap();
    let mut first = start(&host, "first", &[], &counting_kernel(), true);
    assert_eq!(first.count(), 1);
    host.ask(&["snapshot", "first", directory, "--resume"]);
    assert_eq!(first.count(), 2);
    host.ask(&["snapshot", "first", diff, "--diff"]);
    kill_process(first.pid(), Signal::TERM).unwrap();
    assert_eq!(first.wait().status, 143);

    let limited = |arguments: &[&str]| {
        let mut command = without_rights(&host.command(arguments));
        command.env("XDG_RUNTIME_DIR", &run);
        command
    };
    let before = names(&saved);
    fs::set_permissions(&saved, Permissions::from_mode(0o500)).unwrap();
    let mut second = Live::start(limited(&["restore", directory, "--id", "second"]));
    assert_eq!(second.count(), 2);
    let ended = host.mote(&["snapshot", "second", directory]);
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("Permission denied"), "{ended:?}");
    assert_eq!(second.count(), 3);
    let ended = monitor::Running::start(limited(&["snapshot", "merge", directory, diff])).wait();
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("Permission denied"), "{ended:?}");
    assert_eq!(names(&saved), before);
    kill(second);
    assert_eq!(count_of(&host, directory), 2);
    fs::set_permissions(&saved, Permissions::from_mode(0o700)).unwrap();
    host.ask(&["snapshot", "merge", directory, diff]);
    assert_eq!(count_of(&host, directory), 3);
}
