//! How a guest ends, and what mote's exit status says.

use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use tests::guest;
use tests::live::Live;
use tests::monitor::{self, Ended, Running, mote};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("power_off", power_off),
    ("halting_the_first_process_powers_off", first_process_ends),
    ("reboot_by_keyboard_controller", || reboot("k")),
    ("reboot_by_acpi", || reboot("a")),
    ("reboot_by_triple_fault", reboot_by_triple_fault),
    ("panic", panic),
    ("panic_without_acpi", panic_without_acpi),
    ("timeout", timeout),
    ("sigterm", || signal(Signal::TERM, 143)),
    ("sigint", || signal(Signal::INT, 130)),
    ("sighup", || signal(Signal::HUP, 129)),
    ("sigterm_while_the_guest_floods", signal_in_flood),
];

/// Boots the init script on an initial RAM disk of its own.
fn boot(append: &str, init: &str) -> Ended {
    let directory = TempDir::new().unwrap();
    let initrd = guest::initrd(directory.as_path(), init);
    mote([
        "run",
        "--initrd",
        initrd.to_str().unwrap(),
        "--append",
        append,
    ])
}

fn power_off() {
    for command in ["poweroff", "poweroff -f", "halt", "kill -USR2 1"] {
        let ended =
            mote(["run", "--", "sh", "-c", &format!("{command}; sleep 100")]).expect_status(0);
        assert_eq!(ended.stderr, "", "{command}");
    }
}

fn first_process_ends() {
    let ended = mote(["run", "--", "true"]).expect_status(0);
    assert_eq!(ended.stderr, "");
}

fn reboot(how: &str) {
    let ended = boot(&format!("reboot={how}"), "/bin/busybox reboot -f").expect_status(0);
    assert!(ended.text().contains("Restarting system"), "{ended:#?}");
    assert_eq!(ended.stderr, "");
    mote(["run", "--", "sh", "-c", "reboot; sleep 100"]).expect_status(0);
}

fn reboot_by_triple_fault() {
    let ended = boot("reboot=t", "/bin/busybox reboot -f");
    assert_eq!(
        ended.stderr,
        "mote: the guest crashed: triple fault on vCPU 0\n"
    );
    ended.expect_status(134);
}

fn panic() {
    let ended = boot("", "exit 1");
    assert!(
        ended
            .text()
            .contains("Kernel panic - not syncing: Attempted to kill init")
    );
    ended.expect_error(134, &["mote: the guest crashed: kernel panic"]);
}

/// There is no pvpanic device to report it: it is found on the console.
fn panic_without_acpi() {
    let ended = boot("acpi=off", "exit 1");
    assert!(ended.text().contains("Kernel panic - not syncing"));
    ended.expect_error(134, &["mote: the guest crashed: kernel panic"]);
}

fn timeout() {
    mote(["run", "--timeout", "1500ms", "--", "sleep", "1000"])
        .expect_error(124, &["it did not end within --timeout"]);
}

/// A guest that says when it is up and then stays.
fn start(script: &str) -> (Running, TempDir) {
    let directory = TempDir::new().unwrap();
    let mut command = Command::new(monitor::path());
    command
        .args(["run", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .current_dir(directory.as_path());
    (Running::start(command), directory)
}

fn signal(signal: Signal, status: i32) {
    let (running, directory) = start("sleep 1000");
    // Before or after the guest is up: it ends either way.
    std::thread::sleep(std::time::Duration::from_secs(1));
    running.signal(signal);
    running
        .wait()
        .expect_error(status, &["the guest was stopped by signal"]);
    assert!(monitor::files(directory.as_path()).is_empty());
}

fn signal_in_flood() {
    let mut command = Command::new(monitor::path());
    command.args(["run", "--", "yes", "flood"]);
    let mut live = Live::start(command);
    // More often than a kernel says what it was started with.
    for _ in 0..100 {
        live.expect("flood");
    }
    kill_process(live.pid(), Signal::TERM).unwrap();
    let ended = live.wait().expect_status(143);
    assert!(ended.text().contains("flood\nflood\nflood\n"));
}
