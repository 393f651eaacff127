//! A file descriptor of the host, read or written without blocking and without anyone else noticing.
//!
//! Descriptors that come from the user share their open file description with the shell and whatever
//! else it started: O_NONBLOCK on one would make all of those fail. So terminals, pipes and FIFOs are
//! opened anew, which gives a description of our own; sockets have a flag for each call; regular files
//! and the likes of /dev/null never block. Where opening anew fails (no /proc, or a terminal that
//! belongs to another user after su), poll tells when to go ahead.
#![expect(
    unsafe_code,
    reason = "send, recv and poll have no safe wrapper in std"
)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

/// Bytes written at once where only poll protects from blocking. A pipe that is ready takes a page; a
/// terminal may have room for less, and then the write takes until its reader has read the rest.
const POLLED_WRITE_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// A description of our own with O_NONBLOCK, or a file that never blocks.
    Plain,
    Socket,
    /// Someone else's description that may block.
    Polled,
}

/// The descriptor.
#[derive(Debug)]
pub(crate) struct HostFd {
    file: File,
    access: Access,
}

impl HostFd {
    /// For reading from `fd`.
    pub(crate) fn for_reading(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd.into(), OpenOptions::new().read(true))
    }

    /// For writing to `fd`.
    pub(crate) fn for_writing(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd.into(), OpenOptions::new().write(true))
    }

    fn new(file: File, options: &mut OpenOptions) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(Self {
                file,
                access: Access::Socket,
            });
        }
        if !kind.is_fifo() && !file.is_terminal() {
            return Ok(Self {
                file,
                access: Access::Plain,
            });
        }
        if is_pty_master(&metadata) {
            return Ok(Self {
                file,
                access: Access::Polled,
            });
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        Ok(match options.open(path) {
            Ok(file) => Self {
                file,
                access: Access::Plain,
            },
            Err(_) => Self {
                file,
                access: Access::Polled,
            },
        })
    }

    /// Reads what is there now; [`io::ErrorKind::WouldBlock`] if that is nothing.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.access {
            Access::Plain => (&self.file).read(buffer),
            Access::Polled if !self.poll(libc::POLLIN, Duration::ZERO) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Access::Polled => (&self.file).read(buffer),
            Access::Socket => {
                let (fd, to, len) = (self.file.as_raw_fd(), buffer.as_mut_ptr(), buffer.len());
                // SAFETY: `to` and `len` are those of `buffer`, which nothing else uses meanwhile.
                let count = unsafe { libc::recv(fd, to.cast(), len, libc::MSG_DONTWAIT) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            }
        }
    }

    /// Writes as much as is taken now; [`io::ErrorKind::WouldBlock`] if that is nothing.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.access {
            Access::Plain => (&self.file).write(bytes),
            Access::Polled if !self.wait_writable(Duration::ZERO) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Access::Polled => (&self.file).write(&bytes[..bytes.len().min(POLLED_WRITE_MAX)]),
            Access::Socket => {
                let (fd, from, len) = (self.file.as_raw_fd(), bytes.as_ptr(), bytes.len());
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `from` and `len` are those of `bytes`.
                let count = unsafe { libc::send(fd, from.cast(), len, flags) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            }
        }
    }

    /// Waits at most `timeout` until a write would do something, or fail. May return early.
    pub(crate) fn wait_writable(&self, timeout: Duration) -> bool {
        self.poll(libc::POLLOUT, timeout)
    }

    fn poll(&self, events: libc::c_short, timeout: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events,
            revents: 0,
        };
        // Rounded up: a wait of less than a millisecond would be none, and its caller would spin.
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        // SAFETY: the pointer is to one pollfd, as the 1 says. An error, such as an interruption by a
        // signal, leaves it as it is: not ready.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
        poll.revents != 0
    }
}

/// Whether this is /dev/ptmx (character device 5:2): opening it anew gives another terminal.
fn is_pty_master(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    (libc::major(device), libc::minor(device)) == (5, 2)
}

impl AsRawFd for HostFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
