//! Copy on write: what a guest writes goes into a file of its own, and the base image, which any number
//! of guests share, stays as it is.
//!
//! A block of the disk is in the overlay's file, at its own place behind the map, or in the base. The
//! map is one bit a block: no tables to walk, no allocation, and a block that was discarded is a hole.
//! A temporary overlay has no map in its file, as both disappear with the process.
//!
//! # The file
//! All numbers are little-endian. The [`Header`] is at its start, the map from [`MAP_OFFSET`] on, then
//! the blocks. A set bit stays set. On a commit the blocks are made durable before the bits that say
//! that they are there: a crash leaves a block that was not flushed in the base, or what was flushed in
//! the overlay.

mod saved;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use thiserror::Error;

use super::file::HostFile;
use super::image::{Extent, Image, Source, push_extent, read_image};

pub use saved::Id;

const MAGIC: [u8; 8] = *b"moteCOW\0";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 64;
/// Where the map is.
const MAP_OFFSET: u64 = 4096;
/// Parts of the map that are written at once.
const MAP_PAGE: usize = 4096;
/// The blocks start at a multiple of this, so that they are where a file system has its own.
const DATA_ALIGN: u64 = 1 << 20;
/// Smallest block: what file systems write, so that nothing has to be copied from the base.
const MIN_BLOCK: u64 = 4096;
/// Most blocks: the map is at most 32 MiB. The blocks of a disk beyond 1 TiB are larger.
const MAX_BLOCKS: u64 = 1 << 28;

/// What is wrong with an overlay's file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Something else is in it.
    #[error("It is not an overlay of mote")]
    NotAnOverlay,
    /// From a later mote.
    #[error("It is of version {version}, and this mote knows version {VERSION}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// The base is not the one that the overlay was made for, or has been written to.
    #[error("Its base is another file, or has changed since the overlay was made")]
    OtherBase,
    /// It was not written with the snapshot.
    #[error("It belongs to another snapshot")]
    OtherSnapshot,
    /// The header is nonsense.
    #[error("Its header is damaged")]
    Damaged,
    /// The host.
    #[error("It cannot be read or written")]
    Io(#[from] io::Error),
}

/// Which file a base is, and whether it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    len: u64,
    mtime_seconds: i64,
    mtime_nanos: i64,
}

impl Identity {
    pub(super) fn of(file: &HostFile) -> io::Result<Self> {
        let metadata = file.file().metadata()?;
        Ok(Self {
            inode: metadata.ino(),
            len: file.len()?,
            mtime_seconds: metadata.mtime(),
            mtime_nanos: metadata.mtime_nsec(),
        })
    }
}

/// What is at the start of the file: magic, version (32 bits), block size (32), size of the disk, then
/// the base's inode, length and time of change (seconds, nanoseconds); 64 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    block: u64,
    size: u64,
    base: Identity,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let Self { block, size, base } = self;
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // A power of two that fits, or a disk of more than 2^59 bytes.
        let block = u32::try_from(block).unwrap_or(0);
        bytes[12..16].copy_from_slice(&block.to_le_bytes());
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        bytes[24..32].copy_from_slice(&base.inode.to_le_bytes());
        bytes[32..40].copy_from_slice(&base.len.to_le_bytes());
        bytes[40..48].copy_from_slice(&base.mtime_seconds.to_le_bytes());
        bytes[48..56].copy_from_slice(&base.mtime_nanos.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Result<Self, Error> {
        let field = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        if bytes[..8] != MAGIC {
            return Err(Error::NotAnOverlay);
        }
        let [version, block] = [field(8) & u64::from(u32::MAX), field(8) >> 32];
        if version != u64::from(VERSION) {
            #[expect(clippy::cast_possible_truncation, reason = "32 bits of it")]
            return Err(Error::Version {
                version: version as u32,
            });
        }
        Ok(Self {
            block,
            size: field(16),
            base: Identity {
                inode: field(24),
                len: field(32),
                mtime_seconds: field(40).cast_signed(),
                mtime_nanos: field(48).cast_signed(),
            },
        })
    }
}

