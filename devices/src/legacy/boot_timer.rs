//! A port through which a guest marks a point of its boot.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The port.
pub struct BootTimer {
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

    fn write(&mut self, _: u64, data: &[u8]) {
        if let [value] = *data {
            self.sink.event(GuestEvent::BootTimer(value));
        }
    }
}
