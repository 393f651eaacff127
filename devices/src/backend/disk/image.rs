//! What a disk is made of: where on the host each byte is.

use std::io;
use std::sync::Arc;

use super::file::HostFile;
use super::overlay::Overlay;

/// Where some bytes of a disk are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Nowhere: they are zeroes.
    Zero,
    /// In a file of the image, from here on.
    File {
        /// Which.
        file: usize,
        /// Where.
        offset: u64,
    },
    /// Here, from this index on.
    Bytes(Arc<[u8]>, usize),
}

/// A part of a disk that is in one place.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Its length in bytes.
    pub(super) len: u64,
    /// The place.
    pub(super) source: Source,
}

/// Appends an extent, or makes the last one longer if it goes on there.
pub(super) fn push_extent(extents: &mut Vec<Extent>, len: u64, source: Source) {
    if let Some(last) = extents.last_mut() {
        let goes_on = match (&last.source, &source) {
            (Source::Zero, Source::Zero) => true,
            (
                Source::File { file, offset },
                Source::File {
                    file: next_file,
                    offset: next,
                },
            ) => file == next_file && offset.checked_add(last.len) == Some(*next),
            _ => false,
        };
        if goes_on {
            last.len += len;
            return;
        }
    }
    extents.push(Extent { len, source });
}

/// A disk's format: a map from its bytes to files. All ranges that it is given are within its size and
/// made of whole sectors.
///
/// A map may change in memory first. What it says in the file then is older, but consistent at any
/// time, and [`Image::commit`] brings it up to date.
pub(super) trait Image: Send {
    /// Bytes.
    fn size(&self) -> u64;

    /// Its files, for [`Source::File`].
    fn files(&self) -> Vec<Arc<HostFile>>;

    /// The file that is written to and needs to be synced. None if nothing has to be durable.
    fn written_file(&self) -> Option<usize>;

    /// Says where these bytes are.
    fn map_read(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()>;

    /// Says where these bytes are to be written: in files, all of them. There is room for them, and
    /// what is beside them is as it was.
    fn map_write(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()>;

    /// Their content does not matter any more.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// They are zeroes; `unmap`: and need no room.
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Whether there is anything to commit.
    fn is_dirty(&self) -> bool {
        false
    }

    /// Whether that is so much that it should be done now.
    fn wants_commit(&self) -> bool {
        false
    }

    /// Brings the map in the file up to date. `durable`: with all that was written before, in an order
    /// that leaves a consistent image wherever the host stops. No operation is in flight.
    fn commit(&mut self, _durable: bool) -> io::Result<()> {
        Ok(())
    }

    /// The overlay that it is, if it is one.
    fn as_overlay(&self) -> Option<&Overlay> {
        None
    }

    /// Bytes that are best written at once.
    fn preferred_size(&self) -> u64 {
        4096
    }
}

/// Reads bytes of an image for ourselves.
pub(super) fn read_image(
    image: &mut dyn Image,
    offset: u64,
    mut bytes: &mut [u8],
) -> io::Result<()> {
    let mut extents = Vec::new();
    image.map_read(offset, bytes.len() as u64, &mut extents)?;
    let files = image.files();
    for extent in extents {
        let len = usize::try_from(extent.len)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let (now, later) = bytes.split_at_mut(len);
        match extent.source {
            Source::Zero => now.fill(0),
            Source::File { file, offset } => files
                .get(file)
                .ok_or(io::ErrorKind::InvalidInput)?
                .read_exact_at(now, offset)?,
            Source::Bytes(from, at) => {
                now.copy_from_slice(from.get(at..at + len).ok_or(io::ErrorKind::InvalidData)?);
            }
        }
        bytes = later;
    }
    Ok(())
}
