//! The memory file: guest memory as it is, a region after the other, without the pages that are all zero.
//!
//! Regions begin at multiples of 2 MiB, so that their pages can be as large as the guest's. Behind the last one is the
//! file's id.
//!
//! That of a differential snapshot has the same layout, with nothing but the pages that it is about. Which ones these
//! are is in a table behind the id: a hole may be a page that has become zero, or one that did not change.
//!
//! ```text
//!   0  id                                                                16 bytes
//!  16  id of the file that it is to be merged into                       16 bytes
//!  32  ranges in the table                                               u64, little-endian, as all numbers here
//!  40  CRC-32 of the table, and of the 24 bytes before                   u32
//!  44  zeroes                                                            4 bytes
//!  48  the table: where in the file a range begins, and its bytes        u64, u64
//! ```

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(super) const PAGE_SIZE: u64 = 4096;
/// What regions are aligned to in the file.
const ALIGNMENT: u64 = 2 << 20;
/// More than a machine has regions, and more bytes than all of them have.
const MAX_REGIONS: usize = 4096;
const MAX_BYTES: u64 = 1 << 46;
/// What is behind the regions of a differential one, without the table.
pub(super) const DIFF_TRAILER: u64 = 48;
/// A range in the table.
pub(super) const ENTRY: u64 = 16;

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
    /// What is to be loaded is not whole.
    #[error(
        "It is a differential snapshot, which has only what changed since another one: merge it into that one first \
         (mote snapshot merge BASE DIR), and take the result"
    )]
    Differential,
    /// The table of a differential one is wrong.
    #[error("The memory file's table of what it has is damaged")]
    Table,
    /// The process that writes could not do so, or was ended.
    #[error("The process that writes the memory file has failed")]
    Writer(#[source] io::Error),
    /// A signal has ended it.
    #[error(
        "The process that writes the memory file was ended by signal {signal}{}",
        if *signal == libc::SIGBUS { ": a file that the guest's memory comes from has been cut" } else { "" }
    )]
    Killed {
        /// Its number.
        signal: i32,
    },
}

/// What memory file and state file of a snapshot have in common, and no others. It is at the memory file's end.
pub type Id = [u8; 16];

/// An id in hexadecimal.
pub fn name_of(id: &Id) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    /// Where in the file it is.
    pub(super) fn file_range(&self) -> Range<u64> {
        self.offset..self.end()
    }

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
            // A file cannot be as large as that, and so is none of these regions.
            offset: end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX),
        };
        end = region.end();
        region
    };
    regions.into_iter().map(place).collect()
}

/// How large the file of these regions is.
pub fn file_size(regions: &[RegionState]) -> u64 {
    end_of(regions).saturating_add(size_of::<Id>() as u64)
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
    let expected = file_size(regions);
    let found = file.metadata().map_err(Error::Read)?.len();
    if found != expected {
        return Err(Error::Size { found, expected });
    }
    if id_of(regions, file)? != *id {
        return Err(Error::Other);
    }
    Ok(())
}

/// Checks regions of a state that may be anything, for whom no configuration says what they should be.
pub(super) fn check_layout(regions: &[RegionState]) -> Result<(), Error> {
    let is_good = |region: &RegionState| {
        region.bytes.is_multiple_of(PAGE_SIZE) && region.bytes > 0 && region.bytes <= MAX_BYTES
    };
    if regions.len() > MAX_REGIONS || !regions.iter().all(is_good) {
        return Err(Error::Regions);
    }
    let wanted = lay_out(regions.iter().map(|region| (region.gpa, region.bytes)));
    if regions != wanted {
        return Err(Error::Regions);
    }
    Ok(())
}

/// Where the regions end, and the id begins.
pub(super) fn end_of(regions: &[RegionState]) -> u64 {
    regions.last().map_or(0, RegionState::end)
}

/// The id of a memory file of these regions.
pub(super) fn id_of(regions: &[RegionState], file: &File) -> Result<Id, Error> {
    let mut id = Id::default();
    file.read_exact_at(&mut id, end_of(regions))
        .map_err(Error::Read)?;
    Ok(id)
}

/// What is behind the regions of a differential file, but for the table.
pub(super) fn diff_trailer(
    id: &Id,
    base: &Id,
    ranges: u64,
    mut table: crc32fast::Hasher,
) -> [u8; DIFF_TRAILER as usize] {
    let mut bytes = [0; DIFF_TRAILER as usize];
    bytes[..16].copy_from_slice(id);
    bytes[16..32].copy_from_slice(base);
    bytes[32..40].copy_from_slice(&ranges.to_le_bytes());
    table.update(&bytes[16..40]);
    bytes[40..44].copy_from_slice(&table.finalize().to_le_bytes());
    bytes
}

/// What a differential memory file is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Diff {
    /// The file that it is to be merged into.
    pub(super) base: Id,
    /// What it has, by where that is in the file: in order.
    pub(super) ranges: Vec<Range<u64>>,
}

impl Diff {
    /// Reads what such a file of these regions and this id, which may be anything, is about.
    pub(super) fn read(regions: &[RegionState], id: &Id, file: &File) -> Result<Self, Error> {
        let end = end_of(regions);
        let found = file.metadata().map_err(Error::Read)?.len();
        let mut trailer = [0; DIFF_TRAILER as usize];
        if found < end + DIFF_TRAILER {
            let expected = end + DIFF_TRAILER;
            return Err(Error::Size { found, expected });
        }
        file.read_exact_at(&mut trailer, end).map_err(Error::Read)?;
        let (mut own, mut base, mut count) = (Id::default(), Id::default(), [0; 8]);
        own.copy_from_slice(&trailer[..16]);
        base.copy_from_slice(&trailer[16..32]);
        count.copy_from_slice(&trailer[32..40]);
        if own != *id {
            return Err(Error::Other);
        }
        let count = u64::from_le_bytes(count);
        if count > end / PAGE_SIZE {
            return Err(Error::Table);
        }
        let expected = end + DIFF_TRAILER + count * ENTRY;
        if found != expected {
            return Err(Error::Size { found, expected });
        }
        // The file has as many bytes.
        let bytes = usize::try_from(count * ENTRY).map_err(|_| Error::Table)?;
        let mut table = vec![0; bytes];
        file.read_exact_at(&mut table, end + DIFF_TRAILER)
            .map_err(Error::Read)?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&table);
        if trailer != diff_trailer(id, &base, count, checksum) {
            return Err(Error::Table);
        }
        let (words, _) = table.as_chunks::<8>();
        let ranges = words
            .chunks_exact(2)
            .map(|entry| {
                let (start, bytes) = (u64::from_le_bytes(entry[0]), u64::from_le_bytes(entry[1]));
                Some(start..start.checked_add(bytes)?)
            })
            .collect::<Option<Vec<_>>>()
            .ok_or(Error::Table)?;
        check_ranges(regions, &ranges)?;
        Ok(Self { base, ranges })
    }
}

/// Whether ranges are whole pages of the regions, one behind the other, as the regions are.
fn check_ranges(regions: &[RegionState], ranges: &[Range<u64>]) -> Result<(), Error> {
    let mut regions = regions.iter();
    let mut region = regions.next();
    let mut after = 0;
    for range in ranges {
        while region.is_some_and(|region| region.end() <= range.start) {
            region = regions.next();
        }
        let is_within =
            region.is_some_and(|region| region.offset <= range.start && range.end <= region.end());
        let are_pages =
            range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
        if range.is_empty() || range.start < after || !is_within || !are_pages {
            return Err(Error::Table);
        }
        after = range.end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
