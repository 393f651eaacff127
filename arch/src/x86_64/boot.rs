//! What a kernel finds in memory when it is entered: the memory map, the command line, and the
//! structures of its boot protocol (Linux Documentation/arch/x86/boot.rst, or Xen's PVH start info).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::kernel::{KernelImage, Protocol};
use super::layout::{
    CMDLINE_MAX_SIZE, CMDLINE_START, HIGH_RAM_START, HIMEM_START, LOW_RAM_END, MPTABLE_START,
    PAGE_TABLES_START, PVH_INFO_START, PVH_MEMMAP_START, PVH_MODLIST_START, ZERO_PAGE_START,
};

const PAGE_SIZE: u64 = 4096;
/// Usable RAM (ACPI 6.5 section 15, and the same number in PVH's memory map).
const E820_RAM: u32 = 1;
/// "Other" in the list of boot loaders.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
/// `loadflags`: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// Alignment announced for an ELF kernel, which has no header of its own to say so.
const KERNEL_ALIGNMENT: u32 = 16 << 20;
const PVH_MAGIC: u32 = 0x336e_c578;
/// Present, writable.
const TABLE_FLAGS: u64 = 0x3;
/// Present, writable, 2 MiB page.
const LARGE_PAGE_FLAGS: u64 = 0x83;
const ENTRIES: usize = 512;

/// Why the guest's memory could not be prepared for the kernel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not fit.
    #[error(
        "The kernel needs memory up to {end:#x} but the guest has RAM up to {ram_end:#x}: \
         give it more with --memory"
    )]
    KernelTooLarge {
        /// First GPA after the kernel.
        end: u64,
        /// First GPA after low RAM.
        ram_end: u64,
    },
    /// The initrd does not fit above the kernel.
    #[error(
        "The initrd of {size} bytes does not fit into the guest's memory, of which {available} \
         bytes are free above the kernel: give it more with --memory"
    )]
    InitrdTooLarge {
        /// Its size in bytes.
        size: u64,
        /// Free bytes above the kernel.
        available: u64,
    },
    /// The command line is longer than a kernel takes.
    #[error(
        "The kernel command line is {size} bytes long, at most {} are possible: shorten --append, \
         --cmdline or COMMAND",
        CMDLINE_MAX_SIZE - 1
    )]
    CmdlineTooLong {
        /// Its length in bytes, without the NUL.
        size: usize,
    },
    /// A NUL or a line break in the command line.
    #[error(
        "The kernel command line has a control character at byte {position}: take it out of \
         --append or --cmdline"
    )]
    CmdlineInvalid {
        /// Offset in bytes.
        position: usize,
    },
    /// Guest memory refused a write.
    #[error("Cannot write {what} into guest memory")]
    Write {
        /// What was written.
        what: &'static str,
        /// What guest memory said.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// The ranges of RAM of a guest with `size` bytes, as (GPA, bytes): one, or two around the device hole.
pub fn ram_ranges(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let high = size - low;
    std::iter::once((0, low)).chain((high > 0).then_some((HIGH_RAM_START, high)))
}

/// First GPA after all RAM, for a guest with `size` bytes.
pub fn ram_end(size: u64) -> u64 {
    ram_ranges(size)
        .map(|(start, bytes)| start.saturating_add(bytes))
        .fold(0, u64::max)
}

/// First GPA after low RAM, for a guest with `size` bytes.
pub fn low_ram_end(size: u64) -> u64 {
    size.min(LOW_RAM_END)
}

/// Where an initrd of `size` bytes goes: at the top of low RAM, page-aligned so that it can be
/// mapped, above everything the kernel needs.
pub fn place_initrd(kernel: &KernelImage, size: u64, ram_size: u64) -> Result<u64, Error> {
    let mut ceiling = low_ram_end(ram_size);
    if let Some(header) = kernel.setup_header {
        ceiling = ceiling.min(u64::from(header.initrd_addr_max) + 1);
    }
    let floor = kernel.end.next_multiple_of(PAGE_SIZE);
    let available = ceiling.saturating_sub(floor);
    ceiling
        .checked_sub(size)
        .map(|start| start / PAGE_SIZE * PAGE_SIZE)
        .filter(|start| *start >= floor)
        .ok_or(Error::InitrdTooLarge { size, available })
}

/// Checks that the kernel fits into a guest with `ram_size` bytes.
pub fn check_kernel_fits(kernel: &KernelImage, ram_size: u64) -> Result<(), Error> {
    let ram_end = low_ram_end(ram_size);
    if kernel.end > ram_end {
        return Err(Error::KernelTooLarge {
            end: kernel.end,
            ram_end,
        });
    }
    Ok(())
}

/// Checks a command line as [`write`] will take it.
pub fn check_cmdline(cmdline: &str) -> Result<(), Error> {
    if cmdline.len() >= CMDLINE_MAX_SIZE {
        return Err(Error::CmdlineTooLong {
            size: cmdline.len(),
        });
    }
    match cmdline
        .bytes()
        .position(|byte| byte < b' ' && byte != b'\t')
    {
        Some(position) => Err(Error::CmdlineInvalid { position }),
        None => Ok(()),
    }
}

/// What the kernel is to be told.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo<'a> {
    /// The kernel that was loaded.
    pub kernel: &'a KernelImage,
    /// Its command line.
    pub cmdline: &'a str,
    /// The initrd, as (GPA, bytes).
    pub initrd: Option<(u64, u64)>,
    /// Bytes of RAM of the guest.
    pub ram_size: u64,
    /// Where the ACPI root pointer is; without it the guest has no ACPI.
    pub rsdp: Option<GuestAddress>,
}

