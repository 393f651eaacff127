//! A file that a guest's output goes to, and that does not grow for ever.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::host_fd::HostFd;

/// Each rotation renames all old files.
const MAX_KEEP: u32 = 1000;

/// Where output goes, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOutput {
    /// The file. It is made if it is not there, and appended to if it is.
    pub path: PathBuf,
    /// Bytes after which it is renamed to `path.1`, what is `path.1` to `path.2` and so on, and a new
    /// one is begun. 0: it grows without limit.
    pub max_size: u64,
    /// How many old ones are kept, at most 1000; with 0, the file is emptied instead.
    pub keep: u32,
}

/// What is behind a path.
#[derive(Debug)]
pub(crate) enum Opened {
    File(LogFile),
    /// A FIFO, terminal or device: nothing that could be renamed.
    Other(HostFd),
}

/// The open file.
#[derive(Debug)]
pub(crate) struct LogFile {
    // Fixed configuration.
    config: FileOutput,
    // Runtime glue.
    file: File,
    // Volatile state.
    size: u64,
}

impl LogFile {
    /// Opens it. A FIFO that nobody reads is an error (ENXIO).
    pub(crate) fn open(config: FileOutput) -> io::Result<Opened> {
        let file = Self::options().open(&config.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Opened::Other(HostFd::for_writing(file.into())?));
        }
        Ok(Opened::File(Self {
            config,
            file,
            size: metadata.len(),
        }))
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        options
    }

    /// Writes as much as belongs into this file: up to the end of a line if there is one that fits.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let max = self.config.max_size;
        if max == 0 || bytes.is_empty() {
            return self.file.write(bytes);
        }
        if self.size >= max {
            self.rotate()?;
        }
        let room = usize::try_from(max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let fits = &bytes[..bytes.len().min(room)];
        if fits.len() == bytes.len() {
            return self.append(bytes);
        }
        match fits.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => {
                let count = self.append(&fits[..=end])?;
                if count == end + 1 {
                    self.rotate()?;
                }
                Ok(count)
            }
            // The line goes to the next file whole, if it is not a file's worth by itself.
            None if self.size > 0 && (bytes.len() as u64) < max => {
                self.rotate()?;
                self.append(bytes)
            }
            None => self.append(fits),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.size = self.size.saturating_add(count as u64);
        Ok(count)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let keep = self.config.keep.min(MAX_KEEP);
        if keep == 0 {
            self.file.set_len(0)?;
        } else {
            for number in (1..keep).rev() {
                rename(
                    &self.numbered(number),
                    &self.numbered(number.saturating_add(1)),
                )?;
            }
            rename(&self.config.path, &self.numbered(1))?;
            self.file = Self::options().create_new(true).open(&self.config.path)?;
        }
        self.size = 0;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.config.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Renames a file, if it is there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "log_file_test.rs"]
mod tests;
