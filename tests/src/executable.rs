//! ELF executables of a few instructions: programs and kernels that cost next to nothing.

use std::io::Write;
use std::ops::Range;

use arch::layout;
use arch::regs::CpuMode;
use devices::pci::hotplug;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, *};

use crate::tiny::{assemble_at, out, reset};

/// Where programs and kernels are put: for a kernel, 1 MiB is a GPA.
const BASE: u64 = 0x10_0000;
/// ELF header and one program header, in bytes.
pub const HEADERS: u64 = 64 + 56;
/// Where the code starts.
const ENTRY: u64 = BASE + HEADERS;

/// Where the set-up header of a bzImage is.
pub const SETUP_HEADER: Range<usize> = 0x1f1..0x268;

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

/// A kernel that makes boot mark 1 and then halts for good.
pub fn idle_kernel() -> Vec<u8> {
    program(|a| {
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        let mut halted = a.create_label();
        a.set_label(&mut halted)?;
        a.hlt()?;
        a.jmp(halted)
    })
}

/// Has the serial port take input: it does so only with its receive interrupt on. With the FIFO on.
fn open_serial(a: &mut CodeAssembler) -> Result<(), IcedError> {
    out(a, layout::SERIAL_PORT + 1, 1)?;
    out(a, layout::SERIAL_PORT + 2, 1)
}

/// Waits for a byte from the serial port, which is in AL then, and the port in EDX. The label is that of the wait.
fn read_serial(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let serial = layout::SERIAL_PORT;
    let mut poll = a.create_label();
    a.set_label(&mut poll)?;
    a.mov(edx, u32::from(serial + 5))?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(poll)?;
    a.mov(edx, u32::from(serial))?;
    a.in_(al, dx)?;
    Ok(poll)
}

/// A kernel that prints a line on its serial port and sends back what is typed there, until that is a `q`: then it
/// resets the machine.
pub fn echo_kernel() -> Vec<u8> {
    program(|a| {
        open_serial(a)?;
        for &byte in b"ready\r\n" {
            out(a, layout::SERIAL_PORT, byte)?;
        }
        let poll = read_serial(a)?;
        a.out(dx, al)?;
        a.cmp(al, i32::from(b'q'))?;
        a.jne(poll)?;
        reset(a)
    })
}

/// A kernel for templates: it waits for a job, prints what comes of that, and ends with the status that the last character
/// says: a digit is one, with `x` it never ends, with `i` it sends back what is typed until that is a `q`, and all else is 0.
pub fn job_kernel() -> Vec<u8> {
    program(|a| {
        let (control, data) = (u32::from(layout::JOB_PORT), u32::from(layout::JOB_PORT) + 4);
        let serial = u32::from(layout::SERIAL_PORT);
        open_serial(a)?;
        a.mov(edx, control)?;
        a.mov(al, 1)?;
        a.out(dx, al)?;
        a.in_(eax, dx)?;
        a.mov(ecx, eax)?;
        let (mut next, mut zero) = (a.create_label(), a.create_label());
        let (mut status, mut ends) = (a.create_label(), a.create_label());
        let mut never = a.create_label();
        a.set_label(&mut next)?;
        a.mov(edx, data)?;
        a.in_(al, dx)?;
        a.mov(edx, serial)?;
        a.out(dx, al)?;
        a.test(al, al)?;
        a.jz(zero)?;
        a.mov(bl, al)?;
        a.set_label(&mut zero)?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.mov(al, i32::from(b'\n'))?;
        a.out(dx, al)?;
        a.cmp(bl, i32::from(b'x'))?;
        a.je(never)?;
        a.cmp(bl, i32::from(b'i'))?;
        a.jne(status)?;
        let poll = read_serial(a)?;
        a.out(dx, al)?;
        a.cmp(al, i32::from(b'q'))?;
        a.jne(poll)?;
        a.set_label(&mut status)?;
        a.sub(bl, i32::from(b'0'))?;
        a.cmp(bl, 9)?;
        a.jbe(ends)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut ends)?;
        a.mov(al, bl)?;
        a.mov(edx, data)?;
        a.out(dx, al)?;
        a.set_label(&mut never)?;
        a.hlt()?;
        a.jmp(never)
    })
}

