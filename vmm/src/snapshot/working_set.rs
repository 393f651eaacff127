//! The working set: which pages of its memory a restored guest has touched until it had done something, kept beside the
//! memory file. Whoever restores the snapshot later has them mapped before the guest asks for each of them by a
//! fault: in the process by `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE` while the machine is built, and in KVM by
//! `KVM_PRE_FAULT_MEMORY` while the vCPUs start. Where the host knows neither, the guest faults as ever.
//!
//! ```text
//!  0  magic "MOTEPAGE"
//!  8  version of the format                          u32, little-endian
//! 12  CRC-32 of what follows                         u32
//! 16  the memory file's id, then the runs of pages   postcard
//! ```
//! Pages are listed by address: that is the order in which they are read best. The file may come from anyone: it is
//! a hint, and one that is not about this memory file, or is damaged, counts as none.
#![expect(unsafe_code, reason = "advises the host about guest memory")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::file::NewFile;
use super::hints::{self, Pages};
use super::memory::{self, Id, PAGE_SIZE, RegionState};
use super::pages::{self, Map};
use crate::faults::Unawaited;

const MAGIC: [u8; 8] = *b"MOTEPAGE";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 16;
/// Bytes of what the host says of pages that are read at once.
const ENTRIES: usize = 64 << 10;
/// Most bytes of a file: a run takes four or more, and a guest that touches as much as that gains nothing.
const MAX_SIZE: u64 = 4 << 20;
/// Most pages that are mapped by one call: so long somebody may have to wait for the end of it.
const PART: usize = 4096;
/// Pages between two runs that are mapped along with them: a call costs more.
const GAP: u64 = 2;

mod ioctls {
    use kvm_bindings::{KVMIO, kvm_pre_fault_memory};

    vmm_sys_util::ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}

/// Pages next to each other that the guest has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// First page of the memory file.
    page: u32,
    pages: u32,
    /// It has written to them.
    is_written: bool,
}

/// The pages of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    id: Id,
    runs: Vec<Run>,
}

impl WorkingSet {
    /// What lies beside a memory file with this id and these regions, which may be anything, if it means anything.
    pub fn find(memory_path: &Path, id: &Id, regions: &[RegionState]) -> Option<Self> {
        let file = File::open(hints::path(memory_path, hints::PAGES)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes).ok()?;
        let (header, body) = bytes.split_at_checked(HEADER_SIZE)?;
        if header != head(body) {
            return None;
        }
        let found: Self = postcard::from_bytes(body).ok()?;
        memory::check_layout(regions).ok()?;
        (found.id == *id && found.fits(regions)).then_some(found)
    }

    /// Whether its runs are in these regions, one behind the other, as the regions are.
    fn fits(&self, regions: &[RegionState]) -> bool {
        let mut regions = regions.iter().map(RegionState::file_range);
        let mut region = regions.next();
        let mut end = 0;
        self.runs.iter().all(|run| {
            let range = run.bytes();
            let follows = range.start >= end && range.start < range.end;
            end = range.end;
            while region
                .as_ref()
                .is_some_and(|there| there.end <= range.start)
            {
                region = regions.next();
            }
            follows
                && (region.as_ref())
                    .is_some_and(|there| there.start <= range.start && range.end <= there.end)
        })
    }

    /// Notes which pages of guest memory are there, of a guest that was restored from the memory file with this id. What of
    /// them is its own by now it has written to.
    pub(crate) fn of(
        memory: &GuestMemoryMmap,
        id: &Id,
        regions: &[RegionState],
    ) -> Result<Self, memory::Error> {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |place: u64, is_written: bool| {
            let Ok(page) = u32::try_from(place / PAGE_SIZE) else {
                return;
            };
            match runs.last_mut() {
                Some(last) if last.page + last.pages == page && last.is_written == is_written => {
                    last.pages += 1;
                }
                _ => runs.push(Run {
                    page,
                    pages: 1,
                    is_written,
                }),
            }
        };
        let pagemap = pages::open_pagemap()?;
        let mut entries = vec![0; ENTRIES];
        for part in Map::of(memory, regions)?.parts {
            let look = |place, page: pages::Page| {
                if page.is_in_use() {
                    add(place, page.is_own());
                }
                false
            };
            pages::each_run(&pagemap, &part, &mut entries, look, |_| Ok(()))?;
        }
        Ok(Self { id: *id, runs })
    }

    /// Keeps it beside the memory file. One that is too long becomes an empty one, so that nobody notes it again.
    pub fn write(&self, memory_path: &Path) -> io::Result<()> {
        let mut body = postcard::to_stdvec(self).map_err(io::Error::other)?;
        if (HEADER_SIZE + body.len()) as u64 > MAX_SIZE {
            let none = Self {
                id: self.id,
                runs: Vec::new(),
            };
            body = postcard::to_stdvec(&none).map_err(io::Error::other)?;
        }
        let new = NewFile::create(&hints::path(memory_path, hints::PAGES))?;
        new.file().write_all(&head(&body))?;
        new.file().write_all(&body)?;
        new.commit()
    }

    /// How many pages there are.
    pub fn pages(&self) -> Pages {
        let sum = |runs: &mut dyn Iterator<Item = &Run>| runs.map(|run| u64::from(run.pages)).sum();
        Pages {
            all: sum(&mut self.runs.iter()),
            written: sum(&mut self.runs.iter().filter(|run| run.is_written)),
        }
    }

    /// The same in guest addresses, what is close to each other in one.
    fn guest_ranges(&self, regions: &[RegionState]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for run in &self.runs {
            let Some(gpas) = run.guest_range(regions) else {
                continue;
            };
            match ranges.last_mut() {
                Some(last)
                    if last.end <= gpas.start && gpas.start - last.end <= GAP * PAGE_SIZE =>
                {
                    last.end = gpas.end;
                }
                _ => ranges.push(gpas),
            }
        }
        ranges
    }

