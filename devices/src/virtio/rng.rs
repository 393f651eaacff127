//! Entropy device (virtio 1.2 section 5.4): fills the driver's buffers with the host's randomness.
//!
//! The model device: the others have the same parts in the same order.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;

use super::chain::Chain;
use super::queue::{self, Queue};
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, restore_nothing};
use crate::lock;
use crate::random::SOURCE;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::state::BadState;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes a request gets at most; its driver asks again. What a guest can make the host compute in one
/// turn of the event loop is this times the size of the queue.
const MAX_BYTES: usize = 4096;

// Which descriptor an event is for.
const KICK: u32 = 0;
const LIMIT: u32 = 1;

/// The device.
pub struct Rng {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    // Runtime glue.
    source: Arc<File>,
    shared: Arc<Shared>,
    worker: Option<Attached<Worker>>,
}

/// What the device, its worker and its controls share.
struct Shared {
    /// Not the worker's own: a reset is no way around a limit.
    limiter: Mutex<RateLimiter>,
    counts: Counts,
}

/// What has happened since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RngCounters {
    /// Times that the driver has told of new requests.
    pub kicks: u64,
    /// Bytes that it got.
    pub bytes: u64,
    /// Requests that got nothing: the host has no randomness, or the buffer is none.
    pub failed: u64,
    /// Times that requests had to wait for the rate limit.
    pub throttled: u64,
    /// Times that it let them go on.
    pub limit_timers: u64,
}

/// The same, while it happens.
#[derive(Default)]
struct Counts {
    kicks: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    throttled: AtomicU64,
    limit_timers: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Rng {
    /// A device whose worker lives on `event_loop`.
    pub fn new(event_loop: Arc<dyn EventLoop>) -> io::Result<Self> {
        Ok(Self {
            event_loop,
            source: Arc::new(File::open(SOURCE)?),
            shared: Arc::new(Shared {
                limiter: Mutex::new(RateLimiter::unlimited()),
                counts: Counts::default(),
            }),
            worker: None,
        })
    }

    /// What controls it from outside, before and while it runs.
    pub fn control(&self) -> RngControl {
        RngControl(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        // There is no configuration.
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        let Some(queue) = resources.take_queue(0) else {
            return Ok(());
        };
        let worker = Worker {
            source: Arc::clone(&self.source),
            shared: Arc::clone(&self.shared),
            memory: resources.memory,
            queue,
            broken: false,
        };
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let worker = self.worker.take().and_then(Attached::detach);
        worker.map(|worker| worker.queue).into_iter().collect()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        restore_nothing(state)
    }
}

/// What controls an [`Rng`].
#[derive(Clone)]
pub struct RngControl(Arc<Shared>);

impl RngControl {
    /// Limits what the guest gets: bytes, and requests of its driver.
    pub fn set_rate_limit(&self, limit: RateLimit) -> io::Result<()> {
        lock(&self.0.limiter).update(limit)
    }

    /// What has happened since the device was made.
    pub fn counters(&self) -> RngCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        RngCounters {
            kicks: get(&counts.kicks),
            bytes: get(&counts.bytes),
            failed: get(&counts.failed),
            throttled: get(&counts.throttled),
            limit_timers: get(&counts.limit_timers),
        }
    }
}

/// The running half.
struct Worker {
    // Runtime glue.
    source: Arc<File>,
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    // Volatile state.
    queue: Queue,
    /// The driver broke the rules.
    broken: bool,
}

impl Worker {
    /// Serves at most a queue full of requests, so that other workers have their turn.
    fn serve(&mut self, ops: &mut EventOps) -> Result<(), queue::Error> {
        self.queue.disable_kicks()?;
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop()? else {
                break;
            };
            let mut limiter = lock(&self.shared.limiter);
            if !limiter.take(1, wanted(&chain) as u64) {
                // It stays in the ring until the timer says so, and no kick is needed.
                limiter.watch(LIMIT, ops);
                count(&self.shared.counts.throttled, 1);
                self.queue.undo_pop();
                return self.queue.notify();
            }
            drop(limiter);
            let written = fill(&chain, &self.memory, &self.source);
            count(&self.shared.counts.bytes, written.into());
            if written == 0 {
                count(&self.shared.counts.failed, 1);
            }
            self.queue.complete(chain.head(), written)?;
        }
        if self.queue.enable_kicks()? {
            self.queue.kick_myself();
        }
        self.queue.notify()
    }
}

/// Bytes that a request gets.
fn wanted(chain: &Chain) -> usize {
    MAX_BYTES.min(chain.writable.len() as usize)
}

/// Fills one request; says with how many bytes.
fn fill(chain: &Chain, memory: &GuestMemoryMmap, mut source: &File) -> u32 {
    let mut random = [0; MAX_BYTES];
    let wanted = wanted(chain);
    let random = &mut random[..wanted];
    if source.read_exact(random).is_err() || chain.writable.write(memory, 0, random).is_err() {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_BYTES")]
    {
        wanted as u32
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        if event.data() == LIMIT {
            count(&self.shared.counts.limit_timers, 1);
            lock(&self.shared.limiter).on_timer();
        } else {
            count(&self.shared.counts.kicks, 1);
            // Empties it; fails if it is empty.
            let _ = self.queue.kick().read();
        }
        if self.broken {
            return;
        }
        if let Err(error) = self.serve(ops) {
            self.queue.fail(&error);
            self.broken = true;
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::with_data(&**self.queue.kick(), KICK, EventSet::IN));
        lock(&self.shared.limiter).watch(LIMIT, ops);
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
