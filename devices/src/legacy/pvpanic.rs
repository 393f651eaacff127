//! pvpanic: a guest whose kernel crashes says so (QEMU's docs/specs/pvpanic.rst), console or no
//! console.
//!
//! Only `PANICKED` is announced. The other events say that a crash kernel goes on (`CRASH_LOADED`) or
//! that an orderly shutdown follows: there would be nothing to do for them, and a guest does not send
//! what is not announced.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The guest panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;

/// The port, at offset 0: a read gives the events it understands, a write reports events.
pub struct PvPanic {
    // Runtime glue.
    sink: Arc<dyn EventSink>,
}

impl PvPanic {
    /// A port that reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, [events, ..]) = (offset, data) {
            *events = PANICKED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[events, ..]) = (offset, data)
            && events & PANICKED != 0
        {
            self.sink.event(GuestEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::test_support::Recorder;

    #[test]
    fn it_announces_and_reports_a_panic_and_nothing_else() {
        let events = Recorder::new();
        let mut pvpanic = PvPanic::new(events.clone());
        let mut data = [0xaa];
        pvpanic.read(0, &mut data);
        assert_eq!(data, [PANICKED]);
        pvpanic.write(0, &[0xfe]);
        pvpanic.write(1, &[PANICKED]);
        assert_eq!(events.take(), []);
        pvpanic.write(0, &[PANICKED]);
        assert_eq!(events.take(), [GuestEvent::Panicked]);
    }
}
