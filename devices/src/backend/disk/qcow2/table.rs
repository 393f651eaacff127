//! Tables of an image that are in memory: L2 tables and refcount blocks, one cluster each.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::super::file::HostFile;

/// Bytes of tables that are kept although they are in the file as well.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes of changed tables that ask for a commit.
const DIRTY_BYTES: usize = 16 << 20;
/// What is written at once: a sector, so that a crash leaves none in parts.
const SECTOR: usize = 512;

struct Table {
    bytes: Box<[u8]>,
    /// What of it has changed.
    dirty: Range<usize>,
    /// When it was used last.
    used: u64,
}

/// Tables by their offset in the file.
pub(super) struct Tables {
    // Fixed configuration.
    cluster: usize,
    // Volatile state.
    tables: HashMap<u64, Table>,
    clock: u64,
    /// How many have changed.
    dirty: usize,
}

impl Tables {
    pub(super) fn new(cluster: usize) -> Self {
        Self {
            cluster,
            tables: HashMap::new(),
            clock: 0,
            dirty: 0,
        }
    }

    /// The table at `offset`, read if need be.
    pub(super) fn get(&mut self, file: &HostFile, offset: u64) -> io::Result<&[u8]> {
        Ok(&self.load(file, offset)?.bytes)
    }

    fn load(&mut self, file: &HostFile, offset: u64) -> io::Result<&mut Table> {
        self.clock += 1;
        if !self.tables.contains_key(&offset) {
            self.make_room();
            let mut bytes = vec![0; self.cluster].into_boxed_slice();
            file.read_exact_at(&mut bytes, offset)?;
            self.tables.insert(
                offset,
                Table {
                    bytes,
                    dirty: 0..0,
                    used: 0,
                },
            );
        }
        let used = self.clock;
        let table = self.tables.get_mut(&offset);
        let table = table.ok_or(io::ErrorKind::NotFound)?;
        table.used = used;
        Ok(table)
    }

    /// Puts a new table into memory; what is at its place in the file does not matter.
    pub(super) fn insert(&mut self, offset: u64, bytes: Box<[u8]>) {
        self.make_room();
        self.clock += 1;
        let dirty = 0..bytes.len();
        let used = self.clock;
        let old = self.tables.insert(offset, Table { bytes, dirty, used });
        self.dirty += usize::from(old.is_none_or(|old| old.dirty.is_empty()));
    }

    /// Changes bytes of the table at `offset`.
    pub(super) fn put(
        &mut self,
        file: &HostFile,
        offset: u64,
        at: usize,
        bytes: &[u8],
    ) -> io::Result<()> {
        let table = self.load(file, offset)?;
        let range = at..at + bytes.len();
        table
            .bytes
            .get_mut(range.clone())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(bytes);
        let was_clean = table.dirty.is_empty();
        table.dirty = if was_clean {
            range
        } else {
            table.dirty.start.min(range.start)..table.dirty.end.max(range.end)
        };
        self.dirty += usize::from(was_clean);
        Ok(())
    }

    /// Forgets the table at `offset`: its cluster is not a table any more.
    pub(super) fn remove(&mut self, offset: u64) {
        if let Some(table) = self.tables.remove(&offset) {
            self.dirty -= usize::from(!table.dirty.is_empty());
        }
    }

    /// Forgets half of the tables that are in the file as well, those that were not used for longest.
    fn make_room(&mut self) {
        let clean = self.tables.len() - self.dirty;
        if clean < (CACHE_BYTES / self.cluster).max(4) {
            return;
        }
        let tables = self.tables.values();
        let mut times: Vec<u64> = tables
            .filter(|table| table.dirty.is_empty())
            .map(|table| table.used)
            .collect();
        let middle = times.len() / 2;
        let oldest_kept = *times.select_nth_unstable(middle).1;
        self.tables
            .retain(|_, table| !table.dirty.is_empty() || table.used >= oldest_kept);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// Whether so many have changed that they should be written.
    pub(super) fn wants_write(&self) -> bool {
        self.dirty > (DIRTY_BYTES / self.cluster).max(4)
    }

    /// Writes what has changed. On an error what is left stays changed.
    pub(super) fn write(&mut self, file: &HostFile) -> io::Result<()> {
        if self.dirty == 0 {
            return Ok(());
        }
        let mut offsets: Vec<u64> = self
            .tables
            .iter()
            .filter(|(_, table)| !table.dirty.is_empty())
            .map(|(offset, _)| *offset)
            .collect();
        offsets.sort_unstable();
        for offset in offsets {
            let Some(table) = self.tables.get_mut(&offset) else {
                continue;
            };
            let start = table.dirty.start / SECTOR * SECTOR;
            let end = table.dirty.end.next_multiple_of(SECTOR);
            file.write_all_at(&table.bytes[start..end], offset + start as u64)?;
            table.dirty = 0..0;
            self.dirty -= 1;
        }
        Ok(())
    }
}

/// Entry `index` of a table of 64-bit numbers.
pub(super) fn entry(table: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(entry) = table.get(index * 8..index * 8 + 8) {
        bytes.copy_from_slice(entry);
    }
    u64::from_be_bytes(bytes)
}
