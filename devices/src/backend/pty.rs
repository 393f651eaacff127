//! A pseudo-terminal for a guest's console: whoever opens its path is at the console, and may go and
//! come back.
//!
//! Nobody tells who has a terminal open, and without anybody its master is useless: it hangs up and
//! cannot be waited for. So this end holds the other side open by itself as long as nobody else is known
//! to have it, which keeps the master quiet, and finds out only when it matters:
//!
//! - Output that does not fit: the other side is let go of for a moment. If the master hangs up, nobody
//!   is there; then the oldest output is thrown away, so that the guest goes on and who comes later sees
//!   the newest. Otherwise there is a reader, which is slow, and the guest waits for it.
//! - After that, the other side is not held, and the master hangs up when that reader goes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::lock;

/// Bytes of old output that are thrown away at once. More than a terminal's line discipline holds.
const DROP_MAX: usize = 4096;
/// How often room is made for a piece of output that nobody reads, before it is thrown away itself.
const ATTEMPTS: usize = 4;
const FLAGS: OpenptFlags = OpenptFlags::RDWR
    .union(OpenptFlags::NOCTTY)
    .union(OpenptFlags::CLOEXEC);
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    path: PathBuf,
    master: OwnedFd,
    held: Arc<Mutex<Held>>,
}

impl Pty {
    /// Allocates one, in raw mode.
    pub fn open() -> io::Result<Self> {
        let master = openpt(FLAGS)?;
        fcntl_setfl(&master, OFlags::NONBLOCK)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let held = Held::hold(&master)?;
        if let Some(slave) = &held.0 {
            let mut attributes = tcgetattr(slave)?;
            attributes.make_raw();
            tcsetattr(slave, OptionalActions::Now, &attributes)?;
        }
        Ok(Self {
            path: OsStr::from_bytes(path.as_bytes()).into(),
            master,
            held: Arc::new(Mutex::new(held)),
        })
    }

    /// What is to be opened, such as /dev/pts/5.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One user of the master: of two, each has a descriptor of its own to be watched.
    pub(crate) fn end(&self) -> io::Result<PtyEnd> {
        Ok(PtyEnd {
            master: self.master.try_clone()?,
            held: Arc::clone(&self.held),
        })
    }
}

/// The other side, while nobody else is known to have it open.
#[derive(Debug)]
struct Held(Option<OwnedFd>);

impl Held {
    fn hold(master: &OwnedFd) -> io::Result<Self> {
        let slave = ioctl_tiocgptpeer(master, FLAGS)?;
        fcntl_setfl(&slave, OFlags::NONBLOCK)?;
        Ok(Self(Some(slave)))
    }
}

/// Reads or writes the master; nothing blocks.
#[derive(Debug)]
pub(crate) struct PtyEnd {
    master: OwnedFd,
    held: Arc<Mutex<Held>>,
}

impl PtyEnd {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.master, &mut *buffer) {
            Err(rustix::io::Errno::IO) => {
                self.is_attached(&mut lock(&self.held))?;
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => Ok(other?),
        }
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut held = lock(&self.held);
        for _ in 0..ATTEMPTS {
            match rustix::io::write(&self.master, bytes) {
                // EIO: some kernels refuse output that nobody can get.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => {}
                other => return Ok(other?),
            }
            if self.is_attached(&mut held)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut dropped = [0; DROP_MAX];
            if let Held(Some(slave)) = &*held
                && rustix::io::read(slave, &mut dropped).is_err()
            {
                break;
            }
        }
        Ok(bytes.len())
    }

    /// Waits at most `timeout` for room, or for the reader to go.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).unwrap_or(NO_TIME);
        let mut fds = [PollFd::new(&self.master, PollFlags::OUT)];
        // Too early at worst.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// Whether someone has the other side open. If not, it is held afterwards.
    fn is_attached(&self, held: &mut Held) -> io::Result<bool> {
        held.0 = None;
        let mut fds = [PollFd::new(&self.master, PollFlags::empty())];
        poll(&mut fds, Some(&NO_TIME))?;
        if !fds[0].revents().contains(PollFlags::HUP) {
            return Ok(true);
        }
        *held = Held::hold(&self.master)?;
        Ok(false)
    }
}

impl AsRawFd for PtyEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.master.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
#[path = "pty_test.rs"]
mod tests;