/// Writes the command line and the structures of the kernel's boot protocol into guest memory.
/// Returns the address that the protocol passes in a register.
pub fn write(memory: &GuestMemoryMmap, info: &BootInfo<'_>) -> Result<GuestAddress, Error> {
    check_cmdline(info.cmdline)?;
    let mut cmdline = Vec::with_capacity(info.cmdline.len() + 1);
    cmdline.extend_from_slice(info.cmdline.as_bytes());
    cmdline.push(0);
    put(memory, "the command line", &cmdline, CMDLINE_START)?;
    match info.kernel.protocol {
        Protocol::Linux64 => write_zero_page(memory, info),
        Protocol::Pvh => write_pvh_info(memory, info),
    }
}

fn put(memory: &GuestMemoryMmap, what: &'static str, bytes: &[u8], gpa: u64) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|source| Error::Write { what, source })
}

/// RAM as the kernel may use it, as (GPA, bytes). The first MiB has holes for the MP and ACPI
/// tables, which are kept by not being RAM.
fn usable_ram(ram_size: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::once((0, MPTABLE_START)).chain(ram_ranges(ram_size).map(|(start, size)| {
        if start == 0 {
            (HIMEM_START, size - HIMEM_START)
        } else {
            (start, size)
        }
    }))
}

fn write_zero_page(memory: &GuestMemoryMmap, info: &BootInfo<'_>) -> Result<GuestAddress, Error> {
    let mut params = boot_params::default();
    if let Some(header) = info.kernel.setup_header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = SETUP_HEADER_MAGIC;
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
        params.hdr.loadflags = LOADED_HIGH;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the layout's address is below 4 GiB"
    )]
    {
        params.hdr.cmd_line_ptr = CMDLINE_START as u32;
    }
    #[expect(clippy::cast_possible_truncation, reason = "check_cmdline bounds it")]
    {
        params.hdr.cmdline_size = info.cmdline.len() as u32;
    }
    if let Some((start, size)) = info.initrd {
        // place_initrd puts it into low RAM, so both are below 4 GiB.
        #[expect(clippy::cast_possible_truncation, reason = "it lies in low RAM")]
        {
            params.hdr.ramdisk_image = start as u32;
            params.hdr.ramdisk_size = size as u32;
        }
    }
    if let Some(rsdp) = info.rsdp {
        params.acpi_rsdp_addr = rsdp.0;
    }
    for (slot, (addr, size)) in params.e820_table.iter_mut().zip(usable_ram(info.ram_size)) {
        *slot = boot_e820_entry {
            addr,
            size,
            r#type: E820_RAM,
        };
        params.e820_entries += 1;
    }
    put(memory, "the zero page", params.as_slice(), ZERO_PAGE_START)?;
    Ok(GuestAddress(ZERO_PAGE_START))
}

fn write_pvh_info(memory: &GuestMemoryMmap, info: &BootInfo<'_>) -> Result<GuestAddress, Error> {
    let mut start_info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE_START,
        memmap_paddr: PVH_MEMMAP_START,
        rsdp_paddr: info.rsdp.map_or(0, |rsdp| rsdp.0),
        ..Default::default()
    };
    if let Some((paddr, size)) = info.initrd {
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        put(
            memory,
            "the PVH module list",
            module.as_slice(),
            PVH_MODLIST_START,
        )?;
        start_info.nr_modules = 1;
        start_info.modlist_paddr = PVH_MODLIST_START;
    }
    let mut gpa = PVH_MEMMAP_START;
    for (addr, size) in usable_ram(info.ram_size) {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_: E820_RAM,
            reserved: 0,
        };
        put(memory, "the PVH memory map", entry.as_slice(), gpa)?;
        gpa += size_of::<hvm_memmap_table_entry>() as u64;
        start_info.memmap_entries += 1;
    }
    put(
        memory,
        "the PVH start info",
        start_info.as_slice(),
        PVH_INFO_START,
    )?;
    Ok(GuestAddress(PVH_INFO_START))
}

/// Writes page tables that map the first GiB onto itself with 2 MiB pages: what long mode is
/// entered with. The kernel makes its own before it looks further.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let pdpt = PAGE_TABLES_START + PAGE_SIZE;
    let directory = pdpt + PAGE_SIZE;
    let mut tables = [0u8; 2 * PAGE_SIZE as usize + ENTRIES * 8];
    let mut set = |offset: usize, entry: u64| {
        tables[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    };
    set(0, pdpt | TABLE_FLAGS);
    set(PAGE_SIZE as usize, directory | TABLE_FLAGS);
    for index in 0..ENTRIES {
        set(
            2 * PAGE_SIZE as usize + index * 8,
            (index as u64) << 21 | LARGE_PAGE_FLAGS,
        );
    }
    put(memory, "the page tables", &tables, PAGE_TABLES_START)
}

/// Checks that every GPA of `start..start + size` is RAM.
pub fn is_ram(memory: &GuestMemoryMmap, start: u64, size: usize) -> bool {
    memory.check_range(GuestAddress(start), size)
}
