//! What the host's page tables say of whole ranges of pages in one call (`PAGEMAP_SCAN`, Linux 6.7).
#![expect(unsafe_code, reason = "an ioctl without a safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::pages::Part;

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

/// A page was written to since it was protected, or never was.
pub(super) const WRITTEN: u64 = 1 << 1;
/// It is in memory.
pub(super) const PRESENT: u64 = 1 << 3;
/// It is the one that all have who have only read.
pub(super) const ZERO: u64 = 1 << 5;
/// It is part of a huge one.
pub(super) const HUGE: u64 = 1 << 6;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, Scan);

/// Ranges that are asked for in one go.
const RANGES: usize = 4096;

/// Which pages are meant.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    /// They are all of this.
    pub(super) have: u64,
    /// They are nothing of this.
    pub(super) lack: u64,
    /// They are protected from then on: `WRITTEN` is what is written to later. They have to be watched by a tracker.
    pub(super) protect: bool,
}

/// What asks the host.
pub(super) struct Scanner {
    pagemap: File,
    found: Vec<PageRegion>,
}

impl Scanner {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            pagemap: File::open("/proc/self/pagemap")?,
            found: vec![PageRegion::default(); RANGES],
        })
    }

    /// Goes through the pages of a part, and shows those that are meant, by their place in the memory file. Without anyone to
    /// show them to it is quicker; then they have to be protected.
    pub(super) fn scan(
        &mut self,
        part: &Part,
        pages: Pages,
        mut show: Option<&mut dyn FnMut(Range<u64>)>,
    ) -> io::Result<()> {
        let end = part.address + (part.file.end - part.file.start);
        let mut at = part.address;
        while at < end {
            let (vec, vec_len) = match &show {
                Some(_) => (self.found.as_mut_ptr(), self.found.len()),
                None => (std::ptr::null_mut(), 0),
            };
            let mut scan = Scan {
                size: size_of::<Scan>() as u64,
                flags: if pages.protect {
                    PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC
                } else {
                    0
                },
                start: at,
                end,
                walk_end: 0,
                vec: vec.expose_provenance() as u64,
                vec_len: vec_len as u64,
                max_pages: 0,
                category_inverted: pages.lack,
                category_mask: pages.have | pages.lack,
                category_anyof_mask: 0,
                return_mask: if show.is_some() { pages.have } else { 0 },
            };
            // SAFETY: the kernel reads and writes one of these, and as many ranges as there is room for.
            let count = unsafe { ioctl_with_mut_ref(&self.pagemap, PAGEMAP_SCAN(), &mut scan) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            if let Some(show) = &mut show {
                for found in self.found.iter().take(count) {
                    let place = |address: u64| part.file.start + (address - part.address);
                    show(place(found.start)..place(found.end));
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
