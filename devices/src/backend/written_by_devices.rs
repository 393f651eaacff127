//! Where devices may write in a region of guest memory that is otherwise not for them.
//!
//! Files of persistent memory come into such a region and go out of it while the guest runs. The region itself is
//! read-only as far as its protection says, so that no device writes to it where no file is.

use std::sync::{PoisonError, RwLock};

/// Addresses of this process, first and one behind the last. Few: a file each.
static RANGES: RwLock<Vec<(usize, usize)>> = RwLock::new(Vec::new());

/// That devices may write to a range of guest memory. Dropped, they may not.
#[derive(Debug)]
pub(crate) struct Writable {
    range: (usize, usize),
}

impl Writable {
    /// The `len` bytes at `address`, which are mapped so that all of them can be written to.
    pub(crate) fn new(address: usize, len: usize) -> Self {
        let range = (address, address.saturating_add(len));
        let mut ranges = RANGES.write().unwrap_or_else(PoisonError::into_inner);
        ranges.push(range);
        Self { range }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        let mut ranges = RANGES.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|range| *range != self.range);
    }
}

/// Whether all of `start .. end` is in such a range.
pub(crate) fn contains(start: usize, end: usize) -> bool {
    let ranges = RANGES.read().unwrap_or_else(PoisonError::into_inner);
    let has_all = |range: &(usize, usize)| range.0 <= start && end <= range.1;
    ranges.iter().any(has_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_counts_for_as_long_as_it_is_kept() {
        // Addresses that no test's memory has.
        let first = Writable::new(0x1000, 0x2000);
        let second = Writable::new(0x3000, 0x1000);
        assert!(contains(0x1000, 0x3000) && contains(0x2fff, 0x3000));
        assert!(!contains(0xfff, 0x1001) && !contains(0x3fff, 0x4001));
        // Two files are two.
        assert!(!contains(0x2fff, 0x3001));
        drop(first);
        assert!(!contains(0x1000, 0x1001));
        assert!(contains(0x3000, 0x4000));
        drop(second);
        assert!(!contains(0x3000, 0x3001));
    }
}
