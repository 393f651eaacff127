//! Consoles that lead elsewhere than to standard input and output: files that rotate, pseudo-terminals.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use tests::DEADLINE;
use tests::guest;
use tests::monitor::{self, Running, mote};
use tests::terminal::Session;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;
use crate::console::{check_printed, print};

pub(crate) const CASES: &[Case] = &[
    ("a_file_is_appended_to", a_file_is_appended_to),
    ("files_rotate", files_rotate),
    ("a_pty_is_left_and_come_back_to", a_pty),
    ("the_command_line_says_which", the_command_line_says_which),
];

const KINDS: [&str; 2] = ["virtio", "serial"];

fn a_file_is_appended_to() {
    const SCRIPT: &str = "echo $((6 * 7)) logged";
    for kind in KINDS {
        let directory = TempDir::new().unwrap();
        let log = directory.as_path().join("log");
        fs::write(&log, "from before\n").unwrap();
        let console = format!("{kind},file={}", log.display());
        let ended = mote(["run", "--console", &console, "--", "sh", "-c", SCRIPT]);
        let ended = ended.expect_status(0);
        assert_eq!(ended.stdout, b"", "{ended:#?}");
        let logged = fs::read_to_string(&log).unwrap();
        assert!(logged.starts_with("from before\n"), "{logged}");
        assert!(logged.contains("42 logged\r\n"), "{logged}");
    }
}

/// Nothing is lost between one file and the next.
fn files_rotate() {
    const BYTES: usize = 24 << 10;
    for kind in KINDS {
        let directory = TempDir::new().unwrap();
        let log = directory.as_path().join("log");
        let print_into = |keep: u32| {
            let console = format!("{kind},file={},max-size=8k,keep={keep}", log.display());
            let script = print(BYTES);
            mote(["run", "--console", &console, "--", "sh", "-c", &script]).expect_status(0);
        };
        print_into(9);
        let mut all = String::new();
        let mut count = 0;
        for number in (1..=9).rev() {
            if let Ok(part) = fs::read_to_string(log.with_extension(number.to_string())) {
                assert!(part.len() <= 8 << 10, "{}", part.len());
                all += &part;
                count += 1;
            }
        }
        all += &fs::read_to_string(&log).unwrap();
        assert!(count >= 3, "{count} old files");
        check_printed(&all.replace('\r', ""), BYTES);
        // With fewer kept, the oldest are gone.
        print_into(2);
        assert!(log.with_extension("2").exists());
        assert!(fs::metadata(&log).unwrap().len() <= 8 << 10);
    }
}

fn a_pty() {
    for kind in KINDS {
        let mut command = Command::new(monitor::path());
        command
            .args(["run", "--console", &format!("{kind},pty")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let path = line.trim_end().strip_prefix("mote: console on ").unwrap();
        // As a terminal of this process's own it would end it.
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOCTTY.bits().cast_signed())
                .open(path)
                .unwrap()
        };
        // What was printed before anyone looked is there.
        let mut person = open();
        read_until(&mut person, "~ # ");
        person.write_all(b"x=$((6 * 7)); echo has $x\r").unwrap();
        read_until(&mut person, "\nhas 42");
        drop(person);
        let mut person = open();
        person.write_all(b"echo still $x\r").unwrap();
        read_until(&mut person, "\nstill 42");
        person.write_all(b"exit\r").unwrap();
        assert!(monitor::wait(&mut child).unwrap().success());
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        let mut stdout = String::new();
        child.stdout.unwrap().read_to_string(&mut stdout).unwrap();
        assert_eq!(stdout, "");
    }
}

fn read_until(from: &mut File, text: &str) {
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let mut fds = [PollFd::new(&*from, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&deadline)).unwrap();
        assert!(ready > 0, "no {text:?} in {seen:?}");
        let count = from.read(&mut buffer).unwrap();
        assert!(count > 0, "no {text:?} in {seen:?}");
        seen += &String::from_utf8_lossy(&buffer[..count]);
    }
}

/// Without `--console`, a terminal gets hvc0 and anything else ttyS0, and a command line that names a
/// console gets that.
fn the_command_line_says_which() {
    let guest_tty = |arguments: &[&str]| guest::run(arguments, "tty");
    assert!(guest_tty(&[]).contains("/dev/ttyS0\n"));
    assert!(guest_tty(&["--append", "console=hvc0"]).contains("/dev/hvc0\n"));
    for (arguments, device) in [
        (&["run", "--", "tty"][..], "/dev/hvc0"),
        (
            &["run", "--append", "console=ttyS0", "--", "tty"],
            "/dev/ttyS0",
        ),
    ] {
        let mut session = Session::mote(arguments);
        session.expect(device);
        session.expect_end(0);
    }
    let kernel = guest::tuned_kernel().join("vmlinux");
    let mut command = Command::new(monitor::path());
    command
        .args(["run", "--kernel"])
        .arg(kernel)
        .args(["--", "tty"]);
    command.stdin(Stdio::null());
    let ended = Running::start(command).wait().expect_status(0);
    assert!(ended.text().contains("/dev/ttyS0\n"), "{ended:#?}");
}
