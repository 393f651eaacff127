//! Guests that are talked to while they run.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::monitor::{self, Ended};
use crate::process::Process;
use crate::{DEADLINE, guest};

/// A guest with its console on pipes.
pub struct Live {
    child: Process,
    stdin: ChildStdin,
    lines: Receiver<String>,
    stderr: JoinHandle<String>,
    /// Everything that was printed so far.
    seen: String,
}

impl Live {
    /// Starts mote with a [`guest::probing`] guest of this script, and these options.
    pub fn probing<S: AsRef<OsStr>>(directory: &Path, options: &[S], script: &str) -> Self {
        let mut command = Command::new(monitor::path());
        command.arg("run").args(options);
        command
            .arg("--initrd")
            .arg(guest::probing(directory, script));
        Self::start(command)
    }

    /// Starts a command.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            // What is no text is seen as missing.
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self {
            child: Process(child),
            stdin,
            lines,
            stderr,
            seen: String::new(),
        }
    }

    /// Waits for a line with this in it, after those that were waited for before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.next_line(text, deadline);
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The same, and returns the lines before that one, without the kernel's.
    #[track_caller]
    pub fn expect_output(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut output = String::new();
        loop {
            let line = self.next_line(text, deadline) + "\n";
            if line.contains(text) {
                return output;
            }
            if !guest::is_kernel_message(&line) {
                output.push_str(&line);
            }
        }
    }

    #[track_caller]
    fn next_line(&mut self, awaited: &str, deadline: Instant) -> String {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.seen.push_str(&line);
                self.seen.push('\n');
                line
            }
            Err(error) => {
                let what = match error {
                    RecvTimeoutError::Timeout => "it hangs",
                    RecvTimeoutError::Disconnected => "it ended",
                };
                self.give_up(&format!("no {awaited:?}, {what}"))
            }
        }
    }

    /// Says all that it has said, and leaves no process behind.
    #[track_caller]
    fn give_up(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = std::mem::replace(&mut self.stderr, thread::spawn(String::new));
        let stderr = stderr.join().unwrap_or_default();
        self.seen
            .extend(self.lines.try_iter().map(|line| line + "\n"));
        panic!("{why}: {}{stderr}", self.seen);
    }

    /// Types a line.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        if let Err(error) = self.stdin.write_all(format!("{line}\n").as_bytes()) {
            self.give_up(&format!("cannot type {line:?}, {error}"));
        }
    }

    /// Types a line at a [`counting_kernel`](crate::executable::counting_kernel), and waits for its count of lines.
    #[track_caller]
    pub fn count(&mut self) -> u64 {
        self.send("");
        let line = self.expect("=");
        let (_, count) = line.split_once('=').unwrap();
        count.parse().unwrap()
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The names of its threads. One that ends meanwhile has none.
    pub fn threads(&self) -> Vec<String> {
        crate::driven::threads(self.pid())
    }

    /// What it has in memory, in bytes, the guest's included.
    pub fn resident(&self) -> u64 {
        resident(self.pid())
    }

    /// Ends it the hard way, and returns all that was printed.
    pub fn kill(mut self) -> String {
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.wait().unwrap();
        self.seen.extend(self.lines.iter().map(|line| line + "\n"));
        self.seen
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        drop(self.stdin);
        let status = monitor::wait(&mut self.child);
        self.seen.extend(self.lines.iter().map(|line| line + "\n"));
        let ended = Ended {
            status: status.map_or(-1, monitor::exit_code),
            stdout: self.seen.into_bytes(),
            stderr: self.stderr.join().unwrap(),
        };
        assert!(status.is_some(), "it hangs: {ended:#?}");
        ended
    }

    /// Waits for the end of a [`guest::probing`] guest; fails unless all went well in it.
    #[track_caller]
    pub fn wait_for_success(self) -> String {
        guest::expect_success(&self.wait())
    }
}

/// What a process has in memory, in bytes.
pub fn resident(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Stops a process, and returns when each of its threads stands still: a signal only begins that.
pub fn stop(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let stands_still = |task: fs::DirEntry| {
        // One that has ended meanwhile does as well. A name has brackets around it, and the state is behind.
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.is_empty()
            || stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
    };
    let deadline = Instant::now() + DEADLINE;
    while !fs::read_dir(&tasks).unwrap().flatten().all(stands_still) {
        assert!(Instant::now() < deadline, "{process:?} goes on");
    }
}
