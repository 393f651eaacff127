//! Block device (virtio 1.2 section 5.2): a disk whose image and engine are in [`crate::backend::disk`].
//!
//! Reading order: this file (the idle half), `request` (what a driver asks, checked), `worker` (the
//! running half), `control` (what the monitor may ask meanwhile), `latency` (how long requests take).

mod control;
mod latency;
mod request;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use control::Shared;
pub use control::{BlockControl, BlockCounters, ErrorListener, ReplaceError};
pub use latency::{BOUNDS_US, BUCKETS, BlockLatencies, Latency};
use request::{
    DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, SEG_MAX, SERIAL_SIZE, SIZE_MAX, ZEROES_RANGES_MAX,
    ZEROES_SECTORS_MAX,
};
use worker::Worker;

use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes};
use crate::backend::disk::{self, Cache, Disk, EngineKind, Format, Options, Overlay, SECTOR};
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::state::BadState;

/// What a driver has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The cache is a write-back cache: the driver flushes.
    pub writeback: bool,
}

/// Most queues of a device: more than one a vCPU is of no use, and all are served by one thread.
pub const MAX_QUEUES: u16 = 8;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: [u16; MAX_QUEUES as usize] = [QUEUE_SIZE; MAX_QUEUES as usize];

/// Features (section 5.2.3).
mod feature {
    pub(super) const SIZE_MAX: u32 = 1;
    pub(super) const SEG_MAX: u32 = 2;
    pub(super) const RO: u32 = 5;
    pub(super) const BLK_SIZE: u32 = 6;
    pub(super) const FLUSH: u32 = 9;
    pub(super) const TOPOLOGY: u32 = 10;
    pub(super) const CONFIG_WCE: u32 = 11;
    pub(super) const MQ: u32 = 12;
    pub(super) const DISCARD: u32 = 13;
    pub(super) const WRITE_ZEROES: u32 = 14;
}

/// Bytes of the configuration space (section 5.2.4).
const CONFIG_SIZE: usize = 60;
/// Where `writeback` is in it.
const WRITEBACK_OFFSET: u64 = 32;
/// Log2 of the sectors in what is written in one piece: 4 KiB, as in all file systems.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// What disk a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Its name, for messages.
    pub id: String,
    /// Regular file or block device.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Of the file at `path`.
    pub format: Format,
    /// How bytes are moved.
    pub engine: EngineKind,
    /// What a flush does.
    pub cache: Cache,
    /// Whether what the guest writes goes elsewhere.
    pub overlay: Overlay,
    /// What the guest reads as the serial number, at most 20 bytes. Without, as much of `id` as fits.
    pub serial: Option<String>,
    /// Number of queues: 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Limits.
    pub rate: RateLimit,
    /// A raw image may be empty, or no whole number of sectors: see [`Options::any_size`].
    pub any_size: bool,
}

impl BlockConfig {
    /// The disk at `path`, with the defaults for all else.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            path: path.into(),
            read_only: false,
            format: Format::default(),
            engine: EngineKind::default(),
            cache: Cache::default(),
            overlay: Overlay::default(),
            serial: None,
            queues: 1,
            rate: RateLimit::default(),
            any_size: false,
        }
    }

    fn disk_options(&self) -> Options {
        Options {
            path: self.path.clone(),
            read_only: self.read_only,
            format: self.format,
            engine: self.engine,
            cache: self.cache,
            overlay: self.overlay.clone(),
            any_size: self.any_size,
        }
    }

    /// The serial number, filled up with zeroes.
    fn serial_bytes(&self) -> [u8; SERIAL_SIZE] {
        let text = self.serial.as_ref().unwrap_or(&self.id).as_bytes();
        let mut bytes = [0; SERIAL_SIZE];
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = *from;
        }
        bytes
    }
}

