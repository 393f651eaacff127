//! What the rest of the monitor may ask of a disk while a guest uses it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::BlockConfig;
use super::latency::{BlockLatencies, Recorders};
use crate::backend::disk::{self, Disk, Info, Overlay, OverlayId, ResizeError};
use crate::lock;
use crate::rate_limiter::RateLimit;
use crate::virtio::interrupt::Interrupt;

/// What a disk has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounters {
    /// Reads that went well.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes that went well.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Flushes that went well.
    pub flushes: u64,
    /// Discards that went well.
    pub discards: u64,
    /// Requests for zeroes that went well.
    pub write_zeroes: u64,
    /// Requests that the host failed: no space, a bad disk, a damaged image.
    pub host_errors: u64,
    /// Requests of the guest that are wrong or unknown.
    pub bad_requests: u64,
    /// Times that requests had to wait for the rate limit.
    pub throttled: u64,
    /// Times that the driver has told of new requests.
    pub kicks: u64,
    /// Times that it had none then.
    pub empty_kicks: u64,
    /// Times that the rate limit let requests go on.
    pub limit_timers: u64,
    /// Times that its file or its limits were changed.
    pub updates: u64,
    /// Times that its file could not be.
    pub failed_updates: u64,
}

impl BlockCounters {
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            reads,
            read_bytes,
            writes,
            write_bytes,
            flushes,
            discards,
            write_zeroes,
            host_errors,
            bad_requests,
            throttled,
            kicks,
            empty_kicks,
            limit_timers,
            updates,
            failed_updates,
        } = other;
        self.reads += reads;
        self.read_bytes += read_bytes;
        self.writes += writes;
        self.write_bytes += write_bytes;
        self.flushes += flushes;
        self.discards += discards;
        self.write_zeroes += write_zeroes;
        self.host_errors += host_errors;
        self.bad_requests += bad_requests;
        self.throttled += throttled;
        self.kicks += kicks;
        self.empty_kicks += empty_kicks;
        self.limit_timers += limit_timers;
        self.updates += updates;
        self.failed_updates += failed_updates;
    }
}

/// Why a file cannot take a disk's place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] disk::Error),
    /// It is the same file, with a size that it cannot take on.
    #[error("Disk '{}' cannot take on its new size", path.display())]
    Resize {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: ResizeError,
    },
}

/// What the device, its worker and its controls share. Each lock is held for a moment only.
pub(super) struct Shared {
    // Fixed configuration.
    pub(super) config: BlockConfig,
    // Runtime glue.
    /// Wakes the worker for its mail.
    pub(super) wake: EventFd,
    // Volatile state.
    /// The disk that the driver is told of.
    pub(super) info: Mutex<Arc<Info>>,
    /// There may be something in `rate` or `replacement`.
    pub(super) has_mail: AtomicBool,
    pub(super) rate: Mutex<RateLimit>,
    /// What the worker is to use from now on.
    pub(super) replacement: Mutex<Option<Disk>>,
    /// The way to the driver, while there is one.
    pub(super) interrupt: Mutex<Option<Interrupt>>,
    pub(super) counters: Mutex<BlockCounters>,
    pub(super) latencies: Recorders,
    /// Where a snapshot wants a copy of the overlay.
    pub(super) overlay_copy: Mutex<Option<(File, OverlayId)>>,
    /// The driver's choice: data may be in a cache until it is flushed.
    pub(super) writeback: AtomicBool,
    /// Errors that were logged.
    pub(super) logged: Mutex<Vec<io::ErrorKind>>,
    /// Who hears of them too.
    pub(super) listener: OnceLock<ErrorListener>,
}

/// Hears of errors of the host, the first one of each kind: what the disk could not do, and why. It is called by the
/// thread that serves the disk, which it must not keep waiting.
pub type ErrorListener = Box<dyn Fn(&'static str, &io::Error) + Send + Sync>;

impl Shared {
    pub(super) fn new(config: BlockConfig, info: Arc<Info>) -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            info: Mutex::new(info),
            has_mail: AtomicBool::new(false),
            rate: Mutex::new(config.rate),
            config,
            replacement: Mutex::new(None),
            interrupt: Mutex::new(None),
            counters: Mutex::new(BlockCounters::default()),
            latencies: Recorders::default(),
            overlay_copy: Mutex::new(None),
            writeback: AtomicBool::new(true),
            logged: Mutex::new(Vec::new()),
            listener: OnceLock::new(),
        })
    }

    /// Logs an error of the host, once for each kind.
    pub(super) fn log_once(&self, what: &'static str, error: &io::Error) {
        let mut logged = lock(&self.logged);
        if logged.contains(&error.kind()) {
            return;
        }
        logged.push(error.kind());
        drop(logged);
        log::warn!("Disk '{}' cannot {what}: {error}", self.config.id);
        if let Some(listener) = self.listener.get() {
            listener(what, error);
        }
    }

    fn announce(&self) {
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    fn send(&self) {
        self.has_mail.store(true, Ordering::Release);
        // Fails only when the counter is at its maximum: it is readable then too.
        let _ = self.wake.write(1);
    }
}