/// A kernel that answers each line that is typed at its serial port with `=N`, the how manieth it is, as a
/// register and memory far above the kernel count; `=!` if they do not agree. A digit that is typed has it give up the
/// PCI function in that slot.
pub fn counting_kernel() -> Vec<u8> {
    const COUNTER: u64 = 24 << 20;
    program(|a| {
        let serial = layout::SERIAL_PORT;
        open_serial(a)?;
        a.xor(ebx, ebx)?;
        let poll = read_serial(a)?;
        let (mut agree, mut print) = (a.create_label(), a.create_label());
        let mut line = a.create_label();
        a.cmp(al, i32::from(b'\n'))?;
        a.je(line)?;
        a.sub(al, i32::from(b'0'))?;
        a.cmp(al, 9)?;
        a.ja(poll)?;
        a.movzx(ecx, al)?;
        a.mov(eax, 1)?;
        a.shl(eax, cl)?;
        a.mov(
            edx,
            u32::from(layout::PCI_HOTPLUG_PORT) + hotplug::EJECT as u32,
        )?;
        a.out(dx, eax)?;
        a.jmp(poll)?;
        a.set_label(&mut line)?;
        a.inc(rbx)?;
        a.mov(rsi, COUNTER)?;
        a.inc(qword_ptr(rsi))?;
        a.mov(ecx, i32::from(b'!'))?;
        a.cmp(rbx, qword_ptr(rsi))?;
        a.je(agree)?;
        a.jmp(print)?;
        a.set_label(&mut agree)?;
        a.lea(ecx, rbx + i32::from(b'0'))?;
        a.set_label(&mut print)?;
        out(a, serial, b'=')?;
        a.mov(edx, u32::from(serial))?;
        a.mov(eax, ecx)?;
        a.out(dx, al)?;
        out(a, serial, b'\n')?;
        a.jmp(poll)
    })
}

/// A kernel that answers each line that is typed at its serial port with `=E:ID`: what its event device had to tell, a
/// digit, and its VM generation ID in hexadecimal.
pub fn generation_kernel() -> Vec<u8> {
    program(|a| {
        let serial = u32::from(layout::SERIAL_PORT);
        open_serial(a)?;
        let poll = read_serial(a)?;
        let (mut next, mut digit, mut print) =
            (a.create_label(), a.create_label(), a.create_label());
        a.cmp(al, i32::from(b'\n'))?;
        a.jne(poll)?;
        out(a, layout::SERIAL_PORT, b'=')?;
        a.mov(edx, u32::from(layout::GED_PORT))?;
        a.in_(al, dx)?;
        a.add(al, i32::from(b'0'))?;
        a.mov(edx, serial)?;
        a.out(dx, al)?;
        out(a, layout::SERIAL_PORT, b':')?;
        a.mov(edx, serial)?;
        a.mov(rsi, layout::GENERATION_ID_START)?;
        // Of each byte the upper half, then the lower one.
        a.xor(ebx, ebx)?;
        a.set_label(&mut next)?;
        a.mov(ecx, ebx)?;
        a.shr(ecx, 1)?;
        a.movzx(eax, byte_ptr(rsi + rcx))?;
        a.test(bl, 1)?;
        a.jnz(digit)?;
        a.shr(eax, 4)?;
        a.set_label(&mut digit)?;
        a.and(eax, 0xf)?;
        a.add(al, i32::from(b'0'))?;
        a.cmp(al, i32::from(b'9'))?;
        a.jbe(print)?;
        a.add(al, i32::from(b'a' - b'0' - 10))?;
        a.set_label(&mut print)?;
        a.out(dx, al)?;
        a.inc(ebx)?;
        a.cmp(ebx, 32)?;
        a.jb(next)?;
        out(a, layout::SERIAL_PORT, b'\n')?;
        a.jmp(poll)
    })
}

/// Has the second GiB and the third mapped onto themselves too, with tables of its own at 8 MiB.
fn map_more(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const TABLES: u32 = 8 << 20;
    const ENTRIES: u32 = 512;
    const ADDRESS: i32 = !0xfff;
    /// Present, writable; and of 2 MiB.
    const TABLE: i32 = 0x3;
    const PAGE: u32 = 0x83;
    // The first entry of the top leads to the table with an entry a GiB.
    a.mov(rbx, cr3)?;
    a.and(rbx, ADDRESS)?;
    a.mov(rbx, qword_ptr(rbx))?;
    a.and(rbx, ADDRESS)?;
    for gib in 1..3_u32 {
        let table = TABLES + (gib << 12);
        let mut next = a.create_label();
        a.mov(esi, (gib << 30) | PAGE)?;
        a.mov(edi, table)?;
        a.set_label(&mut next)?;
        a.mov(qword_ptr(rdi), rsi)?;
        a.add(rsi, 2 << 20)?;
        a.add(edi, 8)?;
        a.cmp(edi, (table + ENTRIES * 8) as i32)?;
        a.jb(next)?;
        a.mov(qword_ptr(rbx) + 8 * gib, table as i32 | TABLE)?;
    }
    Ok(())
}

