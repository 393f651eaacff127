//! ELF files: whether one is what it is taken for. What a kernel's segments mean is for the
//! loader to know.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use object::elf::{self, FileHeader64, ProgramHeader64};
use object::{LittleEndian as LE, pod};
use thiserror::Error;

/// How every ELF file begins.
pub(crate) const MAGIC: [u8; 4] = elf::ELFMAG;

/// More program headers than any kernel or busybox has; bounds what is read.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// Why an ELF file is not what is wanted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("Cannot read it at byte {offset}")]
    Read {
        /// Where in the file.
        offset: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// No ELF header.
    #[error("It does not begin with an ELF header")]
    NotElf,
    /// An ELF file for something else than a 64-bit x86 processor.
    #[error("It is made for {machine}: mote runs x86-64 code only")]
    WrongMachine {
        /// Which processors it is for.
        machine: String,
    },
    /// Something that a linker or debugger reads, not something that runs.
    #[error("It is {what}, not an executable")]
    NotExecutable {
        /// What it is.
        what: String,
    },
    /// A field contradicts the file.
    #[error("It is corrupt: {what}; copy it again")]
    Corrupt {
        /// Which field, and what it says.
        what: String,
    },
    /// The file ends before its contents do.
    #[error("It is cut short: its {what} end at byte {end}, the file at {size}; copy it again")]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Where that ends, in bytes.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// A program that needs a dynamic loader.
    #[error("It is a dynamically linked program: it needs a loader and libraries beside it")]
    DynamicallyLinked,
}

/// Checks that the file is a whole x86-64 executable that runs without a loader, as a vmlinux
/// and a static busybox are.
pub(crate) fn check_static_executable(file: &File, size: u64) -> Result<(), Error> {
    let mut head = [0; size_of::<FileHeader64<LE>>()];
    if size < head.len() as u64 {
        let mut magic = [0; MAGIC.len()];
        return match read_at(file, &mut magic, 0) {
            Ok(()) if magic == MAGIC => Err(Error::Truncated {
                what: "headers",
                end: head.len() as u64,
                size,
            }),
            _ => Err(Error::NotElf),
        };
    }
    read_at(file, &mut head, 0)?;
    let header = check_header(&head)?;

    let table_offset = header.e_phoff.get(LE);
    let count = usize::from(header.e_phnum.get(LE));
    let mut table = vec![0; count * size_of::<ProgramHeader64<LE>>()];
    check_end("program headers", table_offset, table.len() as u64, size)?;
    read_at(file, &mut table, table_offset)?;
    let Ok((headers, _)) = pod::slice_from_bytes::<ProgramHeader64<LE>>(&table, count) else {
        return Err(Error::NotElf);
    };
    let mut loadable = false;
    for header in headers {
        match header.p_type.get(LE) {
            elf::PT_INTERP => return Err(Error::DynamicallyLinked),
            elf::PT_LOAD => {
                loadable = true;
                check_end(
                    "segments",
                    header.p_offset.get(LE),
                    header.p_filesz.get(LE),
                    size,
                )?;
            }
            _ => {}
        }
    }
    if !loadable {
        let what = "no segment is to be loaded".to_owned();
        return Err(Error::Corrupt { what });
    }
    Ok(())
}

/// Checks the fields that say what the file is and where its program headers are.
fn check_header(bytes: &[u8]) -> Result<&FileHeader64<LE>, Error> {
    let Ok((header, _)) = pod::from_bytes::<FileHeader64<LE>>(bytes) else {
        return Err(Error::NotElf);
    };
    let ident = &header.e_ident;
    if ident.magic != MAGIC {
        return Err(Error::NotElf);
    }
    // Where e_machine and e_type are does not depend on the class.
    let machine = header.e_machine.get(LE);
    if ident.data != elf::ELFDATA2LSB || machine != elf::EM_X86_64 {
        let machine = match (ident.data, machine) {
            (elf::ELFDATA2MSB, _) => "a big-endian processor".to_owned(),
            (_, elf::EM_386) => "32-bit x86".to_owned(),
            (_, elf::EM_ARM) => "32-bit Arm".to_owned(),
            (_, elf::EM_AARCH64) => "arm64".to_owned(),
            (_, elf::EM_RISCV) => "RISC-V".to_owned(),
            (_, elf::EM_LOONGARCH) => "LoongArch".to_owned(),
            (_, other) => format!("ELF machine {other}"),
        };
        return Err(Error::WrongMachine { machine });
    }
    if ident.class != elf::ELFCLASS64 {
        let machine = "x86-64 with 32-bit pointers (x32)".to_owned();
        return Err(Error::WrongMachine { machine });
    }
    match header.e_type.get(LE) {
        elf::ET_EXEC | elf::ET_DYN => {}
        elf::ET_REL => {
            let what = "an object file or a kernel module".to_owned();
            return Err(Error::NotExecutable { what });
        }
        elf::ET_CORE => {
            let what = "a core dump".to_owned();
            return Err(Error::NotExecutable { what });
        }
        other => {
            let what = format!("of ELF type {other}");
            return Err(Error::NotExecutable { what });
        }
    }
    let entry_size = header.e_phentsize.get(LE);
    if usize::from(entry_size) != size_of::<ProgramHeader64<LE>>() {
        let what = format!("its program headers are {entry_size} bytes each");
        return Err(Error::Corrupt { what });
    }
    let count = header.e_phnum.get(LE);
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        let what =
            format!("it has {count} program headers (1 to {MAX_PROGRAM_HEADERS} make sense)");
        return Err(Error::Corrupt { what });
    }
    Ok(header)
}

/// Checks that `length` bytes at `offset` are within the file.
fn check_end(what: &'static str, offset: u64, length: u64, size: u64) -> Result<(), Error> {
    let end = offset.saturating_add(length);
    if end > size {
        return Err(Error::Truncated { what, end, size });
    }
    Ok(())
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| Error::Read { offset, source })
}
