use std::error::Error as _;

use super::super::tests::sample::{FORMATS, Random, code, compress, payload, set};
use super::*;

fn unpack(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let size = decompress(payload, &mut out)?;
    assert_eq!(size as usize, out.len());
    Ok(out)
}

/// Puts the size behind data that something else than [`payload`] made.
fn with_size(mut data: Vec<u8>, size: usize) -> Vec<u8> {
    data.extend((size as u32).to_le_bytes());
    data
}

#[test]
fn formats_are_told_by_their_first_bytes() {
    for (magic, format) in Format::MAGICS {
        assert!(magic.len() <= Format::MAGIC_SIZE);
        assert_eq!(Format::detect(magic).unwrap(), format);
        assert_eq!(Format::detect(&compress(format, b"data")).unwrap(), format);
        for end in 0..magic.len() {
            assert!(Format::detect(&magic[..end]).is_err());
        }
    }
    let error = Format::detect(&[0xab; 100]).unwrap_err().to_string();
    assert!(
        error.contains("[ab, ab, ab, ab, ab, ab, ab, ab, ab]"),
        "{error}"
    );
}

#[test]
fn data_of_every_size_is_unpacked() {
    for format in FORMATS {
        for size in [0, 1, 2, 3, 100, 4096, 65_537] {
            let data = code(size.max(1), 1)[..size].to_vec();
            assert!(
                unpack(&payload(format, &data)).unwrap() == data,
                "{format}, {size}"
            );
        }
        let mut random = Random::new(2);
        let noise: Vec<u8> = (0..30_000).map(|_| random.byte()).collect();
        assert!(
            unpack(&payload(format, &noise)).unwrap() == noise,
            "{format}"
        );
    }
}

#[test]
fn the_size_must_be_right() {
    let data = code(3000, 3);
    for format in FORMATS {
        let good = payload(format, &data);
        let with = |size| {
            let mut payload = good.clone();
            let end = payload.len() - SIZE_FIELD;
            set(&mut payload, end, SIZE_FIELD, size);
            unpack(&payload)
        };
        for size in [0, 1, 2999, 3001, 1 << 20, u64::from(MAX_KERNEL_SIZE)] {
            assert!(matches!(
                with(size),
                Err(Error::WrongSize { .. } | Error::Corrupt { .. })
            ));
        }
        for size in [MAX_KERNEL_SIZE + 1, u32::MAX] {
            assert!(
                matches!(with(size.into()), Err(Error::TooLarge { size: said }) if said == size)
            );
        }
    }
}

