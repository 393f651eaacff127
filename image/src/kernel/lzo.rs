//! LZO: the file format of `lzop` around LZO1X blocks (Linux, Documentation/staging/lzo.rst).
//!
//! Of the decoders on crates.io, `lzokay-native` panics on corrupt data (and mote aborts when it
//! panics), and `lzo1x` is under the GPL: hence this one.

use thiserror::Error;

/// How every lzop file begins.
pub(super) const MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";

/// From this version of lzop on, the header has the fields that are newer than 1995.
const EXTENDED_VERSION: u16 = 0x0940;
/// The most a block unpacks to: lzop's block size, which the kernel's own decoder also asserts.
const MAX_BLOCK_SIZE: usize = 256 << 10;

/// Header flag: what is compressed went through a filter first. The kernel uses none.
const FLAG_FILTER: u32 = 0x800;
/// Header flags: checksums of each block's unpacked data.
const FLAGS_UNPACKED_CHECKSUM: [u32; 2] = [0x001, 0x100];
/// Header flags: checksums of each block's compressed data, where it is compressed.
const FLAGS_PACKED_CHECKSUM: [u32; 2] = [0x002, 0x200];

/// What is wrong with the data.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum Error {
    #[error("The data ends in the middle")]
    Truncated,
    #[error("A block is {0} bytes, larger than lzop makes them")]
    BlockSize(u32),
    #[error("The data is filtered, which kernels are not")]
    Filtered,
    #[error("A block unpacks to {actual} bytes, and says that it is {expected}")]
    WrongSize { expected: usize, actual: usize },
    #[error("A block is larger than it says")]
    Overrun,
    #[error("A block refers to data before its beginning")]
    Distance,
    #[error("A block goes on after its end mark")]
    Trailing,
}

/// The blocks of an lzop file, unpacked one after the other. Checksums are passed over, as the
/// kernel's decoder does.
pub(super) struct Blocks<'a> {
    input: Input<'a>,
    flags: u32,
    unpacked: Vec<u8>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(data: &'a [u8]) -> Result<Self, Error> {
        let mut input = Input(data);
        input.bytes(MAGIC.len())?;
        let extended = input.u16_be()? >= EXTENDED_VERSION;
        input.bytes(2)?; // version of the library
        if extended {
            input.bytes(2)?; // version needed to unpack
        }
        input.bytes(1)?; // method: variants of LZO1X, which unpack alike
        if extended {
            input.bytes(1)?; // level
        }
        let flags = input.u32_be()?;
        if flags & FLAG_FILTER != 0 {
            return Err(Error::Filtered);
        }
        input.bytes(if extended { 12 } else { 8 })?; // mode and time
        let name_length = input.u8()?;
        input.bytes(name_length.into())?;
        input.bytes(4)?; // checksum of the header
        Ok(Self {
            input,
            flags,
            unpacked: vec![0; MAX_BLOCK_SIZE],
        })
    }

    /// Unpacks the next block.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        let size = self.input.u32_be()?;
        if size == 0 {
            return Ok(None);
        }
        let packed_size = self.input.u32_be()?;
        if packed_size > size {
            return Err(Error::BlockSize(packed_size));
        }
        let unpacked = usize::try_from(size)
            .ok()
            .and_then(|size| self.unpacked.get_mut(..size))
            .ok_or(Error::BlockSize(size))?;
        let count = |flags: [u32; 2]| flags.iter().filter(|flag| self.flags & **flag != 0).count();
        let is_packed = packed_size < size;
        let mut checksums = count(FLAGS_UNPACKED_CHECKSUM);
        if is_packed {
            checksums += count(FLAGS_PACKED_CHECKSUM);
        }
        self.input.bytes(checksums * size_of::<u32>())?;
        let packed_size = usize::try_from(packed_size).map_err(|_| Error::Truncated)?;
        let packed = self.input.bytes(packed_size)?;
        if !is_packed {
            return Ok(Some(packed));
        }
        let expected = unpacked.len();
        let actual = unpack(packed, unpacked)?;
        if actual != expected {
            return Err(Error::WrongSize { expected, actual });
        }
        Ok(Some(unpacked))
    }
}

