//! Persistent memory that comes and goes while the guest runs: addresses for it, KVM's slots, and the way back.
//!
//! Its addresses are a region of guest memory from the start, so that devices, which have guest memory once and for
//! all, reach what is mapped there as they reach RAM. Where no file is, the region is memory of zeroes that no device
//! writes to. What a device was told to write before a file went ends in memory that is nobody's.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use devices::backend::disk::mapped;
use devices::bus::Bus;
use devices::lock;
use devices::virtio::pmem::PmemControl;
use kvm_bindings::KVM_MEM_READONLY;
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use super::Error;
use crate::controls::DeviceId;
use crate::kvm;

/// Bytes of guest addresses. They cost nothing but the pages of page tables that devices need to read what is
/// not there: 128 MiB if a guest has them read all.
pub(super) const SIZE: u64 = 64 << 30;
/// Of the region's start.
pub(super) const ALIGNMENT: u64 = 1 << 30;

/// See the module.
pub(crate) struct Window {
    // Fixed configuration.
    start: u64,
    /// KVM's slots that are nobody else's.
    slots: Range<u32>,
    // Runtime glue.
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    /// Not owned: it has the devices, which have this.
    bus: OnceLock<Weak<Bus>>,
    // Volatile state.
    /// First GPA after what the guest reaches.
    end: AtomicU64,
    taken: Mutex<Vec<Taken>>,
}

/// A slot of KVM, and the addresses that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    slot: u32,
    range: Range<u64>,
}

impl Window {
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        start: u64,
        slots: Range<u32>,
    ) -> Self {
        Self {
            start,
            slots,
            vm: Arc::clone(vm),
            memory: Arc::clone(memory),
            bus: OnceLock::new(),
            end: AtomicU64::new(start),
            taken: Mutex::default(),
        }
    }

    /// Where it is.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The guest reaches addresses below `limit`.
    pub(crate) fn set_end(&self, limit: u64) {
        let end = limit.clamp(self.start, self.start + SIZE);
        self.end.store(end, Ordering::Release);
    }

    /// Where writes to what is read-only go.
    pub(crate) fn set_bus(&self, bus: &Arc<Bus>) {
        // Once only.
        let _ = self.bus.set(Arc::downgrade(bus));
    }

    fn bus(&self) -> Option<Arc<Bus>> {
        self.bus.get()?.upgrade()
    }

    /// Finds addresses and a slot for a file, maps it there, and gives it to the guest. It is the guest's until what
    /// is returned is dropped.
    pub(crate) fn place(
        self: &Arc<Self>,
        id: &str,
        control: &PmemControl,
    ) -> Result<Placed, Error> {
        let size = control.size();
        let end = self.end.load(Ordering::Acquire);
        let taken = take(
            &mut lock(&self.taken),
            self.start..end,
            self.slots.clone(),
            size,
        );
        let taken = taken.ok_or(Error::WindowFull {
            bytes: size,
            room: end - self.start,
        })?;
        let mut placed = self.map(id, control, &taken)?;
        if control.is_read_only()
            && let Some(bus) = self.bus()
        {
            bus.insert(taken.range.start, size, control.dropped_writes())?;
            placed.on_bus = true;
        }
        self.give(id, &mut placed)?;
        Ok(placed)
    }

    /// The same at `start`, where it was in a machine that was saved, before there is a bus: who has it puts what is
    /// read-only there.
    pub(super) fn place_at(
        self: &Arc<Self>,
        id: &str,
        control: &PmemControl,
        start: u64,
    ) -> Result<Placed, Error> {
        let taken = take_at(
            &mut lock(&self.taken),
            self.start..self.start + SIZE,
            self.slots.clone(),
            start,
            control.size(),
        );
        let taken = taken.ok_or_else(|| Error::Place {
            what: DeviceId::Pmem(id.into()).to_string(),
            start,
        })?;
        let mut placed = self.map(id, control, &taken)?;
        placed.on_bus = control.is_read_only();
        self.give(id, &mut placed)?;
        Ok(placed)
    }

    /// Maps a file at addresses that it has been given.
    fn map(
        self: &Arc<Self>,
        id: &str,
        control: &PmemControl,
        taken: &Taken,
    ) -> Result<Placed, Error> {
        let placed = Placed {
            window: Arc::clone(self),
            control: control.clone(),
            start: taken.range.start,
            slot: taken.slot,
            in_kvm: false,
            on_bus: false,
        };
        let mapped = control.map_into(&self.memory, placed.start);
        mapped.map_err(|source| Error::Map {
            id: id.into(),
            source,
        })?;
        Ok(placed)
    }

    /// Has the guest reach what is mapped.
    fn give(&self, id: &str, placed: &mut Placed) -> Result<(), Error> {
        let flags = if placed.control.is_read_only() {
            KVM_MEM_READONLY
        } else {
            0
        };
        let (start, size) = (placed.start, placed.control.size());
        kvm::insert_slot(&self.vm, &self.memory, placed.slot, start, size, flags).map_err(
            |source| Error::Kvm {
                id: id.into(),
                source,
            },
        )?;
        placed.in_kvm = true;
        Ok(())
    }
}

