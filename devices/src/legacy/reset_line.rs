//! As much of the PC's keyboard controller as restarts the machine: its output line 0, wired to the
//! CPU's reset. For machines without a keyboard; [`I8042`](super::i8042::I8042) is all of it.
//!
//! The status port always says that a command is welcome (input buffer empty) and that there is a
//! byte to read (output buffer full). The first lets Linux's `reboot=k` go ahead: it waits up to
//! 131 ms for it, which all ones, as from a port without a device, would make it do. The second is for
//! a driver that looks for a controller: Linux's throws away up to 16 bytes and, as there are still
//! more, knows after 1 ms that there is none. With a plausible status it would send commands and wait
//! half a second for an answer to the first.

use std::sync::Arc;

use crate::bus::{BusDevice, byte_offsets};
use crate::event::{EventSink, GuestEvent};

// Ports, as offsets. The ones in between are not the controller's and behave as if they were not
// mapped: Linux may poll bit 5 of port 0x61 (timer 2) until it is set.
const DATA: u64 = 0;
const STATUS: u64 = 4;
const COMMAND: u64 = 4;

const OUTPUT_BUFFER_FULL: u8 = 1 << 0;
/// Pulses output line 0.
const PULSE_RESET: u8 = 0xfe;

/// The line: 5 ports from 0x60 on.
pub struct ResetLine {
    // Runtime glue.
    sink: Arc<dyn EventSink>,
}

impl ResetLine {
    /// A line that reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for ResetLine {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in byte_offsets(offset).zip(data) {
            *byte = match offset {
                DATA => 0,
                STATUS => OUTPUT_BUFFER_FULL,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for write in byte_offsets(offset).zip(data) {
            if let (COMMAND, &PULSE_RESET) = write {
                self.sink.event(GuestEvent::Reset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::test_support::Recorder;

    fn read(i8042: &mut ResetLine, offset: u64) -> u8 {
        let mut data = [0xaa];
        i8042.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn linux_restarts_by_it() {
        let events = Recorder::new();
        let mut i8042 = ResetLine::new(events.clone());
        // kb_wait(): goes on when the input buffer is empty.
        assert_eq!(read(&mut i8042, STATUS) & 0x02, 0);
        i8042.write(COMMAND, &[0xd1]);
        i8042.write(DATA, &[PULSE_RESET]);
        assert_eq!(events.take(), []);
        i8042.write(COMMAND, &[PULSE_RESET]);
        assert_eq!(events.take(), [GuestEvent::Reset]);
    }

    #[test]
    fn linux_finds_no_keyboard_controller() {
        let mut i8042 = ResetLine::new(Recorder::new());
        // i8042_flush(): fails, and the driver gives up, when 16 bytes do not empty the buffer.
        let mut bytes = 0;
        while bytes <= 16 && read(&mut i8042, STATUS) & 0x01 != 0 {
            read(&mut i8042, DATA);
            bytes += 1;
        }
        assert!(bytes > 16);
    }

    #[test]
    fn the_ports_in_between_are_not_mapped() {
        let mut i8042 = ResetLine::new(Recorder::new());
        let mut data = [0; 5];
        i8042.read(DATA, &mut data);
        assert_eq!(data, [0, 0xff, 0xff, 0xff, OUTPUT_BUFFER_FULL]);
    }
}
