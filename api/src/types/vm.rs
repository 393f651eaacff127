//! `/vm`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;

/// Pauses or resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct VmPatch {
    /// What the guest is to be.
    pub state: VmState,
}

/// What a guest that was started can be made to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum VmState {
    /// No vCPU runs.
    Paused,
    /// All run.
    Resumed,
}

wire!(Object: VmPatch);
wire!(Text: VmState);

impl Validate for VmPatch {}
