//! How a device interrupts the guest.

/// A wire from a device to an input of the IOAPIC.
///
/// It carries a level. Whether the guest hears of the level or of its rising edge is what the guest
/// has programmed in the IOAPIC; a device only says whether it has something to report. Setting the
/// level that it already has does nothing.
pub trait InterruptLine: Send + Sync {
    /// Asserts or deasserts the line. May be called with the device's own lock held.
    fn set(&self, asserted: bool);
}

/// A message-signalled interrupt: a write of `data` to `address` (Intel SDM volume 3, section
/// "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Which local APICs take it, `0xfee0_0000` and up.
    pub address: u64,
    /// Vector, delivery mode and trigger mode.
    pub data: u32,
}

/// Takes the IOAPIC's interrupts to the local APICs. Called with the IOAPIC's lock held, often with
/// a device's as well: it must not call back into any of them.
pub trait MsiSink: Send + Sync {
    /// Delivers `message` once.
    fn signal(&self, message: MsiMessage);

    /// Says what `pin` means from now on: `message`, or nothing. For a level-triggered input, so that
    /// its end of interrupt is reported (`IoApic::eoi`); for one that an eventfd asserts, so that the
    /// eventfd sends it. Any other never causes a call, as this is slow (KVM waits for an RCU grace
    /// period).
    fn route(&self, pin: u32, message: Option<MsiMessage>);
}

#[cfg(test)]
pub(crate) mod test_support {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::{InterruptLine, MsiMessage, MsiSink};

    /// A line that counts its rising edges.
    #[derive(Default)]
    pub(crate) struct Line {
        asserted: AtomicBool,
        edges: AtomicUsize,
    }

    impl Line {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        pub(crate) fn is_asserted(&self) -> bool {
            self.asserted.load(Ordering::SeqCst)
        }

        /// Rising edges since the last call.
        pub(crate) fn take_edges(&self) -> usize {
            self.edges.swap(0, Ordering::SeqCst)
        }
    }

    impl InterruptLine for Line {
        fn set(&self, asserted: bool) {
            if asserted && !self.asserted.swap(asserted, Ordering::SeqCst) {
                self.edges.fetch_add(1, Ordering::SeqCst);
            }
            self.asserted.store(asserted, Ordering::SeqCst);
        }
    }

    /// What an [`MsiRecorder`] was told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Call {
        Signal(MsiMessage),
        Route(u32, Option<MsiMessage>),
    }

    /// Remembers calls.
    #[derive(Default)]
    pub(crate) struct MsiRecorder(Mutex<Vec<Call>>);

    impl MsiRecorder {
        pub(crate) fn new() -> Arc<Self> {
            Arc::default()
        }

        /// The calls since the last one to this.
        pub(crate) fn take(&self) -> Vec<Call> {
            std::mem::take(&mut crate::lock(&self.0))
        }
    }

    impl MsiSink for MsiRecorder {
        fn signal(&self, message: MsiMessage) {
            crate::lock(&self.0).push(Call::Signal(message));
        }

        fn route(&self, pin: u32, message: Option<MsiMessage>) {
            crate::lock(&self.0).push(Call::Route(pin, message));
        }
    }
}
