//! Mote on a terminal, as a person has it: a pseudo-terminal that is typed into and read.
#![expect(
    unsafe_code,
    reason = "makes the terminal the child's own between fork and exec"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::process::Process;
use crate::{DEADLINE, monitor};

/// A process on a terminal of its own.
pub struct Session {
    child: Process,
    /// What is typed goes here.
    keyboard: File,
    /// The side that the process has, to look at its settings.
    terminal: File,
    before: Termios,
    chunks: Receiver<Vec<u8>>,
    /// Everything that was printed so far.
    screen: String,
    /// How much of it has been looked for already.
    seen: usize,
}

impl Session {
    /// Starts mote.
    pub fn mote(arguments: &[&str]) -> Self {
        let mut command = Command::new(monitor::path());
        command.args(arguments);
        Self::start(command)
    }

    /// Starts a command.
    pub fn start(mut command: Command) -> Self {
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = File::from(ioctl_tiocgptpeer(&controller, flags).unwrap());
        let before = tcgetattr(&terminal).unwrap();

        command
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap());
        // SAFETY: both are plain system calls, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let keyboard = File::from(controller);
        let mut display = keyboard.try_clone().unwrap();
        let (sender, chunks) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = display.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let screen = String::new();
        Self {
            child: Process(child),
            keyboard,
            terminal,
            before,
            chunks,
            screen,
            seen: 0,
        }
    }

    /// Types something.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Waits until this is printed, after what was waited for last.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(position) = self.screen[self.seen..].find(text) {
                self.seen += position + text.len();
                return;
            }
            // Looked at first: what it printed before its end has arrived then.
            let has_ended = self.child.try_wait().unwrap().is_some() || Instant::now() > deadline;
            match self.chunks.recv_timeout(Duration::from_millis(200)) {
                // A character that arrives in pieces is not among what is waited for.
                Ok(chunk) => self.screen.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Timeout) if !has_ended => {}
                Err(_) => {
                    let _ = self.child.kill();
                    panic!(
                        "no {text:?} after {:?} in {:?}",
                        &self.screen[..self.seen],
                        &self.screen[self.seen..]
                    );
                }
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether the terminal hands over every key at once, unechoed.
    pub fn is_raw(&self) -> bool {
        use rustix::termios::LocalModes;
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits for the end; fails unless the exit status is this and the terminal is as it was.
    #[track_caller]
    pub fn expect_end(mut self, status: i32) {
        let ended = monitor::wait(&mut self.child).map(monitor::exit_code);
        while let Ok(chunk) = self.chunks.recv_timeout(Duration::from_millis(50)) {
            self.screen.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert_eq!(ended, Some(status), "{}", self.screen);
        let after = tcgetattr(&self.terminal).unwrap();
        assert_eq!(format!("{after:?}"), format!("{:?}", self.before));
    }
}
