//! What is plugged, as a state.

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::MemConfig;
use super::blocks::Blocks;
use super::control::{Shared, Sizes};
use crate::lock;
use crate::state::BadState;

/// How much the guest has, and is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// Bytes that the guest is to have.
    pub requested: u64,
    /// Bytes of the region that it may use.
    pub usable: u64,
    /// A bit a block, from the lowest bit of the first word on.
    pub plugged: Vec<u64>,
}

impl MemState {
    /// The slots that the guest can access, those that follow each other as one, as bytes from the region's start.
    /// None: it is not the state of such a device.
    pub fn accessible(&self, config: &MemConfig) -> Option<Vec<Range<u64>>> {
        let mut blocks = Blocks::new(config);
        if self.plugged.len() != blocks.words().len() {
            return None;
        }
        blocks.replace(&self.plugged, config.total() / config.block())?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for slot in blocks.all_slots().filter(|slot| blocks.is_slot_used(*slot)) {
            let start = slot as u64 * config.slot();
            let end = start + config.slot();
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        Some(ranges)
    }
}

impl Shared {
    pub(super) fn save(&self) -> MemState {
        // In this order, as the worker does.
        let blocks = lock(&self.blocks);
        let sizes = lock(&self.sizes);
        MemState {
            requested: sizes.requested,
            usable: sizes.usable,
            plugged: blocks.words().to_vec(),
        }
    }

    /// Lets the guest at what was plugged: the device has its place by now.
    pub(super) fn restore(&self, state: &MemState) -> Result<(), BadState> {
        let MemState {
            requested,
            usable,
            plugged,
        } = state;
        let config = &self.config;
        let value = |what, value| BadState::Value { what, value };
        if !requested.is_multiple_of(config.block()) || *requested > config.total() {
            return Err(value("the size that is requested", *requested));
        }
        if !usable.is_multiple_of(config.slot()) || *usable > config.total() {
            return Err(value("the size that is usable", *usable));
        }
        let mut blocks = lock(&self.blocks);
        BadState::check_count("words of blocks", plugged.len(), blocks.words().len())?;
        let bytes = blocks
            .replace(plugged, usable / config.block())
            .ok_or_else(|| value("a block that is plugged", *usable))?;
        for slot in blocks.all_slots() {
            if blocks.is_slot_used(slot) {
                let no_place = || io::Error::from(io::ErrorKind::NotFound);
                let place = self.place.get().ok_or_else(no_place);
                let inserted = place.and_then(|place| place.slots.insert(slot));
                inserted.map_err(|source| BadState::Host {
                    what: "memory that is plugged",
                    source,
                })?;
            }
        }
        *lock(&self.sizes) = Sizes {
            requested: *requested,
            usable: *usable,
            plugged: bytes * config.block(),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn slots_with_anything_plugged_are_accessible() {
        // Four slots of 64 blocks: a word each.
        let config = MemConfig::new(512 * MIB, 2 * MIB, 128 * MIB).unwrap();
        let accessible = |plugged: &[u64]| {
            let state = MemState {
                requested: 0,
                usable: 512 * MIB,
                plugged: plugged.to_vec(),
            };
            state.accessible(&config)
        };
        assert_eq!(accessible(&[0, 0, 0, 0]), Some(vec![]));
        let (first, second) = (0..256 * MIB, 384 * MIB..512 * MIB);
        assert_eq!(
            accessible(&[1, u64::MAX, 0, 1 << 63]),
            Some(vec![first, second])
        );
        assert_eq!(accessible(&[0, 0, 0]), None);
        assert_eq!(accessible(&[0, 0, 0, 0, 0]), None);
        // Half a word of blocks.
        let config = MemConfig::new(128 * MIB, 4 * MIB, 128 * MIB).unwrap();
        let state = MemState {
            requested: 0,
            usable: 0,
            plugged: vec![1 << 32],
        };
        assert_eq!(state.accessible(&config), None);
    }
}