/// A handle on a disk in use.
#[derive(Clone)]
pub struct BlockControl {
    pub(super) shared: Arc<Shared>,
}

impl BlockControl {
    /// Takes on the size that the file has now, tells the driver, and returns it in bytes.
    pub fn resize(&self) -> Result<u64, ResizeError> {
        let info = Arc::clone(&lock(&self.shared.info));
        let before = info.size();
        let size = info.resize()?;
        if size != before {
            self.shared.announce();
        }
        Ok(size)
    }

    /// Changes the limits, from the next request on.
    pub fn set_rate_limit(&self, limit: RateLimit) {
        *lock(&self.shared.rate) = limit;
        lock(&self.shared.counters).updates += 1;
        self.shared.send();
    }

    /// Puts another file in the place of the disk's, opened as the first one was; what is in flight
    /// ends on the old one. The driver is told the new size. The same file is looked at again, as by
    /// [`BlockControl::resize`].
    pub fn replace_file(&self, path: &Path) -> Result<(), ReplaceError> {
        let replaced = self.replace(path);
        let mut counters = lock(&self.shared.counters);
        match replaced {
            Ok(()) => counters.updates += 1,
            Err(_) => counters.failed_updates += 1,
        }
        replaced
    }

    fn replace(&self, path: &Path) -> Result<(), ReplaceError> {
        let info = Arc::clone(&lock(&self.shared.info));
        if info.is_file(path) {
            self.resize().map_err(|source| ReplaceError::Resize {
                path: path.to_owned(),
                source,
            })?;
            return Ok(());
        }
        let mut options = self.shared.config.disk_options();
        path.clone_into(&mut options.path);
        if let Overlay::Saved { .. } = options.overlay {
            // What was written to the file before stays with that.
            options.overlay = Overlay::Temporary;
        }
        let disk = Disk::open(&options)?;
        // In this order: no request is measured by the new size and served by the old disk.
        let info = Arc::clone(disk.info());
        let unused = lock(&self.shared.replacement).replace(disk);
        self.shared.send();
        *lock(&self.shared.info) = info;
        self.shared.announce();
        drop(unused);
        Ok(())
    }

    /// Has what is in the temporary overlay written to a new file when the device's state is taken, for the snapshot
    /// `id`. None: not any more.
    pub fn save_overlay_to(&self, file: Option<(File, OverlayId)>) {
        *lock(&self.shared.overlay_copy) = file;
    }

    /// What the disk has done so far.
    pub fn counters(&self) -> BlockCounters {
        *lock(&self.shared.counters)
    }

    /// How long that took.
    pub fn latencies(&self) -> BlockLatencies {
        self.shared.latencies.get()
    }

    /// Has `listener` hear of errors of the host. There is one, the first.
    pub fn on_error(&self, listener: ErrorListener) {
        let _ = self.shared.listener.set(listener);
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        lock(&self.shared.info).size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::disk::test_support::TempDir;
    use crate::virtio::block::Block;
    use crate::virtio::test_support::TestLoop;

    #[test]
    fn who_listens_hears_of_each_kind_of_error_once() {
        let dir = TempDir::new();
        let config = BlockConfig::new("disk", dir.file("disk", 4096));
        let (_block, control) = Block::new(config, TestLoop::start()).unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&heard);
        control.on_error(Box::new(move |what, error| {
            lock(&told).push(format!("{what}: {:?}", error.kind()));
        }));
        control.on_error(Box::new(|_, _| panic!("there is one, the first")));
        for (what, kind) in [
            ("write", io::ErrorKind::StorageFull),
            ("write", io::ErrorKind::StorageFull),
            ("flush", io::ErrorKind::StorageFull),
            ("read", io::ErrorKind::UnexpectedEof),
        ] {
            control.shared.log_once(what, &kind.into());
        }
        assert_eq!(*lock(&heard), ["write: StorageFull", "read: UnexpectedEof"]);
    }
}
