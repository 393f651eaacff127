//! virtio 1.2: what a device is, what it gets from its transport, and how it comes and goes.
//!
//! Reading order: this file (the contract), `chain` (a request, checked), `queue` (a ring, checked),
//! `interrupt` (the way back to the driver), `worker` (where the running half lives), `transport`
//! (status, features and registers), then `rng`: the model device, which shows the shape of all.
//!
//! # The life of a device
//! ```text
//!                 activate(resources)
//!      ┌──────┐ ───────────────────────► ┌────────┐   the worker, with its queues, is on an event
//!      │ idle │                          │ active │   loop and owns all that a request needs
//!      └──────┘ ◄─────────────────────── └────────┘
//!                 deactivate() → queues
//! ```
//! The transport drives it: DRIVER_OK activates; reset, a queue's reset and the end of the device
//! deactivate, and so does a pause (`pause`, then `activate` again). A device is idle when it is made, and may
//! go through this any number of times. Its state is taken and given while it is idle.
//!
//! # Threads
//! The idle half, the [`VirtioDevice`], sits behind its transport and is called on vCPU threads. The
//! running half, its worker, lives on an event loop and is called there only. What both need, such as
//! configuration that changes while the guest runs, is behind a small lock of its own that nobody
//! holds while he waits. The thread of an event loop never takes a transport's lock: a vCPU that holds
//! one may be waiting for that loop.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod interrupt;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod state;
pub mod transport;
pub mod vsock;
pub mod worker;

#[cfg(test)]
pub(crate) mod test_support;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::state::BadState;
use interrupt::Interrupt;
use queue::Queue;
use state::DeviceState;

/// Device types (virtio 1.2 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Network card (section 5.1).
    Net = 1,
    /// Block device (section 5.2).
    Block = 2,
    /// Console (section 5.3).
    Console = 3,
    /// Entropy (section 5.4).
    Entropy = 4,
    /// Traditional memory balloon (section 5.5).
    Balloon = 5,
    /// Socket (section 5.10).
    Vsock = 19,
    /// Memory (section 5.15).
    Mem = 24,
    /// Persistent memory (section 5.19).
    Pmem = 27,
}

/// Why a device could not be activated. The driver is told DEVICE_NEEDS_RESET.
#[derive(Debug)]
pub struct ActivateError(pub Box<dyn Error + Send + Sync>);

impl fmt::Display for ActivateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cannot activate the device")
    }
}

impl Error for ActivateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// All that a device gets when its driver is ready.
pub struct Resources {
    /// Guest memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The negotiated features: those the device offered and the driver accepted, with the
    /// transport's own.
    pub features: u64,
    /// The way back to the driver.
    pub interrupt: Interrupt,
    /// The queues that the driver has set up, by index. A driver need not set up all of them.
    pub queues: Vec<Option<Queue>>,
    /// The driver goes on where it was, as only some of its queues were reset: what it has set by
    /// commands stays as it is. Otherwise it starts anew.
    pub resumed: bool,
}

impl Resources {
    /// Takes queue `index`, if the driver has set it up.
    pub fn take_queue(&mut self, index: usize) -> Option<Queue> {
        self.queues.get_mut(index)?.take()
    }

    /// Whether feature bit `bit` was negotiated.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }
}

/// A device, behind a transport that knows nothing of what it does. It is idle, or it is active and
/// has handed its queues to its worker.
pub trait VirtioDevice: Send {
    /// The device type.
    fn kind(&self) -> Kind;

    /// The largest size of each queue: powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The features that it offers, without those of the transport (bits 24 to 41).
    fn features(&self) -> u64;

    /// Fills `data` with its configuration space from `offset` on, in bytes; with zeroes beyond its
    /// end. Offset and length are the guest's.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes what the driver writes into its configuration space at `offset`. Most fields are
    /// read-only: such a write does nothing.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Starts working on the queues. Only called when idle; stays idle if it fails.
    fn activate(&mut self, resources: Resources) -> Result<(), ActivateError>;

    /// Stops, after the requests that are in flight have ended, and gives the queues back. When idle
    /// there are none to give.
    fn deactivate(&mut self) -> Vec<Queue>;

    /// Stops as [`VirtioDevice::deactivate`] does, for a while in which the driver stands still too and
    /// nobody is to notice: what goes on with the world outside is kept for the activation that follows,
    /// which says `resumed`.
    fn pause(&mut self) -> Vec<Queue> {
        self.deactivate()
    }

    /// What it has become by its driver's doing. Only called when idle. Fails if the host did not take what
    /// would have to be there for another one to go on.
    fn save(&self) -> Result<DeviceState, BadState>;

    /// Takes the state of another one of the same configuration. Only called on a new device, before its
    /// first activation, which says `resumed`. If it fails, the device is not to be used.
    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState>;
}

/// [`VirtioDevice::restore`] of a device that has no state.
pub fn restore_nothing(state: &DeviceState) -> Result<(), BadState> {
    match state {
        DeviceState::Stateless => Ok(()),
        _ => Err(BadState::Kind),
    }
}

/// Fills `data` with what there is of `config` from `offset` on, and zeroes: for
/// [`VirtioDevice::read_config`].
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    for (to, from) in data.iter_mut().zip(config.iter().skip(skip)) {
        *to = *from;
    }
}
