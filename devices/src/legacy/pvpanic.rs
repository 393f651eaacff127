//! pvpanic: a guest whose kernel crashes says so (QEMU's docs/specs/pvpanic), console or no console.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};

/// The guest panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;

/// The port: a read tells what it understands.
pub struct PvPanic {
    sink: Arc<dyn EventSink>,
}

impl PvPanic {
    /// A port that reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED;
        }
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if let [value] = *data
            && value & PANICKED != 0
        {
            self.sink.event(GuestEvent::Panicked);
        }
    }
}
