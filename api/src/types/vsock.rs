//! `/vsock`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::{is_default, or_default, wire};
use crate::command::Fault;

/// Sockets between the host and the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// Unix socket of the host that leads into the guest.
    pub uds_path: String,
    /// Deprecated; says nothing and is not given back.
    #[serde(skip_serializing)]
    pub vsock_id: Option<String>,
    /// Whether a thread of its own serves it. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

wire!(Object: Vsock);

impl Validate for Vsock {
    fn validate(&self) -> Result<(), Fault> {
        let wrong = |field, reason: &str| Err(Fault::value("/vsock", field, reason));
        // Below are the hypervisor, the guest itself and the host, and the last is anyone.
        if !(3..u32::MAX).contains(&self.guest_cid) {
            return wrong("guest_cid", "It must be from 3 to 4294967294.");
        }
        if self.uds_path.is_empty() {
            return wrong("uds_path", "It is empty.");
        }
        Ok(())
    }

    fn is_deprecated(&self) -> bool {
        self.vsock_id.is_some()
    }
}