    /// Has the pages mapped into this process, by another thread.
    pub(crate) fn populate(
        self: &Arc<Self>,
        memory: &Arc<GuestMemoryMmap>,
        regions: &[RegionState],
    ) -> Populating {
        let (set, memory, regions) = (Arc::clone(self), Arc::clone(memory), regions.to_vec());
        let faults = Arc::new(Unawaited::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let (own, ends) = (Arc::clone(&faults), Arc::clone(&is_over));
        let thread = std::thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || {
                for run in set.runs.iter().flat_map(Run::parts) {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(gpas) = run.guest_range(&regions)
                        && !advise(&memory, &gpas, run.is_written)
                    {
                        return;
                    }
                    own.tell();
                }
            });
        Populating {
            thread: thread.ok(),
            is_over,
            faults,
        }
    }

    /// What KVM is to map.
    pub(crate) fn pre_fault(&self, regions: &[RegionState]) -> PreFault {
        PreFault(self.guest_ranges(regions))
    }
}

/// Guest addresses that KVM is to map before the guest asks for them.
pub(crate) struct PreFault(Vec<Range<u64>>);

impl PreFault {
    /// Has it do so, on the vCPU's own thread. Where it cannot (before Linux 6.11), the guest faults.
    pub(crate) fn apply(self, vcpu: &VcpuFd) {
        for range in self.0 {
            let mut wanted = kvm_pre_fault_memory {
                gpa: range.start,
                size: range.end - range.start,
                ..Default::default()
            };
            while wanted.size > 0 {
                let left = wanted.size;
                // SAFETY: KVM reads and writes this structure, and touches guest memory as the guest would.
                let result = unsafe {
                    ioctl_with_mut_ref(vcpu, ioctls::KVM_PRE_FAULT_MEMORY(), &mut wanted)
                };
                // Interrupted, it says how much is left.
                if result != 0 && wanted.size == left {
                    return;
                }
            }
        }
    }
}

/// A thread that maps pages. Dropping it ends it, and waits for that.
#[derive(Default)]
pub(crate) struct Populating {
    thread: Option<std::thread::JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    faults: Arc<Unawaited>,
}

impl Populating {
    /// The page faults that it takes, as the host counts what it maps.
    pub(crate) fn faults(&self) -> Arc<Unawaited> {
        Arc::clone(&self.faults)
    }
}

impl Drop for Populating {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; one that did has printed why.
            let _ = thread.join();
        }
    }
}

impl Run {
    /// Where it is in the memory file.
    fn bytes(&self) -> Range<u64> {
        let start = u64::from(self.page) * PAGE_SIZE;
        start..start + u64::from(self.pages) * PAGE_SIZE
    }

    /// It, in pieces of at most [`PART`] pages.
    fn parts(&self) -> impl Iterator<Item = Self> + use<> {
        let Self {
            page,
            pages,
            is_written,
        } = *self;
        let offsets = (0..pages).step_by(PART);
        offsets.map(move |offset| Self {
            page: page + offset,
            pages: (pages - offset).min(PART as u32),
            is_written,
        })
    }

    fn guest_range(&self, regions: &[RegionState]) -> Option<Range<u64>> {
        let bytes = self.bytes();
        let mut regions = regions.iter();
        let region = regions.find(|region| region.file_range().contains(&bytes.start))?;
        let start = region.gpa + (bytes.start - region.offset);
        Some(start..start + (bytes.end - bytes.start))
    }
}

/// Has pages of guest memory mapped; false where the host cannot (before Linux 5.14).
fn advise(memory: &GuestMemoryMmap, gpas: &Range<u64>, is_written: bool) -> bool {
    let advice = if is_written {
        libc::MADV_POPULATE_WRITE
    } else {
        libc::MADV_POPULATE_READ
    };
    let advised = advise_range(memory, gpas, advice);
    advised.is_ok_and(|error| error.is_none_or(|number| number != libc::EINVAL))
}

/// Advises the host about guest memory; gives back the error's number if it refuses. Fails for what is no guest memory.
fn advise_range(
    memory: &GuestMemoryMmap,
    gpas: &Range<u64>,
    advice: libc::c_int,
) -> Result<Option<i32>, vm_memory::GuestMemoryError> {
    let bytes = usize::try_from(gpas.end - gpas.start).unwrap_or(usize::MAX);
    let slice = memory.get_slice(GuestAddress(gpas.start), bytes)?;
    // SAFETY: the range is guest memory, which stays as long as `memory` does; its contents do not change by that.
    let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes, advice) };
    Ok((result != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

/// Has the host read only those pages of the memory file that are asked for, or what is next to them as well. With the former, what is
/// there is what the guest has touched, and what is next to that in the host's memory already.
pub(super) fn read_singly(memory: &GuestMemoryMmap, regions: &[RegionState], singly: bool) {
    let advice = if singly {
        libc::MADV_RANDOM
    } else {
        libc::MADV_NORMAL
    };
    for region in regions {
        // Where it fails, there are some more of them.
        let gpas = region.gpa..region.gpa.saturating_add(region.bytes);
        let _ = advise_range(memory, &gpas, advice);
    }
}

/// Has the host forget what it has read of a memory file, so that what it has next is what a guest has touched. A file
/// system in memory forgets nothing: then there is more.
pub fn forget(memory_path: &Path) -> io::Result<()> {
    let file = File::open(memory_path)?;
    // SAFETY: takes a descriptor and numbers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

fn head(body: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_SIZE);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(crc32fast::hash(body).to_le_bytes());
    header
}

#[cfg(test)]
#[path = "working_set_test.rs"]
mod tests;