/// The block size for a disk.
fn block_for(size: u64) -> u64 {
    let mut block = MIN_BLOCK;
    while size.div_ceil(block) > MAX_BLOCKS {
        block *= 2;
    }
    block
}

/// An overlay on a base.
pub(super) struct Overlay {
    // Fixed configuration.
    size: u64,
    block: u64,
    /// Where block 0 is in the file.
    data: u64,
    base_identity: Identity,
    // Runtime glue.
    base: Box<dyn Image>,
    file: Arc<HostFile>,
    /// Index of `file` among the files: behind the base's.
    file_index: usize,
    /// The map is kept in the file.
    persistent: bool,
    // Volatile state.
    map: Vec<u8>,
    /// Pages of the map that are not in the file yet.
    dirty: BTreeSet<usize>,
    /// Buffer for what is copied from the base.
    copy: Vec<u8>,
}

impl Overlay {
    /// One that disappears with `file`, which is empty.
    pub(super) fn temporary(base: Box<dyn Image>, identity: Identity, file: HostFile) -> Self {
        Self::new(base, identity, file, false)
    }

    /// The overlay in `file`, or a new one if that is empty. `identity` is that of the file that the base is in.
    pub(super) fn persistent(
        base: Box<dyn Image>,
        identity: Identity,
        file: HostFile,
    ) -> Result<Self, Error> {
        let size = base.size();
        let wanted = Header {
            block: block_for(size),
            size,
            base: identity,
        };
        let is_new = file.len()? == 0;
        let mut overlay = Self::new(base, identity, file, true);
        if is_new {
            overlay.file.write_all_at(&wanted.to_bytes(), 0)?;
            overlay.file.file().sync_all()?;
            return Ok(overlay);
        }
        let mut header = [0; HEADER_SIZE];
        match overlay.file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::NotAnOverlay);
            }
            result => result?,
        }
        let header = Header::from_bytes(&header)?;
        if header.base != wanted.base || header.size != wanted.size {
            return Err(Error::OtherBase);
        }
        if header.block != wanted.block {
            return Err(Error::Damaged);
        }
        overlay.file.read_exact_at(&mut overlay.map, MAP_OFFSET)?;
        Ok(overlay)
    }

    fn new(
        base: Box<dyn Image>,
        base_identity: Identity,
        file: HostFile,
        persistent: bool,
    ) -> Self {
        let size = base.size();
        let block = block_for(size);
        let map = size
            .div_ceil(block)
            .div_ceil(8)
            .next_multiple_of(MAP_PAGE as u64);
        let data = if persistent {
            Self::data_offset(map)
        } else {
            0
        };
        Self {
            size,
            block,
            data,
            base_identity,
            file_index: base.files().len(),
            base,
            // Blocks that were discarded, or that nobody has filled yet, may be beyond its end.
            file: Arc::new(file.with_zeroes_beyond_end()),
            persistent,
            map: vec![0; usize::try_from(map).unwrap_or(usize::MAX)],
            dirty: BTreeSet::new(),
            copy: Vec::new(),
        }
    }

    /// Where block 0 is behind a map of `map` bytes.
    fn data_offset(map: u64) -> u64 {
        (MAP_OFFSET + map).next_multiple_of(DATA_ALIGN)
    }

    /// Byte and bit of a block. A block of the disk is in the map.
    fn place(block: u64) -> (usize, u8) {
        (
            usize::try_from(block / 8).unwrap_or(usize::MAX),
            1 << (block % 8),
        )
    }

    fn is_here(&self, block: u64) -> bool {
        let (byte, bit) = Self::place(block);
        self.map.get(byte).is_some_and(|bits| bits & bit != 0)
    }

    fn set_here(&mut self, block: u64) {
        let (byte, bit) = Self::place(block);
        if let Some(bits) = self.map.get_mut(byte)
            && *bits & bit == 0
        {
            *bits |= bit;
            if self.persistent {
                self.dirty.insert(byte / MAP_PAGE);
            }
        }
    }

    /// Where the block is, and where it ends: the last one may be short.
    fn bounds(&self, block: u64) -> (u64, u64) {
        let start = block * self.block;
        (start, (start + self.block).min(self.size))
    }

    /// Copies the part of the base from `from` to `to` into the overlay.
    fn copy_up(&mut self, from: u64, to: u64) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        // Within a block.
        self.copy.resize(usize::try_from(to - from).unwrap_or(0), 0);
        read_image(&mut *self.base, from, &mut self.copy)?;
        self.file.write_all_at(&self.copy, self.data + from)
    }

    /// The blocks that are entirely within a range.
    fn whole_blocks(&self, offset: u64, end: u64) -> std::ops::Range<u64> {
        let first = offset.div_ceil(self.block);
        let last = if end == self.size {
            end.div_ceil(self.block)
        } else {
            end / self.block
        };
        first..last.max(first)
    }

    /// Makes whole blocks read as zeroes.
    fn zero_blocks(&mut self, blocks: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let start = self.bounds(blocks.start).0;
        let end = self.bounds(blocks.end - 1).1;
        if unmap {
            self.file
                .discard_to_zeroes(self.data + start, end - start)?;
        } else {
            self.file.write_zeroes(self.data + start, end - start)?;
        }
        for block in blocks {
            self.set_here(block);
        }
        Ok(())
    }
}

