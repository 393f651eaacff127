//! virtio over PCI (virtio 1.2 section 4.1), without the legacy interface: a function with all its
//! registers in the memory of BAR 0, and an MSI-X vector for each queue and one for the configuration.
//!
//! There is no interrupt pin: a driver that does not use MSI-X has to poll.

mod signals;
mod state;

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use self::signals::{Delivery, NO_VECTOR, Signals};
pub use self::state::PciState;
use super::core::{Core, Half, Ring};
use crate::bus::BusDevice;
use crate::pci::Function;
use crate::pci::config::{Identity, NOBODY, Space};
use crate::pci::msix::{self, MAX_VECTORS, MsiVectors, Msix};
use crate::virtio::{Kind, VirtioDevice};

/// Bytes of the memory behind BAR 0.
pub const BAR_SIZE: u32 = 0x4000;
/// A driver notifies a queue by writing here, [`NOTIFY_STRIDE`] times the queue's index further on: any
/// value, in any number of bytes.
pub const NOTIFY: u32 = 0x2000;
/// Bytes between the addresses that notify two queues.
pub const NOTIFY_STRIDE: u32 = 4;

// What else is in the memory, as offsets.
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x0800;
const CONFIG: u32 = 0x1000;
const CONFIG_SIZE: u32 = 0x1000;
const NOTIFY_SIZE: u32 = MAX_VECTORS as u32 * NOTIFY_STRIDE;
const TABLE: u32 = 0x3000;
const PENDING: u32 = 0x3800;

const VENDOR: u16 = 0x1af4;
/// The device id is this and the device type.
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;

// The common configuration (section 4.1.4.3), as offsets.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;
const QUEUE_RESET: usize = 0x3a;
const COMMON_SIZE: usize = 0x3c;

// Capabilities (section 4.1.4): vendor-specific ones, of these types.
const CAPABILITY_ID: u8 = 0x09;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

// The capability by which the memory is accessed through configuration space (section 4.1.4.9), as
// offsets.
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;
const WINDOW_DATA_SIZE: u16 = 4;

/// Why a device cannot be behind this transport.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// More queues than there are vectors for.
    #[error("A virtio-pci device can have {} queues, not {queues}", MAX_VECTORS - 1)]
    TooManyQueues {
        /// How many it has.
        queues: usize,
    },
    /// The host refused an eventfd.
    #[error("Cannot make the eventfds of a device's queues")]
    EventFd(#[source] io::Error),
    /// The function's capabilities do not fit: a mistake here.
    #[error("Cannot describe the device in its configuration space")]
    Capabilities,
}

/// Where a function's memory is, as the monitor arranges it.
pub trait Window: Send + Sync {
    /// From now on the memory of BAR 0 is at this address, or nowhere. Called with the function's lock
    /// held. The guest chooses the address: the monitor may leave the memory nowhere.
    fn place(&self, address: Option<u32>);
}

/// How many MSI-X vectors `device` needs.
pub fn vector_count(device: &dyn VirtioDevice) -> Result<usize, Error> {
    let queues = device.queue_sizes().len();
    if queues < MAX_VECTORS {
        Ok(queues + 1)
    } else {
        Err(Error::TooManyQueues { queues })
    }
}

/// Where in configuration space what is needed again is.
struct Layout {
    msix: u16,
    window: u16,
}

/// A device behind its function, until it is unplugged.
pub struct PciDevice(Option<Plugged>);

struct Plugged {
    // Fixed configuration.
    layout: Layout,

    // Runtime glue.
    core: Core,
    signals: Arc<Signals>,
    vectors: Arc<dyn MsiVectors>,
    window: Option<Box<dyn Window>>,

    // Volatile state.
    space: Space,
    msix: Msix,
    placed: Option<u32>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u16,
}

