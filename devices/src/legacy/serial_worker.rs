//! Moves bytes between a serial port and file descriptors of the host, on the I/O thread.
//!
//! The port is never locked while a descriptor is read or written. Neither direction blocks: output
//! that the host does not take waits here, and the port holds the guest back; input for which the
//! guest has no room stays in the host's pipe or terminal.
#![expect(unsafe_code, reason = "read, send and poll on descriptors of any kind")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::serial::Serial;
use crate::lock;

/// Bytes read from the host at once.
const READ_SIZE: usize = 4096;
/// Bytes of output that are remembered.
const TAIL_SIZE: usize = 4096;

/// Looks at what is typed before the guest does.
pub trait InputFilter: Send {
    /// Appends what is for the guest to `to_guest`: at most two bytes for each one of `input`.
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>);
}

/// Where input comes from.
pub struct Input(OwnedFd);

impl Input {
    /// Reads from `fd`, of any kind.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Where output goes.
pub struct Output(Sink);

enum Sink {
    /// A terminal or pipe, with a file description of our own that does not block.
    NonBlocking(File),
    /// Regular files never block.
    Blocking(File),
    Socket(OwnedFd),
    Nowhere,
}

impl Output {
    /// Writes to `fd`, of any kind. A terminal or pipe is opened anew, as O_NONBLOCK on the given one
    /// would also change it for the shell and every other process that shares it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        if kind.is_socket() {
            return Ok(Self(Sink::Socket(file.into())));
        }
        if kind.is_fifo() || kind.is_char_device() {
            let reopened = File::options()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            if let Ok(reopened) = reopened {
                return Ok(Self(Sink::NonBlocking(reopened)));
            }
        }
        Ok(Self(Sink::Blocking(file)))
    }

    /// Throws it away.
    pub fn discard() -> Self {
        Self(Sink::Nowhere)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Sink::NonBlocking(file) | Sink::Blocking(file) => file.write(bytes),
            Sink::Socket(fd) => {
                // SAFETY: the buffer is valid for its length.
                let sent = unsafe {
                    libc::send(
                        fd.as_raw_fd(),
                        bytes.as_ptr().cast(),
                        bytes.len(),
                        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    )
                };
                usize::try_from(sent).map_err(|_| io::Error::last_os_error())
            }
            Sink::Nowhere => Ok(bytes.len()),
        }
    }

    fn raw_fd(&self) -> Option<RawFd> {
        match &self.0 {
            Sink::NonBlocking(file) => Some(file.as_raw_fd()),
            Sink::Socket(fd) => Some(fd.as_raw_fd()),
            Sink::Blocking(_) | Sink::Nowhere => None,
        }
    }
}

/// What the worker knows of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputState {
    /// Epoll tells when there is something.
    Watched,
    /// The guest has no room: not watched until it has.
    Waiting,
    /// Epoll cannot watch it, as it is a file: it can always be read.
    AlwaysReadable,
    /// It has ended, or there was none.
    Ended,
}

/// The worker.
pub struct SerialWorker {
    // Runtime glue.
    serial: Arc<Mutex<Serial>>,
    ready: EventFd,
    input: Option<Input>,
    output: Output,
    filter: Box<dyn InputFilter>,
    // Volatile state.
    input_state: InputState,
    /// Input that the guest has no room for: at most twice what is read at once.
    to_guest: Vec<u8>,
    /// Output that the host has not taken yet.
    to_host: Vec<u8>,
    /// How much of `to_host` is written.
    written: usize,
    output_watched: bool,
    tail: Vec<u8>,
}

impl SerialWorker {
    /// A worker for `serial`, which wakes it by `ready`.
    pub fn new(
        serial: Arc<Mutex<Serial>>,
        ready: EventFd,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
    ) -> io::Result<Self> {
        Ok(Self {
            serial,
            ready,
            input_state: if input.is_some() {
                InputState::Watched
            } else {
                InputState::Ended
            },
            input,
            output,
            filter,
            to_guest: Vec::new(),
            to_host: Vec::new(),
            written: 0,
            output_watched: false,
            tail: Vec::new(),
        })
    }

    /// The last 4 KiB of output.
    pub fn tail(&self) -> Vec<u8> {
        self.tail.clone()
    }

