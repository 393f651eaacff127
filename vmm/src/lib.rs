//! The virtual machine monitor: guest memory, KVM, vCPU threads and the event loop.
//!
//! One process is one guest. [`Vm::build`] follows the boot order from top to bottom and gives back a
//! machine whose vCPUs are paused; [`Vm::start`] lets them go, [`Vm::run`] serves the event loop
//! until the guest stops or is stopped, and says why.
//!
//! Reading order: `config` (what can be asked for), `vm` (what a machine is and does), `builder`
//! (the boot order), `kvm`, `memory`, `above_ram`, `vcpu` (threads, the kick protocol, THE match on exits),
//! `interrupts`, `controls` and `pci` (what changes while the guest runs), `event_loop`, `events` (what
//! vCPUs and devices tell the event loop), `crash`, `host` (what a host offers), `teardown`.
//!
//! Knows nothing of HTTP or terminals: a face over it (the CLI, later the API) brings the console's
//! file descriptors and adds its own subscribers to the event loop.

mod above_ram;
mod builder;
pub mod config;
mod controls;
mod crash;
mod event_loop;
mod events;
pub mod host;
mod interrupts;
mod kvm;
mod memory;
mod msix;
mod pci;
mod teardown;
mod vcpu;
mod vm;

pub use above_ram::Error as AboveRamError;
pub use builder::virtio::Error as DeviceError;
pub use builder::{Console, Error as BuildError};
pub use controls::{Controls, DeviceId};
pub use crash::CrashReport;
pub use devices::pci::root::Slot as SlotId;
pub use events::{StopReason, StopRequest, Stopper};
pub use kvm::{DEFAULT_DEVICE, Error as KvmError};
pub use memory::Error as MemoryError;
pub use msix::Error as VectorsError;
pub use pci::{Error as PciError, HotplugHandle, Removal};
pub use teardown::Remains;
pub use vm::{BootMark, Error, PowerButton, Vm};
