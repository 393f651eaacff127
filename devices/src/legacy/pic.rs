//! As much of an 8259 interrupt controller (Intel 8259A datasheet) as a kernel needs to believe in
//! it: the mask register reads back what was written. It delivers nothing, interrupts come by the
//! IOAPIC; but a Linux that finds no 8259 has no legacy interrupts, and without ACPI those are all
//! that it gives to devices.

use crate::bus::{BusDevice, byte_offsets};

// Ports, as offsets.
const COMMAND: u64 = 0;
const DATA: u64 = 1;

/// In a byte written to the command port: this is ICW1, the start of an initialization.
const ICW1: u8 = 1 << 4;
/// In ICW1: there is no ICW3.
const ICW1_SINGLE: u8 = 1 << 1;
/// In ICW1: there is an ICW4.
const ICW1_NEEDS_ICW4: u8 = 1 << 0;

/// One of the two controllers: 2 ports.
#[derive(Debug, Default)]
pub struct Pic {
    // Volatile state.
    mask: u8,
    /// How many of the next bytes to the data port belong to the initialization.
    initialization_words: u8,
}

impl Pic {
    /// See [`crate::state`]: the mask, and how many bytes of an initialization are to come.
    pub fn save(&self) -> (u8, u8) {
        (self.mask, self.initialization_words)
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, (mask, initialization_words): (u8, u8)) {
        self.mask = mask;
        self.initialization_words = initialization_words;
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match offset {
            COMMAND if value & ICW1 != 0 => {
                let icw3 = u8::from(value & ICW1_SINGLE == 0);
                let icw4 = u8::from(value & ICW1_NEEDS_ICW4 != 0);
                self.initialization_words = 1 + icw3 + icw4;
                self.mask = 0;
            }
            DATA if self.initialization_words > 0 => self.initialization_words -= 1,
            DATA => self.mask = value,
            // Ends of interrupts, and which register to read next: they are all empty.
            _ => {}
        }
    }
}

impl BusDevice for Pic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in byte_offsets(offset).zip(data) {
            *byte = if offset == DATA { self.mask } else { 0 };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, &byte) in byte_offsets(offset).zip(data) {
            self.write_byte(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(pic: &mut Pic) -> u8 {
        let mut data = [0xaa];
        pic.read(DATA, &mut data);
        data[0]
    }

    #[test]
    fn linux_finds_it() {
        // probe_8259A()
        let mut pic = Pic::default();
        pic.write(DATA, &[0xfb]);
        assert_eq!(mask(&mut pic), 0xfb);
        // init_8259A(): ICW1 to ICW4, then the mask.
        pic.write(COMMAND, &[0x11]);
        for word in [0x30, 0x04, 0x01] {
            pic.write(DATA, &[word]);
            assert_eq!(mask(&mut pic), 0);
        }
        pic.write(DATA, &[0xff]);
        assert_eq!(mask(&mut pic), 0xff);
    }

    #[test]
    fn nothing_is_ever_pending() {
        let mut pic = Pic::default();
        for command in [0x0a, 0x0b, 0x20, 0x60] {
            pic.write(COMMAND, &[command]);
            let mut data = [0xaa, 0xaa, 0xaa];
            pic.read(COMMAND, &mut data);
            assert_eq!(data, [0, 0, 0]);
        }
    }

    #[test]
    fn a_short_initialization_is_followed_by_the_mask() {
        let mut pic = Pic::default();
        pic.write(COMMAND, &[0x12, 0x30, 0x55]);
        assert_eq!(mask(&mut pic), 0);
        pic.write(DATA, &[0x55]);
        assert_eq!(mask(&mut pic), 0x55);
    }
}
