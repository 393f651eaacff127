//! `/` and `/version`.

use serde::{Deserialize, Serialize};

use super::shape::wire;
use crate::command::State;

/// The version of Firecracker whose API this is. Clients switch features on by it.
pub const FIRECRACKER_VERSION: &str = "1.16.1";

/// The name that clients expect.
pub const APP_NAME: &str = "Firecracker";

/// Who answers, and how far the guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct InstanceInfo {
    /// The instance's name.
    pub id: String,
    /// State of the guest.
    pub state: State,
    /// As [`Version::firecracker_version`].
    pub vmm_version: String,
    /// [`APP_NAME`].
    pub app_name: String,
}

/// Versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Version {
    /// The version of Firecracker whose API this is.
    pub firecracker_version: String,
    /// The version of mote. An extension.
    pub mote_version: String,
}

wire!(Object: InstanceInfo, Version);

impl InstanceInfo {
    /// mote, as it answers clients of Firecracker.
    pub fn new(id: &str, state: State) -> Self {
        Self {
            id: id.into(),
            state,
            vmm_version: FIRECRACKER_VERSION.into(),
            app_name: APP_NAME.into(),
        }
    }
}

impl Default for Version {
    /// Those of this program.
    fn default() -> Self {
        Self {
            firecracker_version: FIRECRACKER_VERSION.into(),
            mote_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}
