//! Guest RAM: anonymous memory, into which kernel and initrd are mapped from their files.
//!
//! Mapping costs page-table entries, not copies, and what no guest writes to is shared between all
//! guests through the page cache. The mappings are private: a guest's writes never reach the file.
//! What a kernel writes to at its boot is copied: on anonymous memory, which the host may give huge pages,
//! it costs few page faults, and mapped it would be copied by the page, with two or three for each.
//! Memory of huge pages cannot be mapped over by the page: there all is copied.
#![expect(unsafe_code, reason = "maps files over guest memory")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use arch::boot::ram_ranges;
use arch::kernel::Segment;
use rustix::fs::{SeekFrom, seek};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, ReadVolatile,
    VolatileSlice,
};

use crate::config::{HUGE_PAGE_SIZE, HugePages};

const PAGE_SIZE: u64 = 4096;
/// The largest segment that is copied because the kernel writes to it, in bytes of guest memory. In larger ones a
/// distribution's kernel has megabytes that few boots touch: tables of its unwinder, memory for its own encryption.
const COPIED_SEGMENT_MAX: u64 = 4 << 20;
/// Where the kernel says how many huge pages there are.
const HUGE_PAGES_DIRECTORY: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Why guest memory could not be made or filled.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// More memory than the host has.
    #[error(
        "The guest is to have {asked} bytes of memory, the host has {total} in all: give it less \
         with --memory"
    )]
    MoreThanHost {
        /// Bytes asked for.
        asked: u64,
        /// Bytes the host has.
        total: u64,
    },
    /// The host refused the mapping.
    #[error("Cannot reserve {bytes} bytes of guest memory")]
    Reserve {
        /// How much.
        bytes: u64,
        /// What the host said.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The host has too few huge pages.
    #[error(
        "The guest's memory takes {needed} huge pages of 2 MiB, {free} of the host's {total} are \
         free: reserve more, as root, by: echo {} > {HUGE_PAGES_DIRECTORY}/nr_hugepages",
        total.saturating_add(needed.saturating_sub(*free))
    )]
    NoHugePages {
        /// How many the guest takes.
        needed: u64,
        /// How many there are for it.
        free: u64,
        /// How many the host has set aside in all.
        total: u64,
    },
    /// The regions do not form a guest memory.
    #[error("The guest's memory regions do not fit together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// Not RAM.
    #[error("{bytes} bytes at {gpa:#x} are not guest memory")]
    NotRam {
        /// First GPA.
        gpa: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Mapping a file failed.
    #[error("Cannot map the {what} file into guest memory")]
    Map {
        /// "kernel", "initrd" or "memory".
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Copying from a file failed.
    #[error("Cannot read the {what} file into guest memory")]
    Copy {
        /// "kernel", "initrd" or "memory".
        what: &'static str,
        /// What went wrong.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// Seeking or asking for the size failed.
    #[error("Cannot read the {what} file")]
    Read {
        /// "kernel", "initrd" or "memory".
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Whether the host has `size` bytes at all.
pub(crate) fn check_size(size: u64) -> Result<(), Error> {
    let total = host_memory();
    if size > total {
        return Err(Error::MoreThanHost { asked: size, total });
    }
    Ok(())
}

/// Reserves `size` bytes of guest RAM, which the host has ([`check_size`]), around the device hole, with `more` above it. Nothing of it is
/// touched.
pub(crate) fn allocate(
    size: u64,
    huge_pages: HugePages,
    more: Vec<GuestRegionMmap>,
) -> Result<GuestMemoryMmap, Error> {
    let flags = match huge_pages {
        HugePages::None => libc::MAP_NORESERVE,
        // Reserved now: a page that is missing later would be a SIGBUS.
        HugePages::TwoMiB => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
    };
    let mut regions = Vec::with_capacity(2 + more.len());
    for (start, bytes) in ram_ranges(size) {
        match region(start, bytes, libc::PROT_READ | libc::PROT_WRITE, flags) {
            Ok(region) => regions.push(region),
            Err(error) if huge_pages == HugePages::None => return Err(error),
            Err(error) => {
                // What was reserved before is not to be counted as somebody else's.
                regions.clear();
                return Err(too_few_huge_pages(size).unwrap_or(error));
            }
        }
    }
    regions.extend(more);
    GuestMemoryMmap::from_regions(regions).map_err(Error::Regions)
}

/// Says that there are too few, if there are.
fn too_few_huge_pages(size: u64) -> Option<Error> {
    let number = |name| -> u64 {
        let text = std::fs::read_to_string(format!("{HUGE_PAGES_DIRECTORY}/{name}"));
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let needed = size.div_ceil(HUGE_PAGE_SIZE);
    // Of those that nobody has touched yet, some belong to others already.
    let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    (free < needed).then(|| Error::NoHugePages {
        needed,
        free,
        total: number("nr_hugepages"),
    })
}

/// Reserves `bytes` bytes of guest memory at `start`. Nothing of it is touched.
pub(crate) fn reserve(start: u64, bytes: u64) -> Result<GuestRegionMmap, Error> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    region(start, bytes, protection, libc::MAP_NORESERVE)
}

/// The same for what devices may not write to.
pub(crate) fn reserve_read_only(start: u64, bytes: u64) -> Result<GuestRegionMmap, Error> {
    region(start, bytes, libc::PROT_READ, libc::MAP_NORESERVE)
}

/// Maps `bytes` bytes of guest memory at `start`, with these flags besides those that all of it has.
fn region(
    start: u64,
    bytes: u64,
    protection: libc::c_int,
    flags: libc::c_int,
) -> Result<GuestRegionMmap, Error> {
    #[expect(clippy::cast_possible_truncation, reason = "64-bit only")]
    let mapping = MmapRegionBuilder::new(bytes as usize)
        .with_mmap_prot(protection)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags)
        .build()
        .map_err(|source| Error::Reserve { bytes, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(Error::NotRam { gpa: start, bytes })
}

/// All the memory the host has, in bytes.
fn host_memory() -> u64 {
    // SAFETY: sysconf only reads.
    let (pages, page_size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    u64::try_from(pages)
        .unwrap_or(u64::MAX)
        .saturating_mul(u64::try_from(page_size).unwrap_or(0))
}

/// Puts a kernel's segments into guest memory.
pub(crate) fn load_kernel(
    memory: &GuestMemoryMmap,
    huge_pages: HugePages,
    file: &File,
    segments: &[Segment],
) -> Result<(), Error> {
    if huge_pages == HugePages::None {
        for block in writable_blocks(segments) {
            advise_huge_pages(memory, block);
        }
    }
    let mut page_in_use = None;
    for segment in segments {
        // Two segments may share a page: the second one must not hide the first.
        let shares_page = page_in_use == Some(segment.gpa / PAGE_SIZE);
        let to_copy = is_copied(segment) || shares_page || huge_pages != HugePages::None;
        load(memory, file, segment, to_copy, "kernel")?;
        page_in_use = Some((segment.gpa + segment.memory_size - 1) / PAGE_SIZE);
    }
    Ok(())
}

/// Whether it is better copied than mapped.
fn is_copied(segment: &Segment) -> bool {
    segment.writable && segment.memory_size <= COPIED_SEGMENT_MAX
}

/// What of guest memory lies, by whole huge pages, in segments that are copied as the kernel writes to them, and in
/// nothing else. All of it is written to: what the file has of it by [`load_kernel`], the rest by Linux, which clears its
/// bss before anything else.
fn writable_blocks(segments: &[Segment]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for segment in segments.iter().filter(|segment| is_copied(segment)) {
        let first_page = segment.gpa / PAGE_SIZE * PAGE_SIZE;
        match runs.last_mut() {
            Some(run) if first_page <= run.end.next_multiple_of(PAGE_SIZE) => {
                run.end = segment.end();
            }
            _ => runs.push(segment.gpa..segment.end()),
        }
    }
    let blocks = runs.into_iter().map(|run| {
        run.start.next_multiple_of(HUGE_PAGE_SIZE)..run.end / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE
    });
    blocks.filter(|blocks| !blocks.is_empty()).collect()
}

/// Tells the host that huge pages are welcome there. Where it has none, or gives them
/// to those too that ask for nothing, little changes.
fn advise_huge_pages(memory: &GuestMemoryMmap, range: Range<u64>) {
    let Ok(bytes) = usize::try_from(range.end - range.start) else {
        return;
    };
    let Ok(slice) = memory.get_slice(GuestAddress(range.start), bytes) else {
        return;
    };
    let address = slice.ptr_guard_mut().as_ptr();
    // KVM can only use a huge page that is one for the guest too.
    if !(address as u64).is_multiple_of(HUGE_PAGE_SIZE) {
        return;
    }
    // SAFETY: the range lies in one region of guest memory, a mapping of our own; the advice changes
    // nothing of what is in it.
    let advised = unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
    if advised != 0 {
        // EINVAL: the host's kernel is built without them.
        let error = io::Error::last_os_error();
        log::debug!("No huge pages for the kernel's data: {error}");
    }
}

/// Puts an initrd of `size` bytes at `gpa`, which is page-aligned.
pub(crate) fn load_initrd(
    memory: &GuestMemoryMmap,
    huge_pages: HugePages,
    file: &File,
    gpa: u64,
    size: u64,
) -> Result<(), Error> {
    let segment = Segment {
        file_offset: 0,
        file_size: size,
        gpa,
        memory_size: size,
        writable: false,
    };
    load(
        memory,
        file,
        &segment,
        huge_pages != HugePages::None,
        "initrd",
    )
}

fn load(
    memory: &GuestMemoryMmap,
    file: &File,
    segment: &Segment,
    to_copy: bool,
    what: &'static str,
) -> Result<(), Error> {
    let Segment {
        file_offset,
        file_size,
        gpa,
        ..
    } = *segment;
    let not_ram = || Error::NotRam {
        gpa,
        bytes: segment.memory_size,
    };
    if file_size == 0 {
        return Ok(());
    }
    let bytes = usize::try_from(file_size).map_err(|_| not_ram())?;
    let slice = memory
        .get_slice(GuestAddress(gpa), bytes)
        .map_err(|_| not_ram())?;
    // Only whole pages of the file are mapped: what follows the segment in its last page is none
    // of the guest's business, so that page is copied.
    let whole_pages = file_size / PAGE_SIZE * PAGE_SIZE;
    let congruent = gpa.is_multiple_of(PAGE_SIZE) && file_offset.is_multiple_of(PAGE_SIZE);
    if whole_pages == 0 || !congruent || to_copy {
        return copy(&slice, file, file_offset, what);
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most `bytes`")]
    let mapped = whole_pages as usize;
    map(&slice, mapped, file, file_offset, what)?;
    if mapped < bytes {
        let rest = slice.offset(mapped).map_err(|_| not_ram())?;
        copy(&rest, file, file_offset + whole_pages, what)?;
    }
    Ok(())
}

/// Puts `bytes` bytes of a sparse file into guest memory at `gpa`, which has only zeroes: mapped, private and writable,
/// so that the file stays as it is; into huge pages by copying what is no hole.
pub(crate) fn put_file(
    memory: &GuestMemoryMmap,
    gpa: u64,
    bytes: u64,
    file: &File,
    file_offset: u64,
) -> Result<(), Error> {
    let not_ram = || Error::NotRam { gpa, bytes };
    let length = usize::try_from(bytes).map_err(|_| not_ram())?;
    let slice = memory
        .get_slice(GuestAddress(gpa), length)
        .map_err(|_| not_ram())?;
    let region = memory.find_region(GuestAddress(gpa));
    if region.is_some_and(|region| region.flags() & libc::MAP_HUGETLB != 0) {
        return copy_data(&slice, file, file_offset, "memory");
    }
    map(&slice, length, file, file_offset, "memory")
}

/// Copies what is no hole in the part of a file that begins at `start`.
fn copy_data(
    slice: &VolatileSlice<'_>,
    file: &File,
    start: u64,
    what: &'static str,
) -> Result<(), Error> {
    let source = |error: rustix::io::Errno| Error::Read {
        what,
        source: error.into(),
    };
    let end = start.saturating_add(slice.len() as u64);
    let mut at = start;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // All that follows is a hole, or behind the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(source(error)),
        };
        at = seek(file, SeekFrom::Hole(data)).map_err(source)?.min(end);
        #[expect(clippy::cast_possible_truncation, reason = "within the slice")]
        let part = slice.subslice((data - start) as usize, (at - data) as usize);
        let part = part.map_err(|_| Error::NotRam {
            gpa: data,
            bytes: at - data,
        })?;
        copy(&part, file, data, what)?;
    }
    Ok(())
}

fn map(
    slice: &VolatileSlice<'_>,
    length: usize,
    file: &File,
    file_offset: u64,
    what: &'static str,
) -> Result<(), Error> {
    debug_assert!(length <= slice.len());
    let offset = libc::off_t::try_from(file_offset).map_err(|source| Error::Map {
        what,
        source: io::Error::other(source),
    })?;
    // SAFETY: the range lies in one region of guest memory, which is a mapping of our own that stays
    // until the region is dropped and is only ever accessed as volatile memory; MAP_FIXED replaces
    // whole pages of it, as address, offset and length are multiples of the page size.
    let address = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Error::Map {
            what,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

fn copy(
    slice: &VolatileSlice<'_>,
    file: &File,
    file_offset: u64,
    what: &'static str,
) -> Result<(), Error> {
    let mut file = file;
    seek(file, SeekFrom::Start(file_offset)).map_err(|error| Error::Read {
        what,
        source: error.into(),
    })?;
    file.read_exact_volatile(&mut slice.clone())
        .map_err(|source| Error::Copy {
            what,
            source: source.into(),
        })
}

/// Puts a few instructions into guest memory.
pub(crate) fn load_code(memory: &GuestMemoryMmap, code: &[u8], gpa: u64) -> Result<(), Error> {
    memory
        .write_slice(code, GuestAddress(gpa))
        .map_err(|_| Error::NotRam {
            gpa,
            bytes: code.len() as u64,
        })
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
