//! Guest memory in huge pages, before it is forked: what is copied in a fork is the page tables, and these have 512 times
//! fewer entries then.
//!
//! It is done while the guest runs, and where it cannot be done the fork takes longer.
#![expect(unsafe_code, reason = "madvise has no safe wrapper")]

use std::io;

use super::memory::{Error, PAGE_SIZE};
use super::pages::{self, Map};

const HUGE_PAGE: u64 = 2 << 20;
/// Pages of the host's in one of them.
const PAGES: usize = (HUGE_PAGE / PAGE_SIZE) as usize;
/// As of Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;

/// Makes huge pages of what takes as much memory already.
pub(super) fn collapse(map: &Map) -> Result<(), Error> {
    let pagemap = pages::open_pagemap()?;
    let mut entries = vec![0; PAGES * 8];
    for part in map.parts.iter().filter(|part| !part.is_of_file) {
        let end = part.address + (part.file.end - part.file.start);
        let mut block = part.address.next_multiple_of(HUGE_PAGE);
        while block + HUGE_PAGE <= end {
            let start = part.file.start + (block - part.address);
            let mut here = part.clone();
            here.file = start..start + HUGE_PAGE;
            here.address = block;
            let mut in_use = 0;
            let count = |_, page: pages::Page| {
                in_use += usize::from(page.is_in_use());
                false
            };
            pages::each_run(&pagemap, &here, &mut entries, count, |_| Ok(()))?;
            if in_use == PAGES
                && let Err(error) = collapse_one(block)
                && error.raw_os_error() == Some(libc::EINVAL)
            {
                // The host has none.
                return Ok(());
            }
            block += HUGE_PAGE;
        }
    }
    Ok(())
}

fn collapse_one(address: u64) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the range is guest memory; what is in there stays the same.
    if unsafe { libc::madvise(address, HUGE_PAGE as usize, MADV_COLLAPSE) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
