//! Which clusters of an image are in use, and how often.

use std::io;
use std::ops::Range;

use super::super::file::HostFile;
use super::header::{Header, MAX_FILE, MAX_REFTABLE_BYTES, REFTABLE_OFFSET};
use super::table::{Tables, entry};
use super::{OFFSET_MASK, corrupt};

/// Released clusters that ask for a commit, so that they can be used again: by number, and in bytes.
const RELEASED_MAX: usize = 1 << 16;
const RELEASED_BYTES: u64 = 256 << 20;
/// Counts that are looked at for one that is free, before the end of the file and again behind it. An
/// image may claim that an exabyte is in use.
const SEARCH_MAX: u64 = 1 << 24;

/// Reference counts, in blocks of one cluster, and the table that says where the blocks are.
pub(super) struct Refcounts {
    // Fixed configuration.
    cluster_bits: u32,
    order: u32,
    // Volatile state.
    /// Offsets of the blocks.
    table: Vec<u64>,
    table_offset: u64,
    /// Entries of the table that are not in the file yet.
    table_dirty: Range<usize>,
    /// The table has got a new place, which the header does not say yet.
    table_moved: bool,
    blocks: Tables,
    /// No free cluster is before this one.
    hint: u64,
    /// Clusters from here on have never been used.
    end: u64,
    /// Clusters that lose a reference once the file does not have it any more.
    released: Vec<u64>,
}

