//! What makes sure that nobody changes what is in a state file and forgets that files of before are there.
//!
//! Whoever changes a type that is in [`VmState`], or an address of the guest that devices are at
//! (`arch::layout`), changes the format: `format::VERSION` is the next number, the numbers here are those of the new
//! shape, and the golden files are written anew (tests/cases/golden.rs). What is renamed only makes another `SHAPE` in
//! `golden_test.rs`.

use arch::layout;
use arch::vcpu_state::VcpuState;
use devices::ioapic::IoApicState;
use devices::legacy::i8042::I8042State;
use devices::legacy::job_port::JobPortState;
use devices::legacy::serial::SerialState;
use devices::pci::hotplug::HotplugState;
use devices::virtio::state::MmioState;
use devices::virtio::transport::pci::PciState;

use super::format::VERSION;
use super::host::HostState;
use super::images::ImageState;
use super::memory::RegionState;
use super::state::{LegacyState, VirtioState, VmState};
use crate::above_ram::AboveRamState;

/// Sizes of version 1, and where its guests find what they have been told of.
const SHAPE: (u32, [usize; 14], [u64; 7]) = (
    1,
    [632, 2152, 48, 184, 72, 64, 32, 112, 192, 8, 144, 32, 56, 72],
    [
        0xc000_0000,
        0xd000_0000,
        0xe000_0000,
        0xfec0_0000,
        0xf_f000,
        0x604,
        0x5800,
    ],
);

const FOUND: (u32, [usize; 14], [u64; 7]) = (
    VERSION,
    [
        size_of::<VmState>(),
        size_of::<VcpuState>(),
        size_of::<IoApicState>(),
        size_of::<LegacyState>(),
        size_of::<SerialState>(),
        size_of::<I8042State>(),
        size_of::<VirtioState>(),
        size_of::<MmioState>(),
        size_of::<PciState>(),
        size_of::<HotplugState>(),
        size_of::<HostState>(),
        size_of::<JobPortState>(),
        size_of::<AboveRamState>(),
        size_of::<(ImageState, RegionState)>(),
    ],
    [
        layout::LOW_RAM_END,
        layout::VIRTIO_MMIO_START,
        layout::PCI_ECAM_START,
        layout::IOAPIC_START,
        layout::GENERATION_ID_START,
        layout::GED_PORT as u64,
        layout::JOB_PORT as u64,
    ],
);

const _: () = {
    assert!(FOUND.0 == SHAPE.0, "the version is another: see the module");
    let mut index = 0;
    while index < FOUND.1.len() {
        assert!(
            FOUND.1[index] == SHAPE.1[index],
            "a state has another size: see the module"
        );
        index += 1;
    }
    index = 0;
    while index < FOUND.2.len() {
        assert!(
            FOUND.2[index] == SHAPE.2[index],
            "something is elsewhere in the guest: see the module"
        );
        index += 1;
    }
};
