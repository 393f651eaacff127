//! What the rest of the monitor may ask of the device, and what it has to do for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use super::PmemConfig;
use crate::backend::disk::mapped::MappedFile;
use crate::bus::BusDevice;
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PmemCounters {
    /// Times that the worker has looked at its queue.
    pub queue_events: u64,
    /// Flushes that went well.
    pub flushes: u64,
    /// Times that the file was made durable for them: once for all that wait.
    pub syncs: u64,
    /// Flushes that the host has failed.
    pub host_errors: u64,
    /// Requests that are of no known kind, or too short.
    pub bad_requests: u64,
    /// Times that flushes had to wait for the rate limit.
    pub throttled: u64,
    /// Times that this wait was over.
    pub limit_events: u64,
}

/// What the device, its worker and its controls share. Each lock is held for a moment only.
pub(super) struct Shared {
    // Fixed configuration.
    pub(super) config: PmemConfig,
    // Runtime glue.
    pub(super) file: MappedFile,
    /// GPA, once it is mapped.
    pub(super) start: OnceLock<u64>,
    // Volatile state.
    /// Not the worker's own: a reset is no way around a limit.
    pub(super) limiter: Mutex<RateLimiter>,
    pub(super) counters: Mutex<PmemCounters>,
    /// The log knows of an error.
    pub(super) logged: AtomicBool,
}

impl Shared {
    pub(super) fn log_once(&self, error: &io::Error) {
        if !self.logged.swap(true, Ordering::AcqRel) {
            log::warn!(
                "Persistent memory '{}' cannot be made durable: {error}",
                self.config.id
            );
        }
    }
}

/// A handle on persistent memory in use.
#[derive(Clone)]
pub struct PmemControl(pub(super) Arc<Shared>);

impl PmemControl {
    /// Bytes that it takes of the guest's addresses: a multiple of
    /// [`ALIGNMENT`](crate::backend::disk::mapped::ALIGNMENT).
    pub fn size(&self) -> u64 {
        self.0.file.size()
    }

    /// Where it is in the guest's addresses, once it is.
    pub fn start(&self) -> Option<u64> {
        self.0.start.get().copied()
    }

    /// Whether the guest cannot write to it.
    pub fn is_read_only(&self) -> bool {
        self.0.file.is_read_only()
    }

    /// Maps it at `gpa`, a multiple of the same: the monitor makes this a part of guest memory, before
    /// the guest runs. Once.
    pub fn map(&self, gpa: u64) -> io::Result<GuestRegionMmap> {
        let region = self.0.file.map(gpa)?;
        // Mapped once only.
        let _ = self.0.start.set(gpa);
        Ok(region)
    }

    /// Maps it over guest memory that is there, at `gpa`, a multiple of the same: what the monitor does for one that
    /// comes while the guest runs. KVM is to be told of it after that.
    pub fn map_into(&self, memory: &GuestMemoryMmap, gpa: u64) -> io::Result<()> {
        self.0.file.map_into(memory, gpa)?;
        let _ = self.0.start.set(gpa);
        Ok(())
    }

    /// Has nothing of it be guest memory any more, after KVM was told so.
    pub fn unmap(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let Some(gpa) = self.0.start.get() else {
            return Ok(());
        };
        let unmapped = self.0.file.unmap(memory, *gpa);
        unmapped.inspect_err(|error| {
            let id = &self.0.config.id;
            log::error!("Persistent memory '{id}' cannot be unmapped: {error}");
        })
    }

    /// Where the guest's writes to read-only memory come out of KVM, for the monitor to put there: they are
    /// dropped.
    pub fn dropped_writes(&self) -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(DroppedWrites {
            id: self.0.config.id.clone(),
            logged: false,
        }))
    }

    /// Limits flushes: each time that the file is made durable is one operation, and as many bytes as the
    /// file has.
    pub fn set_rate_limit(&self, limit: RateLimit) -> io::Result<()> {
        lock(&self.0.limiter).update(limit)
    }

    /// What has happened so far.
    pub fn counters(&self) -> PmemCounters {
        *lock(&self.0.counters)
    }
}

struct DroppedWrites {
    id: String,
    logged: bool,
}

impl BusDevice for DroppedWrites {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // KVM reads the memory.
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, _: &[u8]) {
        if !std::mem::replace(&mut self.logged, true) {
            log::warn!(
                "The guest writes to persistent memory '{}', which is read-only, at {offset:#x}: this \
                 and all that follow are dropped",
                self.id
            );
        }
    }
}
