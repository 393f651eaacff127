//! One request of the driver: a descriptor chain, checked from its head to its end before anyone looks
//! at a byte of it (virtio 1.2 section 2.7.5).
//!
//! What is checked: every index is below the queue's size, the chain is no longer than the queue,
//! indirect tables are whole and not nested, readable buffers come before writable ones, every buffer is
//! guest RAM, and all of it is less than 4 GiB.

use std::mem::size_of;

use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileMemory, VolatileSlice,
};

use crate::backend::written_by_devices;

const DESC_F_NEXT: u16 = 1 << 0;
const DESC_F_WRITE: u16 = 1 << 1;
const DESC_F_INDIRECT: u16 = 1 << 2;
/// Bytes of a descriptor.
const DESC_SIZE: u64 = size_of::<Descriptor>() as u64;
/// Buffers of a request, readable and writable ones, that are kept without an allocation. Few, as
/// requests are passed on by value.
const INLINE: usize = 2;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A descriptor's index is not below the queue's size.
    #[error("Descriptor {index} is beyond the end of its table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A loop, or more descriptors than the queue has.
    #[error("A chain has more descriptors than its queue: {size}")]
    TooLong {
        /// The queue's size.
        size: u16,
    },
    /// An indirect table in an indirect table, or one with a next descriptor.
    #[error("An indirect descriptor is where none may be")]
    Indirect,
    /// An indirect table of no or half descriptors, or more than the queue has.
    #[error("An indirect table of {bytes} bytes")]
    IndirectSize {
        /// Its size.
        bytes: u32,
    },
    /// A readable buffer after a writable one.
    #[error("A readable buffer comes after a writable one")]
    Order,
    /// Not RAM, or to be written to where it can only be read.
    #[error("{len} bytes at {gpa:#x} are not guest memory, or cannot be written to")]
    NotRam {
        /// GPA.
        gpa: u64,
        /// How many bytes.
        len: u64,
    },
    /// 4 GiB or more in all.
    #[error("A chain has 4 GiB of buffers or more")]
    TooLarge,
}

/// The host's view of `len` bytes of guest RAM; None if they are not all in one region of it. Rings and
/// requests are mostly looked at through this: memory has so few regions that a search costs more.
#[inline]
pub(super) fn slice_at(
    memory: &GuestMemoryMmap,
    gpa: GuestAddress,
    len: usize,
) -> Option<VolatileSlice<'_>> {
    memory.iter().find_map(|region| {
        let offset = gpa.0.checked_sub(region.start_addr().0)?;
        let end = offset.checked_add(len as u64)?;
        if end > region.len() {
            return None;
        }
        region.get_slice(MemoryRegionAddress(offset), len).ok()
    })
}

/// Whether these bytes are guest RAM, in however many regions, and none of them is of a region that can
/// only be read if they are to be written to.
fn is_ram(memory: &GuestMemoryMmap, gpa: GuestAddress, len: usize, written: bool) -> bool {
    (slice_at(memory, gpa, len).is_some() || memory.check_range(gpa, len))
        && (!written || is_writable(memory, gpa, len))
}

/// Whether no region that can only be read has any of these bytes, but for files in it that can be written
/// to: an access would end the monitor.
pub(crate) fn is_writable(memory: &GuestMemoryMmap, gpa: GuestAddress, len: usize) -> bool {
    let last = gpa.0.saturating_add((len as u64).saturating_sub(1));
    memory.iter().all(|region| {
        region.prot() & libc::PROT_WRITE != 0
            || last < region.start_addr().0
            || gpa.0 > region.last_addr().0
            || is_plugged(region, gpa.0.max(region.start_addr().0), last)
    })
}

/// Whether a file that can be written to has these bytes of a region.
#[cold]
fn is_plugged(region: &GuestRegionMmap, first: u64, last: u64) -> bool {
    let start = region.start_addr().0;
    let address = |gpa: u64| {
        let offset = usize::try_from(gpa - start).ok()?;
        region.as_ptr().addr().checked_add(offset)
    };
    let end = last.min(region.last_addr().0);
    match (address(first), address(end)) {
        (Some(first), Some(end)) => written_by_devices::contains(first, end.saturating_add(1)),
        _ => false,
    }
}

/// A descriptor; little-endian in guest memory.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[expect(unsafe_code, reason = "declares a plain structure to be one")]
// SAFETY: integers without padding: any bytes are a value.
unsafe impl ByteValued for Descriptor {}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts.
    pub gpa: GuestAddress,
    /// Its length in bytes; not 0.
    pub len: u32,
}

/// Buffers in a row. Each was guest RAM when it was checked, and guest RAM stays.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    segments: SmallVec<[Segment; INLINE]>,
    len: u32,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    /// What the driver sends.
    pub readable: Buffers,
    /// Where it wants the answer.
    pub writable: Buffers,
}

