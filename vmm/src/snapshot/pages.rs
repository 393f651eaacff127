//! Which pages of guest memory there are. The host knows (`/proc/self/maps`, `/proc/self/pagemap`): a page that nobody
//! has touched is not looked at.
//!
//! What asks the host page by page allocates nothing: it is for a process that was forked off (`fork`).

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::memory::{Error, PAGE_SIZE, RegionState};

/// A page's entry in `pagemap`: it is in memory; or swapped out; what is there is a file's, not this process's own.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
/// What `maps` calls memory of huge pages that is no file's.
const HUGE: &str = "/anon_hugepage";

/// A mapping of this process.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    addresses: Range<u64>,
    is_shared: bool,
    is_of_file: bool,
    is_huge: bool,
}

/// Those that `/proc/self/maps` lists.
fn mappings(maps: &str) -> impl Iterator<Item = Mapping> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(to, 16).ok()?;
        let permissions = words.next()?;
        // Then: offset, device, inode, name.
        let inode = words.nth(2)?;
        Some(Mapping {
            addresses: from..to,
            is_shared: permissions.ends_with('s'),
            is_of_file: inode != "0",
            is_huge: words.next().is_some_and(|name| name.starts_with(HUGE)),
        })
    })
}

/// A part of guest memory that is one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it is in the memory file.
    pub(super) file: Range<u64>,
    /// Its first GPA.
    pub(super) gpa: u64,
    /// Where it is in this process.
    pub(super) address: u64,
    /// It is a file's, as far as nobody has written to it. Otherwise, what nobody has touched is zero.
    pub(super) is_of_file: bool,
}

/// Guest memory, as this process has it.
pub(super) struct Map {
    /// In the order of the memory file.
    pub(super) parts: Vec<Part>,
    /// A process that is forked off has a copy of it, without a copy being made.
    pub(super) can_be_forked: bool,
    /// Mappings that are shared with the host or others: none of guest memory's business.
    pub(super) shared: Vec<Range<u64>>,
}

impl Map {
    /// Where the regions are.
    pub(super) fn of(memory: &GuestMemoryMmap, regions: &[RegionState]) -> Result<Self, Error> {
        let maps = fs::read_to_string("/proc/self/maps").map_err(Error::Pages)?;
        let mappings: Vec<_> = mappings(&maps).collect();
        let mut parts = Vec::new();
        let mut can_be_forked = true;
        for region in regions {
            let start = address_of(memory, region)?;
            for mapping in &mappings {
                let from = mapping.addresses.start.max(start);
                let to = mapping.addresses.end.min(start + region.bytes);
                if from >= to {
                    continue;
                }
                // Nobody could write to huge pages while there is another process that has them, if there are no more.
                can_be_forked &= !mapping.is_shared && !mapping.is_huge;
                parts.push(Part {
                    file: region.offset + (from - start)..region.offset + (to - start),
                    gpa: region.gpa + (from - start),
                    address: from,
                    is_of_file: mapping.is_of_file && !mapping.is_huge,
                });
            }
        }
        let shared = mappings.into_iter().filter(|mapping| mapping.is_shared);
        Ok(Self {
            parts,
            can_be_forked,
            shared: shared.map(|mapping| mapping.addresses).collect(),
        })
    }
}

/// Where a region is in this process.
fn address_of(memory: &GuestMemoryMmap, region: &RegionState) -> Result<u64, Error> {
    let not_ram = || Error::NotRam {
        gpa: region.gpa,
        bytes: region.bytes,
    };
    let bytes = usize::try_from(region.bytes).map_err(|_| not_ram())?;
    let found = memory.find_region(GuestAddress(region.gpa));
    let whole =
        found.filter(|found| found.start_addr().0 == region.gpa && found.len() >= region.bytes);
    let slice = whole
        .and_then(|_| memory.get_slice(GuestAddress(region.gpa), bytes).ok())
        .ok_or_else(not_ram)?;
    Ok(slice.ptr_guard().as_ptr() as u64)
}

/// What the host has of a page.
#[derive(Clone, Copy)]
pub(super) struct Page(u64);

impl Page {
    /// Somebody has touched it.
    pub(super) fn is_in_use(self) -> bool {
        self.0 & (PRESENT | SWAPPED) != 0
    }

    /// It is this process's own.
    pub(super) fn is_own(self) -> bool {
        self.is_in_use() && self.0 & OF_FILE == 0
    }
}

/// Opens what [`each_run`] reads: of the process that calls this.
pub(super) fn open_pagemap() -> Result<File, Error> {
    File::open("/proc/self/pagemap").map_err(Error::Pages)
}

/// Goes through the pages of a part, and shows those that are `wanted`, which gets their place in the memory file, as
/// such places: whoever are next to each other at once, as far as `entries`, which is room for what is read, goes.
pub(super) fn each_run(
    pagemap: &File,
    part: &Part,
    entries: &mut [u8],
    mut wanted: impl FnMut(u64, Page) -> bool,
    mut show: impl FnMut(Range<u64>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut at = part.file.start;
    while at < part.file.end {
        let pages = ((part.file.end - at) / PAGE_SIZE).min(entries.len() as u64 / 8);
        if pages == 0 {
            return Err(Error::Pages(io::ErrorKind::InvalidInput.into()));
        }
        let read = &mut entries[..pages as usize * 8];
        let address = part.address + (at - part.file.start);
        pagemap
            .read_exact_at(read, address / PAGE_SIZE * 8)
            .map_err(Error::Pages)?;
        let (words, _) = read.as_chunks::<8>();
        let mut run = at..at;
        for (page, word) in (0..).zip(words) {
            let here = at + page * PAGE_SIZE;
            if !wanted(here, Page(u64::from_le_bytes(*word))) {
                continue;
            }
            if run.end != here {
                if !run.is_empty() {
                    show(run)?;
                }
                run = here..here;
            }
            run.end = here + PAGE_SIZE;
        }
        if !run.is_empty() {
            show(run)?;
        }
        at += pages * PAGE_SIZE;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let maps = "\
            7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \n\
            7f0000200000-7f0000400000 rw-p 00100000 08:01 17                         /srv/kernel\n\
            7f0000400000-7f0000600000 rw-s 00000000 08:01 18                         /srv/a b\n\
            7f0000600000-7f0000a00000 rw-p 00000000 00:10 19                         /anon_hugepage (deleted)\n\
            nonsense\n";
        let found: Vec<_> = mappings(maps)
            .map(|mapping| (mapping.is_of_file, mapping.is_shared, mapping.is_huge))
            .collect();
        assert_eq!(
            found,
            [
                (false, false, false),
                (true, false, false),
                (true, true, false),
                (true, false, true)
            ]
        );
        assert_eq!(
            mappings(maps).next().unwrap().addresses,
            0x7f00_0000_0000..0x7f00_0020_0000
        );
    }
}
