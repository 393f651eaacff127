//! Transports: how a driver finds, configures and interrupts a device. `core` owns virtio; what is
//! beside it only decodes registers.

pub mod core;
pub mod mmio;
pub mod pci;
