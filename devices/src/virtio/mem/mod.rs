//! Memory device (virtio 1.2 section 5.15): memory that a guest gets and gives back while it runs, in
//! blocks.
//!
//! There is a region of guest memory of which nothing is plugged at first. The monitor says how much is to
//! be ([`MemControl::set_requested`]), and the guest's driver plugs and unplugs blocks until that is so. Memory
//! that is unplugged goes back to the host at once.
//!
//! # Who can reach what
//! The guest's CPUs reach a slot, some blocks in a row, from its first plugged block until its last one is
//! unplugged: see [`MemorySlots`]. Other devices reach all of the region at all times: it is memory that
//! takes no room until something is written to it. A guest that has its disk read into unplugged memory
//! gets at most what it could have plugged, its host's promise of [`MemConfig::total`] bytes; whatever it
//! names, no access of the monitor's fails. Taking pages away from the monitor as well, or
//! changing the memory of devices as they run, would make a fault of each such access, or a lookup.
//!
//! Reading order: this file (the idle half), `request` (what a driver asks), `blocks` (what is plugged),
//! `worker` (the running half), `control` (what the monitor may ask meanwhile, and has to give).

mod blocks;
mod control;
mod request;
mod state;
mod worker;

use std::sync::Arc;

use thiserror::Error;

use control::Shared;
pub use control::{MemControl, MemCounters, MemOperation, MemStatus, MemorySlots, RequestError};
pub use state::MemState;
use worker::Worker;

use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes};
use crate::lock;
use crate::state::BadState;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (section 5.15.3): the driver does not touch what is unplugged. One
/// that does not promise that may read there, as Linux before 5.16, and is not served.
const F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// A driver waits for each of its requests.
const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes of the configuration (section 5.15.4).
const CONFIG_LEN: usize = 56;

/// Smallest block, in bytes: what the host gives and takes in one piece, if it can.
pub const MIN_BLOCK: u64 = 2 << 20;
/// Smallest slot, in bytes: what Linux plugs at once, most often.
pub const MIN_SLOT: u64 = 128 << 20;
/// Where the region starts is a multiple of this: what Linux plugs has to be.
pub const ALIGNMENT: u64 = 128 << 20;
/// More than any host has, in bytes: with the smallest blocks, whose bits are a mebibyte, 16 TiB.
pub const MAX_TOTAL: u64 = 16 << 40;

/// Why there is no such memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The block size is odd.
    #[error("A block size is a power of two of at least {MIN_BLOCK} bytes, {block} is not")]
    Block {
        /// Bytes.
        block: u64,
    },
    /// The slot size is too small.
    #[error("A slot size is at least {MIN_SLOT} bytes, not {slot}")]
    Slot {
        /// Bytes.
        slot: u64,
    },
    /// No whole blocks.
    #[error("A slot size is a multiple of the block size, {slot} is not one of {block}")]
    SlotBlocks {
        /// Bytes.
        slot: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// Less than a slot.
    #[error("The total size is at least the slot size, {slot} bytes, not {total}")]
    Total {
        /// Bytes.
        total: u64,
        /// Bytes of a slot.
        slot: u64,
    },
    /// No whole slots.
    #[error("The total size is a multiple of the slot size, {total} is not one of {slot}")]
    TotalSlots {
        /// Bytes.
        total: u64,
        /// Bytes of a slot.
        slot: u64,
    },
    /// Too much.
    #[error("The total size is at most {MAX_TOTAL} bytes, not {total}")]
    TooMuch {
        /// Bytes.
        total: u64,
    },
}

/// How much memory can be plugged, and how; checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemConfig {
    total: u64,
    block: u64,
    slot: u64,
}

impl MemConfig {
    /// `total` bytes in all, plugged in blocks of `block` bytes, and accessible to the guest in slots of
    /// `slot` bytes.
    pub fn new(total: u64, block: u64, slot: u64) -> Result<Self, ConfigError> {
        if block < MIN_BLOCK || !block.is_power_of_two() {
            return Err(ConfigError::Block { block });
        }
        if slot < MIN_SLOT {
            return Err(ConfigError::Slot { slot });
        }
        if !slot.is_multiple_of(block) {
            return Err(ConfigError::SlotBlocks { slot, block });
        }
        if total < slot {
            return Err(ConfigError::Total { total, slot });
        }
        if !total.is_multiple_of(slot) {
            return Err(ConfigError::TotalSlots { total, slot });
        }
        if total > MAX_TOTAL {
            return Err(ConfigError::TooMuch { total });
        }
        Ok(Self { total, block, slot })
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        self.block
    }

    /// Bytes of a slot.
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// Number of slots.
    pub fn slots(&self) -> u64 {
        self.total / self.slot
    }
}

/// The driver did not promise to leave alone what is unplugged.
#[derive(Clone, Copy, Debug, Error)]
#[error("Its driver does not know VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: Linux does from 5.16 on")]
struct NoPromise;

/// The device.
pub struct Mem {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    // Runtime glue.
    shared: Arc<Shared>,
    worker: Option<Attached<Worker>>,
}

impl Mem {
    /// A device of which nothing is plugged. Its worker lives on `event_loop`, which waits for the host to
    /// give and to free memory: one of its own is best.
    pub fn new(config: MemConfig, event_loop: Arc<dyn EventLoop>) -> Self {
        Self {
            event_loop,
            shared: Arc::new(Shared::new(config)),
            worker: None,
        }
    }

    /// What controls it from outside, before and while it runs.
    pub fn control(&self) -> MemControl {
        MemControl(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> Kind {
        Kind::Mem
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = &self.shared.config;
        let start = self.shared.place.get().map_or(0, |place| place.start);
        let sizes = *lock(&self.shared.sizes);
        let mut bytes = [0; CONFIG_LEN];
        // `node_id`, at 8, needs a feature that is not offered.
        for (at, value) in [
            (0, config.block),
            (16, start),
            (24, config.total),
            (32, sizes.usable),
            (40, sizes.plugged),
            (48, sizes.requested),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        read_config_bytes(&bytes, offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        // All of it is read-only.
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        if !resources.has_feature(F_UNPLUGGED_INACCESSIBLE) {
            return Err(ActivateError(Box::new(NoPromise)));
        }
        let interrupt = resources.interrupt.clone();
        let queue = resources.take_queue(0);
        if let Some(queue) = queue {
            let worker = Worker::new(Arc::clone(&self.shared), resources.memory, queue);
            let worker = Attached::new(&self.event_loop, worker)
                .map_err(|error| ActivateError(Box::new(error)))?;
            self.worker = Some(worker);
        }
        *lock(&self.shared.interrupt) = Some(interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *lock(&self.shared.interrupt) = None;
        let worker = self.worker.take().and_then(Attached::detach);
        worker.map(Worker::into_queue).into_iter().collect()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Mem(self.shared.save()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        match state {
            DeviceState::Mem(state) => self.shared.restore(state),
            _ => Err(BadState::Kind),
        }
    }
}

#[cfg(test)]
#[path = "mem_test.rs"]
mod tests;
