//! Kernels that somebody made to do harm: whatever is in the file, `open` comes back, and says
//! that it is a kernel only where it is one.
//!
//! `MOTE_FUZZ_ROUNDS` multiplies the random part.

use super::sample::{
    ELF_FIELDS, HEADER_FIELDS, PAYLOAD_START, PROGRAM_FIELDS, Random, code, compress,
};
use super::*;
use crate::kernel::decompress::{MAX_KERNEL_SIZE, decompress};

fn rounds() -> usize {
    let rounds = std::env::var("MOTE_FUZZ_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// One file that is written again and again, and never cached on disk.
struct Target {
    dir: TempDir,
    cache: Cache,
}

impl Target {
    fn new() -> Self {
        let (dir, cache) = (TempDir::new().unwrap(), Cache::new(None));
        Self { dir, cache }
    }

    /// Opens a file with these contents. What is taken for a kernel must be a whole one.
    fn open(&self, contents: &[u8]) -> Result<Kernel, Error> {
        let path = self.dir.as_path().join("kernel");
        fs::write(&path, contents).unwrap();
        let result = super::super::open(&path, &self.cache);
        match &result {
            Ok(kernel) => {
                let size = kernel.file.metadata().unwrap().len();
                let check = elf::check_static_executable(&kernel.file, size);
                assert_eq!(check.is_ok(), kernel.kind == Kind::Elf);
                assert_eq!(kernel.fallback.is_some(), kernel.kind == Kind::BzImage);
                if let Some(reason) = &kernel.fallback {
                    assert!(!chain(reason).is_empty());
                }
            }
            Err(error) => assert!(!chain(error).is_empty()),
        }
        result
    }
}

/// What a field of `width` bytes is set to.
fn values(width: usize, random: &mut Random) -> impl Iterator<Item = u64> {
    let bits = 8 * width as u32;
    let max = u64::MAX >> (64 - bits);
    let sign = 1 << (bits - 1);
    let random: Vec<_> = (0..8 * rounds()).map(|_| random.next() & max).collect();
    [0, 1, max - 1, max, sign, sign - 1]
        .into_iter()
        .chain(random)
}

#[test]
fn every_header_field_of_a_bzimage() {
    let target = Target::new();
    let mut random = Random::new(1);
    let elf = vmlinux(3000, 20);
    let image = bzimage(&payload(Format::Lz4, &elf));
    for (offset, width) in HEADER_FIELDS {
        for value in values(width, &mut random) {
            let mut image = image.clone();
            set(&mut image, offset, width, value);
            if let Ok(kernel) = target.open(&image)
                && kernel.kind == Kind::Elf
            {
                assert!(contents(&kernel) == elf, "{offset:#x}: {value:#x}");
            }
        }
    }
}

#[test]
fn every_header_field_of_an_elf_file() {
    let target = Target::new();
    let mut random = Random::new(2);
    let elf = vmlinux(3000, 21);
    let program_fields = [64, 120]
        .into_iter()
        .flat_map(|start| PROGRAM_FIELDS.map(|(offset, width)| (start + offset, width)));
    for (offset, width) in ELF_FIELDS.into_iter().chain(program_fields) {
        for value in values(width, &mut random) {
            let mut elf = elf.clone();
            set(&mut elf, offset, width, value);
            let alone = target.open(&elf);
            // The same behind a compression that keeps it.
            let unpacked = target.open(&bzimage(&payload(Format::Lz4, &elf))).unwrap();
            assert_eq!(alone.is_ok(), unpacked.kind == Kind::Elf);
        }
    }
}

#[test]
fn random_headers() {
    let target = Target::new();
    let mut random = Random::new(3);
    let elf = vmlinux(3000, 22);
    let image = bzimage(&payload(Format::Lz4, &elf));
    for _ in 0..300 * rounds() {
        let mut image = image.clone();
        for _ in 0..=random.below(4) {
            let (offset, width) = HEADER_FIELDS[random.below(HEADER_FIELDS.len())];
            set(&mut image, offset, width, random.next() >> random.below(64));
        }
        let _ = target.open(&image);
        let mut elf = elf.clone();
        for _ in 0..=random.below(4) {
            let (offset, width) = ELF_FIELDS[random.below(ELF_FIELDS.len())];
            set(&mut elf, offset, width, random.next() >> random.below(64));
        }
        let _ = target.open(&elf);
    }
}

#[test]
fn a_file_that_ends_early() {
    let target = Target::new();
    let elf = vmlinux(4000, 23);
    for end in (0..elf.len()).step_by(64) {
        assert!(target.open(&elf[..end]).is_err());
    }
    for format in FORMATS {
        let image = bzimage(&payload(format, &elf));
        let payload_end = image.len() - 256;
        for end in (0..payload_end).step_by(64).chain([payload_end - 1]) {
            let error = target.open(&image[..end]).unwrap_err();
            assert!(end < 0x206 || matches!(error, Error::BzImage { .. }));
        }
        assert_unpacked(&target.open(&image[..payload_end]).unwrap(), &elf);
    }
}

#[test]
fn a_payload_that_ends_early() {
    let target = Target::new();
    let elf = vmlinux(4000, 24);
    for format in FORMATS {
        let whole = compress(format, &elf);
        for end in (0..whole.len()).step_by(64) {
            // With the right size behind it, so that it is not turned down for that.
            let mut payload = whole[..end].to_vec();
            payload.extend((elf.len() as u32).to_le_bytes());
            let kernel = target.open(&bzimage(&payload)).unwrap();
            assert_eq!(kernel.kind, Kind::BzImage, "{format} up to {end}");
        }
    }
}

/// Changes a few bytes, or puts some in or takes some out.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] = 0,
            1 => bytes[at] = 0xff,
            2 => bytes[at] = random.byte(),
            3 => {
                let end = (at + random.below(8)).min(bytes.len() - 1);
                bytes.drain(at..end);
            }
            4 => {
                let count = random.below(8);
                bytes.splice(at..at, (0..count).map(|_| random.byte()));
            }
            // The headers are where it matters most.
            5 => {
                let at = at % bytes.len().min(64);
                bytes[at] = random.byte();
            }
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
}

/// Whether damage to the unpacked data cannot go unnoticed.
fn is_checked(format: Format, payload: &[u8]) -> bool {
    match format {
        Format::Lzma | Format::Lzo | Format::Lz4 => false,
        // Its header says whether a checksum follows.
        Format::Zstd => payload[4] & 4 != 0,
        _ => true,
    }
}

#[test]
fn damaged_payloads() {
    for format in FORMATS {
        let elf = vmlinux(4000, 25);
        let whole = payload(format, &elf);
        let mut random = Random::new(26);
        for round in 0..400 * rounds() {
            let mut payload = whole.clone();
            mutate(&mut payload, &mut random);
            let mut out = Vec::new();
            let result = decompress(&payload, &mut out);
            assert!(out.len() <= MAX_KERNEL_SIZE as usize);
            if let Ok(size) = result {
                assert_eq!(out.len(), size as usize);
                assert!(
                    !is_checked(format, &payload) || out == elf,
                    "{format}, round {round}"
                );
            }
        }
    }
}

#[test]
fn damaged_payloads_in_a_bzimage() {
    let target = Target::new();
    for format in FORMATS {
        let whole = payload(format, &vmlinux(4000, 27));
        let mut random = Random::new(28);
        for _ in 0..30 * rounds() {
            let mut payload = whole.clone();
            mutate(&mut payload, &mut random);
            // Damage that shows in the bzImage's header is not meant here.
            let _ = target.open(&bzimage(&payload)).unwrap();
        }
    }
}

#[test]
fn payloads_of_a_few_bytes() {
    for format in FORMATS {
        let whole = payload(format, &vmlinux(4000, 33));
        for end in 0..whole.len().min(64) {
            assert!(decompress(&whole[..end], &mut Vec::new()).is_err());
        }
    }
}

#[test]
fn noise_behind_each_magic_number() {
    for (magic, format) in Format::MAGICS {
        let mut random = Random::new(29);
        for _ in 0..100 * rounds() {
            let mut payload = magic.to_vec();
            payload.extend((0..random.below(600)).map(|_| random.byte()));
            payload.extend(1000_u32.to_le_bytes());
            let mut out = Vec::new();
            if decompress(&payload, &mut out).is_ok() {
                assert!(!is_checked(format, &payload) && out.len() == 1000);
            }
        }
    }
}

#[test]
fn damaged_bzimages() {
    let target = Target::new();
    let image = bzimage(&payload(Format::Lz4, &vmlinux(3000, 30)));
    let mut random = Random::new(31);
    for _ in 0..300 * rounds() {
        let mut image = image.clone();
        for _ in 0..=random.below(6) {
            let at = match random.below(2) {
                0 => 0x1f0 + random.below(0x78),
                _ => random.below(image.len()),
            };
            image[at] = random.byte();
        }
        image.truncate(match random.below(4) {
            0 => random.below(image.len()),
            _ => image.len(),
        });
        let _ = target.open(&image);
    }
    // Payloads that overlap the set-up code, or lie behind the payload.
    for offset in (0..image.len() - PAYLOAD_START).step_by(16) {
        let mut image = image.clone();
        set(&mut image, 0x248, 4, offset as u64);
        set(&mut image, 0x24c, 4, 64);
        let _ = target.open(&image);
    }
}

#[test]
fn more_than_was_promised_is_not_written() {
    // A few kilobytes that would fill the disk.
    let bomb = vec![0; 3 << 20];
    for format in FORMATS {
        let mut payload = payload(format, &bomb);
        let end = payload.len() - 4;
        for expected in [0, 1, 4096, 1 << 20] {
            set(&mut payload, end, 4, expected);
            let mut out = Vec::new();
            let error = decompress(&payload, &mut out).unwrap_err();
            assert!(matches!(
                error,
                DecompressError::WrongSize { .. } | DecompressError::Corrupt { .. }
            ));
            assert!(out.len() as u64 <= expected, "{format}");
        }
        // Less than was promised is no kernel either.
        set(&mut payload, end, 4, (3 << 20) + 1);
        let error = decompress(&payload, &mut Vec::new()).unwrap_err();
        assert!(matches!(
            error,
            DecompressError::WrongSize { .. } | DecompressError::Corrupt { .. }
        ));
    }
}

#[test]
fn windows_larger_than_any_kernel_needs_are_refused() {
    let elf = vmlinux(4000, 32);
    let refused = |payload: &[u8]| {
        let error = decompress(payload, &mut Vec::new()).unwrap_err();
        matches!(error, DecompressError::Corrupt { .. })
    };
    let mut lzma = payload(Format::Lzma, &elf);
    // The lower half is part of the magic number.
    for window in [256 << 20, 1 << 30, 0xffff << 16] {
        set(&mut lzma, 1, 4, window);
        assert!(refused(&lzma), "{window:#x}");
    }
    for window in [8 << 20, 64 << 20, 128 << 20] {
        set(&mut lzma, 1, 4, window);
        let mut out = Vec::new();
        decompress(&lzma, &mut out).unwrap();
        assert!(out == elf);
    }
    // The descriptor says that a window byte follows; 0x90 is 256 MiB, 0xff is 3.75 TiB.
    for window in [0x90, 0xff] {
        let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
        zstd.extend([0x01, 0, 0]); // the last block, empty
        zstd.extend([0; 4]);
        assert!(refused(&zstd));
    }
}

#[test]
fn code_is_compressed_and_repeats() {
    // What the other tests take for granted.
    assert!(code(5000, 1) == code(5000, 1));
    assert!(code(5000, 1) != code(5000, 2));
    for format in FORMATS {
        let size = compress(format, &code(5000, 1)).len();
        assert!((1000..4500).contains(&size), "{format}: {size}");
    }
}
