//! The memory file: guest memory as it is, a region after the other, without the pages that are all zero.
//!
//! Regions begin at multiples of 2 MiB, so that their pages can be as large as the guest's. A page that nobody
//! has touched is not looked at: the host knows which there are (`/proc/self/pagemap`), where memory is
//! anonymous. Where it is a file's, such as the kernel's, all of it is.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PAGE_SIZE: u64 = 4096;
/// What regions are aligned to in the file.
const ALIGNMENT: u64 = 2 << 20;
/// Bytes that are copied out of the guest and looked at in one go.
const CHUNK: usize = 1 << 20;
/// A page's entry in `pagemap`: it is in memory, or swapped out.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Why guest memory could not be saved or found again.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host does not tell where guest memory is.
    #[error("Cannot find out which pages of guest memory are in use")]
    Pages(#[source] io::Error),
    /// Writing failed.
    #[error("Cannot write the memory file")]
    Write(#[source] io::Error),
    /// Reading guest memory failed: it is not there.
    #[error("{bytes} bytes at {gpa:#x} are not guest memory")]
    NotRam {
        /// First GPA.
        gpa: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// The size of the file could not be told.
    #[error("Cannot read the memory file")]
    Read(#[source] io::Error),
    /// The file is not the one that the state is about.
    #[error("The memory file has {found} bytes, the state is about one of {expected}")]
    Size {
        /// Bytes that it has.
        found: u64,
        /// Bytes that the regions have.
        expected: u64,
    },
    /// It is another snapshot's.
    #[error("The memory file is not the one that was written with this state file")]
    Other,
    /// The regions are not those of the machine.
    #[error("The state's memory regions are not those of a machine of its configuration")]
    Regions,
}

/// What memory file and state file of a snapshot have in common, and no others. It is at the memory file's end.
pub type Id = [u8; 16];

/// A region of guest memory, and where it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionState {
    /// Its first GPA.
    pub gpa: u64,
    /// How large it is.
    pub bytes: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

impl RegionState {
    /// Where in the file it ends.
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }
}

/// Where regions of these GPAs and sizes are in a file.
pub fn lay_out(regions: impl IntoIterator<Item = (u64, u64)>) -> Vec<RegionState> {
    let mut end = 0u64;
    let place = |(gpa, bytes)| {
        let region = RegionState {
            gpa,
            bytes,
            offset: end.next_multiple_of(ALIGNMENT),
        };
        end = region.end();
        region
    };
    regions.into_iter().map(place).collect()
}

/// Checks that these regions, which may be anything, are those of a machine with RAM where `wanted` says.
pub fn check_regions(
    regions: &[RegionState],
    wanted: impl IntoIterator<Item = (u64, u64)>,
) -> Result<(), Error> {
    if regions == lay_out(wanted) {
        Ok(())
    } else {
        Err(Error::Regions)
    }
}

/// Checks that a file has what these regions, which have been checked, say.
pub fn check_file(regions: &[RegionState], id: &Id, file: &File) -> Result<(), Error> {
    let end = regions.last().map_or(0, RegionState::end);
    let expected = end.saturating_add(id.len() as u64);
    let found = file.metadata().map_err(Error::Read)?.len();
    if found != expected {
        return Err(Error::Size { found, expected });
    }
    let mut found = Id::default();
    file.read_exact_at(&mut found, end).map_err(Error::Read)?;
    if found != *id {
        return Err(Error::Other);
    }
    Ok(())
}

/// Writes guest memory to a new file. Says how many bytes of it there are, those that are zero left out.
/// Nothing changes the memory meanwhile that is to be in the file. `is_served`: where there is no page, there may be
/// one as soon as it is touched.
pub fn write(
    memory: &GuestMemoryMmap,
    regions: &[RegionState],
    id: &Id,
    file: &File,
    is_served: bool,
) -> Result<u64, Error> {
    let size = regions.last().map_or(0, RegionState::end);
    file.set_len(size).map_err(Error::Write)?;
    file.write_all_at(id, size).map_err(Error::Write)?;
    let mut written = 0;
    let mut buffer = vec![0; CHUNK];
    for region in regions {
        for pages in pages_in_use(memory, region, is_served)? {
            let mut at = pages.start;
            while at < pages.end {
                #[expect(clippy::cast_possible_truncation, reason = "at most CHUNK")]
                let bytes = (pages.end - at).min(CHUNK as u64) as usize;
                let chunk = &mut buffer[..bytes];
                memory
                    .read_slice(chunk, GuestAddress(region.gpa + at))
                    .map_err(|_| not_ram(region))?;
                written += write_chunk(file, region.offset + at, chunk).map_err(Error::Write)?;
                at += bytes as u64;
            }
        }
    }
    Ok(written)
}

fn not_ram(region: &RegionState) -> Error {
    Error::NotRam {
        gpa: region.gpa,
        bytes: region.bytes,
    }
}

/// Writes the pages that are not zero, those that are next to each other in one call.
fn write_chunk(file: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let mut rest = (offset, chunk);
    while !rest.1.is_empty() {
        let (at, bytes) = rest;
        let is_zero = |page: &&[u8]| page.iter().all(|byte| *byte == 0);
        let pages = || bytes.chunks(PAGE_SIZE as usize);
        let zeroes: usize = pages().take_while(is_zero).map(<[u8]>::len).sum();
        let run: usize = pages()
            .skip_while(is_zero)
            .take_while(|page| !is_zero(page))
            .map(<[u8]>::len)
            .sum();
        file.write_all_at(&bytes[zeroes..zeroes + run], at + zeroes as u64)?;
        written += run as u64;
        rest = (at + (zeroes + run) as u64, &bytes[zeroes + run..]);
    }
    Ok(written)
}

/// The parts of a region that may hold anything but zeroes, as offsets into it.
fn pages_in_use(
    memory: &GuestMemoryMmap,
    region: &RegionState,
    is_served: bool,
) -> Result<Vec<Range<u64>>, Error> {
    let bytes = usize::try_from(region.bytes).map_err(|_| not_ram(region))?;
    let found = memory.find_region(GuestAddress(region.gpa));
    let whole =
        found.filter(|found| found.start_addr().0 == region.gpa && found.len() >= region.bytes);
    let slice = whole
        .and_then(|_| memory.get_slice(GuestAddress(region.gpa), bytes).ok())
        .ok_or_else(|| not_ram(region))?;
    let start = slice.ptr_guard().as_ptr() as u64;
    let maps = fs::read_to_string("/proc/self/maps").map_err(Error::Pages)?;
    let pagemap = File::open("/proc/self/pagemap").map_err(Error::Pages)?;
    let mut used = Vec::new();
    for (mapping, anonymous) in mappings(&maps) {
        let (from, to) = (
            mapping.start.max(start),
            mapping.end.min(start + region.bytes),
        );
        if from >= to {
            continue;
        }
        if anonymous && !is_served {
            present(&pagemap, from..to, start, &mut used).map_err(Error::Pages)?;
        } else {
            push(&mut used, from - start..to - start);
        }
    }
    Ok(used)
}

/// Addresses of the mappings that `/proc/self/maps` lists, and whether they are of no file.
fn mappings(maps: &str) -> impl Iterator<Item = (Range<u64>, bool)> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(to, 16).ok()?;
        // Then: permissions, offset, device, inode.
        let inode = words.nth(3)?;
        Some((from..to, inode == "0"))
    })
}

/// Adds the pages of an anonymous mapping that there are, as offsets from `start`.
fn present(
    pagemap: &File,
    addresses: Range<u64>,
    start: u64,
    used: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let mut entries = [0; 64 << 10];
    let mut at = addresses.start;
    while at < addresses.end {
        let pages = ((addresses.end - at) / PAGE_SIZE).min(entries.len() as u64 / 8);
        let wanted = &mut entries[..pages as usize * 8];
        pagemap.read_exact_at(wanted, at / PAGE_SIZE * 8)?;
        let (words, _) = wanted.as_chunks::<8>();
        for (page, word) in (0..).zip(words) {
            if u64::from_le_bytes(*word) & (PRESENT | SWAPPED) != 0 {
                let offset = at + page * PAGE_SIZE - start;
                push(used, offset..offset + PAGE_SIZE);
            }
        }
        at += pages * PAGE_SIZE;
    }
    Ok(())
}

/// Adds a range behind the others, or to the last one.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
