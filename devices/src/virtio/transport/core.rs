//! What all transports have in common: status, features, queues and the device's life (virtio 1.2
//! sections 2 and 3).
//!
//! The driver is not trusted to keep the order of section 3.1: what comes at the wrong time does
//! nothing. A device that cannot be activated, or whose queues are wrong, tells DEVICE_NEEDS_RESET.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::state::BadState;
use crate::virtio::interrupt::{Deliver, Interrupt};
use crate::virtio::queue::{Queue, QueueConfig};
use crate::virtio::state::{CoreState, QueueState};
use crate::virtio::{Resources, VirtioDevice};

/// Status bits (section 2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It is ready to drive it.
    pub const DRIVER_OK: u8 = 4;
    /// It has accepted features.
    pub const FEATURES_OK: u8 = 8;
    /// The device has gone wrong.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Features of the transport and the rings (section 6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u32 = 28;
    /// Interrupts and kicks by index.
    pub const EVENT_IDX: u32 = 29;
    /// virtio 1.
    pub const VERSION_1: u32 = 32;
    /// Queues can be reset one by one.
    pub const RING_RESET: u32 = 40;
}

/// Offered for every device.
const TRANSPORT_FEATURES: u64 = 1 << feature::INDIRECT_DESC
    | 1 << feature::EVENT_IDX
    | 1 << feature::VERSION_1
    | 1 << feature::RING_RESET;

/// Which of a queue's addresses is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Descriptor table.
    Desc,
    /// Available ring.
    Avail,
    /// Used ring.
    Used,
}

/// Which half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl Half {
    fn of(self, value: u64) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "takes a half")]
        match self {
            Self::Low => value as u32,
            Self::High => (value >> 32) as u32,
        }
    }

    fn put(self, value: &mut u64, half: u32) {
        *value = match self {
            Self::Low => *value & !u64::from(u32::MAX) | u64::from(half),
            Self::High => *value & u64::from(u32::MAX) | u64::from(half) << 32,
        };
    }
}

/// A device and what its driver has made of it so far.
pub struct Core {
    // Fixed configuration.
    memory: Arc<GuestMemoryMmap>,
    offered: u64,
    max_sizes: Vec<u16>,

    // Runtime glue.
    device: Box<dyn VirtioDevice>,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Interrupt,

    // Volatile state.
    status: u8,
    accepted: u64,
    queues: Vec<QueueConfig>,
    active: bool,
    /// How far the queues had come when the device was paused. None: it is not.
    paused: Option<Positions>,
}

/// The next entries of a queue's available and used ring, by its index.
type Positions = Vec<(u16, (u16, u16))>;

