//! As much of the keyboard controller as restarts a PC: the reset line.
//!
//! Status reads as "nothing to read, ready for a command", so that a driver that writes a command does
//! not wait; with nothing ever to read it finds no controller and goes away.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// Offset of the command port from the data port.
const COMMAND: u64 = 4;
/// Pulses output line 0, which is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;

/// The controller.
pub struct I8042 {
    sink: Arc<dyn EventSink>,
}

impl I8042 {
    /// A controller that reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [PULSE_RESET] {
            self.sink.event(GuestEvent::Reset);
        }
    }
}
