//! Entropy device (virtio 1.2 section 5.4): fills the driver's buffers with the host's randomness.
//!
//! The model device: the others have the same parts in the same order.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;

use super::chain::Chain;
use super::queue::{self, Queue};
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice};
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};

const QUEUE_SIZES: [u16; 1] = [64];
/// Where randomness comes from.
const SOURCE: &str = "/dev/urandom";
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
    /// Not the worker's own: a reset is no way around a limit.
    limiter: Arc<Mutex<RateLimiter>>,
    worker: Option<Attached<Worker>>,
}

impl Rng {
    /// A device whose worker lives on `event_loop`.
    pub fn new(event_loop: Arc<dyn EventLoop>) -> io::Result<Self> {
        Ok(Self {
            event_loop,
            source: Arc::new(File::open(SOURCE)?),
            limiter: Arc::new(Mutex::new(RateLimiter::unlimited())),
            worker: None,
        })
    }

    /// What controls it from outside, before and while it runs.
    pub fn control(&self) -> RngControl {
        RngControl(Arc::clone(&self.limiter))
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
            limiter: Arc::clone(&self.limiter),
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
}

/// What controls an [`Rng`].
#[derive(Clone)]
pub struct RngControl(Arc<Mutex<RateLimiter>>);

impl RngControl {
    /// Limits what the guest gets: bytes, and requests of its driver.
    pub fn set_rate_limit(&self, limit: RateLimit) -> io::Result<()> {
        lock(&self.0).update(limit)
    }
}

/// The running half.
struct Worker {
    // Runtime glue.
    source: Arc<File>,
    limiter: Arc<Mutex<RateLimiter>>,
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
            let mut limiter = lock(&self.limiter);
            if !limiter.take(1, wanted(&chain) as u64) {
                // It stays in the ring until the timer says so, and no kick is needed.
                limiter.watch(LIMIT, ops);
                self.queue.undo_pop();
                return self.queue.notify();
            }
            drop(limiter);
            let written = fill(&chain, &self.memory, &self.source);
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
            lock(&self.limiter).on_timer();
        } else {
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
        lock(&self.limiter).watch(LIMIT, ops);
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
