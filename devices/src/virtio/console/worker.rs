//! The running half of the console: moves bytes between the queues and the host, on the event loop.
//!
//! Linux's driver waits for each piece of output, of 16 bytes, with a spinlock held until it is used:
//! so output is copied and its buffer returned at once, and only a host that does not take
//! [`OUTPUT_MAX`] bytes holds the guest back, as does its limiter. The host gets the first piece
//! at once, such as the echo of a key, and then every [`LINGER`] what has come meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::timerfd::TimerFd;

use super::port::Port;
use crate::console_io::{Input, InputFilter, Output, Sink, Source};
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::virtio::chain::Chain;
use crate::virtio::queue::{self, Queue};

/// Output that waits for the host. Above this the guest waits too.
pub(super) const OUTPUT_MAX: usize = 64 << 10;
/// Output that does not wait for the timer.
const OUTPUT_HIGH_WATER: usize = OUTPUT_MAX / 2;
/// Bytes that are copied out of guest memory at once.
const CHUNK: usize = 4096;
/// How often output is taken and written before other subscribers of the loop have their turn.
const ROUNDS_PER_TURN: usize = 8;
/// Writes to the host in a row before others have their turn.
const WRITES_PER_TURN: usize = 32;
/// How long output waits for more of it.
const LINGER: Duration = Duration::from_millis(1);
/// How long input waits at most for a driver that has just come. Linux's gives its buffers first and
/// connects its console a moment later, and throws away what comes in between: what was typed or piped
/// in early would be lost. When it has, it prints something or looks at the size of the window.
const SETTLE: Duration = Duration::from_secs(10);
/// The same for a driver that does not care for the size: there may be no sign of it.
const SETTLE_WITHOUT_SIZE: Duration = Duration::from_millis(500);

// Which descriptor an event is for.
const WAKE: u32 = 0;
const TIMER: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const RECEIVE: u32 = 4;
const TRANSMIT: u32 = 5;
const LIMIT: u32 = 6;
const SETTLED: u32 = 7;
const KEYBOARD: u32 = 8;

/// Why no more output was taken from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// There is none, or it has to wait for the limiter's timer.
    All,
    /// There is no room.
    Full,
    /// It is someone else's turn.
    Turn,
}

/// Why no more was written to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    All,
    Blocked,
    Turn,
}

/// Who drives it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    /// It will look at the size of the window.
    pub(super) wants_size: bool,
    /// It has just come, and has not been there before a pause.
    pub(super) is_new: bool,
}

/// The queues, while there are any.
struct Active {
    memory: Arc<GuestMemoryMmap>,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    /// A request that was larger than the room there was, and how much of it was taken.
    partial: Option<(Chain, u32)>,
    /// Something came from the guest.
    has_printed: bool,
    /// The driver broke the rules.
    broken: bool,
}

/// The worker.
pub(super) struct Worker {
    // Runtime glue.
    port: Arc<Port>,
    timer: TimerFd,
    settle_timer: TimerFd,
    source: Source,
    sink: Sink,
    limiter: RateLimiter,
    // Volatile state.
    active: Option<Active>,
    /// Output that the host has not taken.
    output: VecDeque<u8>,
    /// The timer is set.
    lingering: bool,
    /// The driver has just come.
    settling: bool,
}

impl Worker {
    pub(super) fn new(
        port: Arc<Port>,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
        limiter: RateLimiter,
    ) -> io::Result<Self> {
        Ok(Self {
            port,
            timer: TimerFd::new()?,
            settle_timer: TimerFd::new()?,
            source: Source::new(input, filter, INPUT, KEYBOARD)?,
            sink: Sink::new(output, OUTPUT),
            limiter,
            active: None,
            output: VecDeque::new(),
            lingering: false,
            settling: false,
        })
    }

