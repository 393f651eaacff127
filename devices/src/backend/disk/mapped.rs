//! A file that is mapped into the guest instead of being read and written for it, opened and locked as
//! disks are.
//!
//! The mapping is as long as whole pages of 2 MiB: what is behind the end of the file is memory of zeroes that
//! nobody keeps.
#![expect(unsafe_code, reason = "maps a file over guest memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::inotify;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::Buffer;
use super::engine::{Done, Engine, Op, OpKind};
use super::file::HostFile;
use super::open::{EngineKind, Error, engine, open_and_lock};
use crate::backend::lost_pages::Guard;
use crate::backend::written_by_devices::Writable;
use crate::lock;

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
    mapping: Mutex<Option<Mapping>>,
    file: Arc<HostFile>,
}

/// What is kept for as long as it is mapped.
struct Mapping {
    guard: Guard,
    /// For a mapping in a region that devices may not write to otherwise.
    _writable: Option<Writable>,
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
            mapping: Mutex::default(),
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
        let mapping = lock(&self.mapping);
        if mapping.as_ref().is_none_or(|it| it.guard.is_whole()) {
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
        let address = region.as_ptr();
        // SAFETY: the range is the start of the region, which was made just now and nobody knows; it is only
        // ever accessed as guest memory, which is volatile.
        unsafe {
            let flags = libc::MAP_SHARED;
            map_over(
                address,
                whole_pages,
                protection,
                flags,
                self.file.as_raw_fd(),
            )?;
        }
        self.look_after(address, whole_pages, !self.read_only, None)?;
        GuestRegionMmap::new(region, GuestAddress(gpa))
            .ok_or_else(|| io::Error::other("there is no room at this address"))
    }

    /// Maps it over guest memory that is there, at `gpa`, and lets devices write to it if anybody may. Once.
    ///
    /// Devices may have been told to write to what was there before. Where the file is read-only that ends in memory
    /// that is nobody's, as its pages are private here.
    pub fn map_into(&self, memory: &GuestMemoryMmap, gpa: u64) -> io::Result<()> {
        let to_size = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        let size = to_size(self.size())?;
        let whole_pages = to_size(self.len.next_multiple_of(PAGE_SIZE))?;
        if lock(&self.mapping).is_some() {
            return Err(io::Error::other("it is mapped already"));
        }
        let address = self.place_in(memory, gpa)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = if self.read_only {
            libc::MAP_PRIVATE | libc::MAP_NORESERVE
        } else {
            libc::MAP_SHARED
        };
        let mapped = forget(address, size).and_then(|()| {
            // SAFETY: as in `forget`; the file is not longer than what it is mapped over.
            unsafe {
                map_over(
                    address,
                    whole_pages,
                    protection,
                    flags,
                    self.file.as_raw_fd(),
                )
            }
        });
        let writable = (!self.read_only).then(|| Writable::new(address.addr(), size));
        let kept = mapped.and_then(|()| self.look_after(address, whole_pages, true, writable));
        if kept.is_err() {
            // If that fails too, the file stays mapped, and nobody is told of it.
            let _ = forget(address, size);
        }
        kept
    }

    /// Has nothing of it be guest memory any more: what is at `gpa`, where it was mapped, is memory of zeroes.
    pub fn unmap(&self, memory: &GuestMemoryMmap, gpa: u64) -> io::Result<()> {
        // First: what is there next is no business of its guard's.
        drop(lock(&self.mapping).take());
        let size = usize::try_from(self.size()).map_err(io::Error::other)?;
        forget(self.place_in(memory, gpa)?, size)
    }

    /// Where `gpa` is, from which on one region of guest memory has all of the mapping.
    fn place_in(&self, memory: &GuestMemoryMmap, gpa: u64) -> io::Result<*mut u8> {
        let outside = || io::Error::other("there is no guest memory at this address");
        let region = memory.find_region(GuestAddress(gpa)).ok_or_else(outside)?;
        let offset = gpa - region.start_addr().0;
        if self.size() > region.len() - offset || !gpa.is_multiple_of(ALIGNMENT) {
            return Err(outside());
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(region.as_ptr().wrapping_add(offset))
    }

    fn look_after(
        &self,
        address: *mut u8,
        len: usize,
        is_writable: bool,
        writable: Option<Writable>,
    ) -> io::Result<()> {
        let mut mapping = lock(&self.mapping);
        if mapping.is_some() {
            return Err(io::Error::other("it is mapped already"));
        }
        let file = self.file.file().as_fd();
        let guard = Guard::new(file, address.expose_provenance(), len, is_writable)?;
        *mapping = Some(Mapping {
            guard,
            _writable: writable,
        });
        Ok(())
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
        if let Some(mapping) = &*lock(&self.mapping) {
            mapping.guard.look_again();
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

/// Maps a file, or nothing, over memory.
///
/// # Safety
/// The range is whole pages of guest memory, which is only ever accessed as volatile memory.
unsafe fn map_over(
    address: *mut u8,
    len: usize,
    protection: libc::c_int,
    flags: libc::c_int,
    file: RawFd,
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let mapped = unsafe {
        let flags = flags | libc::MAP_FIXED;
        libc::mmap(address.cast(), len, protection, flags, file, 0)
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Replaces what is mapped there by memory of zeroes. Whoever is still about to write finds room.
fn forget(address: *mut u8, len: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: `MappedFile::place_in` has found the range in one region of guest memory.
    unsafe { map_over(address, len, protection, flags, -1) }
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
