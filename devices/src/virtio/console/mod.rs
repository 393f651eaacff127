//! Console device (virtio 1.2 section 5.3): hvc0, one port.
//!
//! `worker` is the running half. It is on its event loop from the start, not only while the guest has
//! the device open: keys that are for the monitor have to be seen always. Activation gives it the
//! queues, and deactivation takes them away.

mod port;
mod state;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use thiserror::Error;

use super::interrupt::Interrupt;
use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{EventLoop, LoopGone, Subscriber, WorkerId};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes};
use crate::console_io::{Input, InputFilter, Output};
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::state::BadState;
use port::Port;
pub use state::ConsoleState;
use worker::{Driver, Worker};

/// Of the receive and the transmit queue.
const QUEUE_SIZES: [u16; 2] = [128, 128];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

// Features (section 5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_EMERG_WRITE: u64 = 1 << 2;

// The configuration (section 5.3.4).
const CONFIG_LEN: usize = 12;
const SIZE_LEN: u64 = 4;
const EMERG_WR: u64 = 8;

/// Why a console cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No eventfd or timer, or the input cannot be used.
    #[error("Cannot make the console's worker")]
    Worker(#[source] io::Error),
    /// No timer.
    #[error("Cannot make the console's rate limiter")]
    RateLimiter(#[source] io::Error),
}

/// Where a console leads to, and how much may go there.
pub struct Config {
    /// What is typed; none when there is nothing to read.
    pub input: Option<Input>,
    /// Where the guest's output goes.
    pub output: Output,
    /// Looks at what is typed before the guest does.
    pub filter: Box<dyn InputFilter>,
    /// Limits the guest's output; an operation is a request of its driver.
    pub rate_limit: RateLimit,
    /// Columns and rows; 0 where they are not known.
    pub size: (u16, u16),
}

/// What both halves, and those who control the device, have in common.
struct Shared {
    /// Columns in the upper half, rows in the lower one.
    size: AtomicU32,
    /// The driver knows another size, from the time before its machine was restored.
    has_old_size: AtomicBool,
    /// While it is active.
    interrupt: Mutex<Option<Interrupt>>,
}

fn pack((columns, rows): (u16, u16)) -> u32 {
    u32::from(columns) << 16 | u32::from(rows)
}

/// The device.
pub struct Console {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    // Runtime glue.
    shared: Arc<Shared>,
    port: Arc<Port>,
    worker: Arc<Mutex<Worker>>,
    /// None while the worker is on no loop.
    id: Option<WorkerId>,
}

impl Console {
    /// A console whose worker is to live on `event_loop`: see [`Console::attach`].
    pub fn new(event_loop: Arc<dyn EventLoop>, config: Config) -> Result<Self, Error> {
        let Config {
            input,
            output,
            filter,
            rate_limit,
            size,
        } = config;
        let limiter = RateLimiter::new(rate_limit).map_err(Error::RateLimiter)?;
        let port = Arc::new(Port::new().map_err(Error::Worker)?);
        let worker = Worker::new(Arc::clone(&port), input, output, filter, limiter)
            .map_err(Error::Worker)?;
        Ok(Self {
            event_loop,
            shared: Arc::new(Shared {
                size: AtomicU32::new(pack(size)),
                has_old_size: AtomicBool::new(false),
                interrupt: Mutex::new(None),
            }),
            port,
            worker: Arc::new(Mutex::new(worker)),
            id: None,
        })
    }

    /// Starts to read what is typed. Not on the loop's own thread, as it waits for it.
    pub fn attach(&mut self) -> Result<(), LoopGone> {
        let event_loop = Arc::clone(&self.event_loop);
        self.attach_by(|worker| event_loop.attach(worker))
    }

    /// The same, by someone who adds the worker to the same loop in another way, before that is served.
    /// It is the last thing to do before: while a loop is neither served nor over, the console cannot
    /// be dropped.
    pub fn attach_by(
        &mut self,
        attach: impl FnOnce(Subscriber) -> Result<WorkerId, LoopGone>,
    ) -> Result<(), LoopGone> {
        if self.id.is_none() {
            self.id = Some(attach(Box::new(Arc::clone(&self.worker)))?);
        }
        Ok(())
    }

    /// What controls it from outside, before and while it runs.
    pub fn control(&self) -> ConsoleControl {
        ConsoleControl {
            shared: Arc::clone(&self.shared),
            port: Arc::clone(&self.port),
            worker: Arc::clone(&self.worker),
        }
    }

    /// Off its loop, and none of its code runs.
    fn detach(&mut self) -> Result<(), LoopGone> {
        match self.id.take() {
            Some(id) => self.event_loop.detach(id),
            None => Ok(()),
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.shared.size.load(Ordering::Acquire);
        if offset < SIZE_LEN {
            self.port.size_read();
        }
        let mut config = [0; CONFIG_LEN];
        config[..2].copy_from_slice(&((size >> 16) as u16).to_le_bytes());
        config[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        // One port, for those who ask.
        config[4] = 1;
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Section 5.3.5.1: a character in the lowest byte, at any time, without a queue.
        if let (EMERG_WR, Some(&byte)) = (offset, data.first()) {
            self.port.emergency_write(byte);
        }
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        let receive = resources.take_queue(RECEIVE);
        let transmit = resources.take_queue(TRANSMIT);
        let driver = Driver {
            wants_size: resources.features & F_SIZE != 0,
            is_new: !resources.resumed,
        };
        let failed = |error| ActivateError(Box::new(error));
        // What it watches can only be changed on the loop's thread: it goes and comes back.
        self.detach().map_err(failed)?;
        lock(&self.worker).start(resources.memory, receive, transmit, driver);
        if let Err(error) = self.attach() {
            lock(&self.worker).stop();
            return Err(failed(error));
        }
        if self.shared.has_old_size.swap(false, Ordering::AcqRel) {
            resources.interrupt.config_changed();
        }
        *lock(&self.shared.interrupt) = Some(resources.interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *lock(&self.shared.interrupt) = None;
        if !lock(&self.worker).is_active() {
            return Vec::new();
        }
        // Fails only when the loop has ended, as its machine has: then nothing runs there either.
        let has_loop = self.detach().is_ok();
        let queues = lock(&self.worker).stop();
        if has_loop {
            let _ = self.attach();
        }
        queues
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Console(self.state()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        match state {
            DeviceState::Console(state) => self.take_state(state),
            _ => Err(BadState::Kind),
        }
    }
}

impl Drop for Console {
    /// The worker stays on its loop, if that goes on: a guest that gives its console up takes nobody's
    /// keys away.
    fn drop(&mut self) {
        self.deactivate();
    }
}

/// What controls a [`Console`].
#[derive(Clone)]
pub struct ConsoleControl {
    shared: Arc<Shared>,
    port: Arc<Port>,
    worker: Arc<Mutex<Worker>>,
}

impl ConsoleControl {
    /// Tells the guest that its window has so many columns and rows now.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = pack((columns, rows));
        if self.shared.size.swap(size, Ordering::AcqRel) == size {
            return;
        }
        if let Some(interrupt) = &*lock(&self.shared.interrupt) {
            interrupt.config_changed();
        }
    }

    /// Connects it with its other end, of which it had none until now: [`Config`] says what that is. Fails if it had. The rate limit
    /// stays what it is.
    pub fn connect(
        &self,
        input: Option<Input>,
        output: Output,
        filter: Box<dyn InputFilter>,
        (columns, rows): (u16, u16),
    ) -> io::Result<()> {
        lock(&self.worker).connect(input, output, filter)?;
        if (columns, rows) != (0, 0) {
            self.resize(columns, rows);
        }
        Ok(())
    }

    /// Whether the guest has sent anything since the device was made; what it had sent before a snapshot does not count.
    pub fn has_printed(&self) -> bool {
        self.port.has_printed.load(Ordering::Relaxed)
    }

    /// The last 4 KiB of what the guest has sent, whether or not the host has taken it.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.worker).tail()
    }

    /// The first error that made the console's input or output useless, such as EPIPE; once. The guest
    /// goes on without.
    pub fn take_error(&self) -> Option<io::Error> {
        lock(&self.worker).take_error()
    }

    /// Writes all output, also what the guest sends meanwhile and whatever its limits, until there is
    /// none or `deadline` has passed: a reader that is stuck must not keep a machine that has ended.
    pub fn flush_blocking(&self, deadline: Instant) {
        lock(&self.worker).flush_blocking(deadline);
    }

    /// Changes the limits.
    pub fn set_rate_limit(&self, limit: RateLimit) -> io::Result<()> {
        lock(&self.worker).set_rate_limit(limit)
    }

    /// Bytes that the guest has sent and the host has not taken.
    #[cfg(test)]
    fn holds_output(&self) -> usize {
        lock(&self.worker).holds_output()
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