    /// Gives it the queues of a driver; it must be on no loop.
    pub(super) fn start(
        &mut self,
        memory: Arc<GuestMemoryMmap>,
        receive: Option<Queue>,
        transmit: Option<Queue>,
        driver: Driver,
    ) {
        self.active = Some(Active {
            memory,
            receive,
            transmit,
            partial: None,
            has_printed: false,
            broken: false,
        });
        // One that goes on is as far as it was.
        if driver.is_new {
            self.port.looked.store(false, Ordering::Release);
            self.wait_to_settle(driver.wants_size);
        }
    }

    /// Connects it with the host, of which it had nothing until now. Fails if it had.
    pub(super) fn connect(
        &mut self,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
    ) -> io::Result<()> {
        self.sink.connect(output)?;
        self.source.connect(input, filter)?;
        self.port.wake();
        Ok(())
    }

    fn wait_to_settle(&mut self, wants_size: bool) {
        let settle = if wants_size {
            SETTLE
        } else {
            SETTLE_WITHOUT_SIZE
        };
        self.settling = self.settle_timer.reset(settle, None).is_ok();
    }

    /// Whether the driver has just come, what was typed, and the end of what was printed.
    pub(super) fn state(&mut self) -> (bool, Vec<u8>, Vec<u8>) {
        (self.settling, self.source.holds().to_vec(), self.tail())
    }

    /// Becomes what such a state says, before it has a driver.
    pub(super) fn restore(&mut self, settling: bool, input: &[u8], tail: &[u8]) {
        if settling {
            self.wait_to_settle(false);
        }
        self.source.hold(input);
        self.sink.skip(tail);
    }

    /// Takes the queues away; it must be on no loop. A request that was taken in part is taken as a
    /// whole, as far as there is room for it.
    pub(super) fn stop(&mut self) -> Vec<Queue> {
        let Some(mut active) = self.active.take() else {
            return Vec::new();
        };
        if active.partial.is_some() {
            // A queue that is broken is given back as it is.
            let _ = active.take_output(&mut self.output, 2 * OUTPUT_MAX, None);
            active.drop_partial();
        }
        active.receive.into_iter().chain(active.transmit).collect()
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    pub(super) fn tail(&mut self) -> Vec<u8> {
        self.take_emergency();
        self.sink.tail(self.output.as_slices())
    }

    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.sink.take_error().or_else(|| self.source.take_error())
    }

    pub(super) fn set_rate_limit(&mut self, limit: RateLimit) -> io::Result<()> {
        self.limiter.update(limit)
    }