/// A kernel that writes to every page of `memory` bytes from 16 MiB on, at most the first 3 GiB, and then prints lines with a
/// dot for good.
pub fn touching_kernel(memory: u32) -> Vec<u8> {
    const FIRST: u32 = 16 << 20;
    const PAGE: i32 = 4096;
    program(|a| {
        let (mut touch, mut print) = (a.create_label(), a.create_label());
        map_more(a)?;
        a.mov(edi, FIRST)?;
        a.set_label(&mut touch)?;
        a.mov(dword_ptr(rdi), edi)?;
        a.add(edi, PAGE)?;
        a.cmp(edi, memory as i32)?;
        a.jb(touch)?;
        a.set_label(&mut print)?;
        out(a, layout::SERIAL_PORT, b'.')?;
        out(a, layout::SERIAL_PORT, b'\n')?;
        a.jmp(print)
    })
}

/// Where [`sweeping_kernel`] begins, as those do that touch much memory.
pub const SWEPT_FROM: u32 = 16 << 20;

/// A kernel that answers each line that is typed at its serial port with `=N`, the how manieth it is, when it has added one to a number
/// in each page of `memory` bytes from 16 MiB on, at most the first GiB; `=!` if one of them was another than the last.
pub fn sweeping_kernel(memory: u32) -> Vec<u8> {
    const PAGE: i32 = 4096;
    program(|a| {
        let serial = layout::SERIAL_PORT;
        let (mut page, mut same) = (a.create_label(), a.create_label());
        open_serial(a)?;
        a.xor(ebx, ebx)?;
        let poll = read_serial(a)?;
        a.cmp(al, i32::from(b'\n'))?;
        a.jne(poll)?;
        a.inc(rbx)?;
        a.lea(ecx, rbx + i32::from(b'0'))?;
        a.mov(edi, SWEPT_FROM)?;
        a.set_label(&mut page)?;
        a.inc(qword_ptr(rdi))?;
        a.cmp(rbx, qword_ptr(rdi))?;
        a.je(same)?;
        a.mov(ecx, i32::from(b'!'))?;
        a.set_label(&mut same)?;
        a.add(edi, PAGE)?;
        a.cmp(edi, memory as i32)?;
        a.jb(page)?;
        out(a, serial, b'=')?;
        a.mov(edx, u32::from(serial))?;
        a.mov(eax, ecx)?;
        a.out(dx, al)?;
        out(a, serial, b'\n')?;
        a.jmp(poll)
    })
}

/// A kernel that adds one to a number in each page of `memory` bytes from 16 MiB on, at most the first GiB, again and again, and
/// prints `=0` when it has done so once. When a line is typed it prints `=1`; as soon as a number is not what a
/// register says it is to be, `=!` and nothing else any more.
pub fn churning_kernel(memory: u32) -> Vec<u8> {
    const FIRST: u32 = 16 << 20;
    const PAGE: i32 = 4096;
    program(|a| {
        let serial = layout::SERIAL_PORT;
        let say = |a: &mut CodeAssembler, what: u8| {
            out(a, serial, b'=')?;
            out(a, serial, what)?;
            out(a, serial, b'\n')
        };
        let (mut pass, mut page, mut wrong) =
            (a.create_label(), a.create_label(), a.create_label());
        let (mut listen, mut end) = (a.create_label(), a.create_label());
        open_serial(a)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut pass)?;
        a.inc(rbx)?;
        a.mov(edi, FIRST)?;
        a.set_label(&mut page)?;
        a.inc(qword_ptr(rdi))?;
        a.cmp(rbx, qword_ptr(rdi))?;
        a.jne(wrong)?;
        a.add(edi, PAGE)?;
        a.cmp(edi, memory as i32)?;
        a.jb(page)?;
        a.cmp(rbx, 1)?;
        a.jne(listen)?;
        say(a, b'0')?;
        a.set_label(&mut listen)?;
        a.mov(edx, u32::from(serial + 5))?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(pass)?;
        a.mov(edx, u32::from(serial))?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'\n'))?;
        a.jne(pass)?;
        say(a, b'1')?;
        a.jmp(pass)?;
        a.set_label(&mut wrong)?;
        say(a, b'!')?;
        a.set_label(&mut end)?;
        a.hlt()?;
        a.jmp(end)
    })
}

