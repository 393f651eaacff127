//! The other side of a device: a driver with queues in guest memory, an event loop on a thread of its
//! own, and the suite that every device goes through.

mod driver;
#[path = "../../../tests/common/event_loop.rs"]
mod event_loop;
mod lifecycle;
mod ring;

pub(crate) use driver::{Driver, ScratchBuffer};
pub(crate) use event_loop::TestLoop;
pub(crate) use lifecycle::{lifecycle_suite, suite};
pub(crate) use ring::{Desc, GuestQueue};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::Deliver;

/// After so long something hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Size of the guest's RAM: two regions of half as much, with a hole between them.
pub(crate) const MEMORY_SIZE: u64 = 32 << 20;
/// Where the hole is, and how large.
pub(crate) const HOLE: (u64, u64) = (MEMORY_SIZE / 2, 1 << 20);

/// Guest memory.
pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let half = (MEMORY_SIZE / 2) as usize;
    let ranges = [
        (GuestAddress(0), half),
        (GuestAddress(HOLE.0 + HOLE.1), half),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// Counts interrupts.
#[derive(Clone)]
pub(crate) struct Interrupts(Arc<Counts>);

struct Counts {
    used: [AtomicUsize; 64],
    config: AtomicUsize,
    used_fd: Arc<EventFd>,
}

impl Interrupts {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Counts {
            used: std::array::from_fn(|_| AtomicUsize::new(0)),
            config: AtomicUsize::new(0),
            used_fd: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }))
    }

    /// Interrupts of queue `index` so far.
    pub(crate) fn used(&self, index: u16) -> usize {
        self.0.used[usize::from(index)].load(Ordering::SeqCst)
    }

    /// Configuration interrupts so far.
    pub(crate) fn config(&self) -> usize {
        self.0.config.load(Ordering::SeqCst)
    }
}

impl Deliver for Interrupts {
    fn used(&self, index: u16) {
        self.0.used[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.0.config.fetch_add(1, Ordering::SeqCst);
    }

    fn used_fd(&self, _: u16) -> Option<Arc<EventFd>> {
        Some(Arc::clone(&self.0.used_fd))
    }
}
