//! The generic event device's register (ACPI 6.5, section 5.6.9): an interrupt, and a port that tells
//! what happened. The method that reads it is in the DSDT.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// The power button was pressed.
const POWER_BUTTON: u32 = 1 << 0;

/// The register.
pub struct Ged {
    line: Arc<dyn InterruptLine>,
    pending: u32,
}

impl Ged {
    /// A register that interrupts by `line`.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line, pending: 0 }
    }

    /// Tells the guest that the power button was pressed.
    pub fn press_power_button(&mut self) {
        self.pending |= POWER_BUTTON;
        self.line.set(true);
    }
}

impl BusDevice for Ged {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.pending.to_le_bytes());
            self.pending = 0;
            self.line.set(false);
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        // Read-only.
    }
}
