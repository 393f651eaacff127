//! `/hotplug/memory`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;
use crate::command::Fault;

/// Memory that the guest may get while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemoryHotplug {
    /// Most that can be plugged, in MiB; a multiple of `slot_size_mib`.
    pub total_size_mib: u64,
    /// What the guest plugs and unplugs at once, in MiB; a power of two, from 2.
    #[serde(default = "block_size")]
    pub block_size_mib: u64,
    /// What the host gives and takes at once, in MiB; a multiple of `block_size_mib`, from 128.
    #[serde(default = "slot_size")]
    pub slot_size_mib: u64,
}

/// How much the guest is to plug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemoryHotplugPatch {
    /// In MiB; a multiple of the block size, up to the total size.
    pub requested_size_mib: u64,
}

/// How much the guest has plugged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemoryHotplugStatus {
    /// As [`MemoryHotplug::block_size_mib`].
    pub block_size_mib: u64,
    /// As [`MemoryHotplug::total_size_mib`].
    pub total_size_mib: u64,
    /// As [`MemoryHotplug::slot_size_mib`].
    pub slot_size_mib: u64,
    /// What the guest has plugged, in MiB.
    pub plugged_size_mib: u64,
    /// What it was asked to plug, in MiB.
    pub requested_size_mib: u64,
}

fn block_size() -> u64 {
    2
}

fn slot_size() -> u64 {
    128
}

wire!(Object: MemoryHotplug, MemoryHotplugPatch, MemoryHotplugStatus);

/// Least `slot_size_mib`: what Linux adds and removes at once.
const MIN_SLOT: u64 = 128;

/// Least `block_size_mib`.
const MIN_BLOCK: u64 = 2;

/// Most memory that an address of 64 bits tells apart, in MiB.
const MAX_TOTAL: u64 = u64::MAX >> 20;

impl Validate for MemoryHotplug {
    fn validate(&self) -> Result<(), Fault> {
        let Self {
            total_size_mib: total,
            block_size_mib: block,
            slot_size_mib: slot,
        } = *self;
        let wrong = |field, reason: String| Err(Fault::value("/hotplug/memory", field, reason));
        if block < MIN_BLOCK || !block.is_power_of_two() {
            return wrong(
                "block_size_mib",
                format!("It is {block}, and must be a power of 2 from {MIN_BLOCK}."),
            );
        }
        if slot < MIN_SLOT || !slot.is_multiple_of(block) {
            return wrong(
                "slot_size_mib",
                format!(
                    "It is {slot}, and must be a multiple of `block_size_mib`, {block}, from {MIN_SLOT}."
                ),
            );
        }
        if total < slot || !total.is_multiple_of(slot) {
            return wrong(
                "total_size_mib",
                format!(
                    "It is {total}, and must be a multiple of `slot_size_mib`, {slot}, and not 0."
                ),
            );
        }
        if total > MAX_TOTAL {
            return wrong(
                "total_size_mib",
                format!("It is {total}, and must be at most {MAX_TOTAL}."),
            );
        }
        Ok(())
    }
}

impl Validate for MemoryHotplugPatch {}
