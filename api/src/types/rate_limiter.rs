//! Limits of bytes and operations, which several resources have.

use serde::{Deserialize, Deserializer, Serialize};

use super::shape::wire;

/// Limits of a device, or of a direction of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Operations: requests, packets.
    pub ops: Option<TokenBucket>,
}

/// A bucket that refills evenly, and from which work takes what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TokenBucket {
    /// What it holds, and has at the start; 0: no limit.
    pub size: u64,
    /// Milliseconds from empty to full; 0: no limit.
    pub refill_time: u64,
    /// What it has beyond that at the start, is spent first and never refilled.
    #[serde(default, deserialize_with = "not_zero")]
    pub one_time_burst: Option<u64>,
}

wire!(Object: RateLimiter, TokenBucket);

impl TokenBucket {
    /// Whether it limits anything.
    pub fn is_limit(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

impl RateLimiter {
    /// Without what limits nothing; `None` if nothing is left.
    pub fn in_force(self) -> Option<Self> {
        let limits = Self {
            bandwidth: self.bandwidth.filter(TokenBucket::is_limit),
            ops: self.ops.filter(TokenBucket::is_limit),
        };
        (limits != Self::default()).then_some(limits)
    }

    /// What a device's limits are after a PATCH: a bucket that is absent stays, one that limits nothing goes.
    pub fn patched(former: Option<Self>, patch: &Self) -> Option<Self> {
        let former = former.unwrap_or_default();
        Self {
            bandwidth: patch.bandwidth.or(former.bandwidth),
            ops: patch.ops.or(former.ops),
        }
        .in_force()
    }
}

/// Limits of a PUT.
pub(super) fn in_force<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RateLimiter>, D::Error> {
    let limits: Option<RateLimiter> = Option::deserialize(deserializer)?;
    Ok(limits.and_then(RateLimiter::in_force))
}

fn not_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let burst: Option<u64> = Option::deserialize(deserializer)?;
    Ok(burst.filter(|burst| *burst != 0))
}
