//! Which blocks of the region are plugged, and how many of each slot.

use std::ops::Range;

use super::MemConfig;
use super::request::{BlockState, Place};

const WORD: usize = u64::BITS as usize;

/// A bit a block.
pub(super) struct Blocks {
    // Fixed configuration.
    block: u64,
    per_slot: usize,
    // Volatile state.
    plugged: Vec<u64>,
    /// Of each slot.
    counts: Vec<u32>,
}

impl Blocks {
    /// A region of which nothing is plugged.
    pub(super) fn new(config: &MemConfig) -> Self {
        let blocks = to_index(config.total() / config.block());
        let per_slot = to_index(config.slot() / config.block()).max(1);
        Self {
            block: config.block(),
            per_slot,
            plugged: vec![0; blocks.div_ceil(WORD)],
            counts: vec![0; blocks.div_ceil(per_slot)],
        }
    }

    /// The blocks at `place` in a region that starts at `start` and of which `usable` bytes may be used;
    /// None unless all are there.
    pub(super) fn find(&self, place: Place, start: u64, usable: u64) -> Option<Range<usize>> {
        let offset = place.gpa.checked_sub(start)?;
        let len = self.block.checked_mul(place.blocks.into())?;
        let end = offset.checked_add(len)?;
        if len == 0 || end > usable || !offset.is_multiple_of(self.block) {
            return None;
        }
        let first = to_index(offset / self.block);
        Some(first..first + usize::from(place.blocks))
    }

    fn is_plugged(&self, index: usize) -> bool {
        let word = self.plugged.get(index / WORD);
        word.is_some_and(|word| word & 1 << (index % WORD) != 0)
    }

    /// What they are. No blocks are unplugged ones.
    pub(super) fn state(&self, blocks: Range<usize>) -> BlockState {
        let (mut any, mut all) = (false, true);
        for index in blocks {
            let is_plugged = self.is_plugged(index);
            any |= is_plugged;
            all &= is_plugged;
        }
        match (any, all) {
            (false, _) => BlockState::Unplugged,
            (true, true) => BlockState::Plugged,
            (true, false) => BlockState::Mixed,
        }
    }

    /// Makes these plugged or unplugged, all of which were the other.
    pub(super) fn set(&mut self, blocks: Range<usize>, plugged: bool) {
        for index in blocks {
            if self.is_plugged(index) == plugged {
                continue;
            }
            let slot = index / self.per_slot;
            if let (Some(word), Some(count)) = (
                self.plugged.get_mut(index / WORD),
                self.counts.get_mut(slot),
            ) {
                *word ^= 1 << (index % WORD);
                *count = if plugged {
                    *count + 1
                } else {
                    count.saturating_sub(1)
                };
            }
        }
    }

    /// The slots that these blocks are in.
    pub(super) fn slots(&self, blocks: &Range<usize>) -> Range<usize> {
        blocks.start / self.per_slot..blocks.end.div_ceil(self.per_slot)
    }

    /// All slots.
    pub(super) fn all_slots(&self) -> Range<usize> {
        0..self.counts.len()
    }

    /// Whether anything of a slot is plugged.
    pub(super) fn is_slot_used(&self, slot: usize) -> bool {
        self.counts.get(slot).is_some_and(|count| *count > 0)
    }

    /// A bit a block, from the lowest of the first word on.
    pub(super) fn words(&self) -> &[u64] {
        &self.plugged
    }

    /// Has these blocks plugged, of a region without any, and says how many they are. None, and nothing is
    /// done, if there are as many words but one of them has a block that is not among the first `usable`.
    pub(super) fn replace(&mut self, words: &[u64], usable: u64) -> Option<u64> {
        let bits = |(index, word): (usize, &u64)| {
            let word = *word;
            (0..WORD)
                .filter(move |bit| word & 1 << bit != 0)
                .map(move |bit| index * WORD + bit)
        };
        let plugged: Vec<usize> = words.iter().enumerate().flat_map(bits).collect();
        if plugged.last().is_some_and(|last| *last as u64 >= usable) {
            return None;
        }
        for &block in &plugged {
            self.set(block..block + 1, true);
        }
        Some(plugged.len() as u64)
    }

    /// Makes all of a slot unplugged.
    pub(super) fn clear_slot(&mut self, slot: usize) {
        let first = slot * self.per_slot;
        self.set(first..first + self.per_slot, false);
    }
}

/// The region is in this process's address space: its blocks can be counted.
fn to_index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const START: u64 = 0x2_0000_0000;

    /// Three slots of 64 blocks.
    fn blocks() -> Blocks {
        Blocks::new(&MemConfig::new(384 * MIB, 2 * MIB, 128 * MIB).unwrap())
    }

    fn at(block: u64, blocks: u16) -> Place {
        Place {
            gpa: START + block * 2 * MIB,
            blocks,
        }
    }

    #[test]
    fn only_whole_blocks_within_what_is_usable_are_found() {
        let blocks = blocks();
        let usable = 256 * MIB;
        let find = |place| blocks.find(place, START, usable);
        assert_eq!(find(at(0, 1)), Some(0..1));
        assert_eq!(find(at(0, 128)), Some(0..128));
        assert_eq!(find(at(127, 1)), Some(127..128));
        for wrong in [
            at(0, 0),
            at(0, 129),
            at(127, 2),
            at(128, 1),
            at(0, u16::MAX),
            Place { gpa: 0, blocks: 1 },
            Place {
                gpa: START - 2 * MIB,
                blocks: 1,
            },
            Place {
                gpa: START + 4096,
                blocks: 1,
            },
            Place {
                gpa: u64::MAX,
                blocks: u16::MAX,
            },
        ] {
            assert_eq!(find(wrong), None, "{wrong:?}");
        }
        assert_eq!(blocks.find(at(0, 1), START, 0), None);
    }

    #[test]
    fn blocks_and_slots_are_counted() {
        let mut blocks = blocks();
        assert_eq!(blocks.state(0..192), BlockState::Unplugged);
        blocks.set(60..70, true);
        assert_eq!(blocks.state(60..70), BlockState::Plugged);
        assert_eq!(blocks.state(59..61), BlockState::Mixed);
        assert_eq!(blocks.state(70..192), BlockState::Unplugged);
        assert_eq!(blocks.slots(&(60..70)), 0..2);
        assert_eq!(blocks.slots(&(64..128)), 1..2);
        let used = |blocks: &Blocks| [0, 1, 2, 3].map(|slot| blocks.is_slot_used(slot));
        assert_eq!(used(&blocks), [true, true, false, false]);
        blocks.set(60..64, false);
        assert_eq!(used(&blocks), [false, true, false, false]);
        blocks.set(100..101, true);
        blocks.clear_slot(1);
        assert_eq!(used(&blocks), [false; 4]);
        assert_eq!(blocks.state(0..192), BlockState::Unplugged);
        assert_eq!(blocks.all_slots(), 0..3);
    }
}
