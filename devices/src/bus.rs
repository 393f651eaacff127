//! From an address to the device that answers there: one [`Bus`] for ports, one for MMIO.
//!
//! # Locks
//! Devices come and go while the guest runs, and yet an access takes no lock but the device's own: it
//! looks at the list as it was when it began, and who changes the list puts another one in its place. In
//! there the device may take, in this order,
//! 1. its own lock (held); on a PCI bus, that of the function that the access leads on to,
//! 2. the one of those who change a bus's list, to move itself or another device ([`Bus::insert`],
//!    [`Bus::remove`]),
//! 3. the IOAPIC's, through [`InterruptLine::set`](crate::interrupt::InterruptLine::set),
//! 4. what the [`MsiSink`](crate::interrupt::MsiSink), the
//!    [`MsiVectors`](crate::pci::msix::MsiVectors) or the [`EventSink`](crate::event::EventSink)
//!    takes.
//!
//! Nothing goes the other way: nobody waits for a device while he changes a list, the IOAPIC never calls
//! a device, and a sink calls neither. A device that was removed may still get accesses that had begun
//! before: it is dropped after the last of them, whichever device that one was for.
//!
//! # Unmapped addresses
//! As on a PC, a read that no device answers gives all ones and a write vanishes. Both are counted
//! and nothing else: a guest can make millions of them a second. An access that starts in a device's
//! range and goes on beyond its end is unmapped too; no device sees a part of an access.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use thiserror::Error;

use crate::lock;

/// Why a device cannot be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The range has no addresses.
    #[error("The device range at {base:#x} is empty")]
    Empty {
        /// Its first address.
        base: u64,
    },
    /// The range goes on beyond the last address there is.
    #[error("The device range of {len:#x} bytes at {base:#x} exceeds the address space")]
    WrapAround {
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Another device is there.
    #[error("The device range of {len:#x} bytes at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// First address of the other device.
        other: u64,
    },
}

/// A device on a bus.
///
/// The guest chooses everything: `offset` is below the length of the device's range and the access
/// ends within it, but `data` may have any length, and neither needs to be aligned.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`, in bytes from the start of the range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset`, in bytes from the start of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// What became of an access.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A device took it.
    Handled,
    /// There is no device. The bus has filled the data of a read, and counted it.
    Unmapped,
}

/// Accesses that no device answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapped {
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
}

#[derive(Clone)]
struct Range {
    base: u64,
    /// The last address that belongs to it, so that a range may end with the address space.
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    // Runtime glue.
    /// Sorted by address, not overlapping.
    ranges: ArcSwap<Vec<Range>>,
    /// Of those who change it.
    changes: Mutex<()>,

    // Volatile state.
    unmapped_reads: AtomicU64,
    unmapped_writes: AtomicU64,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer the `len` addresses from `base` on.
    pub fn insert(
        &self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Error> {
        let past_first = len.checked_sub(1).ok_or(Error::Empty { base })?;
        let last = base
            .checked_add(past_first)
            .ok_or(Error::WrapAround { base, len })?;
        let _changing = lock(&self.changes);
        let mut ranges = Vec::clone(&self.ranges.load());
        let index = ranges.partition_point(|range| range.last < base);
        match ranges.get(index) {
            Some(other) if other.base <= last => {
                let other = other.base;
                Err(Error::Overlap { base, len, other })
            }
            _ => {
                ranges.insert(index, Range { base, last, device });
                self.ranges.store(Arc::new(ranges));
                Ok(())
            }
        }
    }

    /// Takes away the device whose range starts at `base`. Accesses that had found it may still be on
    /// their way to it.
    pub fn remove(&self, base: u64) -> Option<Arc<Mutex<dyn BusDevice>>> {
        let _changing = lock(&self.changes);
        let mut ranges = Vec::clone(&self.ranges.load());
        let index = ranges
            .binary_search_by_key(&base, |range| range.base)
            .ok()?;
        let range = ranges.remove(index);
        self.ranges.store(Arc::new(ranges));
        Some(range.device)
    }

    /// Puts another device in the place of each one that is there: `wrap` is told where that starts.
    pub fn wrap_each(
        &self,
        wrap: impl Fn(u64, Arc<Mutex<dyn BusDevice>>) -> Arc<Mutex<dyn BusDevice>>,
    ) {
        let _changing = lock(&self.changes);
        let ranges = Vec::clone(&self.ranges.load());
        let wrapped = ranges.into_iter().map(|range| Range {
            device: wrap(range.base, range.device),
            ..range
        });
        self.ranges.store(Arc::new(wrapped.collect()));
    }

    /// Reads `data.len()` bytes at `addr`.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Access {
        if let Some((device, offset)) = find(&self.ranges.load(), addr, data.len()) {
            lock(device).read(offset, data);
            return Access::Handled;
        }
        data.fill(0xff);
        self.unmapped_reads.fetch_add(1, Ordering::Relaxed);
        Access::Unmapped
    }

    /// Writes `data` at `addr`.
    pub fn write(&self, addr: u64, data: &[u8]) -> Access {
        if let Some((device, offset)) = find(&self.ranges.load(), addr, data.len()) {
            lock(device).write(offset, data);
            return Access::Handled;
        }
        self.unmapped_writes.fetch_add(1, Ordering::Relaxed);
        Access::Unmapped
    }

    /// How many accesses found no device so far.
    pub fn unmapped(&self) -> Unmapped {
        Unmapped {
            reads: self.unmapped_reads.load(Ordering::Relaxed),
            writes: self.unmapped_writes.load(Ordering::Relaxed),
        }
    }
}

/// The device that answers all of `addr .. addr + len`, and the offset of `addr` in its range.
fn find(ranges: &[Range], addr: u64, len: usize) -> Option<(&Mutex<dyn BusDevice>, u64)> {
    let index = ranges.partition_point(|range| range.last < addr);
    let range = ranges.get(index)?;
    let offset = addr.checked_sub(range.base)?;
    let room = range.last - addr;
    let past_first = u64::try_from(len).ok()?.saturating_sub(1);
    (past_first <= room).then(|| (&*range.device, offset))
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.load();
        let ranges = ranges.iter().map(|range| range.base..=range.last);
        f.debug_list().entries(ranges).finish()
    }
}

/// Gives a guest that reads a register `value`, little-endian, in as many bytes as it reads.
pub(crate) fn put_register(data: &mut [u8], value: u32) {
    data.fill(0);
    for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

/// Splits an access into the byte-wide registers it covers, as a PC does for its 8-bit devices.
pub(crate) fn byte_offsets(offset: u64) -> impl Iterator<Item = u64> {
    offset..=u64::MAX
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