/// A kernel that resets the machine when its power button is pressed.
pub fn button_kernel() -> Vec<u8> {
    program(|a| {
        let mut poll = a.create_label();
        a.set_label(&mut poll)?;
        a.mov(edx, u32::from(layout::GED_PORT))?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(poll)?;
        reset(a)
    })
}

/// Adds a symbol table to an executable: one function, at the entry.
pub fn with_symbol(mut elf: Vec<u8>, name: &str) -> Vec<u8> {
    const NULL_SYMBOL: [u8; 24] = [0; 24];
    const SECTION_HEADER: usize = 64;
    let symbols = elf.len();
    elf.extend(NULL_SYMBOL);
    // st_name, st_info GLOBAL FUNC, st_other, st_shndx ABS, st_value, st_size
    for (value, size) in [(1, 4), (0x12, 1), (0, 1), (0xfff1, 2), (ENTRY, 8), (0, 8)] {
        elf.extend(&u64::to_le_bytes(value)[..size]);
    }
    let names = elf.len();
    elf.push(0);
    elf.extend(name.as_bytes());
    elf.push(0);
    let sections = elf.len();
    elf.resize(sections + SECTION_HEADER, 0);
    for (kind, start, end, link, info, entry) in [
        (2, symbols, names, 2, 1, NULL_SYMBOL.len()),
        (3, names, sections, 0, 0, 0),
    ] {
        // sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size
        for (value, size) in [
            (0, 4),
            (kind, 4),
            (0, 8),
            (0, 8),
            (start, 8),
            (end - start, 8),
        ] {
            elf.extend(&value.to_le_bytes()[..size]);
        }
        // sh_link, sh_info, sh_addralign, sh_entsize
        for (value, size) in [(link, 4), (info, 4), (1, 8), (entry, 8)] {
            elf.extend(&value.to_le_bytes()[..size]);
        }
    }
    elf[40..48].copy_from_slice(&sections.to_le_bytes());
    // e_shnum, e_shstrndx
    elf[60..64].copy_from_slice(&[3, 0, 2, 0]);
    elf
}

/// A bzImage that carries this vmlinux. Where it is left to unpack itself, it resets the machine.
pub fn bzimage(vmlinux: &[u8]) -> Vec<u8> {
    const SETUP_SIZE: usize = 0x400;
    const ENTRY_OFFSET: usize = 0x200;
    const PAYLOAD_OFFSET: usize = 0x240;
    let mut payload = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    payload.write_all(vmlinux).unwrap();
    let payload = payload.finish().unwrap();
    let mut image = vec![0; SETUP_SIZE + ENTRY_OFFSET];
    // The code is the same wherever it is.
    image.extend(assemble_at(0, CpuMode::Long, reset));
    image.resize(SETUP_SIZE + PAYLOAD_OFFSET, 0xf4);
    image.extend(&payload);
    for (offset, size, value) in [
        (0x1f1, 1, 1), // setup_sects after the boot sector
        (0x1fe, 2, 0xaa55),
        (0x200, 2, 0x6aeb), // jump over the header
        (0x202, 4, 0x5372_6448),
        (0x206, 2, 0x020f), // protocol
        (0x211, 1, 1),      // loaded high
        (0x22c, 4, 0x7fff_ffff),
        (0x236, 2, 1), // has a 64-bit entry point
        (0x248, 4, PAYLOAD_OFFSET),
        (0x24c, 4, payload.len()),
        (0x258, 8, 0x20_0000), // pref_address
        (0x260, 4, 0x1000),    // init_size
    ] {
        image[offset..offset + size].copy_from_slice(&usize::to_le_bytes(value)[..size]);
    }
    image
}

/// An ELF executable of this code.
pub fn program(
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let code = assemble_at(ENTRY, CpuMode::Long, write);
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |value: u64, size: usize| elf.extend(&value.to_le_bytes()[..size]);
    // e_type EXEC, e_machine x86-64, e_version, e_entry, e_phoff, e_shoff, e_flags
    for (value, size) in [(2, 2), (62, 2), (1, 4), (ENTRY, 8), (64, 8), (0, 8), (0, 4)] {
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