    /// Writes all output, also what the guest writes meanwhile, until there is none or `deadline` has
    /// passed: a reader that does not read must not keep a guest that has ended.
    pub fn flush_blocking(&mut self, deadline: Instant) {
        loop {
            let blocked = self.write_output();
            if !blocked {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(fd) = self.output.raw_fd().filter(|_| !left.is_zero()) else {
                return;
            };
            let mut poll = libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
            // SAFETY: one valid pollfd. An interrupted or failed poll only makes the loop look again.
            unsafe {
                libc::poll(&raw mut poll, 1, millis);
            }
        }
    }

    /// Writes output until there is none, or the host takes no more: then true.
    fn write_output(&mut self) -> bool {
        loop {
            if self.written == self.to_host.len() {
                self.to_host.clear();
                self.written = 0;
                lock(&self.serial).take_output(&mut self.to_host);
                if self.to_host.is_empty() {
                    return false;
                }
                remember(&mut self.tail, &self.to_host);
            }
            match self.output.write(&self.to_host[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return true,
                    io::ErrorKind::Interrupted => {}
                    // Nobody reads any more (EPIPE) or the disk is full: the guest goes on.
                    _ => self.output = Output::discard(),
                },
            }
        }
    }

    /// Moves input to the guest until there is none, or the guest has no room.
    fn read_input(&mut self) {
        // A file is read to its end, a terminal until it would block; each round is bounded by the
        // guest's room, as nothing is read while something waits for it.
        loop {
            if !self.to_guest.is_empty() {
                let taken = lock(&self.serial).receive(&self.to_guest);
                self.to_guest.drain(..taken);
                if !self.to_guest.is_empty() {
                    if self.input_state == InputState::Watched {
                        self.input_state = InputState::Waiting;
                    }
                    return;
                }
            }
            if self.input_state == InputState::Waiting {
                self.input_state = InputState::Watched;
            }
            let Some(input) = &self.input else {
                return;
            };
            let mut buffer = [0; READ_SIZE];
            match read_now(&input.0, &mut buffer, self.input_state) {
                Ok(0) => self.end_input(),
                Ok(count) => self.filter.filter(&buffer[..count], &mut self.to_guest),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted => {}
                    // A terminal that was hung up gives EIO.
                    _ => self.end_input(),
                },
            }
        }
    }

    fn end_input(&mut self) {
        self.input_state = InputState::Ended;
    }

    /// Makes epoll watch what the states say.
    fn update_watches(&mut self, ops: &mut EventOps, input_was: InputState, blocked: bool) {
        if let (Some(input), true) = (&self.input, input_was != self.input_state) {
            let events = Events::new(&input.0, EventSet::IN);
            // These fail only for descriptors that are not in the state they are known to be in.
            let _ = match (input_was, self.input_state) {
                (InputState::Watched, _) => ops.remove(events),
                (_, InputState::Watched) => ops.add(events),
                _ => Ok(()),
            };
        }
        if self.input_state == InputState::Ended {
            self.input = None;
        }
        match self.output.raw_fd() {
            Some(fd) if blocked != self.output_watched => {
                let events = Events::new_raw(fd, EventSet::OUT);
                let _ = if blocked {
                    ops.add(events)
                } else {
                    ops.remove(events)
                };
                self.output_watched = blocked;
            }
            _ => {}
        }
    }
}

/// Reads what is there now. The descriptor may be shared with other processes, so that it cannot be
/// made non-blocking: poll tells first.
fn read_now(fd: &OwnedFd, buffer: &mut [u8], state: InputState) -> io::Result<usize> {
    if state != InputState::AlwaysReadable {
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, no waiting.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Keeps the end of what was output.
fn remember(tail: &mut Vec<u8>, output: &[u8]) {
    if output.len() >= TAIL_SIZE {
        tail.clear();
        tail.extend_from_slice(&output[output.len() - TAIL_SIZE..]);
    } else {
        let surplus = (tail.len() + output.len()).saturating_sub(TAIL_SIZE);
        tail.drain(..surplus);
        tail.extend_from_slice(output);
    }
}

impl MutEventSubscriber for SerialWorker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        let input_was = self.input_state;
        if event.fd() == self.ready.as_raw_fd() {
            // Only resets the counter.
            let _ = self.ready.read();
        }
        let input_turn = self.input.as_ref().is_some_and(|input| {
            event.fd() == input.0.as_raw_fd()
                || matches!(input_was, InputState::Waiting | InputState::AlwaysReadable)
        });
        if input_turn {
            self.read_input();
        }
        let blocked = self.write_output();
        self.update_watches(ops, input_was, blocked);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.ready, EventSet::IN));
        let Some(input) = &self.input else {
            return;
        };
        if ops.add(Events::new(&input.0, EventSet::IN)).is_err() {
            // EPERM: a regular file or /dev/null.
            self.input_state = InputState::AlwaysReadable;
            self.read_input();
            if self.input_state == InputState::Ended {
                self.input = None;
            }
        }
    }
}

#[cfg(test)]
#[path = "serial_worker_test.rs"]
mod tests;