impl Chain {
    /// The index by which it is returned to the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Follows and checks the chain that starts at descriptor `head` of the table at `table`, of
    /// `size` descriptors.
    pub(super) fn read(
        memory: &GuestMemoryMmap,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, Error> {
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut table = Table::new(memory, table, size);
        let mut index = head;
        let mut is_indirect = false;
        for _ in 0..size {
            let descriptor = table.get(memory, index)?;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                // Section 2.7.5.3.1: not in a table, and it ends the chain.
                if is_indirect || descriptor.flags & DESC_F_NEXT != 0 {
                    return Err(Error::Indirect);
                }
                table = Table::indirect(memory, &descriptor, size)?;
                index = 0;
                is_indirect = true;
                continue;
            }
            chain.push(memory, &descriptor)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        // An indirect descriptor does not count as a buffer: one more may follow.
        if is_indirect && let Ok(descriptor) = table.get(memory, index) {
            chain.push(memory, &descriptor)?;
            if descriptor.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0 {
                return Ok(chain);
            }
        }
        Err(Error::TooLong { size })
    }

    fn push(&mut self, memory: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<(), Error> {
        let segment = Segment {
            gpa: GuestAddress(descriptor.addr),
            len: descriptor.len,
        };
        let is_writable = descriptor.flags & DESC_F_WRITE != 0;
        if !is_writable && !self.writable.is_empty() {
            return Err(Error::Order);
        }
        let all = u64::from(self.readable.len) + u64::from(self.writable.len);
        if all + u64::from(segment.len) > u64::from(u32::MAX) {
            return Err(Error::TooLarge);
        }
        if segment.len == 0 {
            return Ok(());
        }
        if !is_ram(memory, segment.gpa, segment.len as usize, is_writable) {
            return Err(Error::NotRam {
                gpa: segment.gpa.0,
                len: segment.len.into(),
            });
        }
        let buffers = if is_writable {
            &mut self.writable
        } else {
            &mut self.readable
        };
        buffers.push(segment);
        Ok(())
    }
}

/// A table of descriptors.
struct Table<'m> {
    start: GuestAddress,
    size: u16,
    /// All of it, if it is RAM from end to end.
    slice: Option<VolatileSlice<'m>>,
}

impl<'m> Table<'m> {
    fn new(memory: &'m GuestMemoryMmap, start: GuestAddress, size: u16) -> Self {
        let bytes = usize::from(size) * DESC_SIZE as usize;
        Self {
            start,
            size,
            slice: slice_at(memory, start, bytes),
        }
    }

    fn indirect(
        memory: &'m GuestMemoryMmap,
        descriptor: &Descriptor,
        queue_size: u16,
    ) -> Result<Self, Error> {
        let bytes = descriptor.len;
        let wrong = Error::IndirectSize { bytes };
        if bytes == 0 || !u64::from(bytes).is_multiple_of(DESC_SIZE) {
            return Err(wrong);
        }
        let size = u16::try_from(u64::from(bytes) / DESC_SIZE).map_err(|_| wrong)?;
        // Section 2.7.5.3.1: a chain is not longer than its queue.
        if size > queue_size {
            return Err(wrong);
        }
        Ok(Self::new(memory, GuestAddress(descriptor.addr), size))
    }

    fn get(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, Error> {
        let size = self.size;
        if index >= size {
            return Err(Error::Index { index, size });
        }
        let not_ram = |gpa| Error::NotRam {
            gpa,
            len: DESC_SIZE,
        };
        let offset = u64::from(index) * DESC_SIZE;
        let whole = self.slice.as_ref();
        let raw = match whole.and_then(|slice| slice.get_ref(offset as usize).ok()) {
            Some(place) => place.load(),
            None => {
                let gpa = self.start.0.checked_add(offset);
                let gpa = gpa.ok_or(not_ram(self.start.0))?;
                memory
                    .read_obj::<Descriptor>(GuestAddress(gpa))
                    .map_err(|_| not_ram(gpa))?
            }
        };
        Ok(Descriptor {
            addr: u64::from_le(raw.addr),
            len: u32::from_le(raw.len),
            flags: u16::from_le(raw.flags),
            next: u16::from_le(raw.next),
        })
    }
}

/// A request is shorter than what it should hold.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("A buffer of {len} bytes is too short")]
pub struct TooShort {
    /// Its length.
    pub len: u32,
}

impl Buffers {
    /// Bytes in all.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The host's view of them, in order, each contiguous: at least one a segment, more where a
    /// segment spans two regions of guest memory.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
    ) -> impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>> {
        self.segments
            .iter()
            .flat_map(|segment| memory.get_slices(segment.gpa, segment.len as usize))
    }

