//! The console: floods with checksums, every kind of standard input, a terminal as a person has it.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tests::guest;
use tests::monitor::{self, Running, mote, mote_with_input};
use tests::terminal::Session;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_mebibyte_out", a_mebibyte_out),
    ("a_mebibyte_in", a_mebibyte_in),
    ("both_ways_at_once", both_ways_at_once),
    ("a_reader_that_pauses_loses_nothing", a_reader_that_pauses),
    ("standard_input_closed", standard_input_closed),
    ("standard_input_is_a_file", standard_input_is_a_file),
    ("standard_input_ends", standard_input_ends),
    ("standard_output_closed", standard_output_closed),
    ("console_off", console_off),
    ("a_shell_on_a_terminal", a_shell_on_a_terminal),
    ("keys_of_mote", keys_of_mote),
    ("power_button", power_button),
    ("quitting_restores_the_terminal", quitting),
    ("a_signal_restores_the_terminal", signals),
    ("an_error_leaves_the_terminal_alone", errors),
];

pub(crate) const MEBIBYTE: usize = 1 << 20;

/// Printable noise without line ends, which terminals change.
pub(crate) fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'!' + (state >> 24) as u8 % 94
        })
        .collect()
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A program for the guest that prints so many bytes, a multiple of 4, between marks, and before that
/// their checksum.
pub(crate) fn print(bytes: usize) -> String {
    let random = bytes / 4 * 3;
    format!(
        "stty raw -echo; head -c {random} /dev/urandom | base64 -w 0 >/tmp/noise
         sha256sum </tmp/noise; echo BEGIN; cat /tmp/noise; echo; echo END"
    )
}

/// Finds what [`print`] printed, and fails unless it arrived as it was sent.
#[track_caller]
pub(crate) fn check_printed(output: &str, bytes: usize) {
    let (head, rest) = output.split_once("BEGIN\n").unwrap();
    let (printed, _) = rest.split_once("\nEND\n").unwrap();
    assert_eq!(printed.len(), bytes);
    assert!(
        head.contains(&hash(printed.as_bytes())),
        "the checksum differs"
    );
}

fn a_mebibyte_out() {
    check_printed(&guest::run(&[], &print(MEBIBYTE)), MEBIBYTE);
}

/// Reads so much from a raw terminal and prints the checksum.
pub(crate) const COUNT: &str = "stty raw -echo crtscts; echo READY; head -c 1048576 | sha256sum";

/// Runs a script that says when its terminal is raw, and types `input` then: a terminal that waits
/// for the end of a line drops what does not fit into one.
pub(crate) fn type_when_ready(console: &str, script: &str, input: &[u8]) -> monitor::Ended {
    const TYPE: &str = r#"
        { until grep -q READY printed; do sleep 0.2; done; cat typed; } |
            "$0" run --console "$2" -- sh -c "$1" >printed
        status=$?; cat printed; exit $status"#;
    let directory = TempDir::new().unwrap();
    fs::write(directory.as_path().join("typed"), input).unwrap();
    File::create(directory.as_path().join("printed")).unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg(TYPE).arg(monitor::path());
    command.arg(script).arg(console);
    command.current_dir(directory.as_path());
    Running::start(command).wait()
}

fn a_mebibyte_in() {
    let input = noise(1, MEBIBYTE);
    let ended = type_when_ready("serial", COUNT, &input).expect_status(0);
    assert!(ended.text().contains(&hash(&input)), "{ended:#?}");
}

/// Each way alone has moved a mebibyte. A byte takes a few exits, and the driver serves its receiver
/// first: a quarter is long enough for both to get in each other's way.
fn both_ways_at_once() {
    const BYTES: usize = MEBIBYTE / 4;
    let input = noise(2, BYTES);
    let print = print(BYTES);
    // In the background a shell without job control reads from /dev/null, unless told otherwise.
    let script = format!(
        "stty raw -echo crtscts; head -c {BYTES} </dev/ttyS0 >/tmp/in & echo READY; {print}
         wait; sha256sum </tmp/in"
    );
    let ended = type_when_ready("serial", &script, &input).expect_status(0);
    check_printed(&ended.text(), BYTES);
    assert!(ended.text().contains(&hash(&input)));
}

