//! virtio over MMIO, version 2 (virtio 1.2 section 4.2): a page of registers and one interrupt line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::core::{Core, Half, Ring};
use crate::bus::{BusDevice, put_register};
use crate::state::BadState;
use crate::virtio::VirtioDevice;
use crate::virtio::interrupt::Deliver;
use crate::virtio::state::MmioState;

/// Bytes of a device's registers and configuration space.
pub const SIZE: u64 = 0x1000;
/// The register that a driver writes a queue's index to, to notify it: 32 bits wide.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const QUEUE_RESET: u64 = 0x0c0;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"mote");
const VERSION_MODERN: u32 = 2;

const INTERRUPT_USED: u32 = 1 << 0;
const INTERRUPT_CONFIG: u32 = 1 << 1;

/// A device behind its registers.
pub struct MmioDevice {
    core: Core,
    interrupts: Arc<Causes>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
}

impl MmioDevice {
    /// A device that interrupts by `line`, an edge at a time.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        line: Arc<EventFd>,
    ) -> io::Result<Self> {
        let interrupts = Arc::new(Causes::default());
        let wire = Wire {
            causes: Arc::clone(&interrupts),
            line,
        };
        Ok(Self {
            core: Core::new(device, memory, Box::new(wire))?,
            interrupts,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
        })
    }

    /// The eventfds that stand for the values a driver writes to [`QUEUE_NOTIFY`], from 0 on.
    pub fn kick_fds(&self) -> impl Iterator<Item = &Arc<EventFd>> {
        (0..self.core.queue_count()).filter_map(|index| self.core.kick_fd(index))
    }

    /// See [`Core::pause`].
    pub fn pause(&mut self) {
        self.core.pause();
    }

    /// See [`Core::resume`].
    pub fn resume(&mut self) {
        self.core.resume();
    }

    /// See [`Core::save`].
    pub fn save(&self) -> Result<MmioState, BadState> {
        Ok(MmioState {
            core: self.core.save()?,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            interrupt_status: self.interrupts.pending.load(Ordering::Acquire),
        })
    }

    /// See [`Core::restore`]. What the driver may have been told it is told again.
    pub fn restore(&mut self, state: &MmioState) -> Result<(), BadState> {
        self.core.restore(&state.core)?;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        let known = INTERRUPT_USED | INTERRUPT_CONFIG;
        let pending = &self.interrupts.pending;
        pending.store(state.interrupt_status & known, Ordering::Release);
        self.core.interrupt_again();
        Ok(())
    }

    fn queue_index(&self) -> usize {
        self.queue_select as usize
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => VERSION_MODERN,
            DEVICE_ID => self.core.device().kind() as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => {
                half(self.device_features_select).map_or(0, |half| self.core.offered_features(half))
            }
            QUEUE_NUM_MAX => self.core.queue_max_size(self.queue_index()).into(),
            QUEUE_READY => self.core.queue(self.queue_index()).ready.into(),
            INTERRUPT_STATUS => self.interrupts.pending(),
            STATUS => self.core.status().into(),
            // No shared memory regions: length and base are all ones (section 4.2.2).
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            // A reset has ended when its write has.
            QUEUE_RESET => 0,
            CONFIG_GENERATION => self.core.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let queue = self.queue_index();
        let mut address = |ring, half| self.core.set_queue_address(queue, ring, half, value);
        match offset {
            QUEUE_DESC_LOW => address(Ring::Desc, Half::Low),
            QUEUE_DESC_HIGH => address(Ring::Desc, Half::High),
            QUEUE_DRIVER_LOW => address(Ring::Avail, Half::Low),
            QUEUE_DRIVER_HIGH => address(Ring::Avail, Half::High),
            QUEUE_DEVICE_LOW => address(Ring::Used, Half::Low),
            QUEUE_DEVICE_HIGH => address(Ring::Used, Half::High),
            DEVICE_FEATURES_SEL => self.device_features_select = value,
            DRIVER_FEATURES_SEL => self.driver_features_select = value,
            DRIVER_FEATURES => {
                if let Some(half) = half(self.driver_features_select) {
                    self.core.accept_features(half, value);
                }
            }
            QUEUE_SEL => self.queue_select = value,
            // A size of more than 16 bits is none that a queue can have.
            QUEUE_NUM => {
                let size = u16::try_from(value).unwrap_or(0);
                self.core.set_queue_size(queue, size);
            }
            QUEUE_READY => self.core.set_queue_ready(queue, value & 1 != 0),
            QUEUE_NOTIFY => self.core.kick(value as usize),
            INTERRUPT_ACK => {
                self.interrupts.pending.fetch_and(!value, Ordering::AcqRel);
            }
            STATUS => {
                let [value, ..] = value.to_le_bytes();
                self.core.set_status(value);
                if value == 0 {
                    self.interrupts.clear();
                }
            }
            QUEUE_RESET if value & 1 != 0 => self.core.reset_queue(queue),
            _ => {}
        }
    }
}

/// Which half of the features a selector means; there are none beyond 64.
fn half(select: u32) -> Option<Half> {
    match select {
        0 => Some(Half::Low),
        1 => Some(Half::High),
        _ => None,
    }
}

impl BusDevice for MmioDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.read_config(offset, data);
        } else if offset.is_multiple_of(4) && data.len() == 4 {
            put_register(data, self.read_register(offset));
        } else {
            // Registers are 32 bits wide and aligned (section 4.2.2.2).
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.write_config(offset, data);
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

/// What the line's last edges mean.
#[derive(Default)]
struct Causes {
    pending: AtomicU32,
    /// The kernel of the host asserts the line by itself, and cannot say why here: then it may
    /// always have been for used buffers.
    kernel_driven: AtomicBool,
}

impl Causes {
    fn pending(&self) -> u32 {
        let used = if self.kernel_driven.load(Ordering::Acquire) {
            INTERRUPT_USED
        } else {
            0
        };
        self.pending.load(Ordering::Acquire) | used
    }

    fn clear(&self) {
        self.pending.store(0, Ordering::Release);
        self.kernel_driven.store(false, Ordering::Release);
    }
}

/// The interrupt line.
struct Wire {
    causes: Arc<Causes>,
    line: Arc<EventFd>,
}

impl Wire {
    fn assert(&self, cause: u32) {
        self.causes.pending.fetch_or(cause, Ordering::AcqRel);
        // Also if the bit was set before: the driver may just be about to acknowledge that one. Fails
        // only when the counter is at its maximum, and then KVM is being told anyway.
        let _ = self.line.write(1);
    }
}

impl Deliver for Wire {
    fn used(&self, _: u16) {
        self.assert(INTERRUPT_USED);
    }

    fn config(&self) {
        self.assert(INTERRUPT_CONFIG);
    }

    fn used_fd(&self, _: u16) -> Option<Arc<EventFd>> {
        self.causes.kernel_driven.store(true, Ordering::Release);
        Some(Arc::clone(&self.line))
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
