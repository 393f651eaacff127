//! Network card (virtio 1.2 section 5.1).
//!
//! Reading order: this file (features, configuration space, the idle half), `backend` (what the card
//! stands on at the host's side), `worker` (the running half: who works when), `running` (a pair of queues of it), `rx` and `tx` (the two
//! directions), `control` (the control queue).
//!
//! Frames are read and written straight from and to guest memory. A card has a pair of queues, or
//! several; each pair has a backend of its own, or the host's kernel serves its rings (vhost).

pub mod backend;
mod control;
mod mac;
mod running;
mod rx;
mod shared;
mod turn;
mod tx;
mod worker;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes};
use crate::rate_limiter::RateLimit;
use crate::state::BadState;
use backend::{Offloads, Pair, Support};
pub use mac::{Mac, MacError};
use shared::Shared;
pub use shared::{Counters, DirectionCounters};
pub use worker::NetState;
use worker::Worker;

/// Feature bits (section 5.1.3).
pub mod feature {
    /// The device fills in checksums.
    pub const CSUM: u32 = 0;
    /// The driver does.
    pub const GUEST_CSUM: u32 = 1;
    /// The driver may change its offloads while it runs.
    pub const CTRL_GUEST_OFFLOADS: u32 = 2;
    /// The device tells the MTU.
    pub const MTU: u32 = 3;
    /// The device has an address.
    pub const MAC: u32 = 5;
    /// The driver takes TCP over IPv4 that is not cut into segments.
    pub const GUEST_TSO4: u32 = 7;
    /// Over IPv6.
    pub const GUEST_TSO6: u32 = 8;
    /// With ECN.
    pub const GUEST_ECN: u32 = 9;
    /// The device cuts TCP over IPv4.
    pub const HOST_TSO4: u32 = 11;
    /// Over IPv6.
    pub const HOST_TSO6: u32 = 12;
    /// With ECN.
    pub const HOST_ECN: u32 = 13;
    /// A frame may be in several buffers of the driver.
    pub const MRG_RXBUF: u32 = 15;
    /// The configuration says whether the link is up.
    pub const STATUS: u32 = 16;
    /// There is a control queue.
    pub const CTRL_VQ: u32 = 17;
    /// There are several pairs of queues.
    pub const MQ: u32 = 22;
    /// The driver takes UDP over IPv4 that is not cut into datagrams.
    pub const GUEST_USO4: u32 = 54;
    /// Over IPv6.
    pub const GUEST_USO6: u32 = 55;
    /// The device cuts UDP.
    pub const HOST_USO: u32 = 56;
}

/// Most pairs of queues.
pub const MAX_PAIRS: usize = 16;
/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;
/// The smallest MTU there can be (section 5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// The largest that a tap can have.
pub const MAX_MTU: u16 = 65521;
/// The MTU of a card that has none configured.
pub const DEFAULT_MTU: u16 = 1500;
/// Status of the configuration space: the link is up.
const STATUS_LINK_UP: u16 = 1;

