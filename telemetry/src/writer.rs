//! The metrics file: one line at a time, and nobody is waited for.

use std::fs::File;
use std::io::{self, Write};

/// A file, or a FIFO that need not be read, opened so that it is not waited for.
pub(crate) struct Writer {
    sink: File,
    /// The end of a line of which the FIFO has taken the beginning.
    rest: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(sink: File) -> Self {
        Self {
            sink,
            rest: Vec::new(),
        }
    }

    /// Makes room for another line: what is left of the one before goes first. Fails with `WouldBlock` while
    /// there is none.
    pub(crate) fn make_room(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.put(&rest)?;
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Writes a line, for which there is room. If this fails, nothing of it was written.
    pub(crate) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.make_room()?;
        let before = line.len();
        self.put(line)?;
        if self.rest.len() == before {
            self.rest.clear();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Writes as much as can be written, and keeps the rest.
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        bytes.clone_into(&mut self.rest);
        Ok(())
    }
}
