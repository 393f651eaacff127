//! Guest memory that goes back to the host.
#![expect(unsafe_code, reason = "madvise has no safe wrapper")]

use std::io;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// Size of a page in bytes, the guest's and the host's.
pub const PAGE_SIZE: u64 = 4096;

/// Gives the whole pages of `len` bytes from `start` on back to the host; says how many bytes. What is
/// not RAM is left out.
///
/// The guest finds zeroes there when it touches them again; or, where a file is mapped privately, as
/// the kernel and the initrd may be, what is in the file. Either is right for memory whose contents
/// it has given up. Memory of huge pages of the host (hugetlbfs) is given back only in whole ones.
pub fn discard(memory: &GuestMemoryMmap, start: GuestAddress, len: u64) -> io::Result<u64> {
    let end = start.0.saturating_add(len) & !(PAGE_SIZE - 1);
    let mut at = start.0.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
    let mut discarded = 0;
    let mut result = Ok(());
    while at < end {
        let Some(region) = memory.find_region(GuestAddress(at)) else {
            // On to the next region, if there is one below the end.
            match next_region(memory, at) {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        let part = (region.last_addr().0 - at).saturating_add(1).min(end - at);
        let offset = MemoryRegionAddress(at - region.start_addr().0);
        match discard_in(region, offset, part) {
            Ok(()) => discarded += part,
            // The rest may still work.
            Err(error) => result = Err(error),
        }
        at += part;
    }
    result.map(|()| discarded)
}

/// Where the first region behind `gpa` starts.
fn next_region(memory: &GuestMemoryMmap, gpa: u64) -> Option<u64> {
    let starts = memory.iter().map(|region| region.start_addr().raw_value());
    starts.filter(|start| *start > gpa).min()
}

fn discard_in(region: &GuestRegionMmap, offset: MemoryRegionAddress, len: u64) -> io::Result<()> {
    let size = usize::try_from(len).map_err(io::Error::other)?;
    // Checks that all of it is in the region.
    let slice = region.get_slice(offset, size).map_err(io::Error::other)?;
    // What is shared with others is only freed by a hole in what is behind it.
    let advice = if region.flags() & libc::MAP_SHARED != 0 {
        libc::MADV_REMOVE
    } else {
        libc::MADV_DONTNEED
    };
    // SAFETY: the range is in the mapping of `region`, which stays as long as it is borrowed. It is
    // guest memory, which the guest changes at any time: there are no references to it, and nobody
    // relies on what it holds.
    let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), size, advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
#[path = "guest_ram_test.rs"]
pub(crate) mod tests;
