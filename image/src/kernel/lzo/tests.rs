use super::super::tests::sample::{self, Random, code};
use super::*;

/// Ends a block.
const END: [u8; 3] = [0x11, 0, 0];

/// Unpacks a block into `size` bytes.
fn unpack_block(block: &[u8], size: usize) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; size];
    let count = unpack(block, &mut out)?;
    out.truncate(count);
    Ok(out)
}

/// The same with [`END`] behind it, and room to spare.
fn unpack_instructions(instructions: &[u8]) -> Result<Vec<u8>, Error> {
    unpack_block(&[instructions, &END].concat(), 100_000)
}

fn unpack_file(file: &[u8]) -> Result<Vec<u8>, Error> {
    let mut blocks = Blocks::new(file)?;
    let mut all = Vec::new();
    while let Some(block) = blocks.next()? {
        all.extend(block);
    }
    Ok(all)
}

#[test]
fn what_another_compressor_made_is_unpacked() {
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..20_000).map(|_| random.byte()).collect();
    let mut samples = vec![vec![7], b"ab".to_vec(), vec![0; 200_000], noise];
    samples.extend((2..40).map(|seed| code(seed as usize * 97, seed)));
    samples.push(code(MAX_BLOCK_SIZE, 41));
    // Matches as far back as they can be.
    let far = code(70_000, 42);
    samples.push([&far[..], &far[30_000..]].concat());
    for sample in samples {
        let block = lzokay_native::compress(&sample).unwrap();
        assert!(unpack_block(&block, sample.len()).unwrap() == sample);
        assert!(unpack_block(&block, MAX_BLOCK_SIZE).unwrap() == sample);
        if let Some(size) = sample.len().checked_sub(1) {
            assert!(unpack_block(&block, size).is_err());
        }
        for end in (0..block.len()).step_by(1 + block.len() / 100) {
            assert!(unpack_block(&block[..end], MAX_BLOCK_SIZE).is_err());
        }
    }
}

#[test]
fn each_instruction_is_unpacked() {
    let abcd = [21, b'a', b'b', b'c', b'd'];
    let after_abcd = |rest: &[u8]| unpack_instructions(&[&abcd, rest].concat());
    assert_eq!(unpack_instructions(&[]).unwrap(), b"");
    assert_eq!(after_abcd(&[]).unwrap(), b"abcd");
    // The first instruction: literals, 18 - 17 of them. Then a match of 2, and a literal.
    assert_eq!(
        unpack_instructions(&[18, b'a', 0x01, 0, b'z']).unwrap(),
        b"aaaz"
    );
    // Literals whose number has no room: 15 + 3 + 2.
    let mut long = vec![0, 2];
    long.extend([b'l'; 20]);
    assert_eq!(unpack_instructions(&long).unwrap(), [b'l'; 20]);
    // The same, and 255 more.
    let mut long = vec![0, 0, 2];
    long.extend([b'l'; 275]);
    assert_eq!(unpack_instructions(&long).unwrap(), [b'l'; 275]);
    // Matches: 3 from 1 to 2048 back (8 * 0 + 3 + 1), 4, and 5 to 8.
    assert_eq!(after_abcd(&[0x4c, 0]).unwrap(), b"abcdabc");
    assert_eq!(after_abcd(&[0x6c, 0]).unwrap(), b"abcdabcd");
    assert_eq!(after_abcd(&[0x8c, 0]).unwrap(), b"abcdabcda");
    assert_eq!(after_abcd(&[0xec, 0]).unwrap(), b"abcdabcdabcd");
    // One that repeats itself, with two literals behind it.
    assert_eq!(after_abcd(&[0x42, 0, b'y', b'z']).unwrap(), b"abcddddyz");
    // Any length up to 16 KiB back: 2 + 4, and 31 + 2 + 3.
    assert_eq!(after_abcd(&[0x24, 0x0c, 0]).unwrap(), b"abcdabcdab");
    assert_eq!(after_abcd(&[0x20, 3, 0x0c, 0]).unwrap().len(), 4 + 36);
    // After a run of literals, 3 from more than 2048 back: here, from the beginning.
    let mut long = b"\x14abc\x20".to_vec();
    long.extend([0; 7]);
    long.extend(b"\xe0\0\0\x01wxyz\0\0");
    let unpacked = unpack_instructions(&long).unwrap();
    assert_eq!(unpacked.len(), 2049 + 3);
    assert!(unpacked.ends_with(b"cwxyzabc"));
}

#[test]
fn matches_reach_48_kib_back() {
    // 17 + 238 literals, then zeros until there are enough.
    let mut block = vec![255];
    block.extend((0..238).map(|byte| byte as u8));
    let rest = 40_000 - 238;
    // A match of 1 back, 31 + 2 + 255 * n + m bytes long.
    let long = rest - 33;
    block.push(0x20);
    block.extend(std::iter::repeat_n(0, long / 255));
    block.push((long % 255) as u8);
    block.extend([0, 0]);
    let filled = unpack_instructions(&block).unwrap();
    assert_eq!(filled.len(), 40_000);
    // 16384 * 2 + 7232 back is the beginning: 6 bytes (2 + 4) from there.
    let low = (40_000_u16 - 32_768) << 2;
    block.push(0x1c);
    block.extend(low.to_le_bytes());
    let all = unpack_instructions(&block).unwrap();
    assert_eq!(all[40_000..], [0, 1, 2, 3, 4, 5]);
    // One byte farther is before the beginning.
    let at = block.len() - 2;
    block[at..].copy_from_slice(&(low + 4).to_le_bytes());
    assert_eq!(unpack_instructions(&block), Err(Error::Distance));
}

