//! `/serial`.

use serde::{Deserialize, Deserializer, Serialize};

use super::shape::{is_default, or_default, wire};
use super::{TokenBucket, Validate};

/// Where the output of the guest's serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Serial {
    /// File or FIFO. Standard input is not read then.
    pub serial_out_path: Option<String>,
    /// Bytes beyond it are dropped.
    #[serde(default, deserialize_with = "in_force")]
    pub rate_limiter: Option<TokenBucket>,
    /// Whether a thread of its own serves the console. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

wire!(Object: Serial);

fn in_force<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TokenBucket>, D::Error> {
    let bucket: Option<TokenBucket> = Option::deserialize(deserializer)?;
    Ok(bucket.filter(TokenBucket::is_limit))
}

impl Validate for Serial {}
