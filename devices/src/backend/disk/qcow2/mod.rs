//! qcow2 images, versions 2 and 3: read and write, with internal snapshots left alone, compressed
//! clusters read. What names another file (backing file, external data) is refused, and so is what is
//! encrypted or has subclusters.
//!
//! The image is not trusted: every offset in it is checked when it is used, and a wrong one makes the
//! request fail.
//!
//! # Order of writes
//! A cluster is taken, and the map changed, in memory. A commit writes first the data and the reference
//! counts, then the tables that refer to them, and then lets go of clusters that nothing refers to any
//! more; each is durable before the next. A crash at any point leaves an image without errors, with
//! some clusters lost at worst.

mod compressed;
mod header;
mod refcounts;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use compressed::{Compressed, Place};
pub use header::Error;
pub(super) use header::is_qcow2;
use header::{AUTOCLEAR_OFFSET, Header};
use refcounts::Refcounts;
use table::{Tables, entry};

use super::file::HostFile;
use super::image::{Extent, Image, Source, push_extent};

/// The offset in an entry of a table.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// What an entry refers to is referred to by nothing else.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeroes, whether or not there is a cluster.
const ZERO: u64 = 1;
/// What is written at once of the L1 table.
const L1_SECTOR: usize = 512 / 8;

fn corrupt(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What an entry of an L2 table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Zeroes, and no cluster.
    Nothing,
    /// Zeroes, with a cluster that is kept for later.
    Zero(u64),
    /// A cluster.
    Data(u64),
    Compressed(Place),
}

/// An image.
pub(super) struct Qcow2 {
    // Fixed configuration.
    header: Header,
    writable: bool,
    durable: bool,
    // Runtime glue.
    file: Arc<HostFile>,
    // Volatile state.
    l1: Vec<u64>,
    /// Sectors of the L1 table that are not in the file yet.
    l1_dirty: BTreeSet<usize>,
    l2: Tables,
    refcounts: Refcounts,
    compressed: Compressed,
}

