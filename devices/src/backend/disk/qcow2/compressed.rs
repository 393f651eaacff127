//! Compressed clusters: read only; what is written to one goes into a cluster of its own.

use std::io::{self, Read};
use std::sync::Arc;

use super::super::file::HostFile;
use super::header::Compression;

/// Clusters that are kept: guests read one in several pieces.
const KEPT: usize = 4;

/// Where a compressed cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    /// Bytes, rounded up.
    pub(super) len: u64,
}

impl Place {
    /// What an L2 entry says.
    pub(super) fn from_entry(entry: u64, cluster_bits: u32) -> Self {
        let offset_bits = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let more_sectors = entry >> offset_bits & ((1 << (cluster_bits - 8)) - 1);
        Self {
            offset,
            len: (more_sectors + 1) * 512 - (offset & 511),
        }
    }
}

/// Reads them, and keeps a few.
pub(super) struct Compressed {
    // Fixed configuration.
    cluster: usize,
    compression: Compression,
    // Volatile state.
    kept: Vec<(Place, Arc<[u8]>)>,
}

impl Compressed {
    pub(super) fn new(cluster: usize, compression: Compression) -> Self {
        Self {
            cluster,
            compression,
            kept: Vec::new(),
        }
    }

    /// The content of the one at `place`, a whole cluster.
    pub(super) fn read(&mut self, file: &HostFile, place: Place) -> io::Result<Arc<[u8]>> {
        if let Some((_, bytes)) = self.kept.iter().find(|(other, _)| *other == place) {
            return Ok(Arc::clone(bytes));
        }
        // At most two clusters, whatever the image says.
        let len = usize::try_from(place.len).unwrap_or(0);
        let mut packed = vec![0; len.min(2 * self.cluster)];
        file.read_exact_at(&mut packed, place.offset)?;
        let mut bytes = vec![0; self.cluster];
        match self.compression {
            Compression::Deflate => {
                flate2::read::DeflateDecoder::new(&packed[..]).read_exact(&mut bytes)?;
            }
            Compression::Zstd => {
                let mut packed = &packed[..];
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut packed)
                    .map_err(io::Error::other)?;
                decoder.read_exact(&mut bytes)?;
            }
        }
        let bytes: Arc<[u8]> = bytes.into();
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push((place, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Its cluster may be used for something else.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }
}
