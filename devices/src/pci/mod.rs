//! PCI: one bus of up to 32 devices with one function each (PCI Local Bus 3.0, PCI Express Base 5.0).
//!
//! Reading order: this file, `config` (what a function shows of itself), `msix` (how it interrupts),
//! `root` (the bus, and the ways to configuration space), `hotplug` (how a guest with ACPI hears of
//! what comes and goes). What is behind the functions is elsewhere:
//! [`virtio::transport::pci`](crate::virtio::transport::pci).
//!
//! Every device is an endpoint of the root complex: there are no bridges, no I/O space, and no
//! interrupt pins; interrupts are MSI-X.

pub mod config;
pub mod hotplug;
pub mod msix;
pub mod root;

/// Devices on a bus.
pub const SLOTS: usize = 32;

/// A function in a slot of the bus. Its own lock is held while it is called.
pub trait Function: Send {
    /// Fills `data` with its configuration space from `offset` on: 1, 2, 4 or 8 bytes, aligned, and
    /// below [`config::EXTENDED_SIZE`].
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// Takes what the guest writes there; the same is so of `offset` and `data`.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// It is taken out of its slot, while it works or not: it has let go of everything outside when
    /// this returns, guest and host, and answers no more. Accesses may still come, and this may be called again.
    fn unplug(&mut self);
}