/// Why there is no such card.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// None, or too many.
    #[error("A network card has 1 to {MAX_PAIRS} pairs of queues, not {pairs}")]
    Pairs {
        /// How many were wanted.
        pairs: usize,
    },
    /// Too small or too large.
    #[error("A network card has an MTU from {MIN_MTU} to {MAX_MTU}, not {mtu}")]
    Mtu {
        /// What was wanted.
        mtu: u16,
    },
    /// The kernel keeps to no limits of ours.
    #[error("Network card {id} cannot have a rate limit with vhost=on")]
    RateLimitWithVhost {
        /// The card.
        id: String,
    },
    /// The host has not what it takes.
    #[error("Cannot make network card {id}")]
    Host {
        /// The card.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A card, without what it stands on.
#[derive(Clone, Debug, Default)]
pub struct NetConfig {
    /// What messages call it.
    pub id: String,
    /// Its address; random if None.
    pub mac: Option<Mac>,
    /// The MTU that the driver is told, in bytes; 1500 if None.
    pub mtu: Option<u16>,
    /// Limit of what the guest receives.
    pub rx_rate: RateLimit,
    /// Limit of what it sends.
    pub tx_rate: RateLimit,
}

/// The device.
pub struct Net {
    // Fixed configuration.
    id: Arc<str>,
    mac: Mac,
    mtu: Option<u16>,
    pair_count: usize,
    features: u64,
    queue_sizes: Vec<u16>,
    // Runtime glue.
    event_loop: Arc<dyn EventLoop>,
    shared: Arc<Shared>,
    /// While it is idle: otherwise the worker has them.
    pairs: Vec<Pair>,
    /// What the driver had set when the last worker stopped.
    chosen: NetState,
    worker: Option<Attached<Worker>>,
}

impl Net {
    /// A card with these pairs of queues, whose worker lives on `event_loop`, and the way to control it
    /// while it works.
    pub fn new(
        config: NetConfig,
        mut pairs: Vec<Pair>,
        event_loop: Arc<dyn EventLoop>,
    ) -> Result<(Self, NetControl), Error> {
        let NetConfig {
            id,
            mac,
            mtu,
            rx_rate,
            tx_rate,
        } = config;
        let pair_count = pairs.len();
        let first = match pairs.first() {
            Some(first) if pair_count <= MAX_PAIRS => first,
            _ => return Err(Error::Pairs { pairs: pair_count }),
        };
        if let Some(mtu) = mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            return Err(Error::Mtu { mtu });
        }
        let features = offered(first, pair_count, mtu);
        let has_kernel = pairs.iter().any(|pair| pair.kernel.is_some());
        if has_kernel && !(rx_rate.is_unlimited() && tx_rate.is_unlimited()) {
            return Err(Error::RateLimitWithVhost { id });
        }
        let id: Arc<str> = id.into();
        let host_error = |source| Error::Host {
            id: id.to_string(),
            source,
        };
        for pair in pairs.iter_mut().skip(1) {
            pair.backend.set_enabled(false).map_err(host_error)?;
        }
        let mac = match mac {
            Some(mac) => mac,
            None => Mac::random().map_err(host_error)?,
        };
        let shared = Arc::new(Shared::new(rx_rate, tx_rate).map_err(host_error)?);
        let control = NetControl {
            id: Arc::clone(&id),
            mac,
            has_kernel,
            shared: Arc::clone(&shared),
        };
        let device = Self {
            id,
            mac,
            mtu,
            pair_count,
            features,
            queue_sizes: vec![QUEUE_SIZE; 2 * pair_count + 1],
            event_loop,
            shared,
            pairs,
            chosen: NetState::default(),
            worker: None,
        };
        Ok((device, control))
    }

    /// The configuration space (section 5.1.4).
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        let status = if self.shared.is_link_up() {
            STATUS_LINK_UP
        } else {
            0
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_PAIRS")]
        let pairs = self.pair_count as u16;
        config[..6].copy_from_slice(&self.mac.bytes());
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(DEFAULT_MTU).to_le_bytes());
        config
    }
}

/// The features of a card with these backends.
fn offered(first: &Pair, pair_count: usize, mtu: Option<u16>) -> u64 {
    let Support {
        from_guest,
        to_guest,
    } = first.backend.support();
    let mut features = 1 << feature::MAC
        | 1 << feature::MRG_RXBUF
        | 1 << feature::STATUS
        | 1 << feature::CTRL_VQ
        | from_guest_bits(from_guest)
        | to_guest_bits(to_guest);
    if to_guest != Offloads::default() {
        features |= 1 << feature::CTRL_GUEST_OFFLOADS;
    }
    if mtu.is_some() {
        features |= 1 << feature::MTU;
    }
    if pair_count > 1 {
        features |= 1 << feature::MQ;
    }
    if let Some(kernel) = &first.kernel {
        // The only one that both have to know.
        features &= kernel.features() | !(1 << feature::MRG_RXBUF);
    }
    features
}

fn from_guest_bits(offloads: Offloads) -> u64 {
    let Offloads {
        csum,
        tso4,
        tso6,
        ecn,
        uso,
    } = offloads;
    u64::from(csum) << feature::CSUM
        | u64::from(tso4) << feature::HOST_TSO4
        | u64::from(tso6) << feature::HOST_TSO6
        | u64::from(ecn) << feature::HOST_ECN
        | u64::from(uso) << feature::HOST_USO
}

