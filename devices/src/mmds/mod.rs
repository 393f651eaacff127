//! The guest metadata service: a JSON document that the host keeps, and that the guest reads over HTTP at
//! a link-local address, 169.254.169.254 if nobody chose another one.
//!
//! Reading order: this file (what the host holds), `store` (the document), `token` (sessions of version
//! 2), `service` (a request's answer), `http` (bytes to requests and back), `stack` (frames to bytes and
//! back), `backend` (how frames get here).
//!
//! ```text
//!   guest ── frames ──► MmdsBackend ──► what the card is connected to
//!         ◄─ frames ──      │
//!                           └─► stack ─► http ─► service ─► store, token ◄── the host: put, patch, get
//! ```
//! The guest's frames to the address never leave this process, and nobody but the guest of the card can
//! ask. Neither waits for the other: the guest reads a snapshot of the document, and a new one takes its
//! place when it is complete.

mod backend;
mod http;
mod service;
mod stack;
mod store;
mod token;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::lock;
use store::Store;
use token::Tokens;

pub use backend::wrap;
pub use stack::{MAX_CONNECTIONS, MAX_FRAMES, Stack};
pub use store::StoreError;

/// Where the guest finds its metadata if nobody chose another address.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Bytes of the document as compact JSON, at most, if nobody chose another limit.
pub const DEFAULT_LIMIT: usize = 51_200;

/// Which rules guests have to keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Everybody may read.
    #[default]
    V1,
    /// Only who has got a token may read: no proxy or server that a stranger has fetch a URL can.
    V2,
}

/// How the service presents itself to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmdsConfig {
    /// The rules.
    pub version: Version,
    /// Its address: one for which [`is_link_local`] is true.
    pub address: Ipv4Addr,
    /// Answers are always lists of keys and plain strings, as those of EC2 are, whatever the client
    /// accepts.
    pub imds_compat: bool,
}

impl Default for MmdsConfig {
    fn default() -> Self {
        Self {
            version: Version::default(),
            address: DEFAULT_ADDRESS,
            imds_compat: false,
        }
    }
}

/// Whether the service can have this address: the link-local ones that RFC 3927 has not reserved.
pub fn is_link_local(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    [a, b] == [169, 254] && (1..=254).contains(&c)
}

/// The service of one guest: document, sessions, and what has happened. Shared by all its cards and by
/// whoever talks to the monitor.
#[derive(Debug)]
pub struct Mmds {
    store: Store,
    tokens: Tokens,
    config: Mutex<MmdsConfig>,
    counts: Counts,
}

impl Mmds {
    /// A service without a document, which may have `limit` bytes as compact JSON. Tokens are good for
    /// this guest only. Fails if the host has no randomness.
    pub fn new(instance_id: &str, limit: usize) -> io::Result<Self> {
        Ok(Self {
            store: Store::new(limit),
            tokens: Tokens::new(instance_id)?,
            config: Mutex::default(),
            counts: Counts::default(),
        })
    }

    /// How it presents itself.
    pub fn config(&self) -> MmdsConfig {
        *lock(&self.config)
    }

    /// Changes that. A card that is there already keeps the address that it had.
    pub fn set_config(&self, config: MmdsConfig) {
        *lock(&self.config) = config;
    }

    /// Replaces the document.
    pub fn put(&self, value: Value) -> Result<(), StoreError> {
        self.store.put(value)
    }

    /// Changes the document by a JSON merge patch (RFC 7396). It stays as it was if that fails.
    pub fn patch(&self, patch: &Value) -> Result<(), StoreError> {
        self.store.patch(patch)
    }

    /// The document; None before the first [`Mmds::put`].
    pub fn get(&self) -> Option<Value> {
        self.store.snapshot().map(|value| (*value).clone())
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counts.read()
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What has happened so far, in Firecracker's terms: "rx" is from the guest, "tx" to it.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same while it happens.
        #[derive(Debug, Default)]
        struct Counts {
            $($name: AtomicU64,)*
        }

        impl Counts {
            fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames that were for the service, good and bad.
    rx_accepted,
    /// Of these, packets and segments that were broken.
    rx_accepted_err,
    /// Of these, packets that were no TCP, and fragments: nobody listens to them.
    rx_accepted_unusual,
    /// Of these, ARP messages that were no requests.
    rx_bad_eth,
    /// Requests with a token that is not, or no longer, good.
    rx_invalid_token,
    /// Requests without a token.
    rx_no_token,
    /// Frames that were dealt with.
    rx_count,
    /// Bytes of frames to the guest.
    tx_bytes,
    /// Frames that were made for the guest.
    tx_count,
    /// Frames for which there was no room, as the guest takes none.
    tx_errors,
    /// Frames that the guest has got.
    tx_frames,
    /// Connections that came about.
    connections_created,
    /// Of these, those that are over.
    connections_destroyed,
}

/// One more.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod hostile_test;

#[cfg(test)]
mod mmds_test;

#[cfg(test)]
mod test_support;
