//! Kernels to test with, made as the kernel's build makes them.

use std::io::Write;

use lzma_rust2::{CheckType, FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::kernel::decompress::Format;
use crate::kernel::lzo;

/// Every compression there is.
pub(in crate::kernel) const FORMATS: [Format; 7] = [
    Format::Gzip,
    Format::Bzip2,
    Format::Lzma,
    Format::Xz,
    Format::Lzo,
    Format::Lz4,
    Format::Zstd,
];

/// Numbers that are the same in every run (xorshift64*).
pub(in crate::kernel) struct Random(u64);

impl Random {
    pub(in crate::kernel) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(in crate::kernel) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub(in crate::kernel) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    pub(in crate::kernel) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// Something that compresses about as well as code does: new bytes, repetitions near and far,
/// runs, and calls for the x86 filter.
pub(in crate::kernel) fn code(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut code = vec![0x90];
    while code.len() < size {
        match random.below(8) {
            0..3 => (0..random.below(24)).for_each(|_| code.push(random.byte() & 0x3f)),
            3..6 => {
                let distance = 1 + random.below(code.len());
                for _ in 0..random.below(64) {
                    code.push(code[code.len() - distance]);
                }
            }
            6 => {
                let byte = random.byte();
                code.extend(std::iter::repeat_n(byte, random.below(100)));
            }
            _ => code.extend([0xe8, random.byte(), random.byte(), 0, 0]),
        }
    }
    code.truncate(size);
    code
}

/// Writes little-endian `value` of `width` bytes at `offset`.
pub(in crate::kernel) fn set(bytes: &mut [u8], offset: usize, width: usize, value: u64) {
    bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// The fields of an ELF header: offset and width.
pub(in crate::kernel) const ELF_FIELDS: [(usize, usize); 20] = [
    (0, 4),   // magic
    (4, 1),   // class
    (5, 1),   // byte order
    (6, 1),   // version
    (7, 1),   // ABI
    (16, 2),  // e_type
    (18, 2),  // e_machine
    (20, 4),  // e_version
    (24, 8),  // e_entry
    (32, 8),  // e_phoff
    (40, 8),  // e_shoff
    (48, 4),  // e_flags
    (52, 2),  // e_ehsize
    (54, 2),  // e_phentsize
    (56, 2),  // e_phnum
    (58, 2),  // e_shentsize
    (60, 2),  // e_shnum
    (62, 2),  // e_shstrndx
    (64, 4),  // first p_type
    (120, 4), // second p_type
];

/// The fields of a program header, but for its type.
pub(in crate::kernel) const PROGRAM_FIELDS: [(usize, usize); 7] =
    [(4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)];

/// A vmlinux of `size` bytes: a segment to be loaded, and a note.
pub(in crate::kernel) fn vmlinux(size: usize, seed: u64) -> Vec<u8> {
    let mut elf = code(size, seed);
    elf[..0x100].fill(0);
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let size = size as u64;
    for (offset, width, value) in [
        (16, 2, 2),  // ET_EXEC
        (18, 2, 62), // EM_X86_64
        (20, 4, 1),
        (24, 8, 0x100_0000), // entry
        (32, 8, 64),         // where the program headers are
        (52, 2, 64),
        (54, 2, 56), // how large each of them is
        (56, 2, 2),  // how many there are
        (64, 4, 1),  // PT_LOAD
        (68, 4, 7),
        (72, 8, 0x100), // offset
        (80, 8, 0x8100_0000),
        (88, 8, 0x100_0000),
        (96, 8, size - 0x100), // in the file
        (104, 8, size),        // in memory
        (112, 8, 0x20_0000),
        (120, 4, 4), // PT_NOTE
        (128, 8, 0x180),
        (152, 8, 64),
    ] {
        set(&mut elf, offset, width, value);
    }
    elf
}

/// What `arch/x86/boot/compressed` puts into a bzImage: compressed data with the uncompressed
/// size behind it.
pub(in crate::kernel) fn payload(format: Format, data: &[u8]) -> Vec<u8> {
    let mut payload = compress(format, data);
    // That of gzip is part of gzip's trailer.
    if format != Format::Gzip {
        payload.extend((data.len() as u32).to_le_bytes());
    }
    payload
}

pub(in crate::kernel) fn compress(format: Format, data: &[u8]) -> Vec<u8> {
    match format {
        Format::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        Format::Bzip2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        Format::Lzma => {
            // Without the size in the header, as `lzma` does with what is piped into it.
            let mut writer = LzmaWriter::new_use_header(Vec::new(), &small_window(), None).unwrap();
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        Format::Xz => {
            // As scripts/xz_wrap.sh has it.
            let mut options = XzOptions::with_preset(1);
            options.lzma_options = small_window();
            options.set_check_sum_type(CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut writer = XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        Format::Lzo => lzop(data, 0x0300_000d),
        Format::Lz4 => {
            let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend((block.len() as u32).to_le_bytes());
                frame.extend(block);
            }
            frame
        }
        Format::Zstd => compress_to_vec(data, CompressionLevel::Fastest),
    }
}

/// Every start of an encoder clears its window's tables.
fn small_window() -> LzmaOptions {
    let mut options = LzmaOptions::with_preset(1);
    options.dict_size = 64 << 10;
    options
}

/// What lzop writes, its checksums left zero: nobody looks at them.
pub(in crate::kernel) fn lzop(data: &[u8], flags: u32) -> Vec<u8> {
    let mut file = lzo::MAGIC.to_vec();
    file.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40]); // versions
    file.extend([3, 9]); // method and level
    file.extend(flags.to_be_bytes());
    file.extend([0; 12]); // mode and time
    file.push(0); // length of the name
    file.extend([0; 4]); // checksum
    let checksums = |flags: u32| vec![0; 4 * flags.count_ones() as usize];
    for block in data.chunks(256 << 10) {
        let packed = lzokay_native::compress(block).unwrap();
        file.extend((block.len() as u32).to_be_bytes());
        if packed.len() < block.len() {
            file.extend((packed.len() as u32).to_be_bytes());
            file.extend(checksums(flags & 0x303));
            file.extend(packed);
        } else {
            file.extend((block.len() as u32).to_be_bytes());
            file.extend(checksums(flags & 0x101));
            file.extend(block);
        }
    }
    file.extend([0; 4]);
    file
}

/// Where the payload of [`bzimage`] begins.
pub(in crate::kernel) const PAYLOAD_START: usize = 0x400 + PAYLOAD_OFFSET;
const PAYLOAD_OFFSET: usize = 0x40;

/// The fields of the set-up header: offset and width.
pub(in crate::kernel) const HEADER_FIELDS: [(usize, usize); 38] = [
    (0x1f1, 1), // setup_sects
    (0x1f2, 2), // root_flags
    (0x1f4, 4), // syssize
    (0x1f8, 2), // ram_size
    (0x1fa, 2), // vid_mode
    (0x1fc, 2), // root_dev
    (0x1fe, 2), // boot_flag
    (0x200, 1), // jump: instruction
    (0x201, 1), // jump: distance
    (0x202, 4), // header
    (0x206, 2), // version
    (0x208, 4), // realmode_swtch
    (0x20c, 2), // start_sys_seg
    (0x20e, 2), // kernel_version
    (0x210, 1), // type_of_loader
    (0x211, 1), // loadflags
    (0x212, 2), // setup_move_size
    (0x214, 4), // code32_start
    (0x218, 4), // ramdisk_image
    (0x21c, 4), // ramdisk_size
    (0x220, 4), // bootsect_kludge
    (0x224, 2), // heap_end_ptr
    (0x226, 1), // ext_loader_ver
    (0x227, 1), // ext_loader_type
    (0x228, 4), // cmd_line_ptr
    (0x22c, 4), // initrd_addr_max
    (0x230, 4), // kernel_alignment
    (0x234, 1), // relocatable_kernel
    (0x235, 1), // min_alignment
    (0x236, 2), // xloadflags
    (0x238, 4), // cmdline_size
    (0x23c, 4), // hardware_subarch
    (0x240, 8), // hardware_subarch_data
    (0x248, 4), // payload_offset
    (0x24c, 4), // payload_length
    (0x250, 8), // setup_data
    (0x258, 8), // pref_address
    (0x260, 4), // init_size
];

/// A bzImage of a 64-bit kernel around a payload.
pub(in crate::kernel) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; PAYLOAD_START];
    image[..2].copy_from_slice(b"MZ");
    for (offset, width, value) in [
        (0x1f1, 1, 1), // one sector of set-up code after the boot sector
        (0x1fe, 2, 0xaa55),
        (0x200, 2, 0x6aeb), // jump over the header
        (0x206, 2, 0x020f), // protocol
        (0x211, 1, 1),      // loaded high
        (0x236, 2, 0x7f),   // has a 64-bit entry point, among others
        (0x248, 4, PAYLOAD_OFFSET as u64),
        (0x24c, 4, payload.len() as u64),
    ] {
        set(&mut image, offset, width, value);
    }
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image.extend(payload);
    // The code that unpacks it is behind it, too.
    image.extend([0x90; 256]);
    image
}
