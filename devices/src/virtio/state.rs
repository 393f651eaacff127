//! The states of virtio devices (see [`crate::state`]).

use serde::{Deserialize, Serialize};

use super::balloon::BalloonState;
use super::block::BlockState;
use super::console::ConsoleState;
use super::mem::MemState;
use super::net::NetState;

/// What a device has become, besides what its transport knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Nothing that its configuration does not say: entropy, persistent memory; and sockets, whose connections do
    /// not outlive their monitor.
    Stateless,
    /// A disk.
    Block(BlockState),
    /// A network card.
    Net(NetState),
    /// A balloon.
    Balloon(BalloonState),
    /// Memory that is plugged.
    Mem(MemState),
    /// A console.
    Console(ConsoleState),
}

/// A queue as its driver has described it, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// GPA of the descriptor table.
    pub desc: u64,
    /// GPA of the available ring.
    pub avail: u64,
    /// GPA of the used ring.
    pub used: u64,
    /// The driver has finished describing it.
    pub ready: bool,
    /// The next entry of the available ring.
    pub next_avail: u16,
    /// The next entry of the used ring.
    pub next_used: u16,
}

/// A device and its queues, whatever transport it is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    /// The status register.
    pub status: u8,
    /// The features that the driver has accepted.
    pub accepted: u64,
    /// Configuration generation.
    pub generation: u32,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// The driver drives it.
    pub active: bool,
    /// By index.
    pub queues: Vec<QueueState>,
    /// The device's own.
    pub device: DeviceState,
}

/// A device behind virtio-mmio.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// What is behind it.
    pub core: CoreState,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
}