impl Refcounts {
    pub(super) fn read(file: &HostFile, header: &Header, file_len: u64) -> io::Result<Self> {
        let cluster = 1u64 << header.cluster_bits;
        // At most MAX_REFTABLE_BYTES.
        let bytes = (u64::from(header.reftable_clusters) << header.cluster_bits) as usize;
        let mut raw = vec![0; bytes];
        file.read_exact_at(&mut raw, header.reftable_offset)?;
        Ok(Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table: (0..bytes / 8).map(|index| entry(&raw, index)).collect(),
            table_offset: header.reftable_offset,
            table_dirty: 0..0,
            table_moved: false,
            blocks: Tables::new(cluster as usize),
            hint: 1,
            end: file_len.div_ceil(cluster),
            released: Vec::new(),
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters whose counts are in a block.
    fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    /// Whether these bytes are in the part of the file that is in use.
    pub(super) fn is_in_file(&self, offset: u64) -> bool {
        offset >> self.cluster_bits < self.end
    }

    /// Whether a cluster of the refcount table is at `offset`.
    pub(super) fn has_table_at(&self, offset: u64) -> bool {
        let bytes = self.table.len() as u64 * 8;
        (self.table_offset..self.table_offset + bytes).contains(&offset)
    }

    /// The block of a cluster's count; None if there is none, and all its counts are 0.
    fn block_of(&self, cluster: u64) -> io::Result<Option<u64>> {
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        let offset = self.table.get(index).copied().unwrap_or(0) & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.cluster()) || !self.is_in_file(offset) {
            return Err(corrupt("a refcount block is out of place"));
        }
        Ok(Some(offset))
    }

    /// The count of a cluster.
    pub(super) fn get(&mut self, file: &HostFile, cluster: u64) -> io::Result<u64> {
        let Some(block) = self.block_of(cluster)? else {
            return Ok(0);
        };
        let index = cluster % self.per_block();
        let order = self.order;
        Ok(count(self.blocks.get(file, block)?, index, order))
    }

    fn set(&mut self, file: &HostFile, cluster: u64, value: u64) -> io::Result<()> {
        let block = self.block_of(cluster)?;
        let block = block.ok_or_else(|| corrupt("a cluster has no refcount"))?;
        let index = cluster % self.per_block();
        if self.order < 3 {
            let bits = 1 << self.order;
            let at = (index * bits / 8) as usize;
            let shift = index * bits % 8;
            let mask = ((1u8 << bits) - 1) << shift;
            let old = self.blocks.get(file, block)?.get(at).copied().unwrap_or(0);
            #[expect(clippy::cast_possible_truncation, reason = "fits by its mask")]
            let new = old & !mask | ((value as u8) << shift) & mask;
            return self.blocks.put(file, block, at, &[new]);
        }
        let size = 1usize << (self.order - 3);
        let bytes = value.to_be_bytes();
        let at = index as usize * size;
        self.blocks.put(file, block, at, &bytes[8 - size..])
    }

    /// The first cluster from `from` on that is free, in the block of `from`.
    fn find_free(&mut self, file: &HostFile, from: u64) -> io::Result<Option<u64>> {
        let Some(block) = self.block_of(from)? else {
            return Ok(Some(from));
        };
        let (per_block, order) = (self.per_block(), self.order);
        let bytes = self.blocks.get(file, block)?;
        let start = from - from % per_block;
        let free = (from % per_block..per_block).find(|index| count(bytes, *index, order) == 0);
        Ok(free.map(|index| start + index))
    }

    /// Takes a free cluster. Also says whether it has never been used: then it is all zeroes.
    pub(super) fn allocate(&mut self, file: &HostFile) -> io::Result<(u64, bool)> {
        let mut searched = 0;
        loop {
            let Some(cluster) = self.find_free(file, self.hint)? else {
                self.hint = self.hint - self.hint % self.per_block() + self.per_block();
                searched += self.per_block();
                if searched > SEARCH_MAX {
                    if self.hint >= self.end {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                    self.hint = self.end;
                    searched = 0;
                }
                continue;
            };
            if cluster >= MAX_FILE >> self.cluster_bits {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let block = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
            if block >= self.table.len() {
                self.grow()?;
                continue;
            }
            self.hint = cluster + 1;
            let fresh = cluster >= self.end;
            self.end = self.end.max(cluster + 1);
            if self.table[block] & OFFSET_MASK == 0 {
                // It counts itself.
                let zeroes = vec![0; self.cluster() as usize].into_boxed_slice();
                let offset = cluster << self.cluster_bits;
                self.blocks.insert(offset, zeroes);
                self.set_table(block, offset);
                self.set(file, cluster, 1)?;
                continue;
            }
            self.set(file, cluster, 1)?;
            return Ok((cluster, fresh));
        }
    }

    fn set_table(&mut self, index: usize, offset: u64) {
        self.table[index] = offset;
        self.table_dirty = if self.table_dirty.is_empty() {
            index..index + 1
        } else {
            self.table_dirty.start.min(index)..self.table_dirty.end.max(index + 1)
        };
    }

    /// Makes a larger table, behind all clusters that the old one knows: first the blocks that count
    /// the new clusters, then the table.
    fn grow(&mut self) -> io::Result<()> {
        let per_cluster = self.cluster() / 8;
        let old_len = self.table.len() as u64;
        let start = old_len * self.per_block();
        let mut blocks = 1;
        let clusters = loop {
            let len = (old_len + old_len / 2).max(old_len + blocks);
            let clusters = len.div_ceil(per_cluster);
            if blocks * self.per_block() >= blocks + clusters {
                break clusters;
            }
            blocks += 1;
        };
        if clusters * self.cluster() > MAX_REFTABLE_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let used = blocks + clusters;
        let old_clusters = (old_len * 8).div_ceil(self.cluster());
        let old_first = self.table_offset >> self.cluster_bits;
        self.released.extend(old_first..old_first + old_clusters);
        self.table.resize((clusters * per_cluster) as usize, 0);
        for block in 0..blocks {
            let mut bytes = vec![0; self.cluster() as usize].into_boxed_slice();
            let first = block * self.per_block();
            for index in 0..used.saturating_sub(first).min(self.per_block()) {
                set_one(&mut bytes, index, self.order);
            }
            let offset = (start + block) << self.cluster_bits;
            self.blocks.insert(offset, bytes);
            self.table[(old_len + block) as usize] = offset;
        }
        self.table_offset = (start + blocks) << self.cluster_bits;
        self.table_moved = true;
        self.end = self.end.max(start + used);
        Ok(())
    }

    /// The cluster loses a reference, at the next commit.
    pub(super) fn release(&mut self, cluster: u64) {
        self.released.push(cluster);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.blocks.is_dirty()
            || self.table_moved
            || !self.table_dirty.is_empty()
            || !self.released.is_empty()
    }

    pub(super) fn wants_commit(&self) -> bool {
        self.blocks.wants_write()
            || self.released.len() >= RELEASED_MAX
            || self.released.len() as u64 * self.cluster() >= RELEASED_BYTES
    }

    /// Writes the counts, and what the table needs before the header may point to it.
    pub(super) fn write_blocks(&mut self, file: &HostFile) -> io::Result<()> {
        self.blocks.write(file)?;
        if self.table_moved {
            file.write_all_at(&self.table_bytes(0..self.table.len()), self.table_offset)?;
        }
        Ok(())
    }

    /// Writes where the blocks are, if that has changed: they are in the file.
    pub(super) fn write_table(&mut self, file: &HostFile) -> io::Result<bool> {
        if self.table_moved {
            let clusters = (self.table.len() * 8) as u64 >> self.cluster_bits;
            let mut fields = [0; 12];
            fields[..8].copy_from_slice(&self.table_offset.to_be_bytes());
            // At most MAX_REFTABLE_BYTES.
            let clusters = u32::try_from(clusters).unwrap_or(0);
            fields[8..].copy_from_slice(&clusters.to_be_bytes());
            file.write_all_at(&fields, REFTABLE_OFFSET)?;
        } else if self.table_dirty.is_empty() {
            return Ok(false);
        } else {
            let start = self.table_dirty.start as u64 * 8;
            let bytes = self.table_bytes(self.table_dirty.clone());
            file.write_all_at(&bytes, self.table_offset + start)?;
        }
        self.table_moved = false;
        self.table_dirty = 0..0;
        Ok(true)
    }

    fn table_bytes(&self, range: Range<usize>) -> Vec<u8> {
        let entries = self.table.get(range).unwrap_or_default();
        entries
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect()
    }

    /// Counts released clusters down: nothing in the file refers to them any more. Returns those that
    /// are free now.
    pub(super) fn apply_released(&mut self, file: &HostFile) -> io::Result<Vec<u64>> {
        let mut free = Vec::new();
        while let Some(&cluster) = self.released.last() {
            match self.get(file, cluster)? {
                0 => log::debug!("A qcow2 image releases a cluster that was free"),
                references => {
                    self.set(file, cluster, references - 1)?;
                    if references == 1 {
                        self.hint = self.hint.min(cluster.max(1));
                        free.push(cluster);
                    }
                }
            }
            self.released.pop();
        }
        free.sort_unstable();
        Ok(free)
    }
}

/// The count at `index` of a block.
fn count(block: &[u8], index: u64, order: u32) -> u64 {
    if order < 3 {
        let bits = 1 << order;
        let byte = block.get((index * bits / 8) as usize).copied().unwrap_or(0);
        return u64::from(byte) >> (index * bits % 8) & ((1 << bits) - 1);
    }
    let size = 1usize << (order - 3);
    let at = index as usize * size;
    let bytes = block.get(at..at + size).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets the count at `index` of a block, which is 0, to 1.
fn set_one(block: &mut [u8], index: u64, order: u32) {
    let (at, bit) = if order < 3 {
        let bit = index << order;
        ((bit / 8) as usize, 1 << (bit % 8))
    } else {
        // The last byte of a big-endian number.
        (((index as usize + 1) << (order - 3)) - 1, 1)
    };
    if let Some(byte) = block.get_mut(at) {
        *byte |= bit;
    }
}
