//! `/balloon` and what is below it.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::{is_default, or_default, wire};

/// The device by which the guest gives memory back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Balloon {
    /// Memory that the guest is to give back, in MiB.
    pub amount_mib: u32,
    /// Whether the guest may take it back before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two reports of the guest's statistics; 0: none, for as long as the guest lives.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest can be asked which memory it does not use.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest reports, by itself, memory that it does not use.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Whether a thread of its own serves it. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

/// A new size of the balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BalloonPatch {
    /// Memory that the guest is to give back, in MiB.
    pub amount_mib: u32,
}

/// A new interval of the statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BalloonStatisticsPatch {
    /// Seconds between two reports of the guest's statistics.
    pub stats_polling_interval_s: u16,
}

/// What the guest last said of its memory. Sizes are in bytes but where a name says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BalloonStatistics {
    /// Pages of 4 KiB that the guest is to give back.
    pub target_pages: u64,
    /// Pages of 4 KiB that it has given back.
    pub actual_pages: u64,
    /// MiB that the guest is to give back.
    pub target_mib: u64,
    /// MiB that it has given back.
    pub actual_mib: u64,
    /// Memory swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Memory swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that took a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that took no disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Memory in no use at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Memory that the guest has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Memory that holds copies of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages that were allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Pages looked at by the background reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Pages looked at by allocations that reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Pages gained by the background reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Pages gained by allocations that reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

/// How a round of hints is to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct HintingStart {
    /// Whether the guest is told at once that the round is over, so that it takes its pages back.
    #[serde(default = "yes")]
    pub acknowledge_on_stop: bool,
}

impl Default for HintingStart {
    fn default() -> Self {
        Self {
            acknowledge_on_stop: yes(),
        }
    }
}

fn yes() -> bool {
    true
}

/// How far a round of hints is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct HintingStatus {
    /// The command that the guest was last given: 0 stop, 1 done, others a round each.
    pub host_cmd: u32,
    /// The command that the guest last answered.
    pub guest_cmd: Option<u32>,
}

wire!(Object: Balloon, BalloonPatch, BalloonStatisticsPatch, BalloonStatistics, HintingStart, HintingStatus);

impl Validate for Balloon {}
impl Validate for BalloonPatch {}
impl Validate for BalloonStatisticsPatch {}
impl Validate for HintingStart {}
