//! ELF executables of a few instructions: programs and kernels that cost next to nothing.

use arch::layout;
use arch::regs::CpuMode;
use iced_x86::code_asm::{CodeAssembler, *};

use crate::tiny::{assemble_at, out, reset};

/// Where programs and kernels are put: for a kernel, 1 MiB is a GPA.
const BASE: u64 = 0x10_0000;
/// ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// A program that exits with status 0.
pub fn nothing() -> Vec<u8> {
    program(|a| {
        a.mov(eax, 60)?;
        a.xor(edi, edi)?;
        a.syscall()
    })
}

/// A first process that restarts the machine.
pub fn reboot() -> Vec<u8> {
    program(|a| {
        // reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, NULL)
        a.mov(eax, 169)?;
        a.mov(edi, 0xfee1_deadu32)?;
        a.mov(esi, 0x2812_1969)?;
        a.mov(edx, 0x0123_4567)?;
        a.xor(r10d, r10d)?;
        a.syscall()?;
        a.ud2()
    })
}

/// A kernel whose first instructions make boot mark 1; then it resets the machine.
pub fn tiny_kernel() -> Vec<u8> {
    program(|a| {
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        reset(a)
    })
}

/// An ELF executable of this code.
pub fn program(
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let entry = BASE + HEADERS;
    let code = assemble_at(entry, CpuMode::Long, write);
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |value: u64, size: usize| elf.extend(&value.to_le_bytes()[..size]);
    // e_type EXEC, e_machine x86-64, e_version, e_entry, e_phoff, e_shoff, e_flags
    for (value, size) in [(2, 2), (62, 2), (1, 4), (entry, 8), (64, 8), (0, 8), (0, 4)] {
        put(value, size);
    }
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for value in [64, 56, 1, 64, 0, 0] {
        put(value, 2);
    }
    // p_type LOAD, p_flags RX, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for (value, bytes) in [
        (1, 4),
        (5, 4),
        (0, 8),
        (BASE, 8),
        (BASE, 8),
        (size, 8),
        (size, 8),
        (0x1000, 8),
    ] {
        put(value, bytes);
    }
    elf.extend(code);
    elf
}
