//! The header of a qcow2 image, checked.

use std::io;

use thiserror::Error;

use super::super::file::HostFile;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Bytes of the header of version 2.
const V2_SIZE: usize = 72;
/// Bytes that are looked at.
const SIZE: usize = 112;
/// Where a version 3 header has the features that a writer who does not know them has to clear.
pub(super) const AUTOCLEAR_OFFSET: u64 = 88;
/// Where offset and size of the refcount table are.
pub(super) const REFTABLE_OFFSET: u64 = 48;
/// Log2 of the smallest and largest cluster.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of the largest L1 and refcount tables: the same limits as QEMU's.
const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// Bytes of the largest image file: offsets have 56 bits.
pub(super) const MAX_FILE: u64 = 1 << 56;

// Incompatible features. External data (bit 2) and subclusters (bit 4) are among the others.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION_TYPE: u64 = 1 << 3;

/// Why an image cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Something else, or cut off.
    #[error("It is not a qcow2 image")]
    NotQcow2,
    /// Version 1, or one to come.
    #[error("It has version {version}, and only 2 and 3 are known")]
    Version {
        /// Its version.
        version: u32,
    },
    /// It names another file of the host, which whoever made the image is not trusted to do.
    #[error("It has a backing file: make it one file with `qemu-img convert -O qcow2`")]
    BackingFile,
    /// Encrypted.
    #[error("It is encrypted")]
    Encrypted,
    /// Not known, or not supported.
    #[error("It needs unknown or unsupported features: {features:#x} (incompatible feature bits)")]
    Features {
        /// The bits.
        features: u64,
    },
    /// It was not closed, or was found to be corrupt.
    #[error("It was not closed properly or is corrupt: `qemu-img check -r all` may repair it")]
    NeedsRepair,
    /// A number makes no sense.
    #[error("Its header is damaged: {what}")]
    Damaged {
        /// Which.
        what: &'static str,
    },
    /// The host.
    #[error("It cannot be read or written")]
    Io(#[from] io::Error),
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// What is said in a header, all of it plausible.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) cluster_bits: u32,
    /// Of the disk, in bytes.
    pub(super) size: u64,
    /// Entries of the L1 table that the disk needs.
    pub(super) l1_entries: usize,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u32,
    /// Log2 of the bits of a refcount.
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    /// Features that a writer has to clear.
    pub(super) has_autoclear: bool,
}

fn be32(bytes: &[u8; SIZE], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

fn be64(bytes: &[u8; SIZE], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Whether a file starts like a qcow2 image.
pub(in super::super) fn is_qcow2(file: &HostFile) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && u32::from_be_bytes(magic) == MAGIC
}

impl Header {
    /// Reads and checks it; `file_len` is the length of the file.
    pub(super) fn read(file: &HostFile, file_len: u64, writable: bool) -> Result<Self, Error> {
        if file_len < V2_SIZE as u64 {
            return Err(Error::NotQcow2);
        }
        let mut bytes = [0; SIZE];
        let there = SIZE.min(usize::try_from(file_len).unwrap_or(SIZE));
        file.read_exact_at(&mut bytes[..there], 0)?;
        Self::parse(&bytes, file_len, writable)
    }

    fn parse(bytes: &[u8; SIZE], file_len: u64, writable: bool) -> Result<Self, Error> {
        let damaged = |what| Error::Damaged { what };
        if be32(bytes, 0) != MAGIC {
            return Err(Error::NotQcow2);
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::Version { version });
        }
        if be64(bytes, 8) != 0 {
            return Err(Error::BackingFile);
        }
        if be32(bytes, 32) != 0 {
            return Err(Error::Encrypted);
        }
        let cluster_bits = be32(bytes, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged("the cluster size"));
        }
        let (mut autoclear, mut refcount_order) = (0, 4);
        let mut compression = Compression::Deflate;
        if version == 3 {
            let header_length = be32(bytes, 100);
            if header_length < 104 || header_length > 1 << cluster_bits {
                return Err(damaged("its length"));
            }
            let features = be64(bytes, 72);
            let known = DIRTY | CORRUPT | COMPRESSION_TYPE;
            if features & !known != 0 {
                return Err(Error::Features {
                    features: features & !known,
                });
            }
            if features & (DIRTY | CORRUPT) != 0 && writable {
                return Err(Error::NeedsRepair);
            }
            autoclear = be64(bytes, 88);
            refcount_order = be32(bytes, 96);
            if refcount_order > 6 {
                return Err(damaged("the size of its reference counts"));
            }
            if features & COMPRESSION_TYPE != 0 {
                compression = match bytes[104] {
                    0 => Compression::Deflate,
                    1 => Compression::Zstd,
                    _ => return Err(damaged("the compression type")),
                };
            }
        }
        let header = Self {
            cluster_bits,
            size: be64(bytes, 24),
            l1_entries: 0,
            l1_offset: be64(bytes, 40),
            reftable_offset: be64(bytes, REFTABLE_OFFSET as usize),
            reftable_clusters: be32(bytes, 56),
            refcount_order,
            compression,
            has_autoclear: autoclear != 0,
        };
        header.check(u64::from(be32(bytes, 36)), file_len)
    }

    /// Checks sizes and offsets; `l1_size` is the number of entries of its L1 table.
    fn check(mut self, l1_size: u64, file_len: u64) -> Result<Self, Error> {
        let damaged = |what| Err(Error::Damaged { what });
        let cluster = 1u64 << self.cluster_bits;
        let in_file = |offset: u64, len: u64| {
            offset.is_multiple_of(cluster)
                && offset >= cluster
                && offset.checked_add(len).is_some_and(|end| end <= file_len)
        };
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return damaged("the size of the disk");
        }
        let l1_entries = self.size.div_ceil(cluster * (cluster / 8));
        if l1_entries > l1_size || l1_entries * 8 > MAX_L1_BYTES {
            return damaged("the size of its L1 table");
        }
        self.l1_entries = usize::try_from(l1_entries).unwrap_or(usize::MAX);
        if !in_file(self.l1_offset, l1_entries * 8) {
            return damaged("the place of its L1 table");
        }
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable_bytes == 0 || reftable_bytes > MAX_REFTABLE_BYTES {
            return damaged("the size of its refcount table");
        }
        if !in_file(self.reftable_offset, reftable_bytes) || file_len >= MAX_FILE {
            return damaged("the place of its refcount table");
        }
        Ok(self)
    }
}
