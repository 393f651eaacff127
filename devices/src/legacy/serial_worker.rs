//! The host's end of the serial port: moves bytes between [`Serial`] and file descriptors, on the I/O
//! thread.
//!
//! The port is never locked while a descriptor is read or written, and nothing here blocks. Output
//! that the host does not take stays in the port, which then holds the guest back; input that the
//! guest does not take is held here, at most [`HELD_MAX`] bytes, and the rest stays at the host.
//!
//! # Waking up
//! A guest that prints makes an exit for each character; waking this thread for each as well would
//! cost it more than the exit. So the worker, once woken, takes what there is, and then looks again by
//! itself every [`LINGER`] until there is nothing new: a burst costs the guest one eventfd write, and
//! the host a write for all that came within a millisecond. Only the first byte goes out at once, such
//! as the echo of a key.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::host_fd::HostFd;
use super::serial::Serial;
use crate::lock;

/// Bytes written to the host at once. A pipe takes that many in one piece.
const CHUNK: usize = 4096;
/// Chunks of output after which other subscribers of the event loop have their turn.
const CHUNKS_PER_TURN: usize = 16;
/// Input is read as long as fewer bytes than this wait for the guest, however little it takes: keys
/// that are for the filter have to be seen even when the guest hangs.
const HELD_MAX: usize = 4096;
/// Once [`HELD_MAX`] was reached, input is read again when no more than this is left.
const HELD_RESUME: usize = HELD_MAX / 2;
/// Bytes of past output that are remembered.
const TAIL_SIZE: usize = 4096;
/// How long the worker waits for more output before it asks to be woken for it.
const LINGER: Duration = Duration::from_millis(1);

// Which descriptor an event is for.
const WAKE: u32 = 0;
const TIMER: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;

/// Looks at what is typed before the guest does.
pub trait InputFilter: Send {
    /// Appends to `to_guest` what of `input` is for the guest. Called on the I/O thread: it must not
    /// block. Over time it must not append more than it was given.
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>);
}

/// Where input comes from.
#[derive(Debug)]
pub struct Input(OwnedFd);

impl Input {
    /// Reads from `fd`: a terminal, pipe, socket, file or device.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Where output goes.
#[derive(Debug)]
pub struct Output(Option<HostFd>);

impl Output {
    /// Writes to `fd`: a terminal, pipe, socket, file or device. The process must ignore SIGPIPE, as
    /// Rust programs do. Needs /proc, and permission to open terminals and pipes again: without, a
    /// reader that is slow at the wrong moment may block the I/O thread for a while.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(Some(HostFd::for_writing(fd)?)))
    }

    /// Throws it away.
    pub fn discard() -> Self {
        Self(None)
    }
}

/// How the event loop watches a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Off,
    On,
    /// Epoll refuses it (EPERM), as it is always ready: a regular file, /dev/null.
    Never,
}

/// Why output stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// There is no more.
    Empty,
    /// The host takes no more.
    Blocked,
    /// It is someone else's turn.
    Turn,
}

/// The worker. It belongs to one event loop.
pub struct SerialWorker {
    // Runtime glue.
    serial: Arc<Mutex<Serial>>,
    wake: EventFd,
    timer: TimerFd,
    filter: Box<dyn InputFilter>,
    /// None once it has ended.
    input: Option<HostFd>,
    /// None when there never was one.
    output: Option<HostFd>,

    // Volatile state.
    input_watch: Watch,
    /// Input for the guest that it has not taken.
    held: Vec<u8>,
    output_watch: Watch,
    /// The host refuses output, and what the guest sends is thrown away.
    output_failed: bool,
    error: Option<io::Error>,
    /// The timer is set.
    lingering: bool,
    tail: VecDeque<u8>,
}