/// Why there is no such disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// None, or too many.
    #[error("Disk '{id}' cannot have {queues} queues: 1 to {MAX_QUEUES}")]
    Queues {
        /// Its name.
        id: String,
        /// Their number.
        queues: u16,
    },
    /// Too long.
    #[error("Disk '{id}' cannot have the serial number '{serial}': at most {SERIAL_SIZE} bytes")]
    Serial {
        /// Its name.
        id: String,
        /// What was wanted.
        serial: String,
    },
    /// The file.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// No file descriptors left.
    #[error("Disk '{id}' cannot be made")]
    Io {
        /// Its name.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The disk has gone down with an event loop.
#[derive(Clone, Copy, Debug, Error)]
#[error("The disk is gone, as its event loop is")]
struct DiskGone;

/// What the worker works with, when there is none.
struct Idle {
    disk: Disk,
    limiter: RateLimiter,
}

/// The device.
pub struct Block {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    queues: usize,
    // Runtime glue.
    shared: Arc<Shared>,
    idle: Option<Idle>,
    worker: Option<Attached<Worker>>,
    // Volatile state.
    /// Whether all of it was written when it was last paused.
    settled: io::Result<()>,
}

impl Block {
    /// Opens the disk. The device's worker lives on `event_loop`.
    pub fn new(
        config: BlockConfig,
        event_loop: Arc<dyn EventLoop>,
    ) -> Result<(Self, BlockControl), Error> {
        let id = config.id.clone();
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(Error::Queues {
                id,
                queues: config.queues,
            });
        }
        if let Some(serial) = config
            .serial
            .clone()
            .filter(|text| text.len() > SERIAL_SIZE)
        {
            return Err(Error::Serial { id, serial });
        }
        let disk = Disk::open(&config.disk_options())?;
        let io_error = |source| Error::Io { id, source };
        let limiter = RateLimiter::new(config.rate);
        let queues = config.queues.into();
        let shared = Shared::new(config, Arc::clone(disk.info()));
        let (limiter, shared) = limiter
            .and_then(|limiter| Ok((limiter, Arc::new(shared?))))
            .map_err(io_error)?;
        let control = BlockControl {
            shared: Arc::clone(&shared),
        };
        let block = Self {
            event_loop,
            queues,
            shared,
            idle: Some(Idle { disk, limiter }),
            worker: None,
            settled: Ok(()),
        };
        Ok((block, control))
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let config = &self.shared.config;
        let info = Arc::clone(&lock(&self.shared.info));
        let mut bytes = [0; CONFIG_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(info.size() / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "512")]
        put(20, &(SECTOR as u32).to_le_bytes());
        let preferred = u32::try_from(info.preferred_size() / SECTOR).unwrap_or(0);
        put(24, &[PHYSICAL_BLOCK_EXP, 0]);
        put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        put(28, &preferred.to_le_bytes());
        let writeback = self.shared.writeback.load(Ordering::Acquire);
        put(32, &[u8::from(writeback)]);
        put(34, &config.queues.to_le_bytes());
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &DISCARD_RANGES_MAX.to_le_bytes());
        put(44, &preferred.to_le_bytes());
        put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
        put(52, &ZEROES_RANGES_MAX.to_le_bytes());
        put(56, &[1]);
        bytes
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.queues]
    }

    fn features(&self) -> u64 {
        let config = &self.shared.config;
        let mut features = vec![
            feature::SIZE_MAX,
            feature::SEG_MAX,
            feature::BLK_SIZE,
            feature::TOPOLOGY,
        ];
        if config.read_only {
            features.push(feature::RO);
        } else {
            features.extend([feature::DISCARD, feature::WRITE_ZEROES]);
            if config.cache == Cache::Writeback {
                features.extend([feature::FLUSH, feature::CONFIG_WCE]);
            }
        }
        if self.queues > 1 {
            features.push(feature::MQ);
        }
        features.into_iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Only `writeback` can be written to (section 5.2.5.2). It outlives a reset: a driver reads it,
        // or flushes.
        if let (WRITEBACK_OFFSET, &[value]) = (offset, data)
            && value <= 1
        {
            self.shared.writeback.store(value == 1, Ordering::Release);
        }
    }

    fn activate(&mut self, resources: Resources) -> Result<(), ActivateError> {
        let Some(idle) = self.idle.take() else {
            return Err(ActivateError(Box::new(DiskGone)));
        };
        *lock(&self.shared.interrupt) = Some(resources.interrupt.clone());
        let worker = Worker::new(Arc::clone(&self.shared), idle.disk, idle.limiter, resources);
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *lock(&self.shared.interrupt) = None;
        let Some(worker) = self.worker.take().and_then(Attached::detach) else {
            return Vec::new();
        };
        let (disk, limiter, queues) = worker.stop();
        self.idle = Some(Idle { disk, limiter });
        queues
    }

    /// What the guest has written is in the image's files when this returns, for whoever opens them then.
    fn pause(&mut self) -> Vec<Queue> {
        let queues = self.deactivate();
        if let Some(idle) = &mut self.idle
            && let Some(disk) = lock(&self.shared.replacement).take()
        {
            // Its worker has not seen it yet.
            idle.disk = disk;
        }
        self.settled = match &mut self.idle {
            Some(idle) => idle.disk.settle(),
            None => Ok(()),
        };
        queues
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        if let Err(error) = &self.settled {
            return Err(BadState::Host {
                what: "the map of a disk",
                source: error.kind().into(),
            });
        }
        if let (Some(idle), Some((file, id))) = (&self.idle, lock(&self.shared.overlay_copy).take())
        {
            idle.disk
                .save_overlay(&file, &id)
                .map_err(|source| BadState::Host {
                    what: "a copy of a disk's overlay",
                    source,
                })?;
        }
        Ok(DeviceState::Block(BlockState {
            writeback: self.shared.writeback.load(Ordering::Acquire),
        }))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Block(BlockState { writeback }) = state else {
            return Err(BadState::Kind);
        };
        self.shared.writeback.store(*writeback, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
#[path = "block_test.rs"]
mod tests;

#[cfg(test)]
#[path = "block_bench.rs"]
mod bench;
