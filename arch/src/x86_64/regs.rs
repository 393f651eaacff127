//! The registers with which the boot vCPU is entered: real, protected or long mode.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::boot;
use super::layout::{GDT_START, IDT_START, PAGE_TABLES_START};

const CR0_PE: u64 = 1 << 0;
/// Extension type: always one on anything newer than a 386.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// GDT slots. The Linux 64-bit protocol wants code at 0x10 and data at 0x18 (boot.rst, section
/// "64-bit Boot Protocol"); PVH takes any.
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // code: 64-bit, or 32-bit by CS_32BIT below
    0x00cf_9300_0000_ffff, // data
    0x0000_8b00_0000_ffff, // TSS, which VM entry wants valid
];
/// The code slot for 32-bit mode.
const GDT_CODE_32BIT: u64 = 0x00cf_9b00_0000_ffff;
const CODE_SLOT: u16 = 2;
const DATA_SLOT: u16 = 3;
const TSS_SLOT: u16 = 4;

/// The mode a guest's first instruction runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// 16-bit real mode; all segments at 0.
    Real,
    /// 32-bit protected mode with flat segments, no paging.
    Protected,
    /// 64-bit long mode, the first GiB identity-mapped.
    Long,
}

/// How the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mode of the first instruction.
    pub mode: CpuMode,
    /// GPA of the first instruction.
    pub instruction: u64,
    /// RSI and RBX: where a boot protocol's structure is.
    pub boot_info: u64,
}

/// Why the registers could not be set.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Tables that the registers point to could not be written.
    #[error("Cannot write the descriptor tables into guest memory")]
    Tables(#[source] vm_memory::GuestMemoryError),
    /// Page tables.
    #[error(transparent)]
    PageTables(#[from] boot::Error),
    /// KVM refused.
    #[error("KVM refused the boot vCPU's {what}")]
    Kvm {
        /// Which registers.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Writes the descriptor and page tables that `mode` needs into guest memory.
pub fn write_tables(memory: &GuestMemoryMmap, mode: CpuMode) -> Result<(), Error> {
    if mode == CpuMode::Real {
        return Ok(());
    }
    let mut bytes = [0; size_of_val(&GDT)];
    for (slot, descriptor) in gdt(mode).into_iter().enumerate() {
        bytes[slot * 8..slot * 8 + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    memory
        .write_slice(&bytes, GuestAddress(GDT_START))
        .map_err(Error::Tables)?;
    if mode == CpuMode::Long {
        boot::write_page_tables(memory)?;
    }
    Ok(())
}

fn gdt(mode: CpuMode) -> [u64; 5] {
    let mut table = GDT;
    if mode != CpuMode::Long {
        table[usize::from(CODE_SLOT)] = GDT_CODE_32BIT;
    }
    table
}

/// Sets the boot vCPU's registers.
pub fn set_up(vcpu: &VcpuFd, entry: &Entry) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(|source| Error::Kvm {
        what: "special registers (read)",
        source,
    })?;
    special_registers(&mut sregs, entry.mode);
    vcpu.set_sregs(&sregs).map_err(|source| Error::Kvm {
        what: "special registers",
        source,
    })?;
    let regs = kvm_regs {
        rflags: RFLAGS,
        rip: entry.instruction,
        rsi: entry.boot_info,
        rbx: entry.boot_info,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(|source| Error::Kvm {
        what: "general registers",
        source,
    })
}

fn special_registers(sregs: &mut kvm_sregs, mode: CpuMode) {
    if mode == CpuMode::Real {
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        return;
    }
    let gdt = gdt(mode);
    let segment = |slot: u16| segment(gdt[usize::from(slot)], slot);
    sregs.cs = segment(CODE_SLOT);
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = segment(DATA_SLOT);
    }
    sregs.tr = segment(TSS_SLOT);
    #[expect(clippy::cast_possible_truncation, reason = "40 bytes")]
    let limit = size_of_val(&GDT) as u16 - 1;
    sregs.gdt = kvm_dtable {
        base: GDT_START,
        limit,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT_START,
        limit: 0,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_ET;
    if mode == CpuMode::Long {
        sregs.cr3 = PAGE_TABLES_START;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

/// Unpacks a segment descriptor (Intel SDM volume 3, figure 3-8) into KVM's form.
fn segment(descriptor: u64, slot: u16) -> kvm_segment {
    let bits = |shift: u32, count: u32| (descriptor >> shift) & ((1 << count) - 1);
    let byte = |shift: u32, count: u32| u8::try_from(bits(shift, count)).unwrap_or_default();
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let granularity = byte(55, 1);
    let limit = if granularity == 1 {
        limit << 12 | 0xfff
    } else {
        limit
    };
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        selector: slot * 8,
        type_: byte(40, 4),
        s: byte(44, 1),
        dpl: byte(45, 2),
        present: byte(47, 1),
        avl: byte(52, 1),
        l: byte(53, 1),
        db: byte(54, 1),
        g: granularity,
        ..Default::default()
    }
}

/// Offsets of the local vector table's entries in a local APIC's registers (Intel SDM volume 3,
/// table 11-1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;

/// Wires a local APIC's pins as a BIOS leaves them and the MP table says: LINT0 to the PIC, LINT1 to NMI.
pub fn set_up_lapic(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut lapic = vcpu.get_lapic().map_err(|source| Error::Kvm {
        what: "local APIC (read)",
        source,
    })?;
    for (offset, mode) in [
        (APIC_LVT_LINT0, DELIVERY_EXTINT),
        (APIC_LVT_LINT1, DELIVERY_NMI),
    ] {
        for (register, byte) in lapic.regs[offset..offset + 4]
            .iter_mut()
            .zip(mode.to_le_bytes())
        {
            *register = byte as std::os::raw::c_char;
        }
    }
    vcpu.set_lapic(&lapic).map_err(|source| Error::Kvm {
        what: "local APIC",
        source,
    })
}
