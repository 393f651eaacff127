//! What writes a memory file. It is made while the machine runs, and runs in a process that was forked off (`fork`): there
//! it allocates nothing, takes no lock, and has nothing of its parent's but the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::{self, DIFF_TRAILER, ENTRY, Error, Id, PAGE_SIZE, RegionState};
use super::pages::{self, Map, Part};

/// Bytes that are copied out of the guest and looked at in one go.
const CHUNK: usize = 1 << 20;
/// Bytes of what the host says of pages, and of the table, in one go.
const WORDS: usize = 64 << 10;

/// What of guest memory is written.
pub(super) enum What {
    /// All that is not zero.
    All,
    /// What changed since `base` was written or loaded.
    Diff {
        /// That file.
        base: Id,
        /// What that is.
        changed: Changed,
    },
}

/// How it is known what changed.
pub(super) enum Changed {
    /// The base is mapped privately: pages that are this process's own were written to since.
    SinceLoad,
    /// What was written to, by where it is in the file, in order; and pages without memory: they were given back.
    Written(Vec<Range<u64>>),
}

/// A memory file that is to be written.
pub(super) struct Job {
    memory: Arc<GuestMemoryMmap>,
    map: Map,
    end: u64,
    id: Id,
    what: What,
    chunk: Vec<u8>,
    entries: Vec<u8>,
    table: Vec<u8>,
}

impl Job {
    /// A file of all of memory.
    pub(super) fn new(
        memory: Arc<GuestMemoryMmap>,
        regions: &[RegionState],
        id: Id,
    ) -> Result<Self, Error> {
        Ok(Self {
            map: Map::of(&memory, regions)?,
            memory,
            end: memory::end_of(regions),
            id,
            what: What::All,
            chunk: vec![0; CHUNK],
            entries: vec![0; WORDS],
            table: Vec::with_capacity(WORDS),
        })
    }

    /// Another process serves this one's memory, and no other's: where there is no page, there is one as soon as it is touched
    /// here.
    pub(super) fn is_served(&mut self) {
        self.map.can_be_forked = false;
        for part in &mut self.map.parts {
            part.is_of_file = true;
        }
    }

    /// Where guest memory is.
    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    /// Another choice of what is written.
    pub(super) fn choose(&mut self, what: What) {
        self.what = what;
    }

    /// Writes it to a new file. Says how many bytes of memory there are, those that are zero left out. Nothing changes
    /// the memory meanwhile.
    pub(super) fn run(&mut self, file: &File) -> Result<u64, Error> {
        let Self {
            memory,
            map,
            end,
            id,
            what,
            chunk,
            entries,
            table,
        } = self;
        let what = &*what;
        file.set_len(*end).map_err(Error::Write)?;
        let pagemap = pages::open_pagemap()?;
        let mut written = 0;
        let mut table = match what {
            What::All => None,
            What::Diff { .. } => Some(Table::new(file, *end, table)),
        };
        let mut list = match what {
            What::Diff {
                changed: Changed::Written(ranges),
                ..
            } => Cursor(ranges),
            _ => Cursor(&[]),
        };
        for part in &map.parts {
            let mut show = |run: Range<u64>| {
                written += copy(memory, part, run.clone(), chunk, file)?;
                match &mut table {
                    Some(table) => table.push(run),
                    None => Ok(()),
                }
            };
            match (what, part.is_of_file) {
                (What::All, false) => {
                    pages::each_run(&pagemap, part, entries, |_, page| page.is_in_use(), show)?;
                }
                (What::Diff { changed, .. }, of_file) => match (changed, of_file) {
                    (Changed::SinceLoad, true) => {
                        pages::each_run(&pagemap, part, entries, |_, page| page.is_own(), show)?;
                    }
                    (Changed::SinceLoad, false) => show(part.file.clone())?,
                    (Changed::Written(_), of_file) => {
                        let wanted =
                            |at, page: pages::Page| list.has(at) || !of_file && !page.is_in_use();
                        pages::each_run(&pagemap, part, entries, wanted, show)?;
                    }
                },
                (What::All, true) => show(part.file.clone())?,
            }
        }
        match (table, what) {
            (Some(table), What::Diff { base, .. }) => table.finish(id, base)?,
            _ => file.write_all_at(id, *end).map_err(Error::Write)?,
        }
        Ok(written)
    }
}

/// Ranges in order, of which one place after the other is asked about.
struct Cursor<'a>(&'a [Range<u64>]);

impl Cursor<'_> {
    fn has(&mut self, at: u64) -> bool {
        while let Some((first, rest)) = self.0.split_first()
            && first.end <= at
        {
            self.0 = rest;
        }
        self.0.first().is_some_and(|first| first.start <= at)
    }
}

/// The table of a differential file, as it is written.
struct Table<'a> {
    file: &'a File,
    end: u64,
    ranges: u64,
    last: Range<u64>,
    /// What is not in the file yet.
    buffer: &'a mut Vec<u8>,
    flushed: u64,
    checksum: crc32fast::Hasher,
}

impl<'a> Table<'a> {
    fn new(file: &'a File, end: u64, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Self {
            file,
            end,
            ranges: 0,
            last: 0..0,
            buffer,
            flushed: 0,
            checksum: crc32fast::Hasher::new(),
        }
    }

    fn push(&mut self, range: Range<u64>) -> Result<(), Error> {
        if self.last.end == range.start && !self.last.is_empty() {
            self.last.end = range.end;
            return Ok(());
        }
        let last = std::mem::replace(&mut self.last, range);
        self.add(&last)
    }

    fn add(&mut self, range: &Range<u64>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        if self.buffer.len() + ENTRY as usize > self.buffer.capacity() {
            self.flush()?;
        }
        self.buffer.extend_from_slice(&range.start.to_le_bytes());
        let bytes = range.end - range.start;
        self.buffer.extend_from_slice(&bytes.to_le_bytes());
        self.ranges += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let at = self.end + DIFF_TRAILER + self.flushed;
        self.file
            .write_all_at(self.buffer, at)
            .map_err(Error::Write)?;
        self.checksum.update(self.buffer);
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, id: &Id, base: &Id) -> Result<(), Error> {
        let last = self.last.clone();
        self.add(&last)?;
        self.flush()?;
        let trailer = memory::diff_trailer(id, base, self.ranges, self.checksum);
        self.file
            .write_all_at(&trailer, self.end)
            .map_err(Error::Write)
    }
}

/// Copies what a range of a part has that is not zero to its place.
fn copy(
    memory: &GuestMemoryMmap,
    part: &Part,
    range: Range<u64>,
    chunk: &mut [u8],
    file: &File,
) -> Result<u64, Error> {
    let mut written = 0;
    let mut at = range.start;
    while at < range.end {
        let bytes = (range.end - at).min(chunk.len() as u64);
        let gpa = part.gpa + (at - part.file.start);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "at most the chunk's length"
        )]
        let here = &mut chunk[..bytes as usize];
        memory
            .read_slice(here, GuestAddress(gpa))
            .map_err(|_| Error::NotRam { gpa, bytes })?;
        written += write_pages(file, at, here).map_err(Error::Write)?;
        at += bytes;
    }
    Ok(written)
}

/// Writes the pages that are not zero, those that are next to each other in one call.
fn write_pages(file: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
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

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
