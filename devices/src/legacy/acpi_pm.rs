//! Power off and restart as hardware-reduced ACPI has them: sleep control and sleep status register
//! (ACPI 6.5, section 4.8.3.7) and the reset register (section 4.8.3.6), one byte each.

use std::sync::Arc;

use crate::bus::{BusDevice, byte_offsets};
use crate::event::{EventSink, GuestEvent};

// Registers, as offsets.
const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;

/// SLP_EN: enter the sleep state. Reads as 0.
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYP
const SLEEP_TYPE: u8 = 7 << 2;
/// What the DSDT's `_S5` says, and no other object says anything.
const SLEEP_TYPE_S5: u8 = 5 << 2;
/// What the FADT says has to be written to the reset register.
const RESET_VALUE: u8 = 1;

/// The registers.
pub struct AcpiPm {
    // Runtime glue.
    sink: Arc<dyn EventSink>,

    // Volatile state.
    sleep_type: u8,
}

impl AcpiPm {
    /// Registers that report to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self {
            sink,
            sleep_type: 0,
        }
    }

    /// See [`crate::state`]: the sleep type.
    pub fn save(&self) -> u8 {
        self.sleep_type
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, sleep_type: u8) {
        self.sleep_type = sleep_type & SLEEP_TYPE;
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match offset {
            SLEEP_CONTROL => {
                self.sleep_type = value & SLEEP_TYPE;
                // Sleep types that no ACPI object announces are ignored.
                if value & SLEEP_ENABLE != 0 && self.sleep_type == SLEEP_TYPE_S5 {
                    self.sink.event(GuestEvent::PowerOff);
                }
            }
            RESET if value == RESET_VALUE => self.sink.event(GuestEvent::Reset),
            // SLEEP_STATUS: WAK_STS, which a write clears, is never set in a machine that cannot sleep.
            _ => {}
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in byte_offsets(offset).zip(data) {
            *byte = if offset == SLEEP_CONTROL {
                self.sleep_type
            } else {
                0
            };
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
    use crate::event::test_support::Recorder;

    const SLEEP_STATUS: u64 = 1;
    const WAKE_STATUS: u8 = 1 << 7;

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_nothing() {
        let events = Recorder::new();
        let mut pm = AcpiPm::new(events.clone());
        // As Linux does it: clear the wake status, then go to sleep.
        pm.write(SLEEP_STATUS, &[WAKE_STATUS]);
        for sleep_type in [0, 1, 2, 3, 4, 6, 7] {
            pm.write(SLEEP_CONTROL, &[sleep_type << 2 | SLEEP_ENABLE]);
        }
        pm.write(SLEEP_CONTROL, &[SLEEP_TYPE_S5]);
        assert_eq!(events.take(), []);
        pm.write(SLEEP_CONTROL, &[SLEEP_TYPE_S5 | SLEEP_ENABLE]);
        assert_eq!(events.take(), [GuestEvent::PowerOff]);
        let mut data = [0xaa; 3];
        pm.read(SLEEP_CONTROL, &mut data);
        assert_eq!(data, [SLEEP_TYPE_S5, 0, 0]);
    }

    #[test]
    fn the_reset_value_resets() {
        let events = Recorder::new();
        let mut pm = AcpiPm::new(events.clone());
        pm.write(RESET, &[0]);
        pm.write(RESET, &[3]);
        assert_eq!(events.take(), []);
        pm.write(RESET, &[RESET_VALUE]);
        pm.write(SLEEP_STATUS, &[0, RESET_VALUE]);
        assert_eq!(events.take(), [GuestEvent::Reset, GuestEvent::Reset]);
    }
}
