//! Persistent memory (virtio 1.2 section 5.19): a file that the guest has as memory, with a queue by which
//! it has its writes made durable.
//!
//! The file is mapped into guest memory, shared: a guest reads and writes the host's page cache, and this
//! device moves no data. What is behind the file's end, up to a whole 2 MiB, is memory of zeroes that nobody keeps.
//!
//! # Who can reach what
//! The guest's CPUs; and other devices, for which it is guest memory as any, so that a guest can have its
//! disks or cards move data from and to a file that it has mapped (DAX). Where it is read-only, a request or ring
//! that would have a device write there is refused as one outside of memory is, and a write of the guest's is
//! dropped.
//!
//! # Files that change
//! A file that another process of the host cuts while the guest uses it, or that has holes on a file system
//! that is full, has pages that cannot be had. See [`crate::backend::lost_pages`] for what becomes of
//! them: zeroes. All flushes fail from then on, as the guest's data is not what it wrote. A guest that itself
//! touches a page for which there is no room waits for that, or ends, as the host's KVM has it.
//!
//! Reading order: this file (the idle half), `worker` (the running half), `control` (what the monitor does
//! and asks).

mod control;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use thiserror::Error;

use control::Shared;
pub use control::{PmemControl, PmemCounters};
use worker::Worker;

use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes, restore_nothing};
use crate::backend::disk;
use crate::backend::disk::mapped::MappedFile;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::state::BadState;

/// A driver has one request in flight for each of its file systems' flushes.
const QUEUE_SIZES: [u16; 1] = [256];
/// Bytes of the configuration (section 5.19.4).
const CONFIG_LEN: usize = 16;

/// What persistent memory a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmemConfig {
    /// Its name, for messages.
    pub id: String,
    /// Regular file or block device, of any size but 0.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Limits of flushes: see [`PmemControl::set_rate_limit`].
    pub rate: RateLimit,
}

/// Why there is no such memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file.
    #[error(transparent)]
    File(#[from] disk::Error),
    /// No file descriptors left.
    #[error("Persistent memory '{id}' cannot be made")]
    Io {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The device.
pub struct Pmem {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    // Runtime glue.
    shared: Arc<Shared>,
    worker: Option<Attached<Worker>>,
}

impl Pmem {
    /// Opens the file. It is the monitor's to map it ([`PmemControl::map`]). The device's worker lives on
    /// `event_loop`.
    pub fn new(
        config: PmemConfig,
        event_loop: Arc<dyn EventLoop>,
    ) -> Result<(Self, PmemControl), Error> {
        let file = MappedFile::open(&config.path, config.read_only)?;
        let limiter = RateLimiter::new(config.rate).map_err(|source| Error::Io {
            id: config.id.clone(),
            source,
        })?;
        let shared = Arc::new(Shared {
            config,
            file,
            start: OnceLock::new(),
            limiter: Mutex::new(limiter),
            counters: Mutex::default(),
            logged: AtomicBool::new(false),
        });
        let control = PmemControl(Arc::clone(&shared));
        let pmem = Self {
            event_loop,
            shared,
            worker: None,
        };
        Ok((pmem, control))
    }
}

impl VirtioDevice for Pmem {
    fn kind(&self) -> Kind {
        Kind::Pmem
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = self.shared.start.get().copied().unwrap_or(0);
        let mut bytes = [0; CONFIG_LEN];
        bytes[..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..].copy_from_slice(&self.shared.file.size().to_le_bytes());
        read_config_bytes(&bytes, offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        // All of it is read-only.
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        let Some(queue) = resources.take_queue(0) else {
            return Ok(());
        };
        let worker = Worker::new(Arc::clone(&self.shared), resources.memory, queue);
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let worker = self.worker.take().and_then(Attached::detach);
        worker.map(Worker::stop).into_iter().collect()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        restore_nothing(state)
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
