//! The way back to the driver: used buffers, changed configuration, a device that needs to be reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// How a transport interrupts. Called from any thread, at any time; must not block.
pub trait Deliver: Send + Sync {
    /// Queue `index` has used buffers.
    fn used(&self, index: u16);

    /// Configuration or status has changed.
    fn config(&self);

    /// An eventfd that does the same as [`Deliver::used`] when it is written to, for a queue that the
    /// host's kernel serves. None if the driver wants no interrupts for that queue.
    fn used_fd(&self, index: u16) -> Option<Arc<EventFd>>;
}

/// A device's interrupts, shared by all that may cause one.
#[derive(Clone)]
pub struct Interrupt(Arc<Shared>);

struct Shared {
    deliver: Box<dyn Deliver>,
    /// Counts changes of the configuration (section 2.5.1).
    generation: AtomicU32,
    /// DEVICE_NEEDS_RESET (section 2.1).
    needs_reset: AtomicBool,
}

impl Interrupt {
    /// Interrupts that are delivered like this.
    pub fn new(deliver: Box<dyn Deliver>) -> Self {
        Self(Arc::new(Shared {
            deliver,
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }))
    }

    /// Tells the driver that queue `index` has used buffers.
    pub fn used(&self, index: u16) {
        self.0.deliver.used(index);
    }

    /// See [`Deliver::used_fd`].
    pub fn used_fd(&self, index: u16) -> Option<Arc<EventFd>> {
        self.0.deliver.used_fd(index)
    }

    /// Tells the driver that the configuration has changed. To be called after it has.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.0.deliver.config();
    }

    /// Tells the driver that it has gone wrong so far that only a reset helps.
    pub fn needs_reset(&self) {
        if !self.0.needs_reset.swap(true, Ordering::AcqRel) {
            self.0.deliver.config();
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.0.needs_reset.load(Ordering::Acquire)
    }

    /// The device is as another one was.
    pub(super) fn restore(&self, generation: u32, needs_reset: bool) {
        self.0.generation.store(generation, Ordering::Release);
        self.0.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// The device was reset.
    pub(super) fn clear(&self) {
        self.0.needs_reset.store(false, Ordering::Release);
    }
}
