//! `/metrics`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;

/// Where metrics are written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Metrics {
    /// File or FIFO, made if missing.
    pub metrics_path: String,
}

wire!(Object: Metrics);

impl Validate for Metrics {}