/// `size` bytes of `all` at `start`, if they are free and can be somebody's, and a slot of `slots`.
fn take_at(
    taken: &mut Vec<Taken>,
    all: Range<u64>,
    slots: Range<u32>,
    start: u64,
    size: u64,
) -> Option<Taken> {
    let end = start.checked_add(size).filter(|end| *end <= all.end)?;
    if start < all.start || !start.is_multiple_of(mapped::ALIGNMENT) {
        return None;
    }
    let index = taken.partition_point(|other| other.range.end <= start);
    if taken.get(index).is_some_and(|next| next.range.start < end) {
        return None;
    }
    let new = Taken {
        slot: free_slot(taken, slots)?,
        range: start..end,
    };
    taken.insert(index, new.clone());
    Some(new)
}

fn free_slot(taken: &[Taken], mut slots: Range<u32>) -> Option<u32> {
    slots.find(|slot| taken.iter().all(|other| other.slot != *slot))
}

/// The lowest addresses of `all` where `size` bytes are free, and a slot of `slots`.
fn take(taken: &mut Vec<Taken>, all: Range<u64>, slots: Range<u32>, size: u64) -> Option<Taken> {
    let slot = free_slot(taken, slots)?;
    let mut start = all.start;
    let mut index = 0;
    while let Some(other) = taken.get(index)
        && other.range.start - start < size
    {
        start = other.range.end;
        index += 1;
    }
    let end = start.checked_add(size).filter(|end| *end <= all.end)?;
    let new = Taken {
        slot,
        range: start..end,
    };
    taken.insert(index, new.clone());
    Some(new)
}

/// That a file is a part of the guest's memory. Dropped, it is not.
pub(crate) struct Placed {
    window: Arc<Window>,
    control: PmemControl,
    start: u64,
    slot: u32,
    in_kvm: bool,
    on_bus: bool,
}

impl Placed {
    /// One that has been there from the start.
    pub(super) fn from_the_start(
        window: &Arc<Window>,
        control: &PmemControl,
        start: u64,
        slot: u32,
    ) -> Self {
        Self {
            window: Arc::clone(window),
            control: control.clone(),
            start,
            slot,
            in_kvm: true,
            on_bus: control.is_read_only(),
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let window = &self.window;
        // Without a bus the machine ends, and takes all of it along.
        let Some(bus) = window.bus() else {
            return;
        };
        // If either fails, nobody else gets that place.
        if self.in_kvm && kvm::remove_slot(&window.vm, self.slot).is_err() {
            return;
        }
        if self.on_bus {
            bus.remove(self.start);
        }
        if self.control.unmap(&window.memory).is_ok() {
            lock(&window.taken).retain(|taken| taken.slot != self.slot);
        }
    }
}

const _: () = assert!(SIZE.is_multiple_of(mapped::ALIGNMENT) && ALIGNMENT >= mapped::ALIGNMENT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_from_the_lowest_that_are_free() {
        let mut taken = Vec::new();
        let ask = |taken: &mut Vec<Taken>, size| {
            take(taken, 100..200, 7..10, size).map(|Taken { slot, range }| (slot, range))
        };
        assert_eq!(ask(&mut taken, 101), None);
        assert_eq!(ask(&mut taken, 30), Some((7, 100..130)));
        assert_eq!(ask(&mut taken, 40), Some((8, 130..170)));
        assert_eq!(ask(&mut taken, 31), None);
        assert_eq!(ask(&mut taken, 30), Some((9, 170..200)));
        taken.retain(|other| other.slot != 8);
        assert_eq!(ask(&mut taken, 41), None);
        assert_eq!(ask(&mut taken, 10), Some((8, 130..140)));
        // Room is left, but no slot.
        assert_eq!(ask(&mut taken, 10), None);
        taken.retain(|other| other.slot != 7);
        assert_eq!(ask(&mut taken, 30), Some((7, 100..130)));
        assert_eq!(ask(&mut taken, 1), None);
    }

    #[test]
    fn addresses_are_taken_where_they_were_before_if_nothing_else_is_there() {
        const PAGE: u64 = mapped::ALIGNMENT;
        let mut taken = Vec::new();
        let mut ask = |start: u64, size: u64| {
            let all = 10 * PAGE..20 * PAGE;
            let taken = take_at(&mut taken, all, 7..10, start * PAGE, size * PAGE);
            taken.map(|Taken { slot, .. }| slot)
        };
        for wrong in [(9, 1), (9, 20), (20, 1), (19, 2), (0, 1)] {
            assert_eq!(ask(wrong.0, wrong.1), None, "{wrong:?}");
        }
        assert_eq!(ask(14, 2), Some(7));
        for overlap in [(14, 2), (13, 2), (15, 1), (10, 10)] {
            assert_eq!(ask(overlap.0, overlap.1), None, "{overlap:?}");
        }
        assert_eq!(ask(16, 4), Some(8));
        assert_eq!(ask(10, 4), Some(9));
        let mut odd = Vec::new();
        let all = 10 * PAGE..20 * PAGE;
        assert_eq!(
            take_at(&mut odd, all.clone(), 7..8, 10 * PAGE + 4096, PAGE),
            None
        );
        assert_eq!(
            take_at(&mut odd, all.clone(), 7..8, u64::MAX / PAGE * PAGE, PAGE),
            None
        );
        assert_eq!(take_at(&mut odd, all, 7..7, 10 * PAGE, PAGE), None);
        assert_eq!(odd, []);
    }
}