#[test]
fn damaged_blocks_are_told_from_good_ones() {
    assert_eq!(unpack_block(&[], 100), Err(Error::Truncated));
    assert_eq!(unpack_block(&END, 0), Ok(vec![]));
    assert_eq!(unpack_block(&END[..2], 0), Err(Error::Truncated));
    assert_eq!(unpack_block(&[18, b'a'], 100), Err(Error::Truncated));
    assert_eq!(unpack_block(&[0x11, 0, 0, 0], 100), Err(Error::Trailing));
    assert_eq!(
        unpack_block(&[18, b'a', 0x11, 0, 0], 0),
        Err(Error::Overrun)
    );
    // Copies from before the beginning, at once and later.
    for instructions in [
        &[18, b'a', 0x44, 0][..],
        &[18, b'a', 0x40, 1],
        &[18, b'a', 0x21, 4, 0],
    ] {
        assert_eq!(unpack_instructions(instructions), Err(Error::Distance));
    }
    // Longer than there is room, in literals and in a match.
    assert_eq!(
        unpack_block(&[19, b'a', b'b', 0x11, 0, 0], 1),
        Err(Error::Overrun)
    );
    assert_eq!(
        unpack_block(&[18, b'a', 0xe0, 0, 0x11, 0, 0], 8),
        Err(Error::Overrun)
    );
    assert_eq!(
        unpack_block(&[18, b'a', 0xe0, 0, 0x11, 0, 0], 9),
        Ok(vec![b'a'; 9])
    );
    // A length of many zeros.
    let mut zeros = vec![18, b'a', 0x20];
    zeros.extend([0; 5000]);
    assert_eq!(unpack_block(&zeros, 100), Err(Error::Truncated));
    zeros.extend([1, 0, 0]);
    assert_eq!(unpack_block(&zeros, 100), Err(Error::Overrun));
}

#[test]
fn noise_comes_to_an_end() {
    let mut random = Random::new(3);
    for _ in 0..3000 {
        let count = random.below(200);
        let block: Vec<u8> = (0..count)
            .map(|_| random.byte() >> random.below(8))
            .collect();
        let _ = unpack_block(&block, 1000);
        let _ = unpack_instructions(&block);
    }
}

#[test]
fn files_with_every_checksum_are_unpacked() {
    let mut random = Random::new(4);
    // A block that shrinks, one that does not, and the rest of one.
    let mut data = code(MAX_BLOCK_SIZE, 5);
    data.extend((0..MAX_BLOCK_SIZE).map(|_| random.byte()));
    data.extend(code(100, 6));
    for flags in [
        0,
        0x001,
        0x002,
        0x003,
        0x100,
        0x200,
        0x300,
        0x303,
        0x0300_000d,
    ] {
        assert!(
            unpack_file(&sample::lzop(&data, flags)).unwrap() == data,
            "{flags:#x}"
        );
    }
    assert_eq!(unpack_file(&sample::lzop(&[], 0)), Ok(vec![]));
}

#[test]
fn headers_with_a_name_and_of_1995_are_read() {
    let data = code(3000, 7);
    let file = sample::lzop(&data, 0);
    // The name follows its length.
    let name_length = MAGIC.len() + 6 + 2 + 4 + 12;
    let mut named = file.clone();
    named[name_length] = 7;
    named.splice(name_length + 1..=name_length, *b"vmlinux");
    assert!(unpack_file(&named).unwrap() == data);
    // Before 0x0940 there is no version to unpack, no level, and half of the time.
    let mut old = MAGIC.to_vec();
    old.extend([0x09, 0x3f, 0x20, 0xa0, 1]);
    old.extend([0; 4 + 8 + 1 + 4]);
    old.extend(&file[name_length + 5..]);
    assert!(unpack_file(&old).unwrap() == data);
}

#[test]
fn damaged_files_are_told_from_good_ones() {
    let data = code(3000, 8);
    let file = sample::lzop(&data, 0);
    let blocks = MAGIC.len() + 6 + 2 + 4 + 12 + 1 + 4;
    for end in 0..file.len() {
        assert!(unpack_file(&file[..end]).is_err(), "{end}");
    }
    let with = |offset: usize, value: u32| {
        let mut file = file.clone();
        file[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        unpack_file(&file)
    };
    assert_eq!(with(MAGIC.len() + 8, FLAG_FILTER), Err(Error::Filtered));
    // Of the block: what it unpacks to, and what it takes.
    assert_eq!(with(blocks, 2999), Err(Error::Overrun));
    let (expected, actual) = (3001, 3000);
    assert_eq!(
        with(blocks, 3001),
        Err(Error::WrongSize { expected, actual })
    );
    let too_large = MAX_BLOCK_SIZE as u32 + 1;
    assert_eq!(with(blocks, too_large), Err(Error::BlockSize(too_large)));
    assert_eq!(with(blocks, u32::MAX), Err(Error::BlockSize(u32::MAX)));
    assert_eq!(with(blocks + 4, 3001), Err(Error::BlockSize(3001)));
    assert_eq!(with(blocks + 4, 0), Err(Error::Truncated));
    // Flags that say that there are checksums.
    assert!(with(MAGIC.len() + 8, 0x101).is_err());
}
