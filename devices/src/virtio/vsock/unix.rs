//! Unix sockets of the host: the one that clients connect to, and their streams. Nothing here waits.
#![expect(
    unsafe_code,
    reason = "recvmsg and sendmsg on guest memory have no safe wrapper"
)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap;

use super::Error;
use super::connection::{SLICES_MAX, Stream};
use super::handshake::{LINE_MAX, Line, Progress};

/// Bytes of a path that a socket's address has room for, with a zero behind it (unix(7)).
const PATH_MAX: usize = 107;

/// The socket that clients of the host connect to. It listens as long as this lives; then its file is
/// removed, if nobody has replaced it.
#[derive(Debug)]
pub(super) struct Listening {
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
    listener: Arc<UnixListener>,
}

impl Listening {
    /// Listens at `path`. A socket that is there but that nobody listens on any more is replaced.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let len = path.as_os_str().len();
        if len == 0 || len > PATH_MAX || path.as_os_str().as_bytes().contains(&0) {
            return Err(Error::Path {
                path: path.to_owned(),
                max: PATH_MAX,
            });
        }
        let cannot = |source| Error::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(cannot)?;
        let file = identity(path).map_err(cannot)?;
        let listening = Self {
            path: path.to_owned(),
            file,
            listener: Arc::new(listener),
        };
        listening.listener.set_nonblocking(true).map_err(cannot)?;
        Ok(listening)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> &Arc<UnixListener> {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // If it fails, the file stays for the next one to replace.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket that a dead process has left behind. What else is there stays: an error.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let in_use = || Error::InUse {
        path: path.to_owned(),
    };
    let cannot = |source| Error::Listen {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(path).map_err(cannot)?;
    if !metadata.file_type().is_socket() {
        return Err(in_use());
    }
    match connect_to(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(in_use()),
    }
    // Someone else may have found it stale too, and has replaced it meanwhile.
    let file = identity(path).map_err(cannot)?;
    if file != (metadata.dev(), metadata.ino()) {
        return Err(in_use());
    }
    fs::remove_file(path).map_err(cannot)
}

/// Where the host listens for connections of the guest to `port`: `path` with `_port` behind it.
pub(super) fn path_of_port(path: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    name.into()
}

/// Connects to a socket; [`io::ErrorKind::WouldBlock`] if too many others wait there to be accepted.
pub(super) fn connect_to(path: &Path) -> io::Result<UnixSocket> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(UnixSocket(socket.into()))
}

/// A stream.
#[derive(Debug)]
pub(super) struct UnixSocket(UnixStream);

impl UnixSocket {
    /// The next client.
    pub(super) fn accept(listener: &UnixListener) -> io::Result<Self> {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// Reads a client's first line, and nothing behind it.
    pub(super) fn read_line(&self, line: &mut Line) -> Progress {
        loop {
            let mut waiting = [0; LINE_MAX];
            let wanted = match recv(&self.0, &mut waiting, RecvFlags::PEEK) {
                Ok((count, _)) if count > 0 => line.wanted(&waiting[..count]),
                Err(rustix::io::Errno::AGAIN) => return Progress::Incomplete,
                Err(rustix::io::Errno::INTR) => continue,
                _ => return Progress::Wrong,
            };
            // The same bytes: nobody else reads them.
            let input = match recv(&self.0, &mut waiting[..wanted], RecvFlags::empty()) {
                Ok((count, _)) => &waiting[..count.min(wanted)],
                Err(_) => return Progress::Wrong,
            };
            match line.push(input) {
                Progress::Incomplete => {}
                done => return done,
            }
        }
    }
}

impl AsRawFd for UnixSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

type Pieces = SmallVec<[libc::iovec; SLICES_MAX]>;

fn pieces(slices: &[VolatileSlice<'_>]) -> Pieces {
    let slices = slices.iter().take(SLICES_MAX);
    slices
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect()
}

/// The message of these pieces.
fn message(pieces: &mut Pieces) -> libc::msghdr {
    // SAFETY: integers and pointers: zeroes are a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

impl Stream for UnixSocket {
    fn read(&self, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut pieces = pieces(to);
        let mut message = message(&mut pieces);
        // SAFETY: the message's pieces are memory that `to` keeps mapped and that may be written at any
        // time, as others may write it; it has no other buffers.
        let count =
            unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let mut left = count;
        for slice in to {
            let written = left.min(slice.len());
            slice.bitmap().mark_dirty(0, written);
            left -= written;
        }
        Ok(count)
    }

    fn write(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut pieces = pieces(from);
        let message = message(&mut pieces);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message's pieces are memory that `from` keeps mapped and that is only read; it has
        // no other buffers.
        let count = unsafe { libc::sendmsg(self.as_raw_fd(), &raw const message, flags) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn shutdown(&self, how: Shutdown) {
        // Fails only if there is nobody any more.
        let _ = self.0.shutdown(how);
    }
}

#[cfg(test)]
#[path = "unix_test.rs"]
mod tests;