#[test]
fn a_disk_that_is_full_is_not_the_datas_fault() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            match count {
                0 => Err(io::ErrorKind::StorageFull.into()),
                count => Ok(count),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let data = code(3000, 4);
    for format in FORMATS {
        let error = decompress(&payload(format, &data), &mut Full(1000)).unwrap_err();
        let Error::Write { source } = error else {
            panic!("{format}: {error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(decompress(&payload(format, &data), &mut Full(3000)).is_ok());
    }
}

#[test]
fn checksums_are_compared() {
    let data = code(3000, 5);
    // How far from the end of the payload a byte of the checksum is.
    for (format, distance) in [(Format::Gzip, 8), (Format::Zstd, 8)] {
        let mut payload = payload(format, &data);
        let at = payload.len() - distance;
        payload[at] ^= 1;
        let error = unpack(&payload).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{format}");
        assert!(error.source().unwrap().to_string().contains("checksum"));
    }
    // That of bzip2's first block follows the block's magic number.
    let mut bzip2 = payload(Format::Bzip2, &data);
    bzip2[10] ^= 1;
    assert!(matches!(unpack(&bzip2), Err(Error::Corrupt { .. })));
}

#[test]
fn lz4_frames_have_any_number_of_blocks() {
    let data = code(3000, 6);
    let frame = |blocks: &[&[u8]]| {
        let mut frame = LZ4_MAGIC.to_vec();
        for block in blocks {
            frame.extend((block.len() as u32).to_le_bytes());
            frame.extend(*block);
        }
        frame
    };
    let block = |data| lz4_flex::block::compress(data);
    let (one, two) = (block(&data[..1000]), block(&data[1000..]));
    assert!(unpack(&with_size(frame(&[&one, &two]), 3000)).unwrap() == data);
    assert_eq!(unpack(&with_size(frame(&[]), 0)).unwrap(), b"");
    // A block of more than lz4 makes. What the one before left is no part of it.
    let large = block(&vec![0; LZ4_BLOCK_SIZE + 1]);
    for blocks in [&[&large[..]][..], &[&one, &large]] {
        let payload = with_size(frame(blocks), 100 << 20);
        assert!(matches!(unpack(&payload), Err(Error::Corrupt { .. })));
    }
    let mut cut = frame(&[&one, &two]);
    cut.truncate(cut.len() - 1);
    assert!(matches!(
        unpack(&with_size(cut, 3000)),
        Err(Error::Corrupt { .. })
    ));
    for size in [u32::MAX, 1 << 31] {
        let mut huge = frame(&[]);
        huge.extend(size.to_le_bytes());
        assert!(matches!(
            unpack(&with_size(huge, 1)),
            Err(Error::Corrupt { .. })
        ));
    }
    // A match that begins before the block does.
    let payload = with_size(frame(&[&one, &[0x10, b'a', 0xff, 0xff, 0]]), 3000);
    assert!(matches!(unpack(&payload), Err(Error::Corrupt { .. })));
}

/// Sets the checksum that follows `bytes`, so that what is behind it gets looked at.
fn repair(xz: &mut [u8], bytes: std::ops::Range<usize>) {
    let mut crc = flate2::Crc::new();
    crc.update(&xz[bytes.clone()]);
    set(xz, bytes.end, 4, crc.sum().into());
}

#[test]
fn xz_headers_may_say_anything_behind_a_good_checksum() {
    const STREAM_FLAGS: std::ops::Range<usize> = 6..8;
    const BLOCK: usize = 12;

    let data = code(2000, 7);
    let good = payload(Format::Xz, &data);
    let mut random = Random::new(8);
    for at in STREAM_FLAGS {
        for value in 0..=0xff {
            let mut xz = good.clone();
            xz[at] = value;
            repair(&mut xz, STREAM_FLAGS);
            // Other checksums are fine, and are not there.
            assert!(xz == good || unpack(&xz).is_err());
        }
    }
    let header_size = 4 * (usize::from(good[BLOCK]) + 1);
    for round in 0..2000 {
        let mut xz = good.clone();
        for _ in 0..=random.below(3) {
            // Longer headers reach into the data; there is enough of it.
            let at = BLOCK + random.below(header_size - 4);
            xz[at] = match random.below(4) {
                0 => random.byte() & 0x2f,
                1 => 0xff,
                _ => random.byte(),
            };
        }
        let end = BLOCK + 4 * (usize::from(xz[BLOCK]) + 1) - 4;
        if end + 4 <= xz.len() {
            repair(&mut xz, BLOCK..end);
        }
        if let Ok(out) = unpack(&xz) {
            assert!(out == data, "round {round}");
        }
    }
}

#[test]
fn a_window_that_is_too_large_is_refused_before_it_is_allocated() {
    // The last byte of the LZMA2 properties; 40 is 4 GiB - 1, 31 is 192 MiB, 30 is 128 MiB.
    let data = code(2000, 9);
    let good = payload(Format::Xz, &data);
    let lzma2 = good
        .windows(2)
        .position(|bytes| bytes == [0x21, 1])
        .unwrap();
    let header_end = 12 + 4 * usize::from(good[12]);
    for window in 0..=40 {
        let mut xz = good.clone();
        xz[lzma2 + 2] = window;
        repair(&mut xz, 12..header_end);
        match window {
            31.. => assert!(
                matches!(unpack(&xz), Err(Error::Corrupt { .. })),
                "{window}"
            ),
            _ => assert!(
                unpack(&xz).map_or(window < 10, |out| out == data),
                "{window}"
            ),
        }
    }
}