impl SerialWorker {
    /// A worker for `serial`, which wakes it by `wake`.
    pub fn new(
        serial: Arc<Mutex<Serial>>,
        wake: EventFd,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
    ) -> io::Result<Self> {
        Ok(Self {
            serial,
            wake,
            timer: TimerFd::new()?,
            filter,
            input: input
                .map(|input| HostFd::for_reading(input.0))
                .transpose()?,
            output: output.0,
            input_watch: Watch::Off,
            held: Vec::new(),
            output_watch: Watch::Off,
            output_failed: false,
            error: None,
            lingering: false,
            tail: VecDeque::new(),
        })
    }

    /// The last 4 KiB of what the guest has sent, whether or not the host has taken it.
    pub fn tail(&self) -> Vec<u8> {
        let serial = lock(&self.serial);
        let (front, back) = serial.output();
        let sent = self.tail.len() + front.len() + back.len();
        let all = self.tail.iter().chain(front).chain(back);
        all.skip(sent.saturating_sub(TAIL_SIZE)).copied().collect()
    }

    /// The first error that made the console's input or output useless, such as EPIPE; once. The guest
    /// goes on without.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Writes all output, also what the guest sends meanwhile, until there is none or `deadline` has
    /// passed: a reader that is stuck must not keep a machine that has ended. What is left then is
    /// lost.
    pub fn flush_blocking(&mut self, deadline: Instant) {
        loop {
            let pause = self.pump_output();
            let left = deadline.saturating_duration_since(Instant::now());
            if pause == Pause::Empty || left.is_zero() {
                return;
            }
            if let (Pause::Blocked, Some(output)) = (pause, &self.output) {
                output.wait_writable(left);
            }
        }
    }

    /// Moves output to the host.
    fn pump_output(&mut self) -> Pause {
        let mut chunk = [0; CHUNK];
        for _ in 0..CHUNKS_PER_TURN {
            let len = copy_output(&lock(&self.serial), &mut chunk);
            if len == 0 {
                return Pause::Empty;
            }
            match self.write(&chunk[..len]) {
                Ok(count) => {
                    remember(&mut self.tail, &chunk[..count]);
                    lock(&self.serial).consume_output(count);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Pause::Blocked,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        self.output_failed = true;
                        self.error.get_or_insert(error);
                    }
                },
            }
        }
        Pause::Turn
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.output {
            Some(output) if !self.output_failed => match output.write(bytes)? {
                0 => Err(io::ErrorKind::WriteZero.into()),
                count => Ok(count),
            },
            _ => Ok(bytes.len()),
        }
    }

    /// Moves output, and sees to it that it goes on when it can.
    fn serve_output(&mut self, ops: &mut EventOps) {
        loop {
            let had_output = !is_empty(&lock(&self.serial));
            let pause = self.pump_output();
            self.watch_output(pause == Pause::Blocked, ops);
            match pause {
                Pause::Blocked => return,
                Pause::Turn => {
                    // Fails only when the counter is at its maximum: it is readable then too.
                    let _ = self.wake.write(1);
                    return;
                }
                Pause::Empty if had_output => {
                    self.lingering = self.timer.reset(LINGER, None).is_ok();
                    if self.lingering {
                        return;
                    }
                }
                Pause::Empty => {}
            }
            if self.lingering || lock(&self.serial).rest() {
                return;
            }
        }
    }

    fn watch_output(&mut self, blocked: bool, ops: &mut EventOps) {
        let Some(output) = &self.output else {
            return;
        };
        let events = Events::with_data(output, OUTPUT, EventSet::OUT);
        match (self.output_watch, blocked) {
            (Watch::Off, true) => match ops.add(events) {
                Ok(()) => self.output_watch = Watch::On,
                // It blocks and cannot be waited for: there is no way to go on with it.
                Err(error) => {
                    self.output_failed = true;
                    self.error.get_or_insert(io::Error::other(error));
                }
            },
            (Watch::On, false) => {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(events);
                self.output_watch = Watch::Off;
            }
            _ => {}
        }
    }

    /// Moves input to the guest, and reads more, if it is there, as far as there is room for it here.
    fn serve_input(&mut self, mut readable: bool, ops: &mut EventOps) {
        loop {
            if !self.held.is_empty() {
                let taken = lock(&self.serial).receive(&self.held);
                self.held.drain(..taken);
            }
            if self.held.len() <= HELD_RESUME {
                self.watch_input(true, ops);
                readable |= self.input_watch == Watch::Never;
            } else if self.held.len() >= HELD_MAX {
                self.watch_input(false, ops);
                return;
            }
            if !readable {
                return;
            }
            readable = false;
            if !self.read(ops) {
                return;
            }
        }
    }

    /// Reads once; false if that gave nothing.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(input) = &self.input else {
            return false;
        };
        let mut buffer = [0; HELD_MAX];
        let room = HELD_MAX.saturating_sub(self.held.len());
        match input.read(&mut buffer[..room]) {
            Ok(count) if count > 0 => {
                self.filter.filter(&buffer[..count], &mut self.held);
                return true;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The end; a terminal that was hung up gives EIO.
            _ => self.end_input(ops),
        }
        false
    }

    fn watch_input(&mut self, wanted: bool, ops: &mut EventOps) {
        let Some(input) = &self.input else {
            return;
        };
        let events = Events::with_data(input, INPUT, EventSet::IN);
        match (self.input_watch, wanted) {
            (Watch::Off, true) => match ops.add(events) {
                Ok(()) => self.input_watch = Watch::On,
                Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                    self.input_watch = Watch::Never;
                }
                Err(error) => {
                    self.input = None;
                    self.error.get_or_insert(io::Error::other(error));
                }
            },
            // Without interest in any event, epoll would still report a hang-up, for ever.
            (Watch::On, false) => {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(events);
                self.input_watch = Watch::Off;
            }
            _ => {}
        }
    }

    fn end_input(&mut self, ops: &mut EventOps) {
        // Before it is closed: other processes may keep what it refers to open, and epoll with it.
        self.watch_input(false, ops);
        self.input = None;
        self.input_watch = Watch::Off;
    }
}

