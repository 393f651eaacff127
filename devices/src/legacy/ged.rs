//! The register behind ACPI's generic event device (ACPI 6.5, section 5.6.9): an interrupt, and one
//! 32-bit port that says what it is for. The method that reads the port is in the DSDT.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// The power button was pressed.
const POWER_BUTTON: u32 = 1 << 0;
/// A PCI function has come, or is to go: [`Hotplug`](crate::pci::hotplug::Hotplug) knows which.
const PCI_HOTPLUG: u32 = 1 << 1;
/// The VM generation ID has changed.
const GENERATION_ID: u32 = 1 << 2;

/// The register.
pub struct Ged {
    // Runtime glue.
    line: Arc<dyn InterruptLine>,

    // Volatile state.
    /// Events that the guest has not read, one bit each. The line is asserted while there are any.
    pending: u32,
}

impl Ged {
    /// A register that interrupts by `line`.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line, pending: 0 }
    }

    /// Tells the guest that the power button was pressed. A guest that has not read of the last time
    /// hears of it once.
    pub fn press_power_button(&mut self) {
        self.raise(POWER_BUTTON);
    }

    /// Tells the guest to look at its PCI slots.
    pub fn announce_pci_hotplug(&mut self) {
        self.raise(PCI_HOTPLUG);
    }

    /// Tells the guest that it goes on from what others may go on from as well.
    pub fn announce_generation(&mut self) {
        self.raise(GENERATION_ID);
    }

    /// See [`crate::state`]: events that the guest has not read.
    pub fn save(&self) -> u32 {
        self.pending
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, pending: u32) {
        self.pending = pending;
    }

    fn raise(&mut self, event: u32) {
        self.pending |= event;
        self.line.set(true);
    }
}

impl BusDevice for Ged {
    /// Reads and clears. A read of a part of the register leaves the rest pending.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut bytes = self.pending.to_le_bytes();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(bytes.iter_mut().skip(skip)) {
            *to = std::mem::take(from);
        }
        self.pending = u32::from_le_bytes(bytes);
        if self.pending == 0 {
            self.line.set(false);
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        // Read-only.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::test_support::Line;

    fn read(ged: &mut Ged, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        ged.read(offset, &mut data);
        data
    }

    #[test]
    fn a_press_interrupts_until_it_is_read() {
        let line = Line::new();
        let mut ged = Ged::new(line.clone());
        assert_eq!(read(&mut ged, 0, 4), [0; 4]);
        ged.press_power_button();
        ged.press_power_button();
        assert_eq!(line.take_edges(), 1);
        assert_eq!(read(&mut ged, 0, 4), [1, 0, 0, 0]);
        assert!(!line.is_asserted());
        assert_eq!(read(&mut ged, 0, 4), [0; 4]);
        ged.press_power_button();
        assert_eq!(line.take_edges(), 1);
    }

    #[test]
    fn events_are_told_apart() {
        let line = Line::new();
        let mut ged = Ged::new(line.clone());
        ged.announce_pci_hotplug();
        assert!(line.is_asserted());
        assert_eq!(read(&mut ged, 0, 4), [2, 0, 0, 0]);
        ged.announce_pci_hotplug();
        ged.press_power_button();
        ged.announce_generation();
        assert_eq!(read(&mut ged, 0, 4), [7, 0, 0, 0]);
        assert!(!line.is_asserted());
    }

    #[test]
    fn a_partial_read_clears_what_it_read() {
        let line = Line::new();
        let mut ged = Ged::new(line.clone());
        ged.press_power_button();
        ged.write(0, &[0; 4]);
        assert_eq!(read(&mut ged, 1, 4), [0; 4]);
        assert_eq!(read(&mut ged, u64::MAX, 4), [0; 4]);
        assert!(line.is_asserted());
        assert_eq!(read(&mut ged, 0, 1), [1]);
        assert!(!line.is_asserted());
    }
}
