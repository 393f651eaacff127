//! `/pmem`.

use serde::{Deserialize, Serialize};

use super::shape::{is_default, or_default, wire};
use super::{RateLimiter, Validate, check_id, rate_limiter};
use crate::command::Fault;

/// A file of the host that is memory of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Pmem {
    /// Its name, the same as in the path.
    pub id: String,
    /// The file.
    pub path_on_host: String,
    /// Whether the guest's root file system is on it.
    #[serde(default)]
    pub root_device: bool,
    /// Whether the guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Limits of flushes: each is one operation, and as many bytes as the file has.
    #[serde(default, deserialize_with = "rate_limiter::in_force")]
    pub rate_limiter: Option<RateLimiter>,
    /// Whether a thread of its own serves it. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

/// What can be changed of it while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct PmemPatch {
    /// Its name, the same as in the path.
    pub id: String,
    /// New limits; a bucket that is absent stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

wire!(Object: Pmem, PmemPatch);

impl Validate for Pmem {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.id)
    }
}

impl Validate for PmemPatch {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.id)
    }
}
