//! Kernel images: what is in the file, where it wants to be in guest memory, and where it is
//! entered. Nothing is loaded here; [`KernelImage::segments`] tell the loader what to map or copy.
//!
//! The file is untrusted: every header field is checked against the file's size and the layout
//! before anything else sees it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use object::LittleEndian;
use object::elf;
use object::pod;
use thiserror::Error;

use super::layout::HIMEM_START;

/// More program headers than any kernel has; bounds what is read.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Longest note segment that is searched for the PVH entry, in bytes.
const MAX_NOTES_SIZE: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the note that carries the PVH entry point.
const PVH_NOTE_TYPE: u32 = 18;

/// Everything the boot code maps is below this GPA, so a kernel must be too.
pub const KERNEL_END_MAX: u64 = 1 << 30;

/// Offset of `setup_header` in a bzImage and in `boot_params` (Linux Documentation/arch/x86/boot.rst).
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const SECTOR_SIZE: u64 = 512;
/// "HdrS".
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// First protocol with `pref_address` and `init_size`.
const MIN_BOOT_PROTOCOL: u16 = 0x020a;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
const BZIMAGE_ENTRY_OFFSET: u64 = 0x200;

/// Why a file cannot be booted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("Cannot read the kernel file at offset {offset:#x}")]
    Read {
        /// Where in the file.
        offset: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Neither an ELF file nor a bzImage.
    #[error("The file is neither an ELF vmlinux nor an x86 bzImage: give mote one of these")]
    UnknownFormat,
    /// An ELF file for something else.
    #[error("The ELF file is not an x86-64 executable: {what}")]
    WrongElf {
        /// Which header field, and what it says.
        what: String,
    },
    /// A bzImage that has no 64-bit entry or is too old.
    #[error("The bzImage cannot be started in 64-bit mode: {what}")]
    WrongBzImage {
        /// Which header field, and what it says.
        what: String,
    },
    /// A header field contradicts the file or the machine.
    #[error("The kernel file is corrupt: {what}; copy or build it again")]
    Corrupt {
        /// Which field, and what it says.
        what: String,
    },
    /// The kernel wants memory that mote keeps for itself or that the boot code cannot map.
    #[error(
        "The kernel asks to be loaded at {start:#x}..{end:#x}: mote loads kernels between \
         {HIMEM_START:#x} and {KERNEL_END_MAX:#x}: build it with another \
         CONFIG_PHYSICAL_START"
    )]
    OutOfRange {
        /// First GPA.
        start: u64,
        /// First GPA after it.
        end: u64,
    },
    /// PVH was asked for, and the kernel has no such entry.
    #[error(
        "The kernel has no PVH entry point: boot it without --boot pvh, or an ELF vmlinux that is \
         built with CONFIG_PVH"
    )]
    NoPvhEntry,
}

/// One piece of the file and its place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file, in bytes.
    pub file_offset: u64,
    /// How many bytes come from the file.
    pub file_size: u64,
    /// First GPA.
    pub gpa: u64,
    /// How many bytes it takes in memory; what the file does not give is zero.
    pub memory_size: u64,
    /// Whether the kernel says that it writes there.
    pub writable: bool,
}

impl Segment {
    /// First GPA after the segment.
    pub fn end(&self) -> u64 {
        self.gpa + self.memory_size
    }
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// The Linux 64-bit boot protocol: long mode, `boot_params` in RSI.
    #[default]
    Linux64,
    /// PVH: 32-bit protected mode without paging, `hvm_start_info` in EBX.
    Pvh,
}

/// A checked kernel image.
#[derive(Clone, Debug)]
pub struct KernelImage {
    /// What to load, in ascending order of GPA; they do not overlap.
    pub segments: Vec<Segment>,
    /// GPA of the first instruction.
    pub entry: u64,
    /// How it is entered.
    pub protocol: Protocol,
    /// The set-up header of a bzImage, which the boot protocol wants handed back.
    pub setup_header: Option<setup_header>,
    /// First GPA after all that the kernel needs before it manages memory itself.
    pub end: u64,
}

/// Reads and checks the headers of a kernel image.
pub fn parse(file: &File, protocol: Protocol) -> Result<KernelImage, Error> {
    let file_size = file
        .metadata()
        .map_err(|source| Error::Read { offset: 0, source })?
        .len();
    let mut head = [0; size_of::<elf::FileHeader64<LittleEndian>>()];
    if file_size < head.len() as u64 {
        return Err(Error::UnknownFormat);
    }
    read_at(file, &mut head, 0)?;
    if head.starts_with(&elf::ELFMAG) {
        parse_elf(file, file_size, &head, protocol)
    } else {
        parse_bzimage(file, file_size, protocol)
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| Error::Read { offset, source })
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::Corrupt { what: what.into() }
}

