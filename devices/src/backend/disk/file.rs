//! A file or block device of the host: vectored I/O at an offset, holes, its lock.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::buffer::Buffer;

/// Pieces that the kernel takes at once (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;
/// Bytes of zeroes that are written at once where the file system cannot make holes.
const ZERO_CHUNK: u64 = 256 << 10;
/// What a reader locks: it reads, and it lets nobody write or resize. These are the bytes that QEMU
/// uses for the same, so that its tools and mote keep off each other's images. Each is one byte.
const READER_LOCKS: [i64; 3] = [100, 201, 203];

/// What is behind a read that goes beyond the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeyondEnd {
    /// An error: somebody has cut the file.
    Error,
    /// Zeroes.
    Zeroes,
}

/// An open file.
#[derive(Debug)]
pub(super) struct HostFile {
    file: File,
    beyond_end: BeyondEnd,
}

impl HostFile {
    /// Opens an existing file or block device. Anything else fails with `InvalidInput`.
    pub(super) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        // Without O_NONBLOCK a pipe without a writer would block.
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::new(file))
    }

    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            beyond_end: BeyondEnd::Error,
        }
    }

    /// Reads beyond its end give zeroes.
    pub(super) fn with_zeroes_beyond_end(mut self) -> Self {
        self.beyond_end = BeyondEnd::Zeroes;
        self
    }

    /// Locks it as long as it is open: for one writer, or for any number of readers. False if somebody
    /// else keeps it.
    pub(super) fn lock(&self, writable: bool) -> io::Result<bool> {
        if writable {
            return self.lock_range(libc::F_WRLCK, 0, 0);
        }
        for byte in READER_LOCKS {
            if !self.lock_range(libc::F_RDLCK, byte, 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Locks `len` bytes, or all from `start` on if that is 0.
    fn lock_range(&self, kind: libc::c_int, start: i64, len: i64) -> io::Result<bool> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: 0,
            l_start: start,
            l_len: len,
            l_pid: 0,
        };
        // SAFETY: F_OFD_SETLK reads a flock, which lives during the call.
        let result =
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            // No locks there, as on some network and FUSE file systems.
            Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP) => {
                if kind != libc::F_UNLCK {
                    log::warn!("A disk cannot be locked there: nothing keeps two guests apart");
                }
                Ok(true)
            }
            _ => Err(error),
        }
    }

    /// Its length in bytes, also of a block device.
    pub(super) fn len(&self) -> io::Result<u64> {
        // SAFETY: no memory is involved. The position is not used by anyone.
        let end = unsafe { libc::lseek64(self.file.as_raw_fd(), 0, libc::SEEK_END) };
        u64::try_from(end).map_err(|_| io::Error::last_os_error())
    }

    /// Device and inode: which file it is, however it is called.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads bytes for ourselves.
    pub(super) fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.read_at(bytes, offset) {
                Ok(0) if self.beyond_end == BeyondEnd::Zeroes => {
                    bytes.fill(0);
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    bytes = &mut bytes[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes bytes of ours.
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Fills the buffer from `offset` on.
    pub(super) fn read_buffer(&self, buffer: &Buffer, offset: u64) -> io::Result<()> {
        let read = |fd, iov, count, offset| {
            // SAFETY: the pieces are guest memory, which the buffer keeps mapped during the call.
            unsafe { libc::preadv64(fd, iov, count, offset) }
        };
        match self.vectored(buffer, offset, read)? {
            done if done == buffer.len() => Ok(()),
            done if self.beyond_end == BeyondEnd::Zeroes => {
                buffer.slice(done, buffer.len()).zero();
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes the buffer at `offset`.
    pub(super) fn write_buffer(&self, buffer: &Buffer, offset: u64) -> io::Result<()> {
        let write = |fd, iov, count, offset| {
            // SAFETY: the pieces are guest memory, which the buffer keeps mapped during the call.
            unsafe { libc::pwritev64(fd, iov, count, offset) }
        };
        if self.vectored(buffer, offset, write)? == buffer.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Calls `call` until all of the buffer is done or nothing more happens; says how much was.
    fn vectored(
        &self,
        buffer: &Buffer,
        offset: u64,
        call: impl Fn(RawFd, *const libc::iovec, libc::c_int, i64) -> isize,
    ) -> io::Result<u64> {
        let mut done = 0;
        let mut rest = None;
        while done < buffer.len() {
            let now: &Buffer = rest.as_ref().unwrap_or(buffer);
            let iovecs = now.iovecs();
            #[expect(clippy::cast_possible_truncation, reason = "at most IOV_MAX")]
            let count = iovecs.len().min(IOV_MAX) as libc::c_int;
            let at = offset
                .checked_add(done)
                .and_then(|at| i64::try_from(at).ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
            match call(self.file.as_raw_fd(), iovecs.as_ptr(), count, at) {
                0 => break,
                count if count > 0 => done += count.unsigned_abs() as u64,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
            if done < buffer.len() {
                rest = Some(buffer.slice(done, buffer.len()));
            }
        }
        Ok(done)
    }

    /// Gives `len` bytes back to the host; they read as zeroes. Err with `Unsupported` where the host
    /// cannot.
    pub(super) fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len,
        )
    }

    /// Makes `len` bytes read as zeroes and keeps their space if the host can.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(mode, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        let zeroes = vec![0; ZERO_CHUNK.min(len) as usize];
        let mut done = 0;
        while done < len {
            let now = ZERO_CHUNK.min(len - done);
            self.write_all_at(&zeroes[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }

    /// Makes `len` bytes read as zeroes and gives their space back if the host can.
    pub(super) fn discard_to_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.punch_hole(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.write_zeroes(offset, len)
            }
            result => result,
        }
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        loop {
            // SAFETY: no memory is involved.
            if unsafe { libc::fallocate64(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                _ => return Err(error),
            }
        }
    }

    /// What was written is durable when this returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // Others, such as a child that was forked just now, may have the file as well.
        let _ = self.lock_range(libc::F_UNLCK, 0, 0);
    }
}

impl AsRawFd for HostFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