/// Unpacks one LZO1X block and returns how much of `out` it took.
///
/// An instruction copies a match (`length` bytes from `distance` back) and then up to three
/// literals, whose number is in its low bits and decides what instructions below 16 mean next.
fn unpack(data: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    /// The previous instruction copied more literals than fit into its low bits.
    const LONG_RUN: usize = 4;

    let mut input = Input(data);
    let mut out = Window { out, position: 0 };
    let mut literals = 0;
    // Instructions from 17 on would copy from before the beginning: the first one is a count.
    if let Some(&first) = data.first().filter(|first| **first > 17) {
        input.u8()?;
        let count = usize::from(first) - 17;
        out.literals(input.bytes(count)?)?;
        literals = count.min(LONG_RUN);
    }
    loop {
        let instruction = usize::from(input.u8()?);
        let (length, distance, next_literals);
        match instruction {
            0..16 if literals == 0 => {
                let count = input.length(instruction, 15)? + 3;
                out.literals(input.bytes(count)?)?;
                literals = LONG_RUN;
                continue;
            }
            0..16 => {
                let near = (usize::from(input.u8()?) << 2) + (instruction >> 2) + 1;
                (length, distance) = match literals {
                    LONG_RUN => (3, near + 2048),
                    _ => (2, near),
                };
                next_literals = instruction & 3;
            }
            16..32 => {
                length = input.length(instruction & 7, 7)? + 2;
                let low = input.u16_le()?;
                distance = 16384 + ((instruction & 8) << 11) + (low >> 2);
                next_literals = low & 3;
                if distance == 16384 {
                    // The end mark.
                    return if input.0.is_empty() {
                        Ok(out.position)
                    } else {
                        Err(Error::Trailing)
                    };
                }
            }
            32..64 => {
                length = input.length(instruction & 31, 31)? + 2;
                let low = input.u16_le()?;
                distance = (low >> 2) + 1;
                next_literals = low & 3;
            }
            _ => {
                length = match instruction {
                    64..128 => 3 + (instruction >> 5 & 1),
                    _ => 5 + (instruction >> 5 & 3),
                };
                distance = (usize::from(input.u8()?) << 3) + (instruction >> 2 & 7) + 1;
                next_literals = instruction & 3;
            }
        }
        out.copy(distance, length)?;
        out.literals(input.bytes(next_literals)?)?;
        literals = next_literals;
    }
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    fn u16_be(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    fn u16_le(&mut self) -> Result<usize, Error> {
        self.array().map(u16::from_le_bytes).map(usize::from)
    }

    fn u32_be(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    /// A length that an instruction has room for, unless that says 0: then zeros follow, 255
    /// each, and the rest.
    fn length(&mut self, inline: usize, room: usize) -> Result<usize, Error> {
        if inline != 0 {
            return Ok(inline);
        }
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        self.bytes(zeros)?;
        Ok(room + zeros * 255 + usize::from(self.u8()?))
    }
}

/// The block that is being unpacked.
struct Window<'a> {
    out: &'a mut [u8],
    position: usize,
}

impl Window<'_> {
    fn literals(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out[self.position..]
            .get_mut(..bytes.len())
            .ok_or(Error::Overrun)?
            .copy_from_slice(bytes);
        self.position += bytes.len();
        Ok(())
    }

    fn copy(&mut self, distance: usize, length: usize) -> Result<(), Error> {
        let start = self.position.checked_sub(distance).ok_or(Error::Distance)?;
        if length > self.out.len() - self.position {
            return Err(Error::Overrun);
        }
        // A match longer than its distance repeats itself.
        let end = self.position + length;
        while self.position < end {
            let count = (self.position - start).min(end - self.position);
            self.out.copy_within(start..start + count, self.position);
            self.position += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
