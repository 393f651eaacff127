//! A port through which a guest marks a point of its boot: one byte, the number of the point.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The port, at offset 0.
pub struct BootTimer {
    // Runtime glue.
    sink: Arc<dyn EventSink>,
}

impl BootTimer {
    /// A port that reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[value, ..]) = (offset, data) {
            self.sink.event(GuestEvent::BootTimer(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::test_support::Recorder;

    #[test]
    fn a_byte_is_a_mark() {
        let events = Recorder::new();
        let mut timer = BootTimer::new(events.clone());
        timer.write(0, &[123]);
        timer.write(0, &[]);
        timer.write(1, &[5]);
        assert_eq!(events.take(), [GuestEvent::BootTimer(123)]);
        let mut data = [0xaa];
        timer.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
