//! The virtual machine monitor: guest memory, KVM, vCPU threads and the event loop.
//!
//! One process is one guest. [`Vm::build`] follows the boot order from top to bottom and gives back a
//! machine whose vCPUs are paused; [`Vm::start`] lets them go, [`Vm::run`] serves the event loop
//! until the guest stops or is stopped, and says why.
//!
//! Reading order: `config` (what can be asked for), `vm` (what a machine is and does), `stage`
//! (what is there before it), `builder`
//! (the boot order), `kvm`, `memory`, `above_ram`, `vcpu` (threads, the kick protocol, THE match on exits),
//! `interrupts`, `controls` and `pci` (what changes while the guest runs), `control` (what the API may
//! ask), `event_loop`, `events` (what
//! vCPUs and devices tell the event loop), `insight` (what a machine counts), `first_reply` (what a restored one has taken until it is heard of), `faults`, `crash`, `host` (what a host offers), `teardown`,
//! `witness` (who looks at a guest's accesses to devices).
//!
//! Knows nothing of HTTP or terminals: a face over it (the CLI, later the API) brings the console's
//! file descriptors and adds its own subscribers to the event loop.

mod above_ram;
mod builder;
pub mod config;
pub mod control;
mod controls;
mod crash;
mod event_loop;
mod events;
mod faults;
mod first_reply;
mod generation;
mod handles;
mod hardware;
pub mod host;
mod insight;
mod interrupts;
mod kvm;
mod memory;
mod msix;
mod pci;
pub mod snapshot;
mod stage;
mod teardown;
mod vcpu;
mod vm;
mod witness;

pub use above_ram::Error as AboveRamError;
pub use builder::virtio::Error as DeviceError;
pub use builder::{Console, Error as BuildError};
pub use controls::{Controls, DeviceEvent, DeviceId, DeviceListener};
pub use crash::CrashReport;
pub use devices::legacy::i8042::{I8042Counters, NoRoom};
pub use devices::legacy::serial::SerialCounters;
pub use devices::pci::root::Slot as SlotId;
pub use events::{StopReason, StopRequest, Stopper};
pub use faults::{Faults, VcpuFaults};
pub use first_reply::{Error as FirstReplyError, Start};
pub use handles::{Keyboard, PowerButton, SerialPort};
pub use insight::{BootTimes, Insight};
pub use kvm::{DEFAULT_DEVICE, Error as KvmError};
pub use memory::Error as MemoryError;
pub use msix::Error as VectorsError;
pub use pci::{Error as PciError, HotplugHandle, Removal};
pub use stage::{Made, Maker, Order, OrderError, OrderQueue, Orders, Outcome, Stage};
pub use teardown::Remains;
pub use vcpu::{ExitCounts, Exits};
pub use vm::{BootMark, Error, MachineHandle, Vm};
pub use witness::{Access, Place, Witness};