fn parse_elf(
    file: &File,
    file_size: u64,
    head: &[u8],
    protocol: Protocol,
) -> Result<KernelImage, Error> {
    const LE: LittleEndian = LittleEndian;
    let wrong = |what: String| Err(Error::WrongElf { what });
    let Ok((header, _)) = pod::from_bytes::<elf::FileHeader64<LittleEndian>>(head) else {
        return Err(corrupt("the ELF header is cut short"));
    };
    if header.e_ident.class != elf::ELFCLASS64 {
        return wrong(format!("class {} is not 64-bit", header.e_ident.class));
    }
    if header.e_ident.data != elf::ELFDATA2LSB {
        return wrong(format!(
            "byte order {} is not little-endian",
            header.e_ident.data
        ));
    }
    if header.e_machine.get(LE) != elf::EM_X86_64 {
        return wrong(format!(
            "machine {} is not x86-64 (62)",
            header.e_machine.get(LE)
        ));
    }
    if !matches!(header.e_type.get(LE), elf::ET_EXEC | elf::ET_DYN) {
        return wrong(format!(
            "type {} is not an executable",
            header.e_type.get(LE)
        ));
    }
    let entry_size = size_of::<elf::ProgramHeader64<LittleEndian>>();
    if usize::from(header.e_phentsize.get(LE)) != entry_size {
        return Err(corrupt(format!(
            "e_phentsize is {}",
            header.e_phentsize.get(LE)
        )));
    }
    let count = header.e_phnum.get(LE);
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(corrupt(format!(
            "{count} program headers (1 to {MAX_PROGRAM_HEADERS} are sensible)"
        )));
    }
    let table_size = usize::from(count) * entry_size;
    let table_offset = header.e_phoff.get(LE);
    if !range_within(table_offset, table_size as u64, file_size) {
        return Err(corrupt(format!(
            "the program headers at {table_offset:#x} lie beyond the end of the file ({file_size} bytes): is it truncated?"
        )));
    }
    let mut table = vec![0; table_size];
    read_at(file, &mut table, table_offset)?;
    let Ok((headers, _)) =
        pod::slice_from_bytes::<elf::ProgramHeader64<LittleEndian>>(&table, usize::from(count))
    else {
        return Err(corrupt("the program headers are cut short"));
    };

    let mut segments = Vec::with_capacity(headers.len());
    let mut pvh_entry = None;
    for header in headers {
        let segment = Segment {
            file_offset: header.p_offset.get(LE),
            file_size: header.p_filesz.get(LE),
            gpa: header.p_paddr.get(LE),
            memory_size: header.p_memsz.get(LE),
            writable: header.p_flags.get(LE) & elf::PF_W == elf::PF_W,
        };
        match header.p_type.get(LE) {
            elf::PT_LOAD if segment.memory_size > 0 => {
                check_segment(&segment, file_size)?;
                segments.push(segment);
            }
            elf::PT_NOTE if protocol == Protocol::Pvh && pvh_entry.is_none() => {
                pvh_entry = find_pvh_entry(file, file_size, &segment)?;
            }
            _ => {}
        }
    }
    segments.sort_unstable_by_key(|segment| segment.gpa);
    if let Some(pair) = segments.windows(2).find(|pair| pair[0].end() > pair[1].gpa) {
        return Err(corrupt(format!(
            "segments overlap at {:#x} (physical address)",
            pair[1].gpa
        )));
    }
    let Some(end) = segments.last().map(Segment::end) else {
        return Err(corrupt("there is no segment to load"));
    };
    let entry = match protocol {
        Protocol::Linux64 => header.e_entry.get(LE),
        Protocol::Pvh => pvh_entry.ok_or(Error::NoPvhEntry)?,
    };
    if !segments
        .iter()
        .any(|segment| (segment.gpa..segment.gpa + segment.file_size).contains(&entry))
    {
        return Err(corrupt(format!(
            "the entry point {entry:#x} is in no loaded segment"
        )));
    }
    Ok(KernelImage {
        segments,
        entry,
        protocol,
        setup_header: None,
        end,
    })
}

fn range_within(start: u64, size: u64, limit: u64) -> bool {
    start.checked_add(size).is_some_and(|end| end <= limit)
}