/// Features of the driver, which are the bits of the control command as well (section 5.1.6.5.6).
fn to_guest_bits(offloads: Offloads) -> u64 {
    let Offloads {
        csum,
        tso4,
        tso6,
        ecn,
        uso,
    } = offloads;
    u64::from(csum) << feature::GUEST_CSUM
        | u64::from(tso4) << feature::GUEST_TSO4
        | u64::from(tso6) << feature::GUEST_TSO6
        | u64::from(ecn) << feature::GUEST_ECN
        | u64::from(uso) << feature::GUEST_USO4
        | u64::from(uso) << feature::GUEST_USO6
}

/// What these bits leave to the driver. Whatever needs something that is missing is left out, and UDP
/// is of both versions of IP or none, as it is for a tap.
fn offloads_of(bits: u64) -> Offloads {
    let has = |bit: u32| bits & 1 << bit != 0;
    let csum = has(feature::GUEST_CSUM);
    let tso4 = csum && has(feature::GUEST_TSO4);
    let tso6 = csum && has(feature::GUEST_TSO6);
    Offloads {
        csum,
        tso4,
        tso6,
        ecn: (tso4 || tso6) && has(feature::GUEST_ECN),
        uso: csum && has(feature::GUEST_USO4) && has(feature::GUEST_USO6),
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        // All of it is read-only for a driver of virtio 1.
    }

    fn activate(&mut self, resources: Resources) -> Result<(), ActivateError> {
        let interrupt = resources.interrupt.clone();
        let chosen = resources.resumed.then_some(self.chosen);
        let pairs = std::mem::take(&mut self.pairs);
        let mtu = self.mtu.unwrap_or(DEFAULT_MTU);
        let shared = Arc::clone(&self.shared);
        let mut worker = match Worker::new(Arc::clone(&self.id), pairs, mtu, shared, resources) {
            Ok(worker) => worker,
            Err((error, pairs)) => {
                self.pairs = pairs;
                return Err(error);
            }
        };
        if let Some(chosen) = chosen {
            worker.resume(chosen);
        }
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        self.shared.set_interrupt(Some(interrupt));
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.shared.set_interrupt(None);
        let Some(worker) = self.worker.take().and_then(Attached::detach) else {
            return Vec::new();
        };
        let (pairs, queues, chosen) = worker.stop();
        self.pairs = pairs;
        self.chosen = chosen;
        queues
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Net(self.chosen))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Net(chosen) = state else {
            return Err(BadState::Kind);
        };
        let NetState { pairs, offloads } = *chosen;
        let wrong = |what, value| Err(BadState::Value { what, value });
        if let Some(pairs) = pairs
            && !(1..=self.pair_count).contains(&pairs.into())
        {
            return wrong("the number of pairs of queues", pairs.into());
        }
        if let Some(offloads) = offloads
            && offloads & !(self.features & to_guest_bits(Offloads::ALL)) != 0
        {
            return wrong("the offloads", offloads);
        }
        // To the worker it is given as the driver's commands are, which are checked against what was negotiated.
        self.chosen = *chosen;
        Ok(())
    }
}

/// The way to a card while its guest runs.
#[derive(Clone)]
pub struct NetControl {
    id: Arc<str>,
    mac: Mac,
    has_kernel: bool,
    shared: Arc<Shared>,
}

impl NetControl {
    /// Its address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Changes the limits of what the guest receives and sends.
    pub fn set_rate(&self, rx: RateLimit, tx: RateLimit) -> Result<(), Error> {
        let id = || self.id.to_string();
        if self.has_kernel && !(rx.is_unlimited() && tx.is_unlimited()) {
            return Err(Error::RateLimitWithVhost { id: id() });
        }
        self.shared
            .set_rate(rx, tx)
            .map_err(|source| Error::Host { id: id(), source })
    }

    /// Pulls the cable or plugs it in again. Frames that come in between are lost.
    pub fn set_link(&self, up: bool) {
        self.shared.set_link(up);
    }

    /// Whether it is plugged in.
    pub fn is_link_up(&self) -> bool {
        self.shared.is_link_up()
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.counts.read()
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod control_tests;
#[cfg(test)]
mod double;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
