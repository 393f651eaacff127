//! What the device has moved, and who was connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that the worker changes.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What has happened since the device was made. Receiving and sending are the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VsockCounters {
    /// Times that the driver has told of buffers to receive into.
    pub rx_kicks: u64,
    /// Times that the driver has told of packets.
    pub tx_kicks: u64,
    /// Times that the host's sockets had something.
    pub host_events: u64,
    /// Packets to the guest, with those without data.
    pub rx_packets: u64,
    /// Bytes of data in them.
    pub rx_bytes: u64,
    /// Packets from the guest, with those without data.
    pub tx_packets: u64,
    /// Bytes of data in them.
    pub tx_bytes: u64,
    /// Connections that were made or asked for, by either side.
    pub connections: u64,
    /// Connections that are no more.
    pub ended: u64,
    /// Packets, and connections, that were refused by a reset.
    pub resets: u64,
}

/// The same, while it happens.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) rx_kicks: Count,
    pub(super) tx_kicks: Count,
    pub(super) host_events: Count,
    pub(super) rx_packets: Count,
    pub(super) rx_bytes: Count,
    pub(super) tx_packets: Count,
    pub(super) tx_bytes: Count,
    pub(super) connections: Count,
    pub(super) ended: Count,
    pub(super) resets: Count,
}

/// What can be asked about the device, before and while it runs.
#[derive(Clone, Default)]
pub struct VsockControl(pub(super) Arc<Counts>);

impl VsockControl {
    /// What has happened since the device was made.
    pub fn counters(&self) -> VsockCounters {
        let counts = &self.0;
        VsockCounters {
            rx_kicks: counts.rx_kicks.get(),
            tx_kicks: counts.tx_kicks.get(),
            host_events: counts.host_events.get(),
            rx_packets: counts.rx_packets.get(),
            rx_bytes: counts.rx_bytes.get(),
            tx_packets: counts.tx_packets.get(),
            tx_bytes: counts.tx_bytes.get(),
            connections: counts.connections.get(),
            ended: counts.ended.get(),
            resets: counts.resets.get(),
        }
    }
}
