//! What a guest tells the monitor through a device.

/// Something that the guest wants the monitor to know or to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a restart.
    Reset,
    /// The guest's kernel panicked and goes on no further.
    Panicked,
    /// The guest reached the point of its boot that it gives this number.
    BootTimer(u8),
    /// The guest's first process waits for a job.
    Waits,
    /// The guest's job has ended with this status.
    Done(u8),
}

/// Takes a guest's events. A device calls it on the vCPU thread with its own lock held, as often as
/// the guest likes: it must not block, and what it keeps must be bounded.
pub trait EventSink: Send + Sync {
    /// The guest has caused `event`.
    fn event(&self, event: GuestEvent);
}

#[cfg(test)]
pub(crate) mod test_support {
    use std::sync::{Arc, Mutex};

    use super::{EventSink, GuestEvent};

    /// Remembers events.
    #[derive(Default)]
    pub(crate) struct Recorder(Mutex<Vec<GuestEvent>>);

    impl Recorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// The events since the last call.
        pub(crate) fn take(&self) -> Vec<GuestEvent> {
            std::mem::take(&mut crate::lock(&self.0))
        }
    }

    impl EventSink for Recorder {
        fn event(&self, event: GuestEvent) {
            crate::lock(&self.0).push(event);
        }
    }
}
