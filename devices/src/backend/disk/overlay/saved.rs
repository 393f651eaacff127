//! A temporary overlay in a snapshot: what the guest has written, as a file like that of an overlay that lasts. Who
//! goes on from the snapshot has that file between the base and a temporary overlay of his own, so that any number
//! can, and nothing is copied for them.
//!
//! Behind the header is the id of the snapshot that the file belongs to.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

use super::{Error, HEADER_SIZE, Header, Identity, MAP_OFFSET, MAP_PAGE, Overlay};
use crate::backend::disk::file::HostFile;
use crate::backend::disk::image::Image;

/// What a snapshot and the overlays in it have in common.
pub type Id = [u8; 16];

/// Where the id is.
const ID_OFFSET: u64 = HEADER_SIZE as u64;
/// Bytes that are copied at once where the kernel does not do it.
const CHUNK: usize = 256 << 10;

impl Overlay {
    /// The overlay of the snapshot `id` in `file`, which is only read.
    pub(in crate::backend::disk) fn saved(
        base: Box<dyn Image>,
        base_file: &HostFile,
        file: HostFile,
        id: &Id,
    ) -> Result<Self, Error> {
        let mut found = Id::default();
        match file.read_exact_at(&mut found, ID_OFFSET) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(Error::NotAnOverlay);
            }
            result => result?,
        }
        // Before anything else is said of it: an empty one is none that is to be made.
        if file.len()? < MAP_OFFSET {
            return Err(Error::NotAnOverlay);
        }
        let overlay = Self::persistent(base, Identity::of(base_file)?, file)?;
        if found != *id {
            return Err(Error::OtherSnapshot);
        }
        Ok(overlay)
    }

    /// Writes to a new file all that is not the base's, of a temporary overlay that nobody writes to meanwhile.
    pub(in crate::backend::disk) fn save(&self, to: &File, id: &Id) -> io::Result<()> {
        let below = self.base.as_overlay();
        let header = Header {
            block: self.block,
            size: self.size,
            base: self.base_identity,
        };
        let mut map = self.map.clone();
        if let Some(below) = below {
            for (bits, more) in map.iter_mut().zip(&below.map) {
                *bits |= more;
            }
        }
        to.write_all_at(&header.to_bytes(), 0)?;
        to.write_all_at(id, ID_OFFSET)?;
        to.set_len(MAP_OFFSET + map.len() as u64)?;
        for (at, page) in (MAP_OFFSET..).step_by(MAP_PAGE).zip(map.chunks(MAP_PAGE)) {
            if page.iter().any(|bits| *bits != 0) {
                to.write_all_at(page, at)?;
            }
        }
        let data = Self::data_offset(map.len() as u64);
        let layer = |block: u64| match below {
            _ if self.is_here(block) => Some(self),
            Some(below) if below.is_here(block) => Some(below),
            _ => None,
        };
        let blocks = self.size.div_ceil(self.block);
        let mut block = 0;
        while block < blocks {
            // Most of a disk was not written to.
            let (byte, _) = Self::place(block);
            if block % 8 == 0 && map.get(byte) == Some(&0) {
                block += 8;
                continue;
            }
            let first = block;
            let from = layer(first);
            while block < blocks && is_same(from, layer(block)) {
                block += 1;
            }
            if let Some(from) = from {
                let (start, end) = (self.bounds(first).0, self.bounds(block - 1).1);
                copy(
                    from.file.file(),
                    from.data + start,
                    to,
                    data + start,
                    end - start,
                )?;
            }
        }
        Ok(())
    }
}

fn is_same(one: Option<&Overlay>, other: Option<&Overlay>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        _ => false,
    }
}

/// Copies `len` bytes from one place of a file to one of another, without the holes, and shares them where the file
/// system can.
fn copy(from: &File, start: u64, to: &File, to_start: u64, len: u64) -> io::Result<()> {
    let end = start + len;
    let mut at = start;
    while at < end {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // All that follows is a hole, or behind the end.
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(end);
        copy_data(from, data, to, to_start + (data - start), hole - data)?;
        at = hole;
    }
    Ok(())
}

fn copy_data(from: &File, start: u64, to: &File, to_start: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let (mut here, mut there) = (start + done, to_start + done);
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut here), to, Some(&mut there), left) {
            // The file was cut: what is behind its end reads as zeroes.
            Ok(0) => return Ok(()),
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_chunks(from, here, to, there, len - done);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_chunks(from: &File, start: u64, to: &File, to_start: u64, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < len {
        let wanted = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..wanted];
        let count = match from.read_at(chunk, start + done) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all_at(&chunk[..count], to_start + done)?;
        done += count as u64;
    }
    Ok(())
}

#[cfg(test)]
#[path = "saved_test.rs"]
mod tests;
