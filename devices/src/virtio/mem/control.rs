//! What the rest of the monitor may ask of the device, and what it has to give to it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use thiserror::Error;

use super::MemConfig;
use super::blocks::Blocks;
use crate::lock;
use crate::virtio::interrupt::Interrupt;

/// Who lets the guest at a part of the region, and who takes it away again: the monitor, which knows how
/// memory becomes a guest's. Called on the thread of the device's event loop, and with none of the
/// device's locks held but the one of its worker.
pub trait MemorySlots: Send + Sync {
    /// The guest can access slot `index` from now on: [`MemConfig::slot`] bytes. It could not before.
    fn insert(&self, index: usize) -> io::Result<()>;

    /// The guest cannot access slot `index` any more.
    fn remove(&self, index: usize) -> io::Result<()>;
}

/// Where the region is, and who makes it accessible.
pub(super) struct Place {
    /// Its first GPA.
    pub(super) start: u64,
    pub(super) slots: Box<dyn MemorySlots>,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemStatus {
    /// What is plugged and unplugged at once.
    pub block: u64,
    /// The region: what can be plugged at most.
    pub total: u64,
    /// What the guest can or cannot access at once.
    pub slot: u64,
    /// What is plugged.
    pub plugged: u64,
    /// What is to be.
    pub requested: u64,
}

/// Why the guest cannot be asked for so much.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// No whole blocks.
    #[error("{bytes} bytes are not a multiple of the block size, {block} bytes")]
    Blocks {
        /// What was asked for.
        bytes: u64,
        /// A block.
        block: u64,
    },
    /// More than there is.
    #[error("{bytes} bytes are more than the {total} bytes that can be plugged")]
    TooMuch {
        /// What was asked for.
        bytes: u64,
        /// The region.
        total: u64,
    },
    /// Nobody would hear of it.
    #[error("The guest has no driver for it, or has not loaded it yet")]
    NotActive,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemOperation {
    /// How many.
    pub count: u64,
    /// How many of them did not get what they asked for.
    pub failed: u64,
    /// Bytes that were plugged or unplugged.
    pub bytes: u64,
    /// Shortest time that one took, in microseconds.
    pub min_us: u64,
    /// Longest time.
    pub max_us: u64,
    /// All of them.
    pub sum_us: u64,
}

impl MemOperation {
    pub(super) fn add(&mut self, bytes: Option<u64>, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.min_us = if self.count == 0 {
            took
        } else {
            self.min_us.min(took)
        };
        self.max_us = self.max_us.max(took);
        self.sum_us = self.sum_us.saturating_add(took);
        self.count += 1;
        match bytes {
            Some(bytes) => self.bytes = self.bytes.saturating_add(bytes),
            None => self.failed += 1,
        }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemCounters {
    /// Times that the worker has looked at its queue.
    pub queue_events: u64,
    /// Blocks plugged.
    pub plug: MemOperation,
    /// Blocks unplugged.
    pub unplug: MemOperation,
    /// Everything unplugged.
    pub unplug_all: MemOperation,
    /// Questions.
    pub state: MemOperation,
    /// Requests that are of no known kind, or too short.
    pub bad_requests: u64,
    /// Times that memory which was unplugged did not go back to the host.
    pub discard_errors: u64,
}

/// What changes of the configuration space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    pub(super) requested: u64,
    pub(super) usable: u64,
    pub(super) plugged: u64,
}

/// What the device, its worker and its controls share.
pub(super) struct Shared {
    // Fixed configuration.
    pub(super) config: MemConfig,
    // Runtime glue.
    /// There once the machine has been built.
    pub(super) place: OnceLock<Place>,
    // Volatile state. Each lock is held for a moment only, but for the one of `blocks`.
    pub(super) sizes: Mutex<Sizes>,
    /// The worker's, for as long as it serves a request: not its own, as what is plugged stays so when
    /// the driver resets the device.
    pub(super) blocks: Mutex<Blocks>,
    pub(super) counters: Mutex<MemCounters>,
    /// While it is active.
    pub(super) interrupt: Mutex<Option<Interrupt>>,
}

impl Shared {
    pub(super) fn new(config: MemConfig) -> Self {
        Self {
            place: OnceLock::new(),
            sizes: Mutex::default(),
            blocks: Mutex::new(Blocks::new(&config)),
            counters: Mutex::default(),
            interrupt: Mutex::new(None),
            config,
        }
    }

    /// What has to be usable for `requested` bytes to be plugged: whole slots.
    pub(super) fn usable_for(&self, requested: u64) -> u64 {
        // A total is a multiple of the slot size, and no more than that is ever requested.
        requested.next_multiple_of(self.config.slot())
    }
}

/// What controls the device.
#[derive(Clone)]
pub struct MemControl(pub(super) Arc<Shared>);

impl MemControl {
    /// What the device was made for.
    pub fn config(&self) -> &MemConfig {
        &self.0.config
    }

    /// Says where the region is in the guest, a multiple of the block size, and who lets the guest at its
    /// slots, none of which it can access yet. All of it is guest memory for other devices. To be
    /// called once, before the guest runs: until then the device fails all that is asked of it.
    pub fn set_place(&self, start: u64, slots: Box<dyn MemorySlots>) {
        // A second place is none.
        let _ = self.0.place.set(Place { start, slots });
    }

    /// Where the region is in the guest, once it is.
    pub fn start(&self) -> Option<u64> {
        self.0.place.get().map(|place| place.start)
    }

    /// Asks the guest to have `bytes` of the region plugged. It takes its time, and need not do it.
    pub fn set_requested(&self, bytes: u64) -> Result<(), RequestError> {
        let (block, total) = (self.0.config.block(), self.0.config.total());
        if !bytes.is_multiple_of(block) {
            return Err(RequestError::Blocks { bytes, block });
        }
        if bytes > total {
            return Err(RequestError::TooMuch { bytes, total });
        }
        let interrupt = lock(&self.0.interrupt).clone();
        let interrupt = interrupt.ok_or(RequestError::NotActive)?;
        let mut sizes = lock(&self.0.sizes);
        if sizes.requested != bytes {
            sizes.requested = bytes;
            // It does not shrink as long as something may be plugged (section 5.15.4).
            sizes.usable = sizes.usable.max(self.0.usable_for(bytes));
            drop(sizes);
            interrupt.config_changed();
        }
        Ok(())
    }

    /// How much there is.
    pub fn status(&self) -> MemStatus {
        let config = &self.0.config;
        let sizes = *lock(&self.0.sizes);
        MemStatus {
            block: config.block(),
            total: config.total(),
            slot: config.slot(),
            plugged: sizes.plugged,
            requested: sizes.requested,
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> MemCounters {
        *lock(&self.0.counters)
    }
}