fn a_reader_that_pauses() {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(r#""$0" run -- sh -c "$1" </dev/null | { sleep 4; cat; }"#)
        .arg(monitor::path())
        .arg(print(MEBIBYTE));
    let ended = Running::start(command).wait().expect_status(0);
    check_printed(&ended.text(), MEBIBYTE);
}

fn shell(line: &str) -> monitor::Ended {
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(monitor::path());
    Running::start(command).wait()
}

fn standard_input_closed() {
    for redirection in ["<&-", "</dev/null"] {
        let ended = shell(&format!(r#""$0" run -- echo fine {redirection}"#)).expect_status(0);
        assert!(ended.text().contains("fine\n"), "{ended:#?}");
    }
}

fn standard_input_is_a_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("typed");
    fs::write(&path, "echo $((6 * 7)) from a file\nexit\n").unwrap();
    let mut command = Command::new(monitor::path());
    command.arg("run").stdin(File::open(path).unwrap());
    let ended = Running::start(command).wait().expect_status(0);
    assert!(ended.text().contains("\n42 from a file\n"), "{ended:#?}");
}

/// The end of what is piped in is not the end of the guest.
fn standard_input_ends() {
    let ended =
        mote_with_input(["run"], b"sleep 1; echo still $((40 + 2)); exit\n").expect_status(0);
    assert!(ended.text().contains("\nstill 42\n"), "{ended:#?}");
}

fn standard_output_closed() {
    shell(r#""$0" run -- seq 1000 >&-"#).expect_status(0);
    // A reader that goes away: the guest runs to its end.
    shell(r#""$0" run -- seq 20000 </dev/null | head -n 1"#).expect_status(0);
}

fn console_off() {
    let ended = mote(["run", "--console", "off", "--", "true"]).expect_status(0);
    assert_eq!(ended.stdout, b"");
    assert_eq!(ended.stderr, "");
}

fn a_shell_on_a_terminal() {
    use_shell("serial");
}

/// All that a person does at a shell.
pub(crate) fn use_shell(console: &str) {
    let mut session = Session::mote(&["run", "--console", console]);
    session.expect("~ # ");
    assert!(session.is_raw());
    session.type_in("echo $((6 * 7)) answers\r");
    session.expect("\n42 answers");
    // Corrected while typing.
    session.type_in("ech0 wrong\x7f\x7f\x7f\x7f\x7f\x7f\x7fo right $((1 + 1))\r");
    session.expect("\nright 2");
    // Ctrl-C ends what runs in the guest, and nothing else.
    session.expect("~ # ");
    session.type_in("sh -c 'echo it $((1 + 1)); sleep 1000'\r");
    session.expect("\nit 2");
    session.type_in("\x03");
    session.expect("~ # ");
    session.type_in("echo back again $((2 + 2))\r");
    session.expect("\nback again 4");
    // A paste of many lines.
    for line in 0..200 {
        session.type_in(&format!("x{line}=paste_{line}\r"));
    }
    session.type_in("echo $x0 $x77 $x199 $((3 + 3))\r");
    session.expect("\npaste_0 paste_77 paste_199 6");
    // Ctrl-D leaves the shell, and with it the guest. Typed before the shell reads keys, it is the
    // end of an empty line to the guest's terminal, and the shell never sees it.
    session.expect("~ # ");
    session.type_in("\x04");
    session.expect_end(0);
}

fn keys_of_mote() {
    let mut session = Session::mote(&["run"]);
    session.expect("~ # ");
    session.type_in("\x01h");
    session.expect("Ctrl-A x");
    // Twice for the guest: the shell's key for the beginning of the line.
    session.type_in("cho one $((1 + 1))\x01\x01e\r");
    session.expect("\none 2");
    session.type_in("\x01x");
    session.expect_end(0);
}

fn power_button() {
    // Linux takes its virtio devices away before it says so: on hvc0 nobody sees it.
    for (console, last_words) in [("serial", "reboot: Power down"), ("virtio", "")] {
        let mut session = Session::mote(&["run", "--console", console]);
        session.expect("~ # ");
        session.type_in("\x01p");
        session.expect(last_words);
        session.expect_end(0);
    }
}

fn quitting() {
    let mut session = Session::mote(&["run", "--", "yes"]);
    session.expect("y\r\ny\r\n");
    session.type_in("\x01x");
    session.expect_end(0);
}

fn signals() {
    for (signal, status) in [
        (Signal::TERM, 143),
        (Signal::INT, 130),
        (Signal::HUP, 129),
        (Signal::ABORT, 134),
    ] {
        let mut session = Session::mote(&["run"]);
        session.expect("~ # ");
        assert!(session.is_raw());
        session.signal(signal);
        session.expect_end(status);
    }
}

fn errors() {
    let session = Session::mote(&["run", "--kernel", "/nonexistent"]);
    session.expect_end(125);
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("kernel");
    File::create(&path).unwrap().write_all(b"\x7fELF").unwrap();
    Session::mote(&["run", "--kernel", path.to_str().unwrap()]).expect_end(125);
}
