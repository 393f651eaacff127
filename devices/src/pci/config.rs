//! Configuration space of a function (PCI Local Bus 3.0, chapter 6; header type 0): what it is, where
//! its memory is, and what else it can do.

use serde::{Deserialize, Serialize};

use crate::state::BadState;

/// Bytes of a PCI Express function's configuration space.
pub const EXTENDED_SIZE: usize = 4096;
/// Bytes of it that are a conventional PCI function's. All that a [`Space`] has is in there, and the
/// rest reads as 0: there are no extended capabilities.
pub const SIZE: usize = 256;
/// What is read where there is no function.
pub const NOBODY: u8 = 0xff;

// Registers, as offsets.
const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_ID: usize = 0x08;
const CLASS_CODE: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the header ends, and the first capability goes.
const HEADER_SIZE: usize = 0x40;

/// The function answers at its memory addresses.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What they call it.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class and programming interface, from the highest byte down, in 24 bits.
    pub class: u32,
    /// Who made the card that it is on, and what they call it.
    pub subsystem: (u16, u16),
}

/// What the guest has made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceState(Vec<u8>);

/// The first 256 bytes, and which bits of them the guest can change.
pub struct Space {
    // Fixed configuration.
    writable: [u8; SIZE],
    /// Size of the memory behind BAR 0; 0 without one.
    bar_size: u32,
    /// Where the next capability goes.
    end: usize,

    // Volatile state.
    bytes: [u8; SIZE],
}

impl Space {
    /// Configuration space without memory or capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            writable: [0; SIZE],
            bar_size: 0,
            end: HEADER_SIZE,
            bytes: [0; SIZE],
        };
        let [interface, sub_class, base_class, _] = identity.class.to_le_bytes();
        space.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.put(DEVICE_ID, &identity.device.to_le_bytes());
        space.put(REVISION_ID, &[identity.revision]);
        space.put(CLASS_CODE, &[interface, sub_class, base_class]);
        space.put(SUBSYSTEM_VENDOR_ID, &identity.subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM_ID, &identity.subsystem.1.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        // Both mean nothing here and are kept for the guest (PCI Express Base 5.0, section 7.5.1.1).
        space.allow(CACHE_LINE_SIZE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds BAR 0: `size` bytes of 32-bit memory, not prefetchable, that are at `address` first. The
    /// size is a power of two of 16 or more; the address is a multiple of it.
    pub fn add_bar(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16 && address.is_multiple_of(size));
        self.bar_size = size;
        self.put(BAR0, &address.to_le_bytes());
        // What cannot be written is 0, and tells the size.
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability, or leaves it out if there is no room for it: `body` is what comes after its
    /// id and the pointer to the next one, of which the bits in `writable` can be written. Returns where
    /// it is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let start = self.end;
        let end = (start + 2 + body.len()).next_multiple_of(4);
        if end > SIZE {
            return None;
        }
        // The newest comes first: the list ends with the one that was added first.
        let [start_byte, ..] = start.to_le_bytes();
        self.put(start, &[id, self.bytes[CAPABILITIES_POINTER]]);
        self.put(start + 2, body);
        self.allow(start + 2, &writable[..writable.len().min(body.len())]);
        self.put(CAPABILITIES_POINTER, &[start_byte]);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.end = end;
        u16::try_from(start).ok()
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }

    /// Fills `data` with what there is from `offset` on, and zeroes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let from = self.bytes.iter().skip(offset.into());
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    /// Changes the bits that the guest can change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let to = self.bytes.iter_mut().zip(&self.writable);
        for ((to, writable), from) in to.skip(offset.into()).zip(data) {
            *to = *to & !writable | from & writable;
        }
    }

    /// Changes bytes that the guest may not be able to change; nothing beyond the end.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        let to = self.bytes.iter_mut().skip(offset.into());
        for (to, from) in to.zip(bytes) {
            *to = *from;
        }
    }

    /// See [`crate::state`].
    pub fn save(&self) -> SpaceState {
        SpaceState(self.bytes.to_vec())
    }

    /// See [`crate::state`]. Only what the guest can change is taken.
    pub fn restore(&mut self, state: &SpaceState) -> Result<(), BadState> {
        BadState::check_count("bytes of configuration space", state.0.len(), SIZE)?;
        self.write(0, &state.0);
        Ok(())
    }

    /// A register of 4 bytes; 0 beyond the end.
    pub fn register(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Where the memory of BAR 0 is, while the function answers there.
    pub fn bar(&self) -> Option<u32> {
        let command = u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]);
        let decodes = self.bar_size > 0 && command & COMMAND_MEMORY != 0;
        #[expect(clippy::cast_possible_truncation, reason = "0x10")]
        decodes.then(|| self.register(BAR0 as u16))
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
