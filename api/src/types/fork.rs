//! `/fork`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::shape::wire;
use super::{NetworkOverride, Validate, VsockOverride};
use crate::command::Fault;

/// Most copies of one request.
pub const MAX_COPIES: u32 = 1000;
/// What stands for a copy's number in names of which each copy needs its own.
pub const COPY_NUMBER: &str = "{}";
/// Longest name of a guest.
const MAX_ID: usize = 64;

/// Copies of the guest, each in a process of its own. An extension.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Fork {
    /// How many, as many as there are `ids` or 1 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Their names, one each; if not given, the guest's with something random behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Their taps; `{}` in a name is the copy's number, from 1 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Their vsock sockets, `{}` as before; if not given, the guest's with `-` and the copy's name behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether they stay paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// A copy of a guest. An extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ForkedGuest {
    /// Its name.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// Its API's socket.
    pub socket: String,
}

/// All copies of a request, in the order of their numbers. An extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ForkedGuests(pub Vec<ForkedGuest>);

wire!(Object: Fork, ForkedGuest);

impl Fork {
    /// How many copies there are to be.
    pub fn copies(&self) -> u32 {
        let named = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.count.unwrap_or(named.max(1))
    }
}

impl Validate for Fork {
    fn validate(&self) -> Result<(), Fault> {
        let wrong = |field, reason: &str| Err(Fault::value("/fork", field, reason));
        let copies = self.copies();
        if !(1..=MAX_COPIES).contains(&copies) {
            return wrong("count", "It must be from 1 to 1000.");
        }
        if !self.ids.is_empty() && self.ids.len() != copies as usize {
            return wrong("ids", "There must be as many as copies (`count`).");
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let is_id = |id: &String| (1..=MAX_ID).contains(&id.len()) && id.chars().all(is_good);
        if !self.ids.iter().all(is_id) {
            return wrong(
                "ids",
                "Each must be 1 to 64 letters, digits and '-' of ASCII.",
            );
        }
        if self.ids.iter().collect::<BTreeSet<_>>().len() < self.ids.len() {
            return wrong("ids", "One is there twice.");
        }
        let is_shared = |name: &str| copies > 1 && !name.contains(COPY_NUMBER);
        let mut taps = self.network_overrides.iter();
        if taps.any(|change| is_shared(&change.host_dev_name)) {
            return wrong(
                "network_overrides",
                "Each copy needs a tap of its own: a `{}` in its name is the copy's number.",
            );
        }
        match &self.vsock_override {
            Some(vsock) if vsock.uds_path.is_empty() => wrong("vsock_override", "It is empty."),
            Some(vsock) if is_shared(&vsock.uds_path) => wrong(
                "vsock_override",
                "Each copy needs a socket of its own: a `{}` in its path is the copy's number.",
            ),
            _ => Ok(()),
        }
    }
}