    pub(super) fn flush_blocking(&mut self, deadline: Instant) {
        loop {
            let taken = self.take_output(false);
            let written = self.write_output();
            if taken == Taken::All && written == Written::All {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            if written == Written::Blocked {
                self.sink.wait_writable(left);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn holds(&self) -> &[u8] {
        self.source.holds()
    }

    #[cfg(test)]
    pub(super) fn holds_output(&self) -> usize {
        self.output.len()
    }

    fn take_emergency(&mut self) {
        if self.output.len() < OUTPUT_MAX {
            self.output.append(&mut lock(&self.port.emergency));
        }
    }

    /// Takes output from the guest, as far as there is room.
    fn take_output(&mut self, limited: bool) -> Taken {
        self.take_emergency();
        let Some(active) = &mut self.active else {
            return Taken::All;
        };
        if active.broken {
            return Taken::All;
        }
        let limiter = limited.then_some(&mut self.limiter);
        let taken = active
            .take_output(&mut self.output, OUTPUT_MAX, limiter)
            .unwrap_or_else(|error| {
                active.fail(active.transmit.as_ref(), &error);
                active.broken = true;
                Taken::All
            });
        if active.has_printed {
            self.port.has_printed.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Writes output to the host, as far as it takes it.
    fn write_output(&mut self) -> Written {
        for _ in 0..WRITES_PER_TURN {
            if self.output.is_empty() {
                return Written::All;
            }
            match self.sink.write(self.output.as_slices().0) {
                Some(count) => drop(self.output.drain(..count)),
                None => return Written::Blocked,
            }
        }
        Written::Turn
    }

    /// Moves output to the host, and sees to it that it goes on when it can.
    fn serve_output(&mut self, ops: &mut EventOps) {
        self.move_output(ops);
        let has_printed = self
            .active
            .as_ref()
            .is_some_and(|active| active.has_printed);
        if self.settling && (has_printed || self.port.looked.load(Ordering::Acquire)) {
            self.settle(ops);
        }
    }

    /// The driver is there for input, too.
    fn settle(&mut self, ops: &mut EventOps) {
        self.settling = false;
        // Fails only with arguments that are not used here.
        let _ = self.settle_timer.clear();
        self.serve_input(false, ops);
    }

    fn move_output(&mut self, ops: &mut EventOps) {
        for _ in 0..ROUNDS_PER_TURN {
            let taken = self.take_output(true);
            if self.limiter.is_blocked() {
                self.limiter.watch(LIMIT, ops);
            }
            if !self.lingering || self.output.len() >= OUTPUT_HIGH_WATER {
                let had_output = !self.output.is_empty();
                let written = self.write_output();
                self.sink.watch(written == Written::Blocked, ops);
                if written == Written::Blocked && !self.sink.has_failed() {
                    if taken == Taken::All || self.output.len() >= OUTPUT_MAX {
                        return;
                    }
                    // There is room again, for which the guest need not wait.
                    continue;
                }
                if had_output {
                    self.lingering = self.timer.reset(LINGER, None).is_ok();
                }
                if written == Written::Turn {
                    break;
                }
            }
            match taken {
                Taken::All => return,
                Taken::Full => {}
                Taken::Turn => break,
            }
        }
        self.port.wake();
    }

    /// Moves input to the guest.
    fn serve_input(&mut self, readable: bool, ops: &mut EventOps) {
        let active = &mut self.active;
        let settling = self.settling;
        self.source
            .serve(readable, ops, |input| match active.as_mut() {
                Some(active) if !settling => active.give_input(input),
                _ => 0,
            });
    }
}

impl Active {
    /// Copies output to `output` until that has `max` bytes.
    fn take_output(
        &mut self,
        output: &mut VecDeque<u8>,
        max: usize,
        mut limiter: Option<&mut RateLimiter>,
    ) -> Result<Taken, queue::Error> {
        let Some(queue) = &mut self.transmit else {
            return Ok(Taken::All);
        };
        queue.disable_kicks()?;
        let mut taken = Taken::Turn;
        for _ in 0..queue.size() {
            if output.len() >= max {
                taken = Taken::Full;
                break;
            }
            let (chain, offset) = match self.partial.take() {
                Some(partial) => partial,
                None => match queue.pop()? {
                    Some(chain) => {
                        let bytes = u64::from(chain.readable.len());
                        if limiter
                            .as_mut()
                            .is_some_and(|limiter| !limiter.take(1, bytes))
                        {
                            queue.undo_pop();
                            taken = Taken::All;
                            break;
                        }
                        (chain, 0)
                    }
                    None if queue.enable_kicks()? => continue,
                    None => {
                        taken = Taken::All;
                        break;
                    }
                },
            };
            self.has_printed = true;
            let end = copy(&chain, offset, &self.memory, output, max);
            if end < chain.readable.len() {
                self.partial = Some((chain, end));
            } else {
                queue.complete(chain.head(), 0)?;
            }
        }
        queue.notify()?;
        Ok(taken)
    }

    /// Gives up on what is left of a request.
    fn drop_partial(&mut self) {
        if let (Some((chain, _)), Some(queue)) = (self.partial.take(), &mut self.transmit) {
            let _ = queue
                .complete(chain.head(), 0)
                .and_then(|()| queue.notify());
        }
    }

    /// Puts `input` into the guest's buffers; says how much of it there was room for.
    fn give_input(&mut self, input: &[u8]) -> usize {
        if self.broken {
            return 0;
        }
        let mut given = 0;
        if let Err(error) = self.try_give_input(input, &mut given) {
            self.fail(self.receive.as_ref(), &error);
            self.broken = true;
        }
        given
    }

    fn try_give_input(&mut self, input: &[u8], given: &mut usize) -> Result<(), queue::Error> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        queue.disable_kicks()?;
        for _ in 0..queue.size() {
            let left = &input[*given..];
            if left.is_empty() {
                return queue.notify();
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_kicks()? {
                    continue;
                }
                return queue.notify();
            };
            // Input is a few KiB at most.
            let count = left.len().min(chain.writable.len() as usize);
            let is_written = chain
                .writable
                .write(&self.memory, 0, &left[..count])
                .is_ok();
            let count = if is_written { count } else { 0 };
            *given += count;
            queue.complete(chain.head(), u32::try_from(count).unwrap_or(0))?;
        }
        // Only a driver that wants nothing of it offers so many buffers without room.
        queue.kick_myself();
        queue.notify()
    }

    fn fail(&self, queue: Option<&Queue>, error: &queue::Error) {
        if let Some(queue) = queue {
            queue.fail(error);
        }
    }

    /// The queues, with the events of their kicks.
    fn kicks(&self) -> impl Iterator<Item = (u32, &Queue)> {
        let receive = self.receive.as_ref().map(|queue| (RECEIVE, queue));
        let transmit = self.transmit.as_ref().map(|queue| (TRANSMIT, queue));
        receive.into_iter().chain(transmit)
    }

    fn clear_kick(&self, event: u32) {
        for (_, queue) in self.kicks().filter(|(kick, _)| *kick == event) {
            // Empties it; fails if it is empty.
            let _ = queue.kick().read();
        }
    }
}

/// Copies what `chain` sends, from `offset` on, until `output` has `max` bytes; says up to where.
fn copy(
    chain: &Chain,
    mut offset: u32,
    memory: &GuestMemoryMmap,
    output: &mut VecDeque<u8>,
    max: usize,
) -> u32 {
    let mut chunk = [0; CHUNK];
    let len = chain.readable.len();
    while offset < len && output.len() < max {
        let room = CHUNK.min(max - output.len());
        let count = room.min((len - offset) as usize);
        if chain
            .readable
            .read(memory, offset, &mut chunk[..count])
            .is_err()
        {
            // It was checked to be RAM.
            return len;
        }
        output.extend(&chunk[..count]);
        // At most CHUNK.
        offset += u32::try_from(count).unwrap_or(0);
    }
    offset
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        match event.data() {
            WAKE => {
                // Only resets the counter.
                let _ = self.port.wake.read();
                self.serve_output(ops);
                // There may be another input than before.
                self.serve_input(false, ops);
            }
            TIMER => {
                // Also takes back the expiry.
                let _ = self.timer.clear();
                self.lingering = false;
                self.serve_output(ops);
            }
            // An error or a hang-up is for read to find out.
            INPUT => self.serve_input(true, ops),
            KEYBOARD => {
                self.source.clear_keyboard();
                self.serve_input(false, ops);
            }
            OUTPUT => {
                self.lingering = false;
                self.serve_output(ops);
            }
            RECEIVE => {
                if let Some(active) = &self.active {
                    active.clear_kick(RECEIVE);
                }
                self.serve_input(false, ops);
            }
            TRANSMIT => {
                if let Some(active) = &self.active {
                    active.clear_kick(TRANSMIT);
                }
                self.serve_output(ops);
            }
            LIMIT => {
                self.limiter.on_timer();
                self.serve_output(ops);
            }
            SETTLED => {
                // Clearing the timer also takes back the expiry.
                self.settle(ops);
            }
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.source.unwatched();
        self.sink.unwatched();
        let mut watch = |events| {
            // Fails only for a descriptor that is already there.
            let _ = ops.add(events);
        };
        watch(Events::with_data(&self.port.wake, WAKE, EventSet::IN));
        watch(Events::with_data(&self.timer, TIMER, EventSet::IN));
        watch(Events::with_data(&self.settle_timer, SETTLED, EventSet::IN));
        if let Some(active) = &self.active {
            for (event, queue) in active.kicks() {
                watch(Events::with_data(&**queue.kick(), event, EventSet::IN));
            }
        }
        self.limiter.watch(LIMIT, ops);
        self.serve_output(ops);
        self.serve_input(false, ops);
    }
}
