//! Disks: an image (raw, qcow2, or an overlay on either) that says where each byte is, and an engine
//! (io_uring, or ordinary system calls) that moves bytes between there and guest memory.
//!
//! Reading order: this file, `image` (the contract of formats), `raw`, `overlay`, `qcow2`; `engine` (the
//! contract of engines), `engine::sync`, `engine::uring`; `buffer` and `file` hold what is unsafe. `mapped` has
//! nothing to do with images: it is a file that the guest has as memory.
//!
//! An image maps in the thread that asks, and may read or write a table for that; data is moved by the
//! engine. Discards, zeroes, and the commit of a changed map are done at once, the latter after what is
//! in flight.

mod buffer;
mod engine;
mod file;
mod image;
pub mod mapped;
mod open;
mod overlay;
mod qcow2;
mod raw;
#[cfg(test)]
pub(crate) mod test_support;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use buffer::Buffer;
use engine::{Done, Engine, Op, OpKind};
use file::HostFile;
use image::{Extent, Image, Source};
pub use open::{Cache, EngineKind, Error, Format, Options, Overlay};
pub use overlay::{Error as OverlayError, Id as OverlayId};
pub use qcow2::Error as Qcow2Error;

/// Bytes of a sector: the unit of all requests.
pub const SECTOR: u64 = 512;
/// Times that a map is committed when a disk goes away: once, and for what the first has freed.
const LAST_COMMITS: u32 = 2;

/// A request has ended: its number, and how.
pub type Completion = (u32, io::Result<()>);

/// What others may know of a disk while somebody works with it.
#[derive(Debug)]
pub struct Info {
    // Fixed configuration.
    identity: (u64, u64),
    preferred_size: u64,
    read_only: bool,
    /// For disks that are as large as their file.
    resizable: Option<Arc<HostFile>>,
    /// Any size that the file has will do.
    any_size: bool,
    // Volatile state.
    /// The file was empty, and is locked as by one who only reads.
    to_lock: AtomicBool,
    size: Arc<AtomicU64>,
}

impl Info {
    /// Size in bytes: whole sectors.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether it cannot be written to.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes that are best written at once; a power of two.
    pub fn preferred_size(&self) -> u64 {
        self.preferred_size
    }

    /// Whether `path` is the file of this disk.
    pub fn is_file(&self, path: &std::path::Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    /// Takes on the size that the file has now, and returns it.
    pub fn resize(&self) -> Result<u64, ResizeError> {
        let file = self.resizable.as_ref().ok_or(ResizeError::Fixed)?;
        let len = file.len().map_err(ResizeError::Io)?;
        if !self.any_size && (len == 0 || !len.is_multiple_of(SECTOR)) {
            return Err(ResizeError::Size { len });
        }
        if len > 0 && self.to_lock.load(Ordering::Acquire) {
            if !file.lock(true).map_err(ResizeError::Io)? {
                return Err(ResizeError::Locked);
            }
            self.to_lock.store(false, Ordering::Release);
        }
        let len = whole_sectors(len);
        self.size.store(len, Ordering::Release);
        Ok(len)
    }
}

/// What of `len` bytes a guest can use.
fn whole_sectors(len: u64) -> u64 {
    len / SECTOR * SECTOR
}

/// Why a disk cannot take on the size of its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// Only raw images are as large as their file.
    #[error("Only a raw image without an overlay can change its size")]
    Fixed,
    /// No whole sectors.
    #[error("Its size is {len} bytes, which is not a multiple of 512, or nothing")]
    Size {
        /// Bytes.
        len: u64,
    },
    /// It was empty, and others have it as well.
    #[error("It was empty, and another disk or process has it too: only one can write to it")]
    Locked,
    /// The host.
    #[error("Its size cannot be read")]
    Io(#[source] io::Error),
}

/// A request whose parts are in the engine's hands.
#[derive(Default)]
struct Pending {
    parts: usize,
    error: Option<io::Error>,
}

/// A disk. Requests have numbers of the caller's choice: small ones, as there is a table of them, and
/// different from those that have not ended.
pub struct Disk {
    // Fixed configuration.
    cache: Cache,
    info: Arc<Info>,
    // Runtime glue. The engine comes first: it has to be done before the image goes.
    engine: Box<dyn Engine>,
    image: Box<dyn Image>,
    // Volatile state.
    pending: Vec<Pending>,
    /// Operations of the engine that have not ended.
    in_flight: usize,
    done: Vec<Completion>,
    // Buffers.
    extents: Vec<Extent>,
    reaped: Vec<Done>,
}

impl Disk {
    /// What others may know of it.
    pub fn info(&self) -> &Arc<Info> {
        &self.info
    }

    /// Whether flushes matter: false if the disk may lose anything when the host stops.
    pub fn is_durable(&self) -> bool {
        self.cache == Cache::Writeback
    }

    /// Readable when requests have ended since: [`Disk::clear_event`] and [`Disk::completions`] are to
    /// be called. None if requests end in [`Disk::submit`] at the latest.
    pub fn event(&self) -> Option<RawFd> {
        self.engine.event()
    }

    /// Makes the event unreadable until more requests have ended.
    pub fn clear_event(&mut self) {
        self.engine.clear_event();
    }

    /// Reads into `buffer`, from `offset` on.
    pub fn read(&mut self, id: u32, offset: u64, buffer: Buffer) {
        self.transfer(id, OpKind::Read, offset, buffer);
    }

