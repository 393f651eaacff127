//! As much of an 8259 as makes a kernel without ACPI believe in it: the mask register reads back what
//! was written. It delivers nothing; interrupts come by the IOAPIC.

use crate::bus::BusDevice;

/// Offset of the data port, which holds the mask outside of initialization.
const DATA: u64 = 1;

/// One of the two controllers.
#[derive(Debug, Default)]
pub struct Pic {
    mask: u8,
}

impl BusDevice for Pic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([value], DATA) = (data, offset) {
            *value = self.mask;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([value], DATA) = (data, offset) {
            self.mask = *value;
        }
    }
}