impl PciDevice {
    /// A device whose memory is at `address`, a multiple of [`BAR_SIZE`], until the guest moves it. It
    /// interrupts by `vectors`, of which there are as many as [`vector_count`] says.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        vectors: Arc<dyn MsiVectors>,
        address: u32,
    ) -> Result<Self, Error> {
        let count = vector_count(&*device)?;
        let mut space = Space::new(&identity(device.kind()));
        space.add_bar(address, BAR_SIZE);
        let msix = Msix::new(Arc::clone(&vectors), count);
        let layout = add_capabilities(&mut space, &msix).ok_or(Error::Capabilities)?;
        let signals = Arc::new(Signals::new(Arc::clone(&vectors), count - 1));
        let deliver = Box::new(Delivery(Arc::clone(&signals)));
        Ok(Self(Some(Plugged {
            layout,
            core: Core::new(device, memory, deliver).map_err(Error::EventFd)?,
            signals,
            vectors,
            window: None,
            space,
            msix,
            placed: None,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
        })))
    }

    /// Says who puts the memory where the guest wants it; nobody does before.
    pub fn set_window(&mut self, window: Box<dyn Window>) {
        if let Some(plugged) = &mut self.0 {
            plugged.window = Some(window);
            plugged.place();
        }
    }

    /// The eventfds that stand for a driver's notifications of queues, from queue 0 on.
    pub fn kick_fds(&self) -> impl Iterator<Item = &Arc<EventFd>> {
        self.0.iter().flat_map(|plugged| {
            let core = &plugged.core;
            (0..core.queue_count()).filter_map(|index| core.kick_fd(index))
        })
    }
}

impl Plugged {
    /// Puts the memory where configuration space says that it is.
    fn place(&mut self) {
        let wanted = self.space.bar();
        if let Some(window) = &self.window
            && wanted != self.placed
        {
            self.placed = wanted;
            window.place(wanted);
        }
    }

