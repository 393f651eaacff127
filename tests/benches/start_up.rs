//! How long `mote run` takes, from exec on, as another process sees it.
//!
//! ```text
//! cargo bench -p tests --bench start_up -- [tiny|api|reboot]... [--rounds N] [--memory SIZE]
//!     [--option ARGUMENT]...
//! ```
//! - `tiny`: an ELF kernel of a few instructions. The first one writes to the boot timer's port, the
//!   next ones reset the machine. "first" is when mote's line about the mark arrives here, "exit" when
//!   its exit status does.
//! - `api`: `mote vmm`. "connected" is when its socket takes a connection, "answered" when `GET /` has been
//!   answered there, both from exec on.
//! - `reboot`: the tuned Linux kernel and an initial RAM disk whose only program restarts the machine
//!   at once, without a console.
//!
//! Options are mote's, for the `reboot` row: `--option --pci --option --disk=PATH`.
//!
//! A process that does nothing is timed beside them: what exec and exit cost on this host.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use tests::times::FEW;
use tests::{executable, guest, monitor};
use vmm_sys_util::tempdir::TempDir;

fn main() {
    let mut rounds = 50;
    let mut memory = "128m".to_owned();
    let mut options = Vec::new();
    let mut rows = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => memory = arguments.next().unwrap(),
            "--option" => options.push(arguments.next().unwrap()),
            "--bench" => {}
            row => rows.push(row.to_owned()),
        }
    }
    if rows.is_empty() {
        rows.extend(["tiny".to_owned(), "api".to_owned()]);
        if monitor::can_boot_linux().is_ok() {
            rows.push("reboot".to_owned());
        }
    }
    let directory = TempDir::new().unwrap();
    FEW.head(rounds, "rounds");
    let nothing = write(directory.as_path(), "nothing", &executable::nothing());
    measure("exec and exit", rounds, || Command::new(&nothing));
    for row in &rows {
        match row.as_str() {
            "tiny" => {
                let kernel = write(directory.as_path(), "tiny", &executable::tiny_kernel());
                measure("tiny guest", rounds, || {
                    let mut command = Command::new(monitor::path());
                    command.args(["run", "--boot-timer", "--memory", &memory, "--kernel"]);
                    command.arg(&kernel).arg("--initrd").arg(&nothing);
                    command
                });
            }
            "api" => measure_api(&directory.as_path().join("api"), rounds),
            "reboot" => {
                let initrd = directory.as_path().join("initrd");
                fs::write(&initrd, guest::initrd_of_program(&executable::reboot())).unwrap();
                let kernel = guest::tuned_kernel().join("vmlinux");
                measure("Linux to restart", rounds, || {
                    let mut command = Command::new(monitor::path());
                    command.args(["run", "--console", "off", "--memory", &memory, "--kernel"]);
                    command.arg(&kernel).arg("--initrd").arg(&initrd);
                    command.args(&options);
                    command
                });
            }
            other => panic!("there is no row {other:?}"),
        }
    }
}

fn write(directory: &Path, name: &str, contents: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs a command so many times and prints when its first output and its exit status came.
fn measure(name: &str, rounds: usize, command: impl Fn() -> Command) {
    let mut firsts = Vec::new();
    let mut exits = Vec::new();
    for round in 0..rounds + 2 {
        let mut command = command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut byte = [0];
        let mut stderr = child.stderr.take().unwrap();
        let printed = stderr.read(&mut byte).unwrap() == 1;
        let first = start.elapsed();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let status = child.wait().unwrap();
        let exit = start.elapsed();
        assert!(status.success(), "{name}: {status}: {rest}");
        // The first rounds fill caches.
        if round >= 2 {
            exits.push(exit);
            if printed {
                firsts.push(first);
            }
        }
    }
    if !firsts.is_empty() {
        FEW.row(&format!("{name}, first"), firsts);
    }
    FEW.row(&format!("{name}, exit"), exits);
}

/// Starts monitors that wait for API calls, so many times.
fn measure_api(socket: &Path, rounds: usize) {
    let mut connected = Vec::new();
    let mut answered = Vec::new();
    for round in 0..rounds + 2 {
        let start = Instant::now();
        let mut child = Command::new(monitor::path())
            .args(["vmm", "--api-sock"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) => assert!(child.try_wait().unwrap().is_none(), "it ended"),
            }
        };
        let connection = start.elapsed();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        let first = start.elapsed();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
        if round >= 2 {
            connected.push(connection);
            answered.push(first);
        }
    }
    FEW.row("mote vmm, connected", connected);
    FEW.row("mote vmm, answered", answered);
}
