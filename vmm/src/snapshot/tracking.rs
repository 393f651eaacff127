//! Which pages of guest memory were written to.
//!
//! The host's page tables know: each page is write-protected for userfaultfd in its asynchronous mode, where the kernel
//! itself lets the first write to a page through and notes it (Linux 6.7). So nothing is missed, whoever writes: the guest,
//! this process, or the kernel for it. KVM's log has only what the guest writes itself: each device, io_uring and vhost
//! would have to keep one of their own. It takes no privilege: user mode faults are all that is asked for, and the
//! asynchronous mode has none that anyone would have to serve.
#![expect(unsafe_code, reason = "userfaultfd has no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::pages::{Map, Part};

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

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Register);
ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, Scan);

/// Ranges that are asked for in one go.
const RANGES: usize = 4096;

/// What keeps account of them.
pub(super) struct Tracker {
    userfault: OwnedFd,
    pagemap: File,
    found: Vec<PageRegion>,
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
            pagemap: File::open("/proc/self/pagemap")?,
            found: vec![PageRegion::default(); RANGES],
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
            self.scan(part, None)?;
        }
        Ok(())
    }

    /// Adds what was written to, by where that is in the memory file, and forgets it. If that fails, it is not known any more.
    pub(super) fn take(&mut self, map: &Map, written: &mut Vec<Range<u64>>) -> io::Result<()> {
        for part in &map.parts {
            self.scan(part, Some(written))?;
        }
        Ok(())
    }

    fn scan(&mut self, part: &Part, mut written: Option<&mut Vec<Range<u64>>>) -> io::Result<()> {
        let end = part.address + (part.file.end - part.file.start);
        let mut at = part.address;
        while at < end {
            let (vec, vec_len) = match &written {
                Some(_) => (self.found.as_mut_ptr(), self.found.len()),
                None => (std::ptr::null_mut(), 0),
            };
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start: at,
                end,
                walk_end: 0,
                vec: vec.expose_provenance() as u64,
                vec_len: vec_len as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: if written.is_some() {
                    PAGE_IS_WRITTEN
                } else {
                    0
                },
            };
            // SAFETY: the kernel reads and writes one of these, and as many ranges as there is room for.
            let count =
                check(unsafe { ioctl_with_mut_ref(&self.pagemap, PAGEMAP_SCAN(), &mut scan) })?;
            if let Some(written) = &mut written {
                for found in self.found.iter().take(count) {
                    let place = |address: u64| part.file.start + (address - part.address);
                    push(written, place(found.start)..place(found.end));
                }
            }
            if scan.walk_end <= at {
                return Err(io::ErrorKind::InvalidData.into());
            }
            at = scan.walk_end;
        }
        Ok(())
    }
}

fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
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
