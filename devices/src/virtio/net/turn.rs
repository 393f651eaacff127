//! The share of the loop's time that one direction of a card has before others have theirs.

use vm_memory::GuestMemoryMmap;

use super::shared::{DirectionCounts, Warning};
use crate::rate_limiter::RateLimiter;

/// Frames that a direction moves before others have their turn.
pub(super) const FRAMES_PER_TURN: usize = 64;

/// What a direction needs for a turn.
pub(super) struct Turn<'t> {
    pub(super) id: &'t str,
    pub(super) memory: &'t GuestMemoryMmap,
    pub(super) link_up: bool,
    pub(super) counts: &'t DirectionCounts,
    pub(super) warning: &'t Warning,
    pub(super) limiter: &'t mut RateLimiter,
}

impl Turn<'_> {
    /// Whether the rate limit lets a frame of `bytes` bytes through.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let was_blocked = self.limiter.is_blocked();
        let is_let_through = self.limiter.take(1, bytes as u64);
        if !is_let_through && !was_blocked {
            self.counts.count_throttled();
        }
        is_let_through
    }
}
