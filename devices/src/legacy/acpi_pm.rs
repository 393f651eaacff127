//! Power off and restart as hardware-reduced ACPI has them (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// Registers, as offsets: one byte each.
const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = 1;
const RESET: u64 = 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// What `_S5` says.
const SLEEP_TYPE_S5: u8 = 5;
/// What the FADT says.
const RESET_VALUE: u8 = 1;

/// The registers.
pub struct AcpiPm {
    sink: Arc<dyn EventSink>,
}

impl AcpiPm {
    /// Registers that report to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // Nothing sleeps, so nothing wakes up: the status is always 0.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else {
            return;
        };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                self.sink.event(GuestEvent::PowerOff);
            }
            RESET if value == RESET_VALUE => self.sink.event(GuestEvent::Reset),
            // Other sleep types are not announced; the status has nothing to clear.
            SLEEP_CONTROL | SLEEP_STATUS | RESET => {}
            _ => {}
        }
    }
}
