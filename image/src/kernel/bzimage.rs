//! The set-up header of a bzImage (Linux, Documentation/arch/x86/boot.rst): where the compressed
//! kernel is. The file is untrusted, and every field that is used is checked here.

use std::ops::Range;

use thiserror::Error;

/// How much of the file's beginning has to be there for the header to be read.
pub(super) const HEADER_END: usize = 0x268;

const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const SECTOR_SIZE: u64 = 512;
/// What a `setup_sects` of 0 means.
const DEFAULT_SETUP_SECTS: u64 = 4;
/// First protocol with `payload_offset` and `payload_length` (Linux 2.6.26).
const MIN_PROTOCOL: u16 = 0x0208;
/// First protocol with `xloadflags` (Linux 3.8).
const XLOADFLAGS_PROTOCOL: u16 = 0x020c;
/// `loadflags`: the kernel is loaded at 1 MiB, as that of every bzImage is.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;

/// Why a bzImage cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// From before the header told where the payload is.
    #[error(
        "Its boot protocol is {major}.{minor:02}, mote needs {}.{:02} or newer (Linux 2.6.26)",
        MIN_PROTOCOL >> 8,
        MIN_PROTOCOL & 0xff
    )]
    TooOld {
        /// The protocol's first number.
        major: u16,
        /// The protocol's second number.
        minor: u16,
    },
    /// A kernel for 32-bit processors.
    #[error("It is a 32-bit x86 kernel: mote runs x86-64 kernels")]
    Not64Bit,
    /// The file ends before its contents do.
    #[error("It is cut short: its {what} ends at byte {end}, the file at {size}; copy it again")]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Where that ends, in bytes.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// A header field makes no sense.
    #[error("Its set-up header is corrupt: {what}; copy it again")]
    Corrupt {
        /// Which field, and what it says.
        what: String,
    },
}

/// What the header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// Where in the file the compressed kernel is; within the file.
    pub(super) payload: Range<u64>,
    /// Whether the kernel can be started at its 64-bit entry and unpack itself.
    pub(super) unpacks_itself: bool,
}

/// Whether a file that begins like this is a bzImage, in whatever state.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && head.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Reads the header from the beginning of a file of `size` bytes.
pub(super) fn parse(head: &[u8], size: u64) -> Result<BzImage, Error> {
    let Some(head) = head.first_chunk::<HEADER_END>() else {
        return Err(Error::Truncated {
            what: "set-up header",
            end: HEADER_END as u64,
            size,
        });
    };
    let u16_at = |offset: usize| u16::from_le_bytes([head[offset], head[offset + 1]]);
    let u32_at = |offset: usize| u32::from(u16_at(offset)) | u32::from(u16_at(offset + 2)) << 16;

    let protocol = u16_at(VERSION);
    if protocol < MIN_PROTOCOL {
        return Err(Error::TooOld {
            major: protocol >> 8,
            minor: protocol & 0xff,
        });
    }
    // The header is entered by a jump over it, whose displacement is its length.
    let header_end = MAGIC + usize::from(head[HEADER_LENGTH]);
    if header_end < PAYLOAD_LENGTH + 4 {
        let what = format!("it ends at {header_end:#x}, before payload_length");
        return Err(Error::Corrupt { what });
    }
    if head[LOADFLAGS] & LOADED_HIGH == 0 {
        let what = "loadflags says that the kernel is loaded below 1 MiB (a zImage)".to_owned();
        return Err(Error::Corrupt { what });
    }
    let xloadflags = (protocol >= XLOADFLAGS_PROTOCOL).then(|| u16_at(XLOADFLAGS));
    if xloadflags.is_some_and(|flags| flags & XLF_KERNEL_64 == 0) {
        return Err(Error::Not64Bit);
    }

    let setup_sects = match head[SETUP_SECTS] {
        0 => DEFAULT_SETUP_SECTS,
        sectors => u64::from(sectors),
    };
    let length = u64::from(u32_at(PAYLOAD_LENGTH));
    let start = (setup_sects + 1) * SECTOR_SIZE + u64::from(u32_at(PAYLOAD_OFFSET));
    let payload = start..start + length;
    if length == 0 {
        let what = "payload_length is 0".to_owned();
        return Err(Error::Corrupt { what });
    }
    if payload.end > size {
        return Err(Error::Truncated {
            what: "compressed kernel",
            end: payload.end,
            size,
        });
    }
    Ok(BzImage {
        payload,
        unpacks_itself: xloadflags.is_some(),
    })
}

#[cfg(test)]
mod tests;
