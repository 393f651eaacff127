//! Guest physical memory, port and interrupt layout. The one place with these numbers: tables,
//! boot code and the builder all take them from here.
//!
//! ```text
//! 0x0000_0000 ┬ RAM
//!      0x0500 │   GDT, zero page, PVH start info, page tables, command line
//!      0x9_fc00   MP table (where a BIOS keeps its extended data area)
//!      0xe_0000   ACPI tables
//!      0xf_f000   VM generation ID
//!     0x10_0000   kernel, and the initrd at the top of low RAM
//! 0xc000_0000 ┼ device hole (LOW_RAM_END .. HIGH_RAM_START): memory of PCI functions
//! 0xd000_0000 │   virtio-mmio slots
//! 0xe000_0000 │   PCI configuration space
//! 0xfec0_0000 │   IOAPIC
//! 0xfee0_0000 │   local APICs
//! 0x1_0000_0000 ┴ the rest of RAM
//! ```

/// First GPA of the hole below 4 GiB that holds devices; low RAM ends here at the latest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM that does not fit below [`LOW_RAM_END`] goes on here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Global descriptor table of the boot protocols.
pub const GDT_START: u64 = 0x500;
/// An empty interrupt descriptor table.
pub const IDT_START: u64 = 0x520;
/// PVH: `hvm_start_info`, then its memory map and module list.
pub const PVH_INFO_START: u64 = 0x6000;
/// PVH: memory map (`hvm_memmap_table_entry` each).
pub const PVH_MEMMAP_START: u64 = 0x6100;
/// PVH: module list (one `hvm_modlist_entry`).
pub const PVH_MODLIST_START: u64 = 0x6040;
/// The Linux boot protocol's `boot_params` ("zero page").
pub const ZERO_PAGE_START: u64 = 0x7000;
/// First page of the identity-mapping page tables (PML4, PDPT, PDs).
pub const PAGE_TABLES_START: u64 = 0x9000;
/// Kernel command line, with its terminating NUL.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Longest command line, NUL included: what Linux itself takes (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX_SIZE: usize = 2048;
/// Where usable RAM below 640 KiB ends and the MP configuration table starts.
pub const MPTABLE_START: u64 = 0x9_f000;
/// The MP table ends before this address, where the floating pointer to it is: the last KiB of
/// conventional memory, one of the three places a kernel looks at.
pub const MP_POINTER: u64 = 0x9_fc00;
/// RSDP, in the area where a guest without other hints scans for it; the tables follow.
pub const ACPI_START: u64 = 0xe_0000;
/// The ACPI tables end before this address.
pub const ACPI_END: u64 = GENERATION_ID_START;
/// The VM generation ID: 16 bytes, at the start of a page in which there is nothing else, and that is not the
/// guest's to use.
pub const GENERATION_ID_START: u64 = 0xf_f000;
/// Bytes of that page.
pub const GENERATION_ID_PAGE: u64 = 0x1000;
/// Kernels are loaded at or above 1 MiB.
pub const HIMEM_START: u64 = 0x10_0000;

/// First of the virtio-mmio slots.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Size of one virtio-mmio slot in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// GSI of the first virtio-mmio slot; slot n uses `VIRTIO_MMIO_GSI + n`.
pub const VIRTIO_MMIO_GSI: u32 = 5;
/// The most virtio-mmio slots there can be: as many as the IOAPIC has inputs left.
pub const VIRTIO_MMIO_MAX_SLOTS: u32 = IOAPIC_MAX_PINS - VIRTIO_MMIO_GSI;

/// MMIO window of the IOAPIC.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Its size in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// The most inputs of the IOAPIC: more than a PC's, as every virtio-mmio device takes one.
pub const IOAPIC_MAX_PINS: u32 = 64;
/// MMIO window of every vCPU's local APIC.
pub const LAPIC_START: u64 = 0xfee0_0000;

/// First port of COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of COM1.
pub const SERIAL_SIZE: u16 = 8;
/// GSI of COM1.
pub const SERIAL_GSI: u32 = 4;

