//! What a driver asks of a disk (virtio 1.2 section 5.2.6): a header, data, and a byte for the answer,
//! split into buffers in any way. Pure: nothing here touches a disk.

use smallvec::SmallVec;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use crate::backend::disk::SECTOR;
use crate::virtio::chain::{Buffers, Chain};

/// Pieces of data in a request: what a queue of the largest size holds besides header and answer.
pub(super) const SEG_MAX: u32 = 254;
/// Bytes of a piece.
pub(super) const SIZE_MAX: u32 = 1 << 20;
/// Bytes of data in a request. What the host does at once is limited by this.
const DATA_MAX: u32 = SEG_MAX * SIZE_MAX;
/// Sectors of a range to discard: 1 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// Ranges in a request to discard.
pub(super) const DISCARD_RANGES_MAX: u32 = 16;
/// Sectors of a range to fill with zeroes: 64 MiB, as some file systems have to write them.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 17;
/// Ranges in a request to fill with zeroes.
pub(super) const ZEROES_RANGES_MAX: u32 = 4;
/// Bytes of a serial number.
pub(super) const SERIAL_SIZE: usize = 20;

const HEADER_SIZE: u32 = size_of::<Header>() as u32;
const RANGE_SIZE: u32 = size_of::<RawRange>() as u32;

// Types of requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Flag of a range: it needs no room on the host.
const UNMAP: u32 = 1 << 0;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Little-endian.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[expect(unsafe_code, reason = "declares a plain structure to be one")]
// SAFETY: integers without padding: any bytes are a value.
unsafe impl ByteValued for Header {}

/// Little-endian.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawRange {
    sector: u64,
    sectors: u32,
    flags: u32,
}

#[expect(unsafe_code, reason = "declares a plain structure to be one")]
// SAFETY: integers without padding: any bytes are a value.
unsafe impl ByteValued for RawRange {}

/// A part of a disk, in bytes. It is within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// It needs no room.
    pub(super) unmap: bool,
}

/// Ranges of one request.
pub(super) type Ranges = SmallVec<[Range; 1]>;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Read from here into the data.
    Read {
        offset: u64,
    },
    /// Write the data here.
    Write {
        offset: u64,
    },
    Flush,
    Discard(Ranges),
    WriteZeroes(Ranges),
    /// Tell the serial number.
    GetId,
}

/// A disk as far as requests are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// What is to be done, or why nothing is.
    pub(super) command: Result<Command, Status>,
    /// Where data comes from or goes to.
    pub(super) data: Buffers,
    /// Where the byte of the answer goes.
    pub(super) status: GuestAddress,
}

impl Request {
    /// Reads a request. None if there is no room for an answer.
    pub(super) fn parse(chain: Chain, memory: &GuestMemoryMmap, limits: Limits) -> Option<Self> {
        let Chain {
            readable: mut data,
            mut writable,
            ..
        } = chain;
        let status = writable.split_last()?;
        let Ok(header) = data.read_obj::<Header>(memory, 0) else {
            return Some(Self {
                command: Err(Status::IoError),
                data,
                status,
            });
        };
        let kind = u32::from_le(header.kind);
        let sector = u64::from_le(header.sector);
        let data = match kind {
            IN | GET_ID => writable,
            _ => data.split_off(HEADER_SIZE),
        };
        Some(Self {
            command: command(kind, sector, &data, memory, limits),
            data,
            status,
        })
    }
}

fn command(
    kind: u32,
    sector: u64,
    data: &Buffers,
    memory: &GuestMemoryMmap,
    limits: Limits,
) -> Result<Command, Status> {
    if limits.read_only && matches!(kind, OUT | DISCARD | WRITE_ZEROES) {
        return Err(Status::IoError);
    }
    match kind {
        IN => Ok(Command::Read {
            offset: transfer(sector, data, limits)?,
        }),
        OUT => Ok(Command::Write {
            offset: transfer(sector, data, limits)?,
        }),
        FLUSH => Ok(Command::Flush),
        GET_ID => Ok(Command::GetId),
        DISCARD => ranges(data, memory, limits, &DISCARD_RULES).map(Command::Discard),
        WRITE_ZEROES => ranges(data, memory, limits, &ZEROES_RULES).map(Command::WriteZeroes),
        _ => Err(Status::Unsupported),
    }
}

/// The offset of a transfer of `data`.
fn transfer(sector: u64, data: &Buffers, limits: Limits) -> Result<u64, Status> {
    let len = u64::from(data.len());
    if data.len() > DATA_MAX || !len.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    within(sector, len, limits)
}

/// The offset of `sector`, if it and what follows is within the disk.
fn within(sector: u64, len: u64, limits: Limits) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    match offset.checked_add(len) {
        Some(end) if end <= limits.size => Ok(offset),
        _ => Err(Status::IoError),
    }
}

/// What ranges may be.
struct RangeRules {
    count: u32,
    sectors: u32,
    flags: u32,
}

const DISCARD_RULES: RangeRules = RangeRules {
    count: DISCARD_RANGES_MAX,
    sectors: DISCARD_SECTORS_MAX,
    flags: 0,
};
const ZEROES_RULES: RangeRules = RangeRules {
    count: ZEROES_RANGES_MAX,
    sectors: ZEROES_SECTORS_MAX,
    flags: UNMAP,
};

fn ranges(
    data: &Buffers,
    memory: &GuestMemoryMmap,
    limits: Limits,
    rules: &RangeRules,
) -> Result<Ranges, Status> {
    let count = data.len() / RANGE_SIZE;
    if !data.len().is_multiple_of(RANGE_SIZE) || count == 0 || count > rules.count {
        return Err(Status::IoError);
    }
    (0..count)
        .map(|index| {
            let raw: RawRange = data
                .read_obj(memory, index * RANGE_SIZE)
                .map_err(|_| Status::IoError)?;
            let flags = u32::from_le(raw.flags);
            // Section 5.2.6.2: with other flags it is not a request that is known.
            if flags & !rules.flags != 0 {
                return Err(Status::Unsupported);
            }
            let sectors = u32::from_le(raw.sectors);
            if sectors > rules.sectors {
                return Err(Status::IoError);
            }
            let len = u64::from(sectors) * SECTOR;
            Ok(Range {
                offset: within(u64::from_le(raw.sector), len, limits)?,
                len,
                unmap: flags & UNMAP != 0,
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
