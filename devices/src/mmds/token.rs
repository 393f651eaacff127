//! Tokens of version 2: when they expire, and a proof that they were made here. Nothing is remembered of
//! them, so any number of them costs nothing, and a new process knows none of those of the one before.

use std::fmt;
use std::io;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::random::random;

/// Seconds that a token may be good for.
pub(super) const TTL_RANGE: std::ops::RangeInclusive<u32> = 1..=21_600;
/// Longest text that may be a token: what is longer is not looked at.
const MAX_LEN: usize = 70;
/// Bytes of the time of expiry: milliseconds since this process began to make tokens.
const EXPIRY_LEN: usize = 8;

/// Makes tokens, and knows its own.
pub(super) struct Tokens {
    /// With the key and the instance's id already in it.
    mac: Hmac<Sha256>,
    origin: Instant,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is nobody's business.
        formatter.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(instance_id: &str) -> io::Result<Self> {
        let key: [u8; 32] = random()?;
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&key)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        mac.update(instance_id.as_bytes());
        Ok(Self {
            mac,
            origin: Instant::now(),
        })
    }

    /// A token that is good for `ttl` seconds from `now` on, if that is in [`TTL_RANGE`].
    pub(super) fn issue(&self, ttl: u32, now: Instant) -> Option<String> {
        if !TTL_RANGE.contains(&ttl) {
            return None;
        }
        let expiry = (self.millis(now) + 1000 * u64::from(ttl)).to_be_bytes();
        let proof = self.prove(expiry).finalize().into_bytes();
        let mut token = expiry.to_vec();
        token.extend_from_slice(&proof);
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// Whether this is one of its tokens, and still good.
    pub(super) fn is_valid(&self, token: &str, now: Instant) -> bool {
        if token.len() > MAX_LEN {
            return false;
        }
        let Ok(token) = URL_SAFE_NO_PAD.decode(token) else {
            return false;
        };
        let Some((expiry, proof)) = token.split_first_chunk::<EXPIRY_LEN>() else {
            return false;
        };
        // In a time that does not depend on how much of it is right.
        let is_own = self.prove(*expiry).verify_slice(proof).is_ok();
        is_own && self.millis(now) < u64::from_be_bytes(*expiry)
    }

    fn prove(&self, expiry: [u8; EXPIRY_LEN]) -> Hmac<Sha256> {
        // The id has no fixed length, but what follows it has.
        self.mac.clone().chain_update(expiry)
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin).as_millis();
        // Enough for half a billion years.
        u64::try_from(since).unwrap_or(u64::MAX / 2)
    }
}

#[cfg(test)]
#[path = "token_test.rs"]
mod tests;
