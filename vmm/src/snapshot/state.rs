//! What there is of a machine besides its memory and its configuration: one tree of plain values.
//!
//! A change of any type in here is another version of the format (`format::VERSION`).

use arch::vcpu_state::VcpuState;
use devices::ioapic::IoApicState;
use devices::legacy::i8042::I8042State;
use devices::legacy::job_port::JobPortState;
use devices::legacy::serial::SerialState;
use devices::pci::hotplug::HotplugState;
use devices::virtio::state::MmioState;
use devices::virtio::transport::pci::PciState;
use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};

use super::host::HostState;
use super::images::ImageState;
use super::memory::{Id, RegionState};
pub use crate::above_ram::AboveRamState;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmState {
    /// Which memory file belongs to it: random, and kept by both.
    pub memory_id: Id,
    /// Which other one it is to be merged into, if it has only what changed since that one.
    pub memory_base: Option<Id>,
    /// Where its memory is in that file.
    pub memory: Vec<RegionState>,
    /// Where memory above RAM is.
    pub above_ram: AboveRamState,
    /// The files that it uses.
    pub images: Vec<ImageState>,
    /// The host that it was taken on.
    pub host: HostState,
    /// Nanoseconds since 1970 when it was taken.
    pub taken: u64,
    /// The clock that KVM gives its guests.
    pub clock: kvm_clock_data,
    /// vCPUs, by index.
    pub vcpus: Vec<VcpuState>,
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// Devices that every machine has.
    pub legacy: LegacyState,
    /// virtio devices.
    pub virtio: VirtioState,
}

/// Devices that every machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyState {
    /// The serial port, if the console is there.
    pub serial: Option<SerialState>,
    /// The keyboard and its controller, if it has one.
    pub i8042: Option<I8042State>,
    /// Events that the guest has not read.
    pub ged: u32,
    /// The sleep type.
    pub acpi_pm: u8,
    /// Both interrupt controllers that deliver nothing.
    pub pics: [(u8, u8); 2],
    /// The port for jobs, if it has one.
    pub job_port: Option<JobPortState>,
    /// The address register of PCI configuration.
    pub pci_address: u32,
    /// The guest has been told where its VM generation ID is.
    pub has_generation_id: bool,
}

/// virtio devices, in the order of their slots, each with its name as in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtioState {
    /// Behind virtio-mmio.
    Mmio(Vec<(String, MmioState)>),
    /// On the PCI bus.
    Pci {
        /// What the guest has not heard of yet.
        hotplug: HotplugState,
        /// The devices, with the slot of each.
        functions: Vec<(String, u8, PciState)>,
    },
}
