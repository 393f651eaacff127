//! A raw image: the file is the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file::HostFile;
use super::image::{Extent, Image, Source, push_extent};

pub(super) struct Raw {
    file: Arc<HostFile>,
    /// Shared with those who may resize it.
    size: Arc<AtomicU64>,
    durable: bool,
}

impl Raw {
    /// `durable`: what is written has to be durable at some time.
    pub(super) fn new(file: Arc<HostFile>, size: Arc<AtomicU64>, durable: bool) -> Self {
        Self {
            file,
            size,
            durable,
        }
    }
}

impl Image for Raw {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn files(&self) -> Vec<Arc<HostFile>> {
        vec![Arc::clone(&self.file)]
    }

    fn written_file(&self) -> Option<usize> {
        self.durable.then_some(0)
    }

    fn map_read(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        push_extent(extents, len, Source::File { file: 0, offset });
        Ok(())
    }

    fn map_write(&mut self, offset: u64, len: u64, extents: &mut Vec<Extent>) -> io::Result<()> {
        self.map_read(offset, len, extents)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match self.file.punch_hole(offset, len) {
            // It is only a hint.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            self.file.discard_to_zeroes(offset, len)
        } else {
            self.file.write_zeroes(offset, len)
        }
    }
}
