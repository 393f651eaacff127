//! A file that is mapped into the guest instead of being read and written for it, opened and locked as
//! disks are.
//!
//! The mapping is as long as whole pages of 2 MiB: what is behind the end of the file is memory of zeroes that
//! nobody keeps.
#![expect(unsafe_code, reason = "maps a file over guest memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::inotify;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::Buffer;
use super::engine::{Done, Engine, Op, OpKind};
use super::file::HostFile;
use super::open::{EngineKind, Error, engine, open_and_lock};
use crate::backend::lost_pages::Guard;

/// Size and place of a mapping are multiples of this, in bytes: Linux takes no other persistent memory.
pub const ALIGNMENT: u64 = 2 << 20;
const PAGE_SIZE: u64 = 4096;

/// The file.
pub struct MappedFile {
    // Fixed configuration.
    path: PathBuf,
    read_only: bool,
    len: u64,
    // Runtime glue. The guard comes first: it needs the file.
    guard: OnceLock<Guard>,
    file: Arc<HostFile>,
}

impl MappedFile {
    /// Opens and locks a file or block device of any size but 0.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let file = open_and_lock(path, !read_only)?;
        let len = file.len().map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        if len == 0 {
            return Err(Error::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            read_only,
            len,
            guard: OnceLock::new(),
            file: Arc::new(file),
        })
    }

    /// Bytes of the file, as it was opened.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Bytes of its mapping.
    pub fn size(&self) -> u64 {
        self.len.next_multiple_of(ALIGNMENT)
    }

    /// Whether nothing can be written to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Fails if not all of it is any more what is in the file: somebody has cut that, or the host had no
    /// room for what was written.
    pub fn check_whole(&self) -> io::Result<()> {
        if self.guard.get().is_none_or(Guard::is_whole) {
            return Ok(());
        }
        Err(io::Error::other(
            "its file was cut, or the host had no room for it",
        ))
    }

    /// Maps it, as guest memory at `gpa`. Once.
    pub fn map(&self, gpa: u64) -> io::Result<GuestRegionMmap> {
        let protection = if self.read_only {
            libc::PROT_READ
        } else {
            libc::PROT_READ | libc::PROT_WRITE
        };
        let to_size = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        let size = to_size(self.size())?;
        let whole_pages = to_size(self.len.next_multiple_of(PAGE_SIZE))?;
        // Memory of zeroes first, and the file over it.
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(protection)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(io::Error::other)?;
        // SAFETY: the range is the start of the region, which was made just now and nobody knows; it is only
        // ever accessed as guest memory, which is volatile.
        let address = unsafe {
            libc::mmap(
                region.as_ptr().cast(),
                whole_pages,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED,
                self.file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let guard = Guard::new(
            self.file.file().as_fd(),
            address.expose_provenance(),
            whole_pages,
            !self.read_only,
        )?;
        if self.guard.set(guard).is_err() {
            return Err(io::Error::other("it is mapped already"));
        }
        GuestRegionMmap::new(region, GuestAddress(gpa))
            .ok_or_else(|| io::Error::other("there is no room at this address"))
    }

    /// Becomes readable when the file is changed by other means than its mappings, as when someone cuts it:
    /// [`MappedFile::look_again`] is to be called. A guest's CPU would not always tell: some kernels of the host have it
    /// wait for a page that never comes.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // By its descriptor: there may be another file at the path by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
        Ok(watch)
    }

    /// Replaces by zeroes what is behind the end of the file, if it was cut. `watch` becomes unreadable.
    pub fn look_again(&self, watch: &OwnedFd) {
        // What has happened does not matter, and there is no more to read in the end.
        while rustix::io::read(watch, &mut [0; 4096]).is_ok_and(|count| count > 0) {}
        if let Some(guard) = self.guard.get() {
            guard.look_again();
        }
    }

    /// What makes it durable. `memory` is any guest's.
    pub fn syncer(&self, memory: &Arc<GuestMemoryMmap>) -> Syncer {
        Syncer {
            engine: engine(EngineKind::default(), vec![Arc::clone(&self.file)]),
            nothing: Buffer::empty(memory),
            done: Vec::new(),
        }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes durable what was written to a mapped file: by io_uring, so that nobody waits, if the host has it.
pub struct Syncer {
    // Runtime glue.
    engine: Box<dyn Engine>,
    nothing: Buffer,
    // Buffer.
    done: Vec<Done>,
}

impl Syncer {
    /// Starts to make durable what was written so far.
    pub fn start(&mut self) {
        self.engine.push(Op {
            kind: OpKind::Sync,
            file: 0,
            offset: 0,
            buffer: self.nothing.clone(),
            token: 0,
        });
        self.engine.submit();
    }

    /// How it went, if it has ended.
    pub fn take_result(&mut self) -> Option<io::Result<()>> {
        if self.done.is_empty() {
            self.engine.reap(&mut self.done);
        }
        self.done.pop().map(|(_, result)| result)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) {
        self.engine.drain(&mut self.done);
    }

    /// Readable when something may have ended: [`Syncer::clear_event`] and [`Syncer::take_result`] are to
    /// be called. None if all has ended when [`Syncer::start`] returns.
    pub fn event(&self) -> Option<RawFd> {
        self.engine.event()
    }

    /// Makes the event unreadable.
    pub fn clear_event(&mut self) {
        self.engine.clear_event();
    }
}

#[cfg(test)]
#[path = "mapped_test.rs"]
mod tests;