impl Image for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn files(&self) -> Vec<Arc<HostFile>> {
        let mut files = self.base.files();
        files.push(Arc::clone(&self.file));
        files
    }

    fn written_file(&self) -> Option<usize> {
        self.persistent.then_some(self.file_index)
    }

    fn map_read(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let start = at;
            let block = at / self.block;
            let here = self.is_here(block);
            at = self.bounds(block).1.min(end);
            while at < end && self.is_here(at / self.block) == here {
                at = self.bounds(at / self.block).1.min(end);
            }
            if here {
                let source = Source::File {
                    file: self.file_index,
                    offset: self.data + start,
                };
                push_extent(extents, at - start, source);
            } else {
                self.base.map_read(start, at - start, extents)?;
            }
        }
        Ok(())
    }

    fn map_write(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        let end = offset + len;
        let (first, last) = (offset / self.block, (end - 1) / self.block);
        for block in first..=last {
            if self.is_here(block) {
                continue;
            }
            // Only the first and the last can be written in part.
            let (start, block_end) = self.bounds(block);
            self.copy_up(start, offset.min(block_end))?;
            self.copy_up(end.max(start), block_end)?;
            self.set_here(block);
        }
        let source = Source::File {
            file: self.file_index,
            offset: self.data + offset,
        };
        push_extent(extents, len, source);
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let blocks = self.whole_blocks(offset, offset + len);
        self.zero_blocks(blocks, true)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let end = offset + len;
        let blocks = self.whole_blocks(offset, end);
        let (start, whole_end) = if blocks.is_empty() {
            (end, end)
        } else {
            (self.bounds(blocks.start).0, self.bounds(blocks.end - 1).1)
        };
        let mut extents = Vec::new();
        for (from, to) in [(offset, start), (whole_end, end)] {
            if from < to {
                self.map_write(from, to - from, &mut extents)?;
                self.file.write_zeroes(self.data + from, to - from)?;
            }
        }
        self.zero_blocks(blocks, unmap)
    }

    fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn commit(&mut self, durable: bool) -> io::Result<()> {
        if !self.persistent {
            return Ok(());
        }
        if durable {
            self.file.sync()?;
        }
        if self.dirty.is_empty() {
            return Ok(());
        }
        for &page in &self.dirty {
            let at = page * MAP_PAGE;
            if let Some(bits) = self.map.get(at..at + MAP_PAGE) {
                self.file.write_all_at(bits, MAP_OFFSET + at as u64)?;
            }
        }
        if durable {
            self.file.sync()?;
        }
        self.dirty.clear();
        Ok(())
    }

    fn preferred_size(&self) -> u64 {
        self.block
    }

    fn as_overlay(&self) -> Option<&Overlay> {
        Some(self)
    }
}

#[cfg(test)]
#[path = "overlay_test.rs"]
mod tests;