impl MutEventSubscriber for SerialWorker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        match event.data() {
            WAKE => {
                // Only resets the counter.
                let _ = self.wake.read();
                self.serve_output(ops);
                self.serve_input(false, ops);
            }
            TIMER => {
                // Also takes back the expiry.
                let _ = self.timer.clear();
                self.lingering = false;
                self.serve_output(ops);
            }
            OUTPUT => self.serve_output(ops),
            // An error or a hang-up is for read to find out.
            INPUT => self.serve_input(true, ops),
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::with_data(&self.wake, WAKE, EventSet::IN);
        let timer = Events::with_data(&self.timer, TIMER, EventSet::IN);
        if let Err(error) = ops.add(wake).and_then(|()| ops.add(timer)) {
            self.error.get_or_insert(io::Error::other(error));
        }
        self.serve_input(false, ops);
    }
}

fn is_empty(serial: &Serial) -> bool {
    serial.output().0.is_empty()
}

/// Copies the oldest output to `to`, and says how much that was.
fn copy_output(serial: &Serial, to: &mut [u8]) -> usize {
    let (front, back) = serial.output();
    let from_front = front.len().min(to.len());
    let (to_front, to_back) = to.split_at_mut(from_front);
    to_front.copy_from_slice(&front[..from_front]);
    let from_back = back.len().min(to_back.len());
    to_back[..from_back].copy_from_slice(&back[..from_back]);
    from_front + from_back
}

/// Appends what was output to the tail, and forgets as much at its start.
fn remember(tail: &mut VecDeque<u8>, output: &[u8]) {
    let output = &output[output.len().saturating_sub(TAIL_SIZE)..];
    let surplus = (tail.len() + output.len()).saturating_sub(TAIL_SIZE);
    tail.drain(..surplus);
    tail.extend(output);
}

#[cfg(test)]
#[path = "serial_worker_test.rs"]
mod tests;