    /// Calls `take` with what [`Buffers::slices`] gives, which is slower. False if there is anything that
    /// is not guest RAM, or that is not taken.
    pub fn each_slice<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        mut take: impl FnMut(VolatileSlice<'m>) -> bool,
    ) -> bool {
        self.segments.iter().all(|segment| {
            let len = segment.len as usize;
            match slice_at(memory, segment.gpa, len) {
                Some(slice) => take(slice),
                None => memory
                    .get_slices(segment.gpa, len)
                    .all(|slice| slice.is_ok_and(&mut take)),
            }
        })
    }

    /// Takes the last byte off, and says where it is. None if there is none.
    pub fn split_last(&mut self) -> Option<GuestAddress> {
        let last = self.segments.last_mut()?;
        last.len -= 1;
        self.len -= 1;
        let byte = GuestAddress(last.gpa.0 + u64::from(last.len));
        if last.len == 0 {
            self.segments.pop();
        }
        Some(byte)
    }

    /// Splits after `at` bytes and returns what is behind; all that there is if there are fewer.
    pub fn split_off(&mut self, at: u32) -> Self {
        let mut behind = Self::default();
        let mut before = 0;
        let mut kept = 0;
        for (index, segment) in self.segments.iter_mut().enumerate() {
            let room = at.saturating_sub(before);
            before += segment.len;
            if room >= segment.len {
                kept = index + 1;
                continue;
            }
            behind.push(Segment {
                gpa: GuestAddress(segment.gpa.0 + u64::from(room)),
                len: segment.len - room,
            });
            if room > 0 {
                segment.len = room;
                kept = index + 1;
            }
        }
        self.segments.truncate(kept);
        self.len -= behind.len;
        behind
    }

    /// Appends a segment; one that goes on where the last one ends becomes part of it.
    fn push(&mut self, segment: Segment) {
        self.len += segment.len;
        if let Some(last) = self.segments.last_mut()
            && last.gpa.0 + u64::from(last.len) == segment.gpa.0
        {
            // All of them are less than 4 GiB.
            last.len += segment.len;
            return;
        }
        self.segments.push(segment);
    }

    /// Copies `data.len()` bytes from `offset` on out of them.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        mut data: &mut [u8],
    ) -> Result<(), TooShort> {
        if let Some(slice) = self.in_one(memory, offset, data.len()) {
            return slice.read_slice(data, 0).map_err(|_| self.short());
        }
        for piece in self.pieces(offset, data.len())? {
            let (now, later) = data.split_at_mut(piece.len as usize);
            memory
                .read_slice(now, piece.gpa)
                .map_err(|_| self.short())?;
            data = later;
        }
        Ok(())
    }

    /// Copies `data` into them from `offset` on.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        mut data: &[u8],
    ) -> Result<(), TooShort> {
        if let Some(slice) = self.in_one(memory, offset, data.len()) {
            return slice.write_slice(data, 0).map_err(|_| self.short());
        }
        for piece in self.pieces(offset, data.len())? {
            let (now, later) = data.split_at(piece.len as usize);
            memory
                .write_slice(now, piece.gpa)
                .map_err(|_| self.short())?;
            data = later;
        }
        Ok(())
    }

    /// Copies a structure out of them.
    pub fn read_obj<T: ByteValued + Default>(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
    ) -> Result<T, TooShort> {
        let mut object = T::default();
        self.read(memory, offset, object.as_mut_slice())?;
        Ok(object)
    }

    /// Copies a structure into them.
    pub fn write_obj<T: ByteValued>(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        object: &T,
    ) -> Result<(), TooShort> {
        self.write(memory, offset, object.as_slice())
    }

    /// The host's view of `len` bytes from `offset` on, if they are in one segment and region.
    fn in_one<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u32,
        len: usize,
    ) -> Option<VolatileSlice<'m>> {
        let mut offset = offset;
        for segment in &self.segments {
            if offset < segment.len {
                let is_within = len <= (segment.len - offset) as usize;
                let gpa = GuestAddress(segment.gpa.0 + u64::from(offset));
                return is_within.then(|| slice_at(memory, gpa, len)).flatten();
            }
            offset -= segment.len;
        }
        None
    }

    fn short(&self) -> TooShort {
        TooShort { len: self.len }
    }

    /// The pieces of `len` bytes from `offset` on.
    fn pieces(&self, offset: u32, len: usize) -> Result<impl Iterator<Item = Segment>, TooShort> {
        let len = u32::try_from(len).map_err(|_| self.short())?;
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let end = end.ok_or(self.short())?;
        let mut start = 0;
        Ok(self.segments.iter().filter_map(move |segment| {
            let (first, last) = (offset.max(start), end.min(start + segment.len));
            let gpa = GuestAddress(segment.gpa.0 + u64::from(first.saturating_sub(start)));
            start += segment.len;
            (first < last).then(|| Segment {
                gpa,
                len: last - first,
            })
        }))
    }
}