fn check_segment(segment: &Segment, file_size: u64) -> Result<(), Error> {
    if segment.file_size > segment.memory_size {
        return Err(corrupt(format!(
            "the segment at {:#x} has {} bytes in the file but {} in memory",
            segment.gpa, segment.file_size, segment.memory_size
        )));
    }
    if !range_within(segment.file_offset, segment.file_size, file_size) {
        return Err(corrupt(format!(
            "the segment for {:#x} lies beyond the end of the file ({file_size} bytes): is it truncated?",
            segment.gpa
        )));
    }
    check_place(segment.gpa, segment.memory_size)
}

fn check_place(start: u64, size: u64) -> Result<(), Error> {
    if start < HIMEM_START || !range_within(start, size, KERNEL_END_MAX) {
        return Err(Error::OutOfRange {
            start,
            end: start.saturating_add(size),
        });
    }
    Ok(())
}

/// Looks for the note that carries the PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`, name "Xen").
fn find_pvh_entry(file: &File, file_size: u64, notes: &Segment) -> Result<Option<u64>, Error> {
    if notes.file_size > MAX_NOTES_SIZE
        || !range_within(notes.file_offset, notes.file_size, file_size)
    {
        return Err(corrupt(format!(
            "a note segment of {} bytes at offset {:#x}",
            notes.file_size, notes.file_offset
        )));
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_NOTES_SIZE")]
    let mut bytes = vec![0; notes.file_size as usize];
    read_at(file, &mut bytes, notes.file_offset)?;

    let mut rest = bytes.as_slice();
    while let Some((header, tail)) = rest.split_first_chunk::<12>() {
        let word = |index: usize| {
            u32::from_le_bytes([
                header[index],
                header[index + 1],
                header[index + 2],
                header[index + 3],
            ])
        };
        let (name_size, description_size) = (word(0) as usize, word(4) as usize);
        let Some((name, tail)) = tail.split_at_checked(name_size.next_multiple_of(4)) else {
            break;
        };
        let Some(description) = tail.get(..description_size) else {
            break;
        };
        if word(8) == PVH_NOTE_TYPE && name.get(..name_size) == Some(b"Xen\0") {
            return match *description {
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => {
                    Ok(Some(u32::from_le_bytes([a, b, c, d]).into()))
                }
                _ => Err(corrupt(format!("a PVH note of {description_size} bytes"))),
            };
        }
        rest = tail
            .get(description_size.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(None)
}

/// A bzImage as it is: it unpacks itself in the guest. The fallback for payloads the host cannot unpack.
fn parse_bzimage(file: &File, file_size: u64, protocol: Protocol) -> Result<KernelImage, Error> {
    let mut bytes = [0; size_of::<setup_header>()];
    if file_size < SETUP_HEADER_OFFSET + bytes.len() as u64 {
        return Err(Error::UnknownFormat);
    }
    read_at(file, &mut bytes, SETUP_HEADER_OFFSET)?;
    let mut header = setup_header::default();
    vm_memory::ByteValued::as_mut_slice(&mut header).copy_from_slice(&bytes);

    if header.boot_flag != BOOT_FLAG || header.header != SETUP_HEADER_MAGIC {
        return Err(Error::UnknownFormat);
    }
    let version = header.version;
    if version < MIN_BOOT_PROTOCOL {
        return Err(Error::WrongBzImage {
            what: format!(
                "boot protocol {}.{:02} is older than 2.10",
                version >> 8,
                version & 0xff
            ),
        });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Error::WrongBzImage {
            what: "it has no 64-bit entry point".into(),
        });
    }
    if protocol == Protocol::Pvh {
        return Err(Error::NoPvhEntry);
    }
    // 0 means 4, for historical reasons (boot.rst).
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let file_offset = (setup_sectors + 1) * SECTOR_SIZE;
    if file_offset + BZIMAGE_ENTRY_OFFSET >= file_size {
        return Err(corrupt(format!(
            "{setup_sectors} set-up sectors in a file of {file_size} bytes: is it truncated?"
        )));
    }
    let size = file_size - file_offset;
    if size < u64::from(header.syssize) * 16 {
        return Err(corrupt(format!(
            "{} bytes of code announced, {size} present: is it truncated?",
            u64::from(header.syssize) * 16
        )));
    }
    let gpa = header.pref_address;
    let memory_size = size.max(u64::from(header.init_size));
    check_place(gpa, memory_size)?;
    Ok(KernelImage {
        segments: vec![Segment {
            file_offset,
            file_size: size,
            gpa,
            memory_size,
            writable: false,
        }],
        entry: gpa + BZIMAGE_ENTRY_OFFSET,
        protocol,
        setup_header: Some(header),
        end: gpa + memory_size,
    })
}
