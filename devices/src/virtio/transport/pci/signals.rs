//! Which vectors the driver wants for what, and why it was interrupted: what the transport and all that
//! interrupt have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::msix::{self, MsiVectors};
use crate::virtio::interrupt::Deliver;

/// No vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
pub(super) const ISR_CONFIG: u8 = 1 << 1;

/// What the driver wants, and has not heard of yet.
pub(super) struct Signals {
    // Runtime glue.
    vectors: Arc<dyn MsiVectors>,

    // Volatile state.
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    pub(super) isr: AtomicU8,
    msix_enabled: AtomicBool,
}

impl Signals {
    pub(super) fn new(vectors: Arc<dyn MsiVectors>, queues: usize) -> Self {
        Self {
            vectors,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            msix_enabled: AtomicBool::new(false),
        }
    }

    pub(super) fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Release);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
    }

    pub(super) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn set_msix_enabled(&self, enabled: bool) {
        self.msix_enabled.store(enabled, Ordering::Release);
    }

    /// A vector that there is, or none: that is how the driver learns that there is none such (section
    /// 4.1.5.1.2.1).
    pub(super) fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) <= self.queues.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Release);
    }

    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        let queue = self.queues.get(queue);
        queue.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(queue) = self.queues.get(queue) {
            queue.store(self.existing(vector), Ordering::Release);
        }
    }

    /// Why the driver was interrupted; reading it ends that.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn note(&self, cause: u8) {
        self.isr.fetch_or(cause, Ordering::AcqRel);
    }
}

/// The device's hold on them.
pub(super) struct Delivery(pub(super) Arc<Signals>);

impl Deliver for Delivery {
    fn used(&self, index: u16) {
        let vector = self.0.queue_vector(index.into());
        if vector != NO_VECTOR {
            msix::signal(&*self.0.vectors, vector.into());
        }
        // Section 4.1.4.5.1: this bit is for a driver without MSI-X only.
        if !self.0.msix_enabled.load(Ordering::Acquire) {
            self.0.note(ISR_QUEUE);
        }
    }

    fn config(&self) {
        self.0.note(ISR_CONFIG);
        let vector = self.0.config_vector();
        if vector != NO_VECTOR {
            msix::signal(&*self.0.vectors, vector.into());
        }
    }

    fn used_fd(&self, index: u16) -> Option<Arc<EventFd>> {
        let vector = self.0.queue_vector(index.into());
        self.0.vectors.fd(vector.into()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::msix::test_support::Vectors;

    #[test]
    fn the_host_may_serve_a_queue_and_interrupt_itself() {
        let signals = Arc::new(Signals::new(Vectors::new(3), 2));
        let delivery = Delivery(Arc::clone(&signals));
        assert!(delivery.used_fd(1).is_none());
        signals.set_queue_vector(1, 2);
        let fd = delivery.used_fd(1).unwrap();
        assert!(Arc::ptr_eq(&fd, signals.vectors.fd(2).unwrap()));
        assert!(delivery.used_fd(2).is_none());
    }
}