impl Core {
    /// A device after reset.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        deliver: Box<dyn Deliver>,
    ) -> io::Result<Self> {
        let max_sizes = device.queue_sizes().to_vec();
        let kicks = max_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let mut core = Self {
            offered: device.features() | TRANSPORT_FEATURES,
            max_sizes,
            memory,
            device,
            kicks,
            interrupt: Interrupt::new(deliver),
            status: 0,
            accepted: 0,
            queues: Vec::new(),
            active: false,
            paused: None,
        };
        core.reset_queues();
        Ok(core)
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The eventfd that stands for a driver's notification of queue `index`.
    pub fn kick_fd(&self, index: usize) -> Option<&Arc<EventFd>> {
        self.kicks.get(index)
    }

    /// The driver notifies queue `index` by a register and not by its eventfd.
    pub fn kick(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            // Fails only when the counter is at its maximum: it is readable then too.
            let _ = kick.write(1);
        }
    }

    /// Status, as the driver reads it.
    pub fn status(&self) -> u8 {
        if self.interrupt.is_reset_needed() {
            self.status | status::DEVICE_NEEDS_RESET
        } else {
            self.status
        }
    }

    /// The driver writes the status. 0 resets the device: it has stopped when this returns.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        // The driver sets bits and clears none (section 2.1.1).
        let set = value & !self.status & !status::DEVICE_NEEDS_RESET;
        self.status |= set;
        if set & status::FEATURES_OK != 0 && !self.accepts_features() {
            self.status &= !status::FEATURES_OK;
        }
        let ready = status::DRIVER_OK | status::FEATURES_OK;
        if set & status::DRIVER_OK != 0 {
            if self.status & ready == ready {
                self.activate();
            } else {
                self.interrupt.needs_reset();
            }
        }
        if set & status::FAILED != 0 {
            self.deactivate();
        }
    }

    fn accepts_features(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << feature::VERSION_1 != 0
    }

    fn reset(&mut self) {
        self.deactivate();
        self.status = 0;
        self.accepted = 0;
        self.reset_queues();
        for kick in &self.kicks {
            // Empties it; fails if it is empty.
            let _ = kick.read();
        }
        self.interrupt.clear();
    }

    fn reset_queues(&mut self) {
        self.queues = self.max_sizes.iter().map(|&size| fresh(size)).collect();
    }

    /// One half of the features that the device offers.
    pub fn offered_features(&self, half: Half) -> u32 {
        half.of(self.offered)
    }

    /// One half of the features that the driver has accepted.
    pub fn accepted_features(&self, half: Half) -> u32 {
        half.of(self.accepted)
    }

    /// The driver accepts features.
    pub fn accept_features(&mut self, half: Half, value: u32) {
        if self.status & status::FEATURES_OK == 0 {
            half.put(&mut self.accepted, value);
        }
    }

    /// Whether feature bit `bit` was negotiated.
    fn has_feature(&self, bit: u32) -> bool {
        self.status & status::FEATURES_OK != 0 && self.accepted & 1 << bit != 0
    }

    /// Largest size of queue `index`; 0 if there is no such queue.
    pub fn queue_max_size(&self, index: usize) -> u16 {
        self.max_sizes.get(index).copied().unwrap_or(0)
    }

    /// What the driver has said of queue `index`.
    pub fn queue(&self, index: usize) -> QueueConfig {
        self.queues.get(index).copied().unwrap_or_default()
    }

    /// A queue that may be changed: it is not in use.
    fn idle_queue(&mut self, index: usize) -> Option<&mut QueueConfig> {
        self.queues.get_mut(index).filter(|queue| !queue.ready)
    }

    /// The driver sets the size of queue `index`.
    pub fn set_queue_size(&mut self, index: usize, size: u16) {
        if let Some(queue) = self.idle_queue(index) {
            queue.size = size;
        }
    }

    /// The driver sets half of a ring's address.
    pub fn set_queue_address(&mut self, index: usize, ring: Ring, half: Half, value: u32) {
        if let Some(queue) = self.idle_queue(index) {
            let address = match ring {
                Ring::Desc => &mut queue.desc,
                Ring::Avail => &mut queue.avail,
                Ring::Used => &mut queue.used,
            };
            half.put(address, value);
        }
    }

    /// The driver has finished with describing queue `index`, or takes it away. While the device is
    /// active, a queue comes back after it was reset (section 2.6.1.2.2), and none is taken away but
    /// by that.
    pub fn set_queue_ready(&mut self, index: usize, ready: bool) {
        let active = self.active;
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if active && (!ready || queue.ready) {
            return;
        }
        queue.ready = ready;
        if active {
            self.restart();
        }
    }

    /// The driver resets queue `index` (section 2.6.1); it has stopped when this returns.
    pub fn reset_queue(&mut self, index: usize) {
        if !self.has_feature(feature::RING_RESET) || self.queues.get(index).is_none() {
            return;
        }
        let was_active = self.active;
        let positions = self.deactivate();
        self.queues[index] = fresh(self.max_sizes[index]);
        // Empties it; fails if it is empty.
        let _ = self.kicks[index].read();
        if was_active {
            self.activate_from(Some(&positions));
        }
    }

    /// A queue has come: the device starts anew with it.
    fn restart(&mut self) {
        let positions = self.deactivate();
        self.activate_from(Some(&positions));
    }

    fn activate(&mut self) {
        self.activate_from(None);
    }

    /// Activates the device. Where it was active before, its queues go on from where they stopped, and
    /// new ones at their start.
    fn activate_from(&mut self, stopped: Option<&Positions>) {
        let positions = stopped.map_or(&[][..], |positions| positions);
        let event_idx = self.has_feature(feature::EVENT_IDX);
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, config) in (0..).zip(&self.queues) {
            if !config.ready {
                queues.push(None);
                continue;
            }
            let kick = Arc::clone(&self.kicks[usize::from(index)]);
            let queue = Queue::new(
                index,
                config,
                self.max_sizes[usize::from(index)],
                event_idx,
                Arc::clone(&self.memory),
                kick,
                self.interrupt.clone(),
            );
            let mut queue = match queue {
                Ok(queue) => queue,
                Err(error) => {
                    log::warn!("{:?} device: {error}", self.device.kind());
                    self.interrupt.needs_reset();
                    return;
                }
            };
            if let Some((_, (avail, used))) = positions.iter().find(|(other, _)| *other == index) {
                queue.set_position(*avail, *used);
            }
            queues.push(Some(queue));
        }
        let resources = Resources {
            memory: Arc::clone(&self.memory),
            features: self.accepted,
            interrupt: self.interrupt.clone(),
            queues,
            resumed: stopped.is_some(),
        };
        match self.device.activate(resources) {
            Ok(()) => {
                self.active = true;
                // What was kicked before there was anyone to hear it.
                for index in 0..self.queues.len() {
                    if self.queues[index].ready {
                        self.kick(index);
                    }
                }
            }
            Err(error) => {
                log::warn!("{:?} device: {error}: {}", self.device.kind(), error.0);
                self.interrupt.needs_reset();
            }
        }
    }

    /// Stops the device, and says how far its queues have come.
    fn deactivate(&mut self) -> Positions {
        if self.paused.take().is_some() {
            // What it keeps for going on is not needed.
            self.device.deactivate();
        }
        if !self.active {
            return Vec::new();
        }
        self.active = false;
        positions(&self.device.deactivate())
    }

    /// Has the device stand still, with all that it was doing ended or kept, until [`Core::resume`]. The
    /// driver stands still too.
    pub fn pause(&mut self) {
        if !self.active || self.paused.is_some() {
            return;
        }
        let queues = self.device.pause();
        self.active = false;
        self.paused = Some(positions(&queues));
    }

    /// Lets a paused device go on.
    pub fn resume(&mut self) {
        if let Some(positions) = self.paused.take() {
            self.activate_from(Some(&positions));
        }
    }

    /// What the driver has made of the device, which is paused or was never active.
    pub fn save(&self) -> Result<CoreState, BadState> {
        let position = |index| {
            let mut positions = self.paused.iter().flatten();
            let found = positions.find(|(other, _)| usize::from(*other) == index);
            found.map_or((0, 0), |(_, position)| *position)
        };
        let queue = |(index, queue): (usize, &QueueConfig)| {
            let (next_avail, next_used) = position(index);
            let &QueueConfig {
                size,
                desc,
                avail,
                used,
                ready,
            } = queue;
            QueueState {
                size,
                desc,
                avail,
                used,
                ready,
                next_avail,
                next_used,
            }
        };
        Ok(CoreState {
            status: self.status,
            accepted: self.accepted,
            generation: self.interrupt.generation(),
            needs_reset: self.interrupt.is_reset_needed(),
            active: self.paused.is_some(),
            queues: self.queues.iter().enumerate().map(queue).collect(),
            device: self.device.save()?,
        })
    }

    /// Makes of a new device what `state` says. It is paused then, if its driver drives it.
    pub fn restore(&mut self, state: &CoreState) -> Result<(), BadState> {
        BadState::check_count("queues", state.queues.len(), self.queues.len())?;
        if state.accepted & !self.offered != 0 && state.status & status::FEATURES_OK != 0 {
            return Err(BadState::Value {
                what: "the features that the driver has accepted",
                value: state.accepted,
            });
        }
        let ready = status::DRIVER_OK | status::FEATURES_OK;
        if state.active && state.status & ready != ready {
            return Err(BadState::Value {
                what: "the status of a device that is driven",
                value: state.status.into(),
            });
        }
        self.device.restore(&state.device)?;
        self.status = state.status & !status::DEVICE_NEEDS_RESET;
        self.accepted = state.accepted;
        self.interrupt.restore(state.generation, state.needs_reset);
        let mut positions = Vec::new();
        for ((index, queue), state) in (0..).zip(&mut self.queues).zip(&state.queues) {
            // Sizes and addresses are checked when the queue is made, as they are when a driver sets them.
            *queue = QueueConfig {
                size: state.size,
                desc: state.desc,
                avail: state.avail,
                used: state.used,
                ready: state.ready,
            };
            positions.push((index, (state.next_avail, state.next_used)));
        }
        self.paused = state.active.then_some(positions);
        Ok(())
    }

    /// Tells the driver again of whatever it may have been told: one interrupt too many is nothing, and one
    /// that was on its way when the state was taken is lost.
    pub fn interrupt_again(&self) {
        for (index, queue) in (0..).zip(&self.queues) {
            if queue.ready {
                self.interrupt.used(index);
            }
        }
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes to it: not before the driver knows the device (section 2.5).
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & status::DRIVER != 0 {
            self.device.write_config(offset, data);
        }
    }

    /// Changes whenever the configuration has.
    pub fn config_generation(&self) -> u32 {
        self.interrupt.generation()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.deactivate();
    }
}

fn positions(queues: &[Queue]) -> Positions {
    let position = |queue: &Queue| (queue.index(), queue.position());
    queues.iter().map(position).collect()
}

/// A queue after reset.
fn fresh(max_size: u16) -> QueueConfig {
    QueueConfig {
        size: max_size,
        ..QueueConfig::default()
    }
}

#[cfg(test)]
#[path = "core_test.rs"]
mod tests;
