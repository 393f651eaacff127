//! The host's end of the serial port: moves bytes between [`Serial`] and file descriptors, on the I/O
//! thread.
//!
//! The port is never locked while a descriptor is read or written, and nothing here blocks. Output
//! that the host does not take stays in the port, which then holds the guest back; input that the
//! guest does not take is held by [`crate::console_io`]. With a limit, what is beyond it is dropped and
//! counted: the guest is not held back.
//!
//! # Waking up
//! A guest that prints makes an exit for each character; waking this thread for each as well would
//! cost it more than the exit. So the worker, once woken, takes what there is, and then looks again by
//! itself every [`LINGER`] until there is nothing new: a burst costs the guest one eventfd write, and
//! the host a write for all that came within a millisecond. Only the first byte goes out at once, such
//! as the echo of a key.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::serial::Serial;
use crate::console_io::{Input, InputFilter, Output, Sink, Source};
use crate::lock;
use crate::rate_limiter::{Bucket, Meter};

/// Bytes written to the host at once. A pipe takes that many in one piece.
const CHUNK: usize = 4096;
/// Chunks of output after which other subscribers of the event loop have their turn.
const CHUNKS_PER_TURN: usize = 16;
/// How long the worker waits for more output before it asks to be woken for it.
const LINGER: Duration = Duration::from_millis(1);

// Which descriptor an event is for.
const WAKE: u32 = 0;
const TIMER: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const KEYBOARD: u32 = 4;

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
    source: Source,
    sink: Sink,
    /// How many bytes are let through.
    meter: Option<Meter>,

    // Volatile state.
    error: Option<io::Error>,
    /// The timer is set.
    lingering: bool,
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
            source: Source::new(input, filter, INPUT, KEYBOARD)?,
            sink: Sink::new(output, OUTPUT),
            meter: None,
            error: None,
            lingering: false,
        })
    }

    /// Lets no more bytes of output through than are in the bucket, if there is one.
    pub fn with_limit(mut self, bucket: Option<Bucket>) -> Self {
        self.meter = bucket.map(Meter::new);
        self
    }

    /// Connects the port with its other end, of which it had none until now. Fails if it had.
    pub fn connect(
        &mut self,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
    ) -> io::Result<()> {
        self.sink.connect(output)?;
        self.source.connect(input, filter)?;
        self.wake.write(1)
    }

    /// The last 4 KiB of what the guest has sent, whether or not the host has taken it.
    pub fn tail(&self) -> Vec<u8> {
        let serial = lock(&self.serial);
        self.sink.tail(serial.output())
    }

    /// The first error that made the console's input or output useless, such as EPIPE; once. The guest
    /// goes on without.
    pub fn take_error(&mut self) -> Option<io::Error> {
        let error = self.error.take().or_else(|| self.sink.take_error());
        error.or_else(|| self.source.take_error())
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
            if pause == Pause::Blocked {
                self.sink.wait_writable(left);
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
            if !self.send(&chunk[..len]) {
                return Pause::Blocked;
            }
        }
        Pause::Turn
    }

    /// Writes or drops some of the output; false if the host takes no more for now.
    fn send(&mut self, output: &[u8]) -> bool {
        let available = self.meter.as_mut().map_or(u64::MAX, Meter::available);
        let allowed = usize::try_from(available).unwrap_or(usize::MAX);
        if allowed == 0 {
            self.sink.skip(output);
            let mut serial = lock(&self.serial);
            serial.counters.rate_limited += output.len() as u64;
            serial.consume_output(output.len());
            return true;
        }
        let had_failed = self.sink.has_failed();
        let Some(count) = self.sink.write(&output[..output.len().min(allowed)]) else {
            return false;
        };
        let lost = self.sink.take_lost();
        let failed = self.sink.has_failed();
        if let Some(meter) = &mut self.meter {
            meter.take(count as u64);
        }
        let mut serial = lock(&self.serial);
        serial.consume_output(count);
        serial.counters.lost += lost;
        serial.counters.flushes += u64::from(!failed && lost == 0);
        serial.counters.errors += u64::from(failed && !had_failed);
        true
    }

    /// Moves output, and sees to it that it goes on when it can.
    fn serve_output(&mut self, ops: &mut EventOps) {
        loop {
            let had_output = !is_empty(&lock(&self.serial));
            let pause = self.pump_output();
            self.sink.watch(pause == Pause::Blocked, ops);
            match pause {
                Pause::Blocked if !self.sink.has_failed() => return,
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
                Pause::Empty | Pause::Blocked => {}
            }
            if self.lingering || lock(&self.serial).rest() {
                return;
            }
        }
    }

    /// Moves input to the guest.
    fn serve_input(&mut self, readable: bool, ops: &mut EventOps) {
        let serial = &self.serial;
        self.source
            .serve(readable, ops, |input| lock(serial).receive(input));
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
            KEYBOARD => {
                self.source.clear_keyboard();
                self.serve_input(false, ops);
            }
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

#[cfg(test)]
#[path = "serial_worker_test.rs"]
mod tests;
