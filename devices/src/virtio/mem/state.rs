//! What is plugged, as a state.

use std::io;

use serde::{Deserialize, Serialize};

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