/// Keyboard controller: its reset line is how Linux restarts a PC.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command and status port of the keyboard controller.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// GSI of the keyboard.
pub const KEYBOARD_GSI: u32 = 1;
/// The port through which a guest marks a point of its boot (`--boot-timer`).
pub const BOOT_TIMER_PORT: u16 = 0x3f0;
/// Where it is in memory as well, as guests of Firecracker know it: only without PCI, whose functions' memory
/// is there.
pub const BOOT_TIMER_START: u64 = LOW_RAM_END;
/// Bytes of it.
pub const BOOT_TIMER_SIZE: u64 = 0x1000;
/// First of the ports through which a guest that is made to run commands is told which one (`mote run --template`).
pub const JOB_PORT: u16 = 0x5800;
/// pvpanic: a guest that crashes says so here.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (one byte), ACPI 6.5 section 4.8.3.7.
pub const ACPI_SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (one byte).
pub const ACPI_SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (one byte), written with [`ACPI_RESET_VALUE`].
pub const ACPI_RESET_PORT: u16 = 0x602;
/// What a guest writes to [`ACPI_RESET_PORT`] to restart.
pub const ACPI_RESET_VALUE: u8 = 1;
/// Sleep type that means S5 (soft off) in `_S5` and in the sleep control register.
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// Generic event device: a read gives the pending events and clears them (one 32-bit port).
pub const GED_PORT: u16 = 0x604;
/// GED event bit: the power button was pressed.
pub const GED_POWER_BUTTON: u32 = 1 << 0;
/// GED event bit: a PCI function has come or is to go.
pub const GED_PCI_HOTPLUG: u32 = 1 << 1;
/// GED event bit: the VM generation ID has changed.
pub const GED_GENERATION_ID: u32 = 1 << 2;
/// GSI of the generic event device.
pub const GED_GSI: u32 = 3;

/// KVM keeps a task state segment here on Intel hosts; inside the device hole, out of everything's way.
pub const KVM_TSS_START: u64 = 0xfffb_d000;
/// KVM's identity-map page for real mode on Intel hosts.
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;

/// Address and data port of PCI configuration mechanism #1.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Ports of both.
pub const PCI_CONFIG_SIZE: u16 = 8;
/// Where PCI functions' memory can be: the guest moves it about in there.
pub const PCI_MMIO_START: u64 = LOW_RAM_END;
/// Bytes of that window.
pub const PCI_MMIO_SIZE: u64 = VIRTIO_MMIO_START - PCI_MMIO_START;
/// Configuration space of PCI bus 0.
pub const PCI_ECAM_START: u64 = 0xe000_0000;
/// Bytes of one bus.
pub const PCI_ECAM_SIZE: u64 = 1 << 20;
/// Slots of the bus that devices can be in: 1 to 31, after the host bridge.
pub const PCI_MAX_SLOTS: u32 = 31;
/// Three registers of PCI hot-plug, 32 bits each: slots with new functions, slots whose functions are
/// to go, slots that are given up.
pub const PCI_HOTPLUG_PORT: u16 = 0x610;
/// Ports of the three.
pub const PCI_HOTPLUG_SIZE: u16 = 12;
/// Command and data port of the primary interrupt controller.
pub const PIC_PRIMARY_PORT: u16 = 0x20;
/// Command and data port of the secondary one.
pub const PIC_SECONDARY_PORT: u16 = 0xa0;

/// Inputs of the IOAPIC: no more than there are devices for, as a guest clears each with several exits.
pub fn ioapic_pins(virtio_slots: u32) -> u32 {
    VIRTIO_MMIO_GSI + virtio_slots
}

/// The kernel parameter that announces virtio-mmio slot `slot` to a kernel without ACPI, with a
/// leading blank (Linux Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`).
pub fn virtio_mmio_parameter(slot: u32) -> String {
    format!(
        " virtio_mmio.device={VIRTIO_MMIO_SIZE:#x}@{:#x}:{}",
        VIRTIO_MMIO_START + u64::from(slot) * VIRTIO_MMIO_SIZE,
        VIRTIO_MMIO_GSI + slot
    )
}
