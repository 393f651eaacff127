//! The compressed kernel in a bzImage: which compression it is, and unpacking it.
//!
//! What unpacks is other people's code or a format of the kernel's own ([`lzo`]); all of it reads
//! untrusted data, is given no more than the payload, and is stopped when it says more than the
//! payload promised.

use std::error;
use std::fmt;
use std::io::{self, Read, Write};

use flate2::bufread::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;
use thiserror::Error;

use super::lzo;

/// The largest kernel that is unpacked. Distributions' are 30 to 80 MiB; one with everything
/// built in and debug information stripped stays below this. It bounds the time and the disk
/// space that a few bytes of payload can ask for.
pub(super) const MAX_KERNEL_SIZE: u32 = 512 << 20;
/// The largest window the payload can ask for: what `zstd --ultra -22` and the kernel's
/// `xz_wrap.sh` use at most. Memory is taken only as the window fills.
const MAX_WINDOW_SIZE: u32 = 128 << 20;
/// What the LZMA decoders count beside the window when held to a limit, in KiB: probabilities.
const LZMA_OVERHEAD_KIB: u32 = 4 << 10;
/// How a legacy LZ4 frame begins.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// `lz4 -l` compresses this many bytes at a time.
const LZ4_BLOCK_SIZE: usize = 8 << 20;
/// How much is unpacked before it is written.
const CHUNK_SIZE: usize = 256 << 10;
/// The uncompressed size, little-endian, follows every payload (that of gzip is gzip's own).
const SIZE_FIELD: usize = size_of::<u32>();