    /// The common configuration, byte by byte.
    fn common(&self) -> [u8; COMMON_SIZE] {
        let index = usize::from(self.queue_select);
        let queue = self.core.queue(index);
        let exists = index < self.core.queue_count();
        let device_features =
            half(self.device_features_select).map_or(0, |half| self.core.offered_features(half));
        let driver_features =
            half(self.driver_features_select).map_or(0, |half| self.core.accepted_features(half));
        let [generation, ..] = self.core.config_generation().to_le_bytes();
        let queues = u16::try_from(self.core.queue_count()).unwrap_or(NO_VECTOR);

        let mut bytes = [0; COMMON_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(
            DEVICE_FEATURE_SELECT,
            &self.device_features_select.to_le_bytes(),
        );
        put(DEVICE_FEATURE, &device_features.to_le_bytes());
        put(
            DRIVER_FEATURE_SELECT,
            &self.driver_features_select.to_le_bytes(),
        );
        put(DRIVER_FEATURE, &driver_features.to_le_bytes());
        put(
            CONFIG_MSIX_VECTOR,
            &self.signals.config_vector().to_le_bytes(),
        );
        put(NUM_QUEUES, &queues.to_le_bytes());
        put(DEVICE_STATUS, &[self.core.status()]);
        put(CONFIG_GENERATION, &[generation]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(QUEUE_SIZE, &queue.size.to_le_bytes());
        put(
            QUEUE_MSIX_VECTOR,
            &self.signals.queue_vector(index).to_le_bytes(),
        );
        put(QUEUE_ENABLE, &u16::from(queue.ready).to_le_bytes());
        if exists {
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        }
        put(QUEUE_DESC, &queue.desc.to_le_bytes());
        put(QUEUE_DRIVER, &queue.avail.to_le_bytes());
        put(QUEUE_DEVICE, &queue.used.to_le_bytes());
        // QUEUE_RESET: a reset has ended when its write has.
        bytes
    }

    /// Fields are written whole, but for the addresses of 64 bits, which may be written in two halves
    /// (section 4.1.3.1).
    fn write_common(&mut self, offset: usize, data: &[u8]) {
        match *data {
            [value] if offset == DEVICE_STATUS => self.set_status(value),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_double_word(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                self.write_address(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_address(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) {
        self.core.set_status(value);
        if value == 0 {
            self.signals.reset();
        }
    }

    fn write_word(&mut self, offset: usize, value: u16) {
        let queue = usize::from(self.queue_select);
        match offset {
            CONFIG_MSIX_VECTOR => self.signals.set_config_vector(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_SIZE => self.core.set_queue_size(queue, value),
            QUEUE_MSIX_VECTOR => self.signals.set_queue_vector(queue, value),
            // A driver takes a queue away by resetting it, and not here (section 4.1.4.3.2).
            QUEUE_ENABLE if value == 1 => self.core.set_queue_ready(queue, true),
            QUEUE_RESET if value == 1 => self.core.reset_queue(queue),
            _ => {}
        }
    }

    fn write_double_word(&mut self, offset: usize, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_features_select = value,
            DRIVER_FEATURE_SELECT => self.driver_features_select = value,
            DRIVER_FEATURE => {
                if let Some(half) = half(self.driver_features_select) {
                    self.core.accept_features(half, value);
                }
            }
            _ => self.write_address(offset, value),
        }
    }

    /// Writes half of a queue's address.
    fn write_address(&mut self, offset: usize, value: u32) {
        let half = match offset % 8 {
            0 => Half::Low,
            4 => Half::High,
            _ => return,
        };
        let ring = match offset & !7 {
            QUEUE_DESC => Ring::Desc,
            QUEUE_DRIVER => Ring::Avail,
            QUEUE_DEVICE => Ring::Used,
            _ => return,
        };
        self.core
            .set_queue_address(self.queue_select.into(), ring, half, value);
    }

    /// Reads the memory of BAR 0.
    fn read_memory(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        match Register::at(offset) {
            Some(Register::Common(offset)) => {
                let common = self.common();
                for (to, from) in data.iter_mut().zip(common.iter().skip(offset)) {
                    *to = *from;
                }
            }
            Some(Register::Isr) => {
                if let Some(first) = data.first_mut() {
                    *first = self.signals.take_isr();
                }
            }
            Some(Register::Config(offset)) => self.core.read_config(offset, data),
            Some(Register::Table(offset)) => self.msix.read_table(offset, data),
            Some(Register::Pending(offset)) => self.msix.read_pending(offset, data),
            Some(Register::Notify(_)) | None => {}
        }
    }

    /// Writes to it.
    fn write_memory(&mut self, offset: u32, data: &[u8]) {
        match Register::at(offset) {
            Some(Register::Common(offset)) => self.write_common(offset, data),
            Some(Register::Notify(queue)) => self.core.kick(queue),
            Some(Register::Config(offset)) => self.core.write_config(offset, data),
            Some(Register::Table(offset)) => self.msix.write_table(offset, data),
            Some(Register::Isr | Register::Pending(_)) | None => {}
        }
    }

    /// Whether an access to configuration space is one to the window's data, and where in the memory
    /// that is, and how many bytes.
    fn window_access(&self, offset: u16, len: usize) -> Option<(u32, usize)> {
        let data = self.layout.window + WINDOW_DATA;
        let end = usize::from(offset) + len;
        if end <= data.into() || offset >= data + WINDOW_DATA_SIZE {
            return None;
        }
        let [bar, ..] = self
            .space
            .register(self.layout.window + WINDOW_BAR)
            .to_le_bytes();
        let offset = self.space.register(self.layout.window + WINDOW_OFFSET);
        let length = self.space.register(self.layout.window + WINDOW_LENGTH);
        let is_good = bar == 0
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && offset < BAR_SIZE;
        is_good.then_some((offset, length as usize))
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if let Some((memory, len)) = self.window_access(offset, data.len()) {
            let mut bytes = [0; WINDOW_DATA_SIZE as usize];
            self.read_memory(memory, &mut bytes[..len]);
            self.space
                .set(self.layout.window + WINDOW_DATA, &bytes[..len]);
        }
        self.space.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
        if let Some((memory, len)) = self.window_access(offset, data.len()) {
            let bytes = self
                .space
                .register(self.layout.window + WINDOW_DATA)
                .to_le_bytes();
            self.write_memory(memory, &bytes[..len]);
        }
        self.follow_space();
    }

    /// Configuration space has changed.
    fn follow_space(&mut self) {
        let [_, _, low, high] = self.space.register(self.layout.msix).to_le_bytes();
        self.msix.set_control(u16::from_le_bytes([low, high]));
        self.signals.set_msix_enabled(self.msix.is_enabled());
        self.place();
    }

    /// Stops the device and lets go of all that is outside; then the device goes.
    fn end(mut self) {
        self.set_status(0);
        if let Some(window) = self.window.take()
            && self.placed.take().is_some()
        {
            window.place(None);
        }
        self.msix.reset();
        self.vectors.release();
    }
}

/// What an address of the memory is.
enum Register {
    Common(usize),
    Isr,
    Config(u64),
    Notify(usize),
    Table(u64),
    Pending(u64),
}

impl Register {
    fn at(offset: u32) -> Option<Self> {
        let within = |start, size| offset.checked_sub(start).filter(|offset| *offset < size);
        #[expect(clippy::cast_possible_truncation, reason = "small constants")]
        let (table, pending, common) = (
            msix::TABLE_MAX_SIZE as u32,
            msix::PENDING_MAX_SIZE as u32,
            COMMON_SIZE as u32,
        );
        if let Some(offset) = within(COMMON, common) {
            Some(Self::Common(offset as usize))
        } else if offset == ISR {
            Some(Self::Isr)
        } else if let Some(offset) = within(CONFIG, CONFIG_SIZE) {
            Some(Self::Config(offset.into()))
        } else if let Some(offset) = within(NOTIFY, NOTIFY_SIZE) {
            Some(Self::Notify((offset / NOTIFY_STRIDE) as usize))
        } else if let Some(offset) = within(TABLE, table) {
            Some(Self::Table(offset.into()))
        } else {
            within(PENDING, pending).map(|offset| Self::Pending(offset.into()))
        }
    }
}

impl BusDevice for PciDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (&mut self.0, u32::try_from(offset)) {
            (Some(plugged), Ok(offset)) => plugged.read_memory(offset, data),
            _ => data.fill(NOBODY),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(plugged), Ok(offset)) = (&mut self.0, u32::try_from(offset)) {
            plugged.write_memory(offset, data);
        }
    }
}

impl Function for PciDevice {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        match &mut self.0 {
            Some(plugged) => plugged.read_config(offset, data),
            None => data.fill(NOBODY),
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some(plugged) = &mut self.0 {
            plugged.write_config(offset, data);
        }
    }

    fn unplug(&mut self) {
        if let Some(plugged) = self.0.take() {
            plugged.end();
        }
    }
}

/// What the function is to a guest that does not know virtio.
fn identity(kind: Kind) -> Identity {
    let class = match kind {
        // Mass storage, network and communication controllers, neither of a more special kind.
        Kind::Block => 0x01_80_00,
        Kind::Net => 0x02_00_00,
        Kind::Console | Kind::Vsock => 0x07_80_00,
        // What PCI has no class for, or one that a driver of real hardware would look at.
        Kind::Entropy | Kind::Balloon | Kind::Mem | Kind::Pmem => 0xff_00_00,
    };
    let device = DEVICE_BASE + kind as u16;
    Identity {
        vendor: VENDOR,
        device,
        revision: REVISION,
        class,
        subsystem: (VENDOR, device),
    }
}

fn add_capabilities(space: &mut Space, msix: &Msix) -> Option<Layout> {
    #[expect(clippy::cast_possible_truncation, reason = "small constants")]
    let common_size = COMMON_SIZE as u32;
    let plain = [
        (TYPE_COMMON, COMMON, common_size),
        (TYPE_ISR, ISR, 1),
        (TYPE_DEVICE, CONFIG, CONFIG_SIZE),
    ];
    for (kind, offset, length) in plain {
        space.add_capability(CAPABILITY_ID, &capability(kind, offset, length, None), &[])?;
    }
    let notify = capability(TYPE_NOTIFY, NOTIFY, NOTIFY_SIZE, Some(NOTIFY_STRIDE));
    space.add_capability(CAPABILITY_ID, &notify, &[])?;

    let window = capability(TYPE_PCI, 0, 0, Some(0));
    let mut writable = [0; 18];
    // Less the two bytes before the body: the BAR, and all from the offset on.
    writable[usize::from(WINDOW_BAR) - 2] = 0xff;
    writable[usize::from(WINDOW_OFFSET) - 2..].fill(0xff);
    let window = space.add_capability(CAPABILITY_ID, &window, &writable)?;

    let (body, writable) = msix.capability(TABLE, PENDING);
    let msix = space.add_capability(msix::CAPABILITY_ID, &body, &writable)?;
    Some(Layout { msix, window })
}

/// The body of a virtio capability: a place in BAR 0 (section 4.1.4), and what some have after it.
fn capability(kind: u8, offset: u32, length: u32, more: Option<u32>) -> Vec<u8> {
    let size: u8 = if more.is_some() { 20 } else { 16 };
    // Then BAR and id, both 0, and two reserved bytes.
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    body
}

/// Which half of the features a selector means; there are none beyond 64.
fn half(select: u32) -> Option<Half> {
    match select {
        0 => Some(Half::Low),
        1 => Some(Half::High),
        _ => None,
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
