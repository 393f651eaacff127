//! How often vCPUs come back from the guest, and why.
//!
//! Each vCPU thread counts for itself, in a cache line of its own and without locked instructions: it is
//! the only one that writes there. Others read what was last written.

use std::iter::Sum;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns from the guest by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Reads of ports.
    pub io_in: u64,
    /// Writes to ports.
    pub io_out: u64,
    /// Reads of device memory.
    pub mmio_read: u64,
    /// Writes to device memory.
    pub mmio_write: u64,
    /// Halts that the in-kernel APIC does not handle.
    pub halt: u64,
    /// The guest could take an interrupt.
    pub irq_window: u64,
    /// Ends of level-triggered interrupts.
    pub eoi: u64,
    /// Shutdown, reset or crash as KVM reports it, and triple faults.
    pub system_event: u64,
    /// Signals: a kick, for the most part.
    pub interrupted: u64,
    /// What ends the machine, as KVM cannot go on.
    pub failure: u64,
}

impl ExitCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self {
            io_in,
            io_out,
            mmio_read,
            mmio_write,
            halt,
            irq_window,
            eoi,
            system_event,
            interrupted,
            failure,
        } = *self;
        [io_in, io_out, mmio_read, mmio_write, halt, irq_window, eoi]
            .into_iter()
            .chain([system_event, interrupted, failure])
            .sum()
    }
}

impl Add for ExitCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            io_in: self.io_in + other.io_in,
            io_out: self.io_out + other.io_out,
            mmio_read: self.mmio_read + other.mmio_read,
            mmio_write: self.mmio_write + other.mmio_write,
            halt: self.halt + other.halt,
            irq_window: self.irq_window + other.irq_window,
            eoi: self.eoi + other.eoi,
            system_event: self.system_event + other.system_event,
            interrupted: self.interrupted + other.interrupted,
            failure: self.failure + other.failure,
        }
    }
}

impl Sum for ExitCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// A counter that one thread writes to.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Counts one more. Not atomic as a whole: only for the thread whose counter it is.
    pub(super) fn count(&self) {
        let next = self.0.load(Ordering::Relaxed).wrapping_add(1);
        self.0.store(next, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one vCPU; the frequent ones share the first cache line, which is nobody else's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ExitCounters {
    pub(super) io_in: Counter,
    pub(super) io_out: Counter,
    pub(super) mmio_read: Counter,
    pub(super) mmio_write: Counter,
    pub(super) halt: Counter,
    pub(super) irq_window: Counter,
    pub(super) eoi: Counter,
    pub(super) interrupted: Counter,
    pub(super) system_event: Counter,
    pub(super) failure: Counter,
}

impl ExitCounters {
    fn get(&self) -> ExitCounts {
        ExitCounts {
            io_in: self.io_in.get(),
            io_out: self.io_out.get(),
            mmio_read: self.mmio_read.get(),
            mmio_write: self.mmio_write.get(),
            halt: self.halt.get(),
            irq_window: self.irq_window.get(),
            eoi: self.eoi.get(),
            system_event: self.system_event.get(),
            interrupted: self.interrupted.get(),
            failure: self.failure.get(),
        }
    }
}

/// A handle on the counters of all vCPUs. It can be read at any time, also when they are gone.
#[derive(Clone, Debug)]
pub struct Exits(pub(crate) Arc<[Arc<ExitCounters>]>);

impl Exits {
    /// Of each vCPU.
    pub fn per_vcpu(&self) -> impl ExactSizeIterator<Item = ExitCounts> {
        self.0.iter().map(|counters| counters.get())
    }

    /// Of all vCPUs together.
    pub fn total(&self) -> ExitCounts {
        self.per_vcpu().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_count_apart_and_are_summed_up() {
        let vcpus: Arc<[Arc<ExitCounters>]> = [Arc::default(), Arc::default()].into();
        let exits = Exits(Arc::clone(&vcpus));
        for _ in 0..3 {
            vcpus[0].io_in.count();
            vcpus[1].io_in.count();
        }
        vcpus[1].failure.count();
        let counts: Vec<_> = exits.per_vcpu().collect();
        assert_eq!((counts[0].io_in, counts[0].total()), (3, 3));
        assert_eq!((counts[1].io_in, counts[1].total()), (3, 4));
        assert_eq!((exits.total().io_in, exits.total().total()), (6, 7));
    }

    #[test]
    fn no_two_vcpus_share_a_cache_line() {
        assert_eq!(align_of::<ExitCounters>(), 128);
        assert!(std::mem::offset_of!(ExitCounters, interrupted) < 64);
    }
}
