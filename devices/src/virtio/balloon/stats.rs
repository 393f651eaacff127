//! What a guest tells of its memory (virtio 1.2 section 5.5.6.3).

use std::time::Instant;

/// Bytes of one statistic: a tag of two and a value of eight.
pub(super) const ENTRY_LEN: usize = 10;
/// Statistics that are read of what a driver sends; twice as many as there are.
pub(super) const MAX_ENTRIES: usize = 32;

/// A guest's statistics: each as far as its driver knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Memory that was swapped in, in bytes.
    pub swap_in: Option<u64>,
    /// Memory that was swapped out, in bytes.
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory that nothing uses, in bytes.
    pub free_memory: Option<u64>,
    /// All memory that there is, in bytes.
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping, in bytes.
    pub available_memory: Option<u64>,
    /// Memory that holds files and could be freed, in bytes.
    pub disk_caches: Option<u64>,
    /// Huge pages that were allocated.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stalls: Option<u64>,
    /// Pages that were looked at to be reclaimed, in the background.
    pub async_scans: Option<u64>,
    /// Pages that were looked at to be reclaimed, by who wanted memory.
    pub direct_scans: Option<u64>,
    /// Pages that were reclaimed, in the background.
    pub async_reclaims: Option<u64>,
    /// Pages that were reclaimed by who wanted memory.
    pub direct_reclaims: Option<u64>,
    /// When the guest told. None: it never has.
    pub updated: Option<Instant>,
}

impl BalloonStats {
    /// What a driver sent. Tags that are not known are left out, as is what is no whole statistic.
    pub(super) fn parse(bytes: &[u8], now: Instant) -> Self {
        let mut stats = Self {
            updated: Some(now),
            ..Self::default()
        };
        let (entries, _) = bytes.as_chunks::<ENTRY_LEN>();
        for &[t0, t1, v0, v1, v2, v3, v4, v5, v6, v7] in entries {
            if let Some(field) = stats.field(u16::from_le_bytes([t0, t1])) {
                *field = Some(u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]));
            }
        }
        stats
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kills,
            11 => &mut self.alloc_stalls,
            12 => &mut self.async_scans,
            13 => &mut self.direct_scans,
            14 => &mut self.async_reclaims,
            15 => &mut self.direct_reclaims,
            _ => return None,
        })
    }
}
