//! Device models: what a guest sees behind its ports and MMIO addresses.
//!
//! Reading order: `event` and `interrupt` (the two ways out of a device: to the monitor and to the
//! guest), `bus` (from an address to a device, and the order of locks), `ioapic` (from a line to an
//! MSI), then `legacy`: `boot_timer` is the smallest device and shows the shape, `serial` is the
//! largest and `serial_worker` is its other half on the I/O thread; `console_io` is the host's end of
//! any console, `console_beside` whoever else is at it. Then `virtio`, with `rate_limiter`, and `backend`, on which its devices stand; `mmds`
//! stands between a network card and its backend. `state` is what a snapshot keeps of all of them.
//!
//! Knows nothing of KVM, the control API or the command line. Nothing here trusts the guest: a device takes any
//! offset, any size and any value, answers in bounded time and holds a bounded amount of memory.

// What tests inside and outside of the crate share names it as the latter do.
#[cfg(test)]
extern crate self as devices;

pub mod backend;
pub mod bus;
pub mod console_beside;
pub mod console_io;
pub mod error;
pub mod event;
pub mod interrupt;
pub mod ioapic;
pub mod legacy;
pub mod mmds;
pub mod pci;
pub mod random;
pub mod rate_limiter;
pub mod state;
pub mod virtio;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` even when a thread has panicked with it: a device is a state machine that takes any
/// input, so a half-done access leaves nothing that the next one could trip over.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
