//! The `mote` binary as a process.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::DEADLINE;
use crate::process::Process;

/// How often a process is looked at while it is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The binary under test: `$MOTE`, else the one that cargo built beside this test.
pub fn path() -> PathBuf {
    if let Some(path) = env::var_os("MOTE") {
        // Some run it in another directory.
        return std::path::absolute(path).unwrap();
    }
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("mote");
    assert!(
        path.exists(),
        "there is no {path:?}: run `cargo build` first, or set MOTE"
    );
    path
}

/// How a process ended.
pub struct Ended {
    /// Exit status, or 128 and the signal that ended it, as a shell has it.
    pub status: i32,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stderr, .. } = self;
        let text = shortened(&self.text());
        let stderr = shortened(stderr);
        write!(
            f,
            "status {status}\n--- stdout ---\n{text}\n--- stderr ---\n{stderr}\n---"
        )
    }
}

/// The beginning and the end of what may be megabytes.
fn shortened(text: &str) -> String {
    const PART: usize = 2000;
    let characters = text.chars().count();
    if characters <= 2 * PART {
        return text.to_owned();
    }
    let head: String = text.chars().take(PART).collect();
    let tail: String = text.chars().skip(characters - PART).collect();
    let left_out = characters - 2 * PART;
    format!("{head}\n[… {left_out} characters …]\n{tail}")
}

impl Ended {
    /// Standard output as text with the line ends of Unix.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).replace("\r\n", "\n")
    }

    /// Fails unless the exit status is this.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    /// Fails unless all of these are in standard error, which is one line.
    #[track_caller]
    pub fn expect_error(self, status: i32, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:#?}");
        }
        assert!(self.stderr.starts_with("mote: "), "{self:#?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:#?}");
        self.expect_status(status);
    }
}

/// A process that is running, with its output collected.
pub struct Running {
    child: Process,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

/// Runs mote without input.
pub fn mote<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    mote_with_input(arguments, &[])
}

/// Runs mote with this on a pipe as its standard input.
pub fn mote_with_input<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
) -> Ended {
    let mut command = Command::new(path());
    command.args(arguments).stdin(Stdio::piped());
    let mut running = Running::start(command);
    let mut stdin = running.child.stdin.take().unwrap();
    let input = input.to_vec();
    // Mote may end before it has read all of it.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let ended = running.wait();
    writer.join().unwrap();
    ended
}

impl Running {
    /// Starts a command with its output captured.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Self {
            child: Process(child),
            stdout,
            stderr,
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Its number.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = wait(&mut self.child);
        let ended = Ended {
            status: status.map_or(-1, exit_code),
            stdout: self.stdout.join().unwrap(),
            stderr: String::from_utf8_lossy(&self.stderr.join().unwrap()).into_owned(),
        };
        assert!(status.is_some(), "it hangs: {ended:#?}");
        ended
    }
}

/// The exit status as a shell has it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Waits for a process; kills one that does not end.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Whether `mote doctor` says that Linux guests can boot here; otherwise what it says.
pub fn can_boot_linux() -> Result<(), String> {
    let ended = mote(["doctor"]);
    if ended.status == 0 {
        return Ok(());
    }
    let text = ended.text();
    let fatal = text.lines().find(|line| line.starts_with("fatal"));
    Err(fatal.unwrap_or(&ended.stderr).to_owned())
}

/// The files of a directory, for a look at what was left behind.
pub fn files(directory: impl AsRef<std::path::Path>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