    /// Writes `buffer` at `offset`.
    pub fn write(&mut self, id: u32, offset: u64, buffer: Buffer) {
        self.transfer(id, OpKind::Write, offset, buffer);
    }

    fn transfer(&mut self, id: u32, kind: OpKind, offset: u64, buffer: Buffer) {
        let len = buffer.len();
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        let mapped = self
            .check(offset, len, kind == OpKind::Write)
            .and_then(|()| match kind {
                _ if len == 0 => Ok(()),
                OpKind::Read => self.image.map_read(offset, len, &mut extents),
                _ => {
                    self.commit_if_wanted()?;
                    self.image.map_write(offset, len, &mut extents)
                }
            });
        match mapped {
            Ok(()) => self.start(id, kind, buffer, &extents),
            Err(error) => self.done.push((id, Err(error))),
        }
        self.extents = extents;
    }

    /// Starts what is to be done in each place.
    fn start(&mut self, id: u32, kind: OpKind, buffer: Buffer, extents: &[Extent]) {
        if let [
            Extent {
                source: Source::File { file, offset },
                ..
            },
        ] = *extents
        {
            self.engine.push(Op {
                kind,
                file,
                offset,
                buffer,
                token: id,
            });
            self.expect(id, 1);
            return;
        }
        let mut at = 0;
        let mut parts = 0;
        for extent in extents {
            let part = buffer.slice(at, extent.len);
            match &extent.source {
                Source::Zero => part.zero(),
                Source::Bytes(bytes, start) => {
                    part.copy_from(bytes.get(*start..).unwrap_or_default());
                }
                &Source::File { file, offset } => {
                    parts += 1;
                    self.engine.push(Op {
                        kind,
                        file,
                        offset,
                        buffer: part,
                        token: id,
                    });
                }
            }
            at += extent.len;
        }
        self.expect(id, parts);
    }

    /// The engine has `parts` operations of the request.
    fn expect(&mut self, id: u32, parts: usize) {
        if parts == 0 {
            self.done.push((id, Ok(())));
            return;
        }
        let index = id as usize;
        if self.pending.len() <= index {
            self.pending.resize_with(index + 1, Pending::default);
        }
        self.pending[index] = Pending { parts, error: None };
        self.in_flight += parts;
    }

    /// Makes durable what was written by requests that have ended. `buffer` is any.
    pub fn flush(&mut self, id: u32, buffer: &Buffer) {
        let file = match self.image.written_file() {
            Some(file) if self.is_durable() => file,
            _ => {
                self.done.push((id, Ok(())));
                return;
            }
        };
        if self.image.is_dirty() {
            let result = self.commit();
            self.done.push((id, result));
            return;
        }
        self.engine.push(Op {
            kind: OpKind::Sync,
            file,
            offset: 0,
            buffer: buffer.slice(0, 0),
            token: id,
        });
        self.expect(id, 1);
    }

    /// The content of these bytes does not matter any more.
    pub fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len, true)?;
        self.commit_if_wanted()?;
        if len == 0 {
            return Ok(());
        }
        self.image.discard(offset, len)
    }

    /// These bytes are zeroes; `unmap`: and need no room.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check(offset, len, true)?;
        self.commit_if_wanted()?;
        if len == 0 {
            return Ok(());
        }
        self.image.write_zeroes(offset, len, unmap)
    }

    fn check(&self, offset: u64, len: u64, write: bool) -> io::Result<()> {
        if write && self.info.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.image.size() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn commit_if_wanted(&mut self) -> io::Result<()> {
        if self.image.wants_commit() {
            self.commit()
        } else {
            Ok(())
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        self.drain();
        self.image.commit(self.is_durable())
    }

    /// Starts all requests that were made.
    pub fn submit(&mut self) {
        self.engine.submit();
    }

    /// Takes the requests that have ended.
    pub fn completions(&mut self, completions: &mut Vec<Completion>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.engine.reap(&mut reaped);
        self.note(&mut reaped);
        self.reaped = reaped;
        // A disk that need not survive the host still is to survive its monitor.
        if !self.is_durable() && self.in_flight == 0 && self.image.is_dirty() {
            // What could not be written is tried again.
            let _ = self.image.commit(false);
        }
        completions.append(&mut self.done);
    }

    /// Waits until all requests have ended, and writes what the image's files do not have yet: its map.
    pub fn settle(&mut self) -> io::Result<()> {
        self.drain();
        for _ in 0..LAST_COMMITS {
            if !self.image.is_dirty() {
                break;
            }
            self.image.commit(self.is_durable())?;
        }
        Ok(())
    }

    /// Writes what a temporary overlay has to a new file, for the snapshot `id`. All requests have ended.
    pub fn save_overlay(&self, to: &File, id: &OverlayId) -> io::Result<()> {
        match self.image.as_overlay() {
            Some(overlay) => overlay.save(to, id),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Waits until all requests have ended.
    pub fn drain(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.engine.drain(&mut reaped);
        self.note(&mut reaped);
        self.reaped = reaped;
    }

    /// Operations have ended: so may have requests.
    fn note(&mut self, reaped: &mut Vec<Done>) {
        for (id, result) in reaped.drain(..) {
            self.in_flight -= 1;
            let Some(pending) = self.pending.get_mut(id as usize) else {
                continue;
            };
            pending.parts -= 1;
            if let Err(error) = result {
                pending.error.get_or_insert(error);
            }
            if pending.parts == 0 {
                let result = pending.error.take().map_or(Ok(()), Err);
                self.done.push((id, result));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            log::error!("The map of a disk cannot be written: {error}");
        }
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
