//! Which pages of guest memory were written to.
//!
//! The host's page tables know: each page is write-protected for userfaultfd in its asynchronous mode, where the kernel
//! itself lets the first write to a page through and notes it (Linux 6.7). So nothing is missed, whoever writes: the guest,
//! this process, or the kernel for it. KVM's log has only what the guest writes itself: each device, io_uring and vhost
//! would have to keep one of their own. It takes no privilege: user mode faults are all that is asked for, and the
//! asynchronous mode has none that anyone would have to serve.
#![expect(unsafe_code, reason = "userfaultfd has no safe wrapper")]

use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::pages::Map;
use super::scan::{self, Pages, Scanner};

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Register);

/// What was written to since it was last asked for.
const WRITTEN: Pages = Pages {
    have: scan::WRITTEN,
    lack: 0,
    protect: true,
};
/// The same without huge pages.
const WRITTEN_SINGLY: Pages = Pages {
    lack: scan::HUGE,
    ..WRITTEN
};

/// What keeps account of them.
pub(super) struct Tracker {
    userfault: OwnedFd,
    scanner: Scanner,
}

impl Tracker {
    /// Nothing is kept account of yet. Fails on a host that cannot.
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: makes a descriptor.
        let userfault = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let userfault = libc::c_int::try_from(userfault).unwrap_or(-1);
        if userfault < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, for us.
        let userfault = unsafe { OwnedFd::from_raw_fd(userfault) };
        let mut api = Api {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC
                | UFFD_FEATURE_WP_UNPOPULATED
                | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes one of these.
        check(unsafe { ioctl_with_mut_ref(&userfault, UFFDIO_API(), &mut api) })?;
        Ok(Self {
            userfault,
            scanner: Scanner::new()?,
        })
    }

    /// Says which memory it is about. From then on until it is dropped a page that is protected is noted as it is written to.
    pub(super) fn watch(&self, map: &Map) -> io::Result<()> {
        for part in &map.parts {
            let mut register = Register {
                start: part.address,
                len: part.file.end - part.file.start,
                mode: UFFDIO_REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: the kernel reads and writes one of these. What changes is how it counts writes to the memory, not
            // what is in there.
            check(unsafe {
                ioctl_with_mut_ref(&self.userfault, UFFDIO_REGISTER(), &mut register)
            })?;
        }
        Ok(())
    }

    /// Forgets what was written to so far.
    pub(super) fn start_over(&mut self, map: &Map) -> io::Result<()> {
        for part in &map.parts {
            self.scanner.scan(part, WRITTEN, None)?;
        }
        Ok(())
    }

    /// Adds what was written to, by where that is in the memory file, and forgets it. If that fails, it is not known any more.
    pub(super) fn take(&mut self, map: &Map, written: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.take_of(WRITTEN, map, written)
    }

    /// The same without what is in huge pages. That is taken in no time when all stands still, and one that is protected falls apart
    /// as soon as it is written to.
    pub(super) fn take_small(
        &mut self,
        map: &Map,
        written: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        self.take_of(WRITTEN_SINGLY, map, written)
    }

    fn take_of(
        &mut self,
        pages: Pages,
        map: &Map,
        written: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        let mut add = |range| push(written, range);
        for part in &map.parts {
            self.scanner.scan(part, pages, Some(&mut add))?;
        }
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Adds a range behind the others, or to the last one.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// What is in either of two lists, which are in order.
pub(super) fn union(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut both: Vec<_> = one.iter().chain(other).cloned().collect();
    both.sort_unstable_by_key(|range| range.start);
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(both.len());
    for range in both {
        match ranges.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => ranges.push(range),
        }
    }
    ranges
}

#[cfg(test)]
#[path = "tracking_test.rs"]
mod tests;
