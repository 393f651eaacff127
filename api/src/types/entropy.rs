//! `/entropy`.

use serde::{Deserialize, Serialize};

use super::shape::{is_default, or_default, wire};
use super::{RateLimiter, Validate, rate_limiter};

/// The device that gives the guest the host's randomness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Entropy {
    /// Bytes and requests.
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

wire!(Object: Entropy);

impl Validate for Entropy {}