impl Qcow2 {
    /// The image in `file`. `durable`: what is written has to be durable at some time.
    pub(super) fn open(file: HostFile, writable: bool, durable: bool) -> Result<Self, Error> {
        let len = file.len()?;
        let header = Header::read(&file, len, writable)?;
        // The last cluster need not be whole.
        let file = file.with_zeroes_beyond_end();
        let mut raw = vec![0; header.l1_entries * 8];
        file.read_exact_at(&mut raw, header.l1_offset)?;
        let l1 = (0..header.l1_entries)
            .map(|index| entry(&raw, index))
            .collect();
        if writable && header.has_autoclear {
            file.write_all_at(&[0; 8], AUTOCLEAR_OFFSET)?;
        }
        let cluster = 1 << header.cluster_bits;
        Ok(Self {
            refcounts: Refcounts::read(&file, &header, len)?,
            compressed: Compressed::new(cluster, header.compression),
            l2: Tables::new(cluster),
            l1,
            l1_dirty: BTreeSet::new(),
            header,
            writable,
            durable,
            file: Arc::new(file),
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// The L1 entry and the place in the L2 table of a cluster of the disk.
    fn place(&self, cluster: u64) -> (usize, usize) {
        let bits = self.header.cluster_bits - 3;
        let index = cluster & ((1 << bits) - 1);
        (
            usize::try_from(cluster >> bits).unwrap_or(usize::MAX),
            // Below 2^18.
            index as usize,
        )
    }

    /// The L2 table of an L1 entry, if there is one.
    fn l2_offset(&self, index: usize) -> io::Result<Option<u64>> {
        let offset = self.l1.get(index).copied().unwrap_or(0) & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(self.cluster()) || !self.refcounts.is_in_file(offset) {
            return Err(corrupt("an L2 table is out of place"));
        }
        Ok(Some(offset))
    }

    /// The L2 entry of a cluster of the disk.
    fn entry(&mut self, cluster: u64) -> io::Result<u64> {
        let (l1_index, index) = self.place(cluster);
        let Some(table) = self.l2_offset(l1_index)? else {
            return Ok(0);
        };
        Ok(entry(self.l2.get(&self.file, table)?, index))
    }

    fn mapping(&self, entry: u64) -> io::Result<Mapping> {
        if entry & COMPRESSED != 0 {
            let place = Place::from_entry(entry, self.header.cluster_bits);
            if !self.refcounts.is_in_file(place.offset) {
                return Err(corrupt("a compressed cluster is out of place"));
            }
            return Ok(Mapping::Compressed(place));
        }
        let offset = entry & OFFSET_MASK;
        if offset != 0 {
            let aligned = offset.is_multiple_of(self.cluster());
            if !aligned || !self.refcounts.is_in_file(offset) {
                return Err(corrupt("a cluster is out of place"));
            }
        }
        Ok(match (offset, entry & ZERO != 0) {
            (0, _) => Mapping::Nothing,
            (offset, true) => Mapping::Zero(offset),
            (offset, false) => Mapping::Data(offset),
        })
    }

    /// Whether something else than the guest's data must be there.
    fn is_metadata(&self, offset: u64) -> bool {
        let l1 = self.header.l1_offset..self.header.l1_offset + self.l1.len() as u64 * 8;
        offset < self.cluster() || l1.contains(&offset) || self.refcounts.has_table_at(offset)
    }

    /// Changes the L2 entry of a cluster of the disk.
    fn set_entry(&mut self, cluster: u64, entry: u64) -> io::Result<()> {
        let (l1_index, index) = self.place(cluster);
        let old = self.l2_offset(l1_index)?;
        let is_own = self
            .l1
            .get(l1_index)
            .is_some_and(|entry| entry & COPIED != 0);
        let table = match old {
            Some(table) if is_own => table,
            _ => self.new_l2(l1_index, old)?,
        };
        self.l2
            .put(&self.file, table, index * 8, &entry.to_be_bytes())
    }

    /// Makes an L2 table, or a copy of one that a snapshot has as well.
    fn new_l2(&mut self, l1_index: usize, old: Option<u64>) -> io::Result<u64> {
        let bytes: Box<[u8]> = match old {
            Some(old) => self.l2.get(&self.file, old)?.into(),
            None => vec![0; self.cluster() as usize].into(),
        };
        let (cluster, _) = self.refcounts.allocate(&self.file)?;
        let offset = cluster << self.header.cluster_bits;
        self.l2.insert(offset, bytes);
        if let Some(entry) = self.l1.get_mut(l1_index) {
            *entry = offset | COPIED;
        }
        self.l1_dirty.insert(l1_index / L1_SECTOR);
        if let Some(old) = old {
            self.l2.remove(old);
            self.refcounts.release(old >> self.header.cluster_bits);
        }
        Ok(offset)
    }

    /// What an entry refers to loses that reference.
    fn release(&mut self, mapping: Mapping) {
        let bits = self.header.cluster_bits;
        match mapping {
            Mapping::Nothing => {}
            Mapping::Zero(offset) | Mapping::Data(offset) => {
                self.refcounts.release(offset >> bits);
            }
            Mapping::Compressed(place) => {
                // At most two clusters and a bit.
                let last = (place.offset + place.len - 1) >> bits;
                for cluster in place.offset >> bits..=last {
                    self.refcounts.release(cluster);
                }
                self.compressed.forget();
            }
        }
    }

    /// Makes a cluster that can be written to in place; `written` is the part of it that will be.
    /// Returns where it is.
    fn make_writable(&mut self, cluster: u64, written: &Range<u64>) -> io::Result<u64> {
        let entry = self.entry(cluster)?;
        let mapping = self.mapping(entry)?;
        let is_own = entry & COPIED != 0;
        let own = match mapping {
            Mapping::Data(offset) | Mapping::Zero(offset) if is_own => Some(offset),
            _ => None,
        };
        if own.is_some_and(|offset| self.is_metadata(offset)) {
            return Err(corrupt("a cluster is where a table is"));
        }
        if let (Mapping::Data(offset), Some(_)) = (mapping, own) {
            return Ok(offset);
        }
        let (offset, fresh) = match own {
            Some(offset) => (offset, false),
            None => {
                let (cluster, fresh) = self.refcounts.allocate(&self.file)?;
                (cluster << self.header.cluster_bits, fresh)
            }
        };
        let filled = self
            .fill_around(mapping, offset, written, fresh)
            .and_then(|()| self.set_entry(cluster, offset | COPIED));
        match (filled, own) {
            (Ok(()), None) => self.release(mapping),
            (Ok(()), Some(_)) => {}
            (Err(error), own) => {
                if own.is_none() {
                    self.refcounts.release(offset >> self.header.cluster_bits);
                }
                return Err(error);
            }
        }
        Ok(offset)
    }

    /// Copies what is beside `written` from its old place to the cluster at `offset`, which is all
    /// zeroes if it is `fresh`.
    fn fill_around(
        &mut self,
        old: Mapping,
        offset: u64,
        written: &Range<u64>,
        fresh: bool,
    ) -> io::Result<()> {
        let around = [0..written.start, written.end..self.cluster()];
        if around.iter().all(Range::is_empty) {
            return Ok(());
        }
        let content = match old {
            Mapping::Data(old) => {
                let mut content = vec![0; self.cluster() as usize];
                self.file.read_exact_at(&mut content, old)?;
                Some(Arc::from(content))
            }
            Mapping::Compressed(place) => Some(self.compressed.read(&self.file, place)?),
            Mapping::Nothing | Mapping::Zero(_) => None,
        };
        for part in around.into_iter().filter(|part| !part.is_empty()) {
            match &content {
                Some(content) => {
                    let bytes = content.get(part.start as usize..part.end as usize);
                    self.file
                        .write_all_at(bytes.unwrap_or_default(), offset + part.start)?;
                }
                None if fresh => {}
                None => self
                    .file
                    .write_zeroes(offset + part.start, part.end - part.start)?,
            }
        }
        Ok(())
    }

    /// Makes whole clusters of the disk read as zeroes.
    fn zero_clusters(&mut self, clusters: Range<u64>, unmap: bool) -> io::Result<()> {
        let per_table = self.cluster() / 8;
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            if self.l2_offset(self.place(cluster).0)?.is_none() {
                cluster = (cluster / per_table + 1) * per_table;
                continue;
            }
            let entry = self.entry(cluster)?;
            let mapping = self.mapping(entry)?;
            match mapping {
                Mapping::Nothing => {}
                Mapping::Zero(_) if !unmap => {}
                Mapping::Data(offset) if !unmap && entry & COPIED != 0 => {
                    if self.is_metadata(offset) {
                        return Err(corrupt("a cluster is where a table is"));
                    }
                    self.file.write_zeroes(offset, self.cluster())?;
                }
                _ => {
                    self.set_entry(cluster, 0)?;
                    self.release(mapping);
                }
            }
            cluster += 1;
        }
        Ok(())
    }

    /// Makes a part of a cluster of the disk read as zeroes.
    fn zero_part(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let entry = self.entry(offset >> self.header.cluster_bits)?;
        if matches!(self.mapping(entry)?, Mapping::Nothing | Mapping::Zero(_)) {
            return Ok(());
        }
        let mut extents = Vec::new();
        self.map_write(offset, len, &mut extents)?;
        for extent in extents {
            if let Source::File { offset, .. } = extent.source {
                self.file.write_zeroes(offset, extent.len)?;
            }
        }
        Ok(())
    }

    /// The clusters that are entirely within a range.
    fn whole_clusters(&self, offset: u64, end: u64) -> Range<u64> {
        let first = offset.div_ceil(self.cluster());
        let last = if end == self.header.size {
            end.div_ceil(self.cluster())
        } else {
            end / self.cluster()
        };
        first..last.max(first)
    }

    /// Writes changed sectors of the L1 table.
    fn write_l1(&mut self) -> io::Result<()> {
        for &sector in &self.l1_dirty {
            let start = sector * L1_SECTOR;
            let end = (start + L1_SECTOR).min(self.l1.len());
            let entries = self.l1.get(start..end).unwrap_or_default();
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect();
            self.file
                .write_all_at(&bytes, self.header.l1_offset + start as u64 * 8)?;
        }
        self.l1_dirty.clear();
        Ok(())
    }

    /// Gives clusters back to the host.
    fn punch(&self, clusters: &[u64]) {
        let bits = self.header.cluster_bits;
        for run in clusters.chunk_by(|one, next| one + 1 == *next) {
            if let Some(first) = run.first() {
                // Only to save space.
                let _ = self
                    .file
                    .punch_hole(first << bits, (run.len() as u64) << bits);
            }
        }
    }
}

impl Image for Qcow2 {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn files(&self) -> Vec<Arc<HostFile>> {
        vec![Arc::clone(&self.file)]
    }

    fn written_file(&self) -> Option<usize> {
        (self.writable && self.durable).then_some(0)
    }

    fn map_read(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        let mut at = offset;
        while at < offset + len {
            let within = at % self.cluster();
            let now = (self.cluster() - within).min(offset + len - at);
            let entry = self.entry(at >> self.header.cluster_bits)?;
            let source = match self.mapping(entry)? {
                Mapping::Nothing | Mapping::Zero(_) => Source::Zero,
                Mapping::Data(offset) => Source::File {
                    file: 0,
                    offset: offset + within,
                },
                Mapping::Compressed(place) => {
                    let bytes = self.compressed.read(&self.file, place)?;
                    Source::Bytes(bytes, within as usize)
                }
            };
            push_extent(extents, now, source);
            at += now;
        }
        Ok(())
    }

    fn map_write(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        let mut at = offset;
        while at < offset + len {
            let within = at % self.cluster();
            let now = (self.cluster() - within).min(offset + len - at);
            let cluster = at >> self.header.cluster_bits;
            let host = self.make_writable(cluster, &(within..within + now))?;
            let source = Source::File {
                file: 0,
                offset: host + within,
            };
            push_extent(extents, now, source);
            at += now;
        }
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let clusters = self.whole_clusters(offset, offset + len);
        self.zero_clusters(clusters, true)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let end = offset + len;
        let clusters = self.whole_clusters(offset, end);
        if clusters.is_empty() {
            // Within a cluster, or in two that are neighbours.
            let middle = (offset + 1).next_multiple_of(self.cluster()).min(end);
            self.zero_part(offset, middle - offset)?;
            return self.zero_part(middle, end - middle);
        }
        let start = clusters.start << self.header.cluster_bits;
        let whole_end = end.min(clusters.end << self.header.cluster_bits);
        self.zero_part(offset, start - offset)?;
        self.zero_part(whole_end, end - whole_end)?;
        self.zero_clusters(clusters, unmap)
    }

    fn is_dirty(&self) -> bool {
        self.l2.is_dirty() || !self.l1_dirty.is_empty() || self.refcounts.is_dirty()
    }

    fn wants_commit(&self) -> bool {
        self.l2.wants_write() || self.refcounts.wants_commit()
    }

    fn commit(&mut self, durable: bool) -> io::Result<()> {
        let sync = |file: &HostFile| if durable { file.sync() } else { Ok(()) };
        self.refcounts.write_blocks(&self.file)?;
        sync(&self.file)?;
        if !self.is_dirty() {
            return Ok(());
        }
        if self.refcounts.write_table(&self.file)? {
            sync(&self.file)?;
        }
        self.l2.write(&self.file)?;
        if !self.l1_dirty.is_empty() {
            sync(&self.file)?;
            self.write_l1()?;
        }
        sync(&self.file)?;
        let free = self.refcounts.apply_released(&self.file)?;
        self.punch(&free);
        Ok(())
    }

    fn preferred_size(&self) -> u64 {
        self.cluster()
    }
}

#[cfg(test)]
#[path = "qcow2_test.rs"]
mod tests;
