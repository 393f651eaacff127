//! A process as it is watched: what it prints and when, its status, and when all that it has started is gone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::cgroup::{Group, is_populated};
use super::output::{Expected, Output, last_line};
use super::requests::{self, HttpRequest};
use super::spawn::{Child, Program, spawn};
use crate::record::Milestones;

/// How much is kept of what a program says of errors.
const ERRORS_KEPT: usize = 64 << 10;
/// How often it is looked whether processes are left. The kernel tells it too, but not more often than each 10 ms.
const INTERVAL: Duration = Duration::from_micros(100);
/// The part of the time of a start that its requests have: what they wait for says more than that time is up.
const REQUESTS: f64 = 0.9;
/// After this much time less often.
const SOON: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_millis(2);

/// Why a start was given up.
#[derive(Debug, Error)]
pub enum Trouble {
    /// Time has run out.
    #[error("{what} within {} s", .limit.as_secs_f64())]
    TimedOut {
        /// What did not happen.
        what: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// It was asked to stop.
    #[error("was cut off")]
    Stopped,
    /// The program could not be executed.
    #[error("cannot be executed")]
    Exec(#[source] io::Error),
    /// A request to its API.
    #[error("{0}")]
    Request(String),
    /// A script of its adapter.
    #[error("a script of the adapter failed: {0}")]
    Script(String),
    /// It printed without end.
    #[error("printed too much")]
    Flood,
    /// The host.
    #[error("the host does not let it be watched")]
    Host(#[from] io::Error),
}

/// Until when it is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal<'a> {
    /// The program's line is there.
    Output(&'a str),
    /// It has ended.
    Exit,
}

/// A process that is watched.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    began: Instant,
    /// The same by the kernel's monotonic clock, as trace points have it.
    clock: Duration,
    deadline: Instant,
    limit: Duration,
    output: Output,
    errors: Vec<u8>,
    spawned: Option<Duration>,
    exit: Option<Duration>,
    /// As a shell has it: 128 and the signal for one that was killed.
    status: Option<i32>,
    gone: Option<Duration>,
    requests: Option<(UnixStream, JoinHandle<()>)>,
    open: Open,
}

/// Which of its descriptors may still say something.
#[derive(Debug)]
struct Open {
    executed: bool,
    stdout: bool,
    stderr: bool,
}

impl Watched {
    /// Starts it. All of it has to be done within `limit`.
    pub fn start(
        program: &Program,
        group: Option<&File>,
        input: Option<&str>,
        requests: Vec<HttpRequest>,
        limit: Duration,
    ) -> Result<Self, Trouble> {
        let asked = Instant::now() + limit.mul_f64(REQUESTS);
        let requests = if requests.is_empty() {
            None
        } else {
            Some(requests::make(requests, asked)?)
        };
        let now = clock_gettime(ClockId::Monotonic);
        let clock = Duration::try_from(now).unwrap_or_default();
        let began = Instant::now();
        let mut child = spawn(program, group)?;
        if let Some(input) = input {
            // A pipe has room for it. Who has ended already does not read it.
            let _ = child.stdin.write_all(input.as_bytes());
        }
        Ok(Self {
            child,
            began,
            clock,
            deadline: began + limit,
            limit,
            output: Output::default(),
            errors: Vec::new(),
            spawned: None,
            exit: None,
            status: None,
            gone: None,
            requests,
            open: Open {
                executed: true,
                stdout: true,
                stderr: true,
            },
        })
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// When it began, by the kernel's monotonic clock.
    pub fn clock(&self) -> Duration {
        self.clock
    }

    /// The time since it began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Watches it; `stop` becomes readable when this is to end.
    pub fn wait(&mut self, goal: Goal, stop: BorrowedFd) -> Result<(), Trouble> {
        loop {
            let is_reached = match goal {
                Goal::Output(token) => {
                    self.output
                        .token_at(Expected { token, noisy: true })
                        .is_some()
                        || self.exit.is_some()
                }
                Goal::Exit => self.exit.is_some(),
            };
            if is_reached {
                // What it has printed before its end is in the pipes.
                if self.exit.is_some() {
                    self.read()?;
                }
                return Ok(());
            }
            self.step(goal, stop)?;
        }
    }

    fn step(&mut self, goal: Goal, stop: BorrowedFd) -> Result<(), Trouble> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = match goal {
                Goal::Output(_) => "printed nothing of the program's",
                Goal::Exit => "did not end",
            };
            return Err(Trouble::TimedOut {
                what,
                limit: self.limit,
            });
        }
        let timeout = Timespec::try_from(left).ok();
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(&self.child.pidfd, PollFlags::IN),
        ];
        if self.open.stdout {
            fds.push(PollFd::new(&self.child.stdout, PollFlags::IN));
        }
        if self.open.stderr {
            fds.push(PollFd::new(&self.child.stderr, PollFlags::IN));
        }
        if self.open.executed {
            fds.push(PollFd::new(&self.child.executed, PollFlags::IN));
        }
        if let Some((told, _)) = &self.requests {
            fds.push(PollFd::new(told, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            result => result.map_err(io::Error::from)?,
        };
        let is_stopped = !fds[0].revents().is_empty();
        let has_ended = !fds[1].revents().is_empty();
        drop(fds);
        if is_stopped {
            return Err(Trouble::Stopped);
        }
        self.read()?;
        if has_ended {
            self.reap()?;
        }
        Ok(())
    }

    /// Takes what has come.
    fn read(&mut self) -> Result<(), Trouble> {
        let at = self.began.elapsed();
        let mut buffer = [0; 16 << 10];
        if self.open.executed && is_ready(&self.child.executed)? {
            self.open.executed = false;
            let mut error = [0; 4];
            if self.child.executed.read(&mut error)? == error.len() {
                return Err(Trouble::Exec(io::Error::from_raw_os_error(
                    i32::from_ne_bytes(error),
                )));
            }
            self.spawned = Some(at);
        }
        while self.open.stdout {
            match read_some(&mut self.child.stdout, &mut buffer)? {
                Some(0) => self.open.stdout = false,
                Some(count) => self.output.add(&buffer[..count], at),
                None => break,
            }
            if self.output.is_too_long() {
                return Err(Trouble::Flood);
            }
        }
        while self.open.stderr {
            match read_some(&mut self.child.stderr, &mut buffer)? {
                Some(0) => self.open.stderr = false,
                Some(count) => {
                    self.errors.extend_from_slice(&buffer[..count]);
                    let surplus = self.errors.len().saturating_sub(ERRORS_KEPT);
                    self.errors.drain(..surplus);
                }
                None => break,
            }
        }
        let mut why = String::new();
        if let Some((told, _)) = &mut self.requests
            && read_text(told, &mut why)?
            && let Some((_, thread)) = self.requests.take()
        {
            let _ = thread.join();
            if !why.is_empty() {
                return Err(Trouble::Request(why));
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), Trouble> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended =
            waitid(WaitId::PidFd(self.child.pidfd.as_fd()), options).map_err(io::Error::from)?;
        if let Some(status) = ended {
            self.exit = Some(self.began.elapsed());
            let by_signal = || status.terminating_signal().map(|signal| 128 + signal);
            self.status = status.exit_status().or_else(by_signal);
        }
        Ok(())
    }

    /// Watches until no process is in the group; false if some are when time is up.
    pub fn wait_until_gone(
        &mut self,
        group: &Group,
        patience: Duration,
        stop: BorrowedFd,
    ) -> Result<bool, Trouble> {
        let events = group.events()?;
        let began = Instant::now();
        while is_populated(&events) {
            let waited = began.elapsed();
            if waited > patience {
                return Ok(false);
            }
            let pause = if waited < SOON { INTERVAL } else { SELDOM };
            if !is_ready(&stop)? {
                thread::sleep(pause);
            } else {
                return Err(Trouble::Stopped);
            }
        }
        self.gone = Some(self.began.elapsed());
        Ok(true)
    }

    /// Notes that nothing is left of it.
    pub fn is_gone(&mut self) {
        self.gone = Some(self.began.elapsed());
    }

    /// Kills the process itself, and takes its status so that it does not stay as a zombie.
    pub fn kill(&mut self) {
        if self.exit.is_none() {
            // Fails only if it has ended.
            let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
            let _ = waitid(
                WaitId::PidFd(self.child.pidfd.as_fd()),
                WaitIdOptions::EXITED,
            );
        }
    }

    /// Its status, if it has ended.
    pub fn try_status(&mut self) -> Option<i32> {
        if self.exit.is_none() {
            // One that cannot be asked is taken for one that runs.
            let _ = self.reap();
        }
        self.status
    }

    /// What is wrong with its output or its status.
    pub fn fault(&self, expected: Expected, status: u8) -> Option<String> {
        let of_output = || Some(self.output.fault(expected)? + &self.said_behind());
        self.status_fault(status).or_else(of_output)
    }

    /// What is wrong with its status.
    pub fn status_fault(&self, status: u8) -> Option<String> {
        let found = self.status.filter(|found| *found != i32::from(status))?;
        Some(format!(
            "exit status {found} in place of {status}{}",
            self.said_behind()
        ))
    }

    fn said_behind(&self) -> String {
        self.said()
            .map(|line| format!(": {line}"))
            .unwrap_or_default()
    }

    /// All that it has printed.
    pub fn printed(&self) -> String {
        self.output.text()
    }

    /// What it has said of errors last.
    pub fn said(&self) -> Option<String> {
        last_line(&self.errors)
    }

    /// When what happened, in milliseconds.
    pub fn milestones(&self, token: &str) -> Milestones {
        let expected = Expected { token, noisy: true };
        Milestones {
            spawned: self.spawned.map(ms),
            init: self.output.init_at().map(ms),
            output: self.output.token_at(expected).map(ms),
            exit: self.exit.map(ms),
            gone: self.gone.map(ms),
            ..Milestones::default()
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Whether something can be read now, or never again.
pub(crate) fn is_ready(file: &impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&Timespec::default()));
    match ready {
        Err(rustix::io::Errno::INTR) => Ok(false),
        result => Ok(result? > 0),
    }
}

/// What is there; none if there is nothing now.
fn read_some(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        return match file.read(buffer) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Nobody has the other end of a terminal any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Some(0)),
            Err(error) => Err(error),
        };
    }
}

/// Reads what there is; whether that was all.
fn read_text(stream: &mut UnixStream, text: &mut String) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    while let Some(count) = read_some(stream, &mut buffer)? {
        if count == 0 {
            return Ok(true);
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(!text.is_empty())
}
