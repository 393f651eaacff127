//! `/hotplug/memory`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;

/// Memory that the guest may get while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemoryHotplugPatch {
    /// In MiB; a multiple of the block size, up to the total size.
    pub requested_size_mib: u64,
}

/// How much the guest has plugged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Validate for MemoryHotplug {}
impl Validate for MemoryHotplugPatch {}
