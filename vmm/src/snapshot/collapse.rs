//! Guest memory in huge pages, before it is forked: what is copied in a fork is the page tables, and these have 512 times
//! fewer entries then.
//!
//! It is done while the guest runs, and where it cannot be done the fork takes longer. A page that is protected, as its
//! writes are tracked, cannot become part of a huge one, and a huge page falls apart at the first write to it after it was protected. So
//! there is more to be done when it has been done once, until the guest has written to all that it writes to.
#![expect(unsafe_code, reason = "madvise has no safe wrapper")]

use std::io;
use std::ops::Range;

use super::memory::Error;
use super::pages::{self, Map, Part};
use super::scan::{HUGE, PRESENT, Pages, Scanner, WRITTEN, ZERO};

const HUGE_PAGE: u64 = 2 << 20;
/// As of Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;
/// How often all of memory is gone through.
const PASSES: usize = 8;
/// So few huge pages that it matters no more.
const FEW: u64 = 4;
/// Pages that are asked about in one go, where that is page by page: blocks across two such are left as they are.
const AT_ONCE: usize = 1 << 20;

/// What can become part of a huge page, and is not.
const SINGLE: Pages = Pages {
    have: PRESENT | WRITTEN,
    lack: HUGE | ZERO,
    protect: false,
};

/// Makes huge pages of what takes as much memory already.
pub(super) fn collapse(map: &Map) -> Result<(), Error> {
    let own = || map.parts.iter().filter(|part| !part.is_of_file);
    let mut scanner = Scanner::new().map_err(Error::Pages)?;
    for _ in 0..PASSES {
        let mut blocks = 0;
        for part in own() {
            let mut found = Vec::new();
            let mut add = |run: Range<u64>| found.extend(blocks_of(part, &run));
            if scanner.scan(part, SINGLE, Some(&mut add)).is_err() {
                // A host before Linux 6.7 does not say which are huge, nor does it track any.
                return own().try_for_each(collapse_unseen);
            }
            for addresses in found {
                blocks += (addresses.end - addresses.start) / HUGE_PAGE;
                if !collapse_all(&addresses) {
                    return Ok(());
                }
            }
        }
        if blocks <= FEW {
            break;
        }
    }
    Ok(())
}

/// The same for a part of which it is not known which pages are huge already.
fn collapse_unseen(part: &Part) -> Result<(), Error> {
    let pagemap = pages::open_pagemap()?;
    let mut entries = vec![0; AT_ONCE * 8];
    let mut is_over = false;
    let show = |run| {
        is_over = is_over || blocks_of(part, &run).is_some_and(|blocks| !collapse_all(&blocks));
        Ok(())
    };
    pages::each_run(
        &pagemap,
        part,
        &mut entries,
        |_, page| page.is_in_use(),
        show,
    )
}

/// Where the huge pages would be that have all of their pages in a run.
fn blocks_of(part: &Part, run: &Range<u64>) -> Option<Range<u64>> {
    let address = |at: u64| part.address + (at - part.file.start);
    let start = address(run.start).next_multiple_of(HUGE_PAGE);
    let end = address(run.end) / HUGE_PAGE * HUGE_PAGE;
    (start < end).then_some(start..end)
}

/// Whether it makes sense to go on with others.
fn collapse_all(addresses: &Range<u64>) -> bool {
    let bytes = (addresses.end - addresses.start) as usize;
    let address = std::ptr::with_exposed_provenance_mut(addresses.start as usize);
    // SAFETY: the range is guest memory; what is in there stays the same.
    if unsafe { libc::madvise(address, bytes, MADV_COLLAPSE) } == 0 {
        return true;
    }
    // Some page is in use by somebody else just now. Else there are no huge pages, or no more.
    io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
#[path = "collapse_test.rs"]
mod tests;