/// Why a payload cannot be unpacked on the host.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a compression that mote knows.
    #[error(
        "Its compression is unknown: it begins with {magic:02x?} (known: gzip, bzip2, lzma, xz, lzo, lz4, zstd)"
    )]
    UnknownFormat {
        /// The payload's first bytes.
        magic: Vec<u8>,
    },
    /// More than any kernel needs.
    #[error("It would be {size} bytes uncompressed: mote unpacks up to {MAX_KERNEL_SIZE}")]
    TooLarge {
        /// The size the payload promises.
        size: u32,
    },
    /// The decompressor could not make sense of it.
    #[error("The {format} data is corrupt")]
    Corrupt {
        /// Its compression.
        format: Format,
        /// What the decompressor said.
        #[source]
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// It is shorter or longer than it says.
    #[error("The {format} data unpacks to {actual} bytes or more, and says that it is {expected}")]
    WrongSize {
        /// Its compression.
        format: Format,
        /// The size the payload promises.
        expected: u32,
        /// How much there was when the difference showed.
        actual: u64,
    },
    /// The unpacked kernel could not be written.
    #[error("Cannot write the unpacked kernel")]
    Write {
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_XZ`.
    Xz,
    /// `CONFIG_KERNEL_LZO`.
    Lzo,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame.
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
}

impl Format {
    /// Each format's first bytes.
    pub(super) const MAGICS: [(&[u8], Self); 7] = [
        (&[0x1f, 0x8b], Self::Gzip),
        (b"BZh", Self::Bzip2),
        (&[0x5d, 0, 0], Self::Lzma),
        (b"\xfd7zXZ\0", Self::Xz),
        (&lzo::MAGIC, Self::Lzo),
        (&LZ4_MAGIC, Self::Lz4),
        (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
    ];
    /// As many bytes as the longest of them has.
    pub(super) const MAGIC_SIZE: usize = lzo::MAGIC.len();

    /// Tells the format of data that begins like this.
    pub(super) fn detect(head: &[u8]) -> Result<Self, Error> {
        Self::MAGICS
            .iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map(|&(_, format)| format)
            .ok_or_else(|| Error::UnknownFormat {
                magic: head.iter().copied().take(Self::MAGIC_SIZE).collect(),
            })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Unpacks a payload into `out` and returns the kernel's size in bytes.
pub(super) fn decompress(payload: &[u8], out: &mut impl Write) -> Result<u32, Error> {
    let format = Format::detect(payload)?;
    let corrupt = |source: io::Error| Error::Corrupt {
        format,
        source: source.into(),
    };
    let Some((data, &size)) = payload.split_last_chunk::<SIZE_FIELD>() else {
        return Err(corrupt(io::ErrorKind::UnexpectedEof.into()));
    };
    let expected = u32::from_le_bytes(size);
    if expected > MAX_KERNEL_SIZE {
        return Err(Error::TooLarge { size: expected });
    }
    let mut out = Output {
        out,
        format,
        expected,
        written: 0,
    };
    let lzma_limit = MAX_WINDOW_SIZE / 1024 + LZMA_OVERHEAD_KIB;
    match format {
        // The size is part of the gzip trailer.
        Format::Gzip => out.copy(GzDecoder::new(payload))?,
        Format::Bzip2 => out.copy(bzip2::bufread::BzDecoder::new(data))?,
        Format::Lzma => {
            out.copy(LzmaReader::new_mem_limit(data, lzma_limit, None).map_err(corrupt)?)?;
        }
        Format::Xz => out.copy(XzReader::new_mem_limit(data, false, lzma_limit))?,
        Format::Lzo => out.unpack_lzo(data)?,
        Format::Lz4 => out.unpack_lz4(data)?,
        Format::Zstd => out.unpack_zstd(data)?,
    }
    out.finish()
}

/// Takes what is unpacked, up to the size that was promised.
struct Output<'a, W> {
    out: &'a mut W,
    format: Format,
    expected: u32,
    written: u64,
}

impl<W: Write> Output<'_, W> {
    fn corrupt(&self, source: impl Into<Box<dyn error::Error + Send + Sync>>) -> Error {
        Error::Corrupt {
            format: self.format,
            source: source.into(),
        }
    }

    fn wrong_size(&self) -> Error {
        Error::WrongSize {
            format: self.format,
            expected: self.expected,
            actual: self.written,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        if self.written > u64::from(self.expected) {
            return Err(self.wrong_size());
        }
        self.out
            .write_all(bytes)
            .map_err(|source| Error::Write { source })
    }

    fn finish(self) -> Result<u32, Error> {
        if self.written != u64::from(self.expected) {
            return Err(self.wrong_size());
        }
        Ok(self.expected)
    }

    fn copy(&mut self, mut decoder: impl Read) -> Result<(), Error> {
        let mut chunk = vec![0; CHUNK_SIZE];
        loop {
            match decoder.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => self.write(&chunk[..count])?,
                Err(error) => return Err(self.corrupt(error)),
            }
        }
    }

    fn unpack_zstd(&mut self, data: &[u8]) -> Result<(), Error> {
        let mut decoder =
            StreamingDecoder::new_with_max_window_size(data, u64::from(MAX_WINDOW_SIZE))
                .map_err(|error| self.corrupt(error))?;
        self.copy(&mut decoder)?;
        // The decoder calculates the checksum and leaves it to us to compare it.
        let decoder = decoder.into_frame_decoder();
        match decoder.get_checksum_from_data() {
            Some(stored) if decoder.get_calculated_checksum() != Some(stored) => {
                Err(self.corrupt("the checksum does not match"))
            }
            _ => Ok(()),
        }
    }

    fn unpack_lzo(&mut self, data: &[u8]) -> Result<(), Error> {
        let mut blocks = lzo::Blocks::new(data).map_err(|error| self.corrupt(error))?;
        while let Some(block) = blocks.next().map_err(|error| self.corrupt(error))? {
            self.write(block)?;
        }
        Ok(())
    }

    /// The legacy frame: blocks, each behind its compressed size, without an end mark.
    fn unpack_lz4(&mut self, data: &[u8]) -> Result<(), Error> {
        // What was detected may have been the size behind the data.
        let Some((_magic, mut data)) = data.split_at_checked(LZ4_MAGIC.len()) else {
            return Err(self.corrupt(io::Error::from(io::ErrorKind::UnexpectedEof)));
        };
        let mut unpacked = vec![0; LZ4_BLOCK_SIZE];
        while let Some((&size, rest)) = data.split_first_chunk() {
            let block = usize::try_from(u32::from_le_bytes(size))
                .ok()
                .and_then(|size| rest.split_at_checked(size));
            let Some((block, rest)) = block else {
                return Err(self.corrupt("a block ends after the data does"));
            };
            let count = lz4_flex::block::decompress_into(block, &mut unpacked)
                .map_err(|error| self.corrupt(error))?;
            self.write(&unpacked[..count])?;
            data = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
