//! The API's socket as a file: made so that nobody else ever reaches it, and removed when it is ours to remove.
//!
//! # Rules
//! - The file has mode 0600 from its first moment: on Linux a socket's file takes the mode that its descriptor
//!   has, so the descriptor's is changed before it is bound. The umask, which belongs to all threads, stays as it is.
//! - [`Existing::Refuse`]: whatever is at the path is left alone, and is an error.
//! - [`Existing::ReplaceIfStale`]: a socket of ours on which nobody listens is replaced, and nothing else.
//! - When it is no longer needed, the file is removed if it is still the one that was made.
//!
//! # Two that start at the same time
//! Both would find the same stale socket, and the slower one would remove what the faster one has just made; or
//! one would take for stale what the other has bound and does not listen on yet. So all this is done under a lock (`flock`)
//! on the folder of the socket. A lock file beside the socket would do as well, but would have to stay
//! for ever: whoever removes it locks a file that the next one no longer finds.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Owner only.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Connections that wait to be accepted; beyond, a client that does not wait (Go, Python with a time limit) is turned away.
/// The kernel has its own limit (`net.core.somaxconn`) besides.
const BACKLOG: i32 = 4096;
/// How long the lock of the folder is waited for. Its holder does a handful of system calls.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// And when the file is removed, which is better done without it than late.
const LOCK_LIMIT_AT_END: Duration = Duration::from_millis(100);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// What to do if there is something at the path already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone and fail.
    Refuse,
    /// Replace it if it is a socket of the same user on which nobody listens, else fail.
    ReplaceIfStale,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is something at the path that must stay. Clients know the first two sentences.
    #[error(
        "Failed to open the API socket at: {}. Check that it is not already used. {what}",
        .path.display()
    )]
    Exists {
        /// Where.
        path: PathBuf,
        /// What was found there.
        what: Found,
    },
    /// The folder is not there.
    #[error("Cannot make the API socket {}: there is no folder {}", .path.display(), .folder.display())]
    NoFolder {
        /// The socket's path.
        path: PathBuf,
        /// The folder it would be in.
        folder: PathBuf,
    },
    /// The kernel takes no path of this length.
    #[error(
        "The path of the API socket is too long ({} bytes, of at most {LONGEST_PATH}): {}",
        .path.as_os_str().len(),
        .path.display()
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path has no file name, or a zero byte.
    #[error("Not a path for an API socket: {}", .path.display())]
    NotAPath {
        /// What was given.
        path: PathBuf,
    },
    /// Others keep the folder locked.
    #[error("Cannot make the API socket {}: another process keeps its folder locked", .path.display())]
    Locked {
        /// The socket's path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("Cannot {action} the API socket {}", .path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What was at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Found {
    /// A file, whatever it is: nobody asked.
    #[error("There is a file of this name")]
    Something,
    /// A socket that answers.
    #[error("Another process listens on it")]
    Live,
    /// Not a socket.
    #[error("It is not a socket")]
    NoSocket,
    /// A socket of another user.
    #[error("It belongs to another user")]
    NotOurs,
    /// A socket, but whether anyone listens could not be found out.
    #[error("It cannot be told whether anyone listens on it")]
    Unclear,
}

/// Bytes of a path in `sockaddr_un`, without the zero byte at its end.
pub const LONGEST_PATH: usize = 107;

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct BoundSocket {
    /// Accepts connections.
    pub listener: UnixListener,
    /// Removes the file when dropped.
    pub file: SocketFile,
}

/// The file of a socket. Dropping it removes the file, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    /// Absolute, as the process may change its working directory.
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Where it is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The listener may be closed already, and another process about to replace what is stale.
        let _lock =
            folder_of(&self.path).and_then(|folder| lock(&self.path, folder, LOCK_LIMIT_AT_END));
        let Ok(found) = fs::symlink_metadata(&self.path) else {
            return;
        };
        if (found.dev(), found.ino()) == (self.device, self.inode) {
            // There is nobody to tell, and what is left is a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket at `path` and listens on it.
pub fn bind(path: &Path, existing: Existing) -> Result<BoundSocket, Error> {
    let failed = |action, source: io::Error| Error::Io {
        action,
        path: path.to_owned(),
        source,
    };
    let folder = folder_of(path)?;
    let address = SocketAddrUnix::new(path).map_err(|_| Error::NotAPath {
        path: path.to_owned(),
    })?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("make", errno.into()))?;
    rustix::fs::fchmod(&socket, MODE).map_err(|errno| failed("protect", errno.into()))?;

    let _lock = match lock(path, folder, LOCK_LIMIT) {
        // It is needed only against those who replace; what is in the way is found by the kernel.
        Err(_) if existing == Existing::Refuse => None,
        lock => Some(lock?),
    };
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            match existing {
                Existing::Refuse => Err(Found::Something),
                Existing::ReplaceIfStale => remove_stale(path, &address),
            }
            .map_err(|what| Error::Exists {
                path: path.to_owned(),
                what,
            })?;
            rustix::net::bind(&socket, &address)
        }
        result => result,
    }
    .map_err(|errno| failed("make", errno.into()))?;

    let made = fs::symlink_metadata(path).map_err(|source| failed("find", source))?;
    let file = SocketFile {
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        device: made.dev(),
        inode: made.ino(),
    };
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed("listen on", errno.into()))?;
    Ok(BoundSocket {
        listener: UnixListener::from(socket),
        file,
    })
}

/// The folder that `path` is in, which is there.
fn folder_of(path: &Path) -> Result<&Path, Error> {
    if path.file_name().is_none() {
        return Err(Error::NotAPath {
            path: path.to_owned(),
        });
    }
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(Error::TooLong {
            path: path.to_owned(),
        });
    }
    let folder = match path.parent() {
        None => Path::new("/"),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    if !folder.is_dir() {
        return Err(Error::NoFolder {
            path: path.to_owned(),
            folder: folder.to_owned(),
        });
    }
    Ok(folder)
}

/// The folder, locked until it is closed.
fn lock(path: &Path, folder: &Path, limit: Duration) -> Result<OwnedFd, Error> {
    let failed = |errno: Errno| Error::Io {
        action: "lock the folder of",
        path: path.to_owned(),
        source: errno.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed)?;
    let deadline = Instant::now() + limit;
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => {
                return Err(Error::Locked {
                    path: path.to_owned(),
                });
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Removes what is at `path` if that is a socket of ours on which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Found> {
    let found = fs::symlink_metadata(path).map_err(|_| Found::Unclear)?;
    if !found.file_type().is_socket() {
        return Err(Found::NoSocket);
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Found::NotOurs);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|_| Found::Unclear)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(|_| Found::Unclear),
        // Refused for lack of room is not refused for lack of a listener.
        Ok(()) | Err(Errno::AGAIN) => Err(Found::Live),
        Err(_) => Err(Found::Unclear),
    }
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
