//! The root complex: a bus of functions, with the host bridge in slot 0, and the memory window through
//! which a guest gets at their configuration space (ECAM, PCI Express Base 5.0, section 7.2.2). The
//! other way is by ports: [`PciConfig`](crate::legacy::pci_config::PciConfig).
//!
//! # Locks
//! Whoever looks into a slot takes the lock of the slots, lets go of it, and then takes the function's.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use thiserror::Error;

use super::config::{EXTENDED_SIZE, Identity, NOBODY, Space};
use super::{Function, SLOTS};
use crate::bus::BusDevice;
use crate::lock;

/// Bytes of one bus in the ECAM window: 32 devices of 8 functions with [`EXTENDED_SIZE`] each.
pub const ECAM_SIZE: u64 = 1 << 20;
const FUNCTIONS: usize = 8;

/// The host bridge is Red Hat's generic one, as far as its id goes: all guests know it, and that there
/// is nothing special to do about it.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem: (0x1b36, 0x1100),
};

/// All slots are taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("All {} PCI slots are taken", SLOTS - 1)]
pub struct Full;

/// A slot that was asked for is taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("PCI slot {} is taken", .0.number())]
pub struct Taken(pub Slot);

/// A slot of the bus, with a function in it or not: 1 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// Slot `number`, if a function can be there: the host bridge's cannot be had.
    pub fn new(number: u8) -> Option<Self> {
        (1..SLOTS).contains(&number.into()).then_some(Self(number))
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..)
            .map_while(|number| (usize::from(number) < SLOTS).then_some(number))
            .filter_map(Self::new)
    }

    /// Its number: what PCI calls the device number.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its bit in a bitmap of slots.
    pub fn bit(self) -> u32 {
        1 << self.0
    }
}

type SharedFunction = Arc<Mutex<dyn Function>>;

/// A function that is, or was, in a slot. It is not kept there.
#[derive(Clone)]
pub struct Occupant {
    slot: Slot,
    function: Weak<Mutex<dyn Function>>,
}

impl Occupant {
    fn is_in(&self, slots: &Slots) -> bool {
        slots[usize::from(self.slot.0)]
            .as_ref()
            .is_some_and(|there| std::ptr::addr_eq(Arc::as_ptr(there), self.function.as_ptr()))
    }
}

type Slots = [Option<SharedFunction>; SLOTS];

/// The bus.
pub struct Root {
    // Runtime glue.
    slots: Mutex<Slots>,
    /// Something was taken out.
    removed: Condvar,
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

impl Root {
    /// A bus with a host bridge and nothing else.
    pub fn new() -> Self {
        let mut slots = Slots::default();
        slots[0] = Some(Arc::new(Mutex::new(HostBridge(Space::new(&HOST_BRIDGE)))));
        Self {
            slots: Mutex::new(slots),
            removed: Condvar::new(),
        }
    }

    /// Puts what `make` makes for it into the lowest slot that is free. `make` is called with the lock
    /// of the slots held.
    pub fn insert<E: From<Full>>(
        &self,
        make: impl FnOnce(Slot) -> Result<SharedFunction, E>,
    ) -> Result<Slot, E> {
        let mut slots = lock(&self.slots);
        let slot = Slot::all()
            .find(|slot| slots[usize::from(slot.0)].is_none())
            .ok_or(Full)?;
        slots[usize::from(slot.0)] = Some(make(slot)?);
        Ok(slot)
    }

    /// Puts what `make` makes into `slot`, as [`Root::insert`] does.
    pub fn insert_at<E: From<Taken>>(
        &self,
        slot: Slot,
        make: impl FnOnce(Slot) -> Result<SharedFunction, E>,
    ) -> Result<Slot, E> {
        let mut slots = lock(&self.slots);
        let place = &mut slots[usize::from(slot.0)];
        if place.is_some() {
            return Err(Taken(slot).into());
        }
        *place = Some(make(slot)?);
        Ok(slot)
    }

    /// Unplugs the function in `slot` and takes it out; whether there was one. The slot is not free
    /// before all that the function had is.
    pub fn remove(&self, slot: Slot) -> bool {
        let index = usize::from(slot.0);
        let Some(function) = lock(&self.slots)[index].clone() else {
            return false;
        };
        lock(&function).unplug();
        let mut slots = lock(&self.slots);
        // Someone else may have done the same meanwhile, and another function may be there already.
        let is_there = slots[index]
            .as_ref()
            .is_some_and(|there| Arc::ptr_eq(there, &function));
        if is_there {
            slots[index] = None;
        }
        // Dropping the function takes time, and may take locks.
        drop(slots);
        drop(function);
        self.removed.notify_all();
        is_there
    }

    /// The machine ends: drops all functions, without a word to anyone but those who wait.
    pub fn clear(&self) {
        let slots = std::mem::take(&mut *lock(&self.slots));
        // Dropping functions takes time, and may take locks.
        drop(slots);
        self.removed.notify_all();
    }

    /// Whether a function is in `slot`.
    pub fn is_occupied(&self, slot: Slot) -> bool {
        lock(&self.slots)[usize::from(slot.0)].is_some()
    }

    /// The function in `slot`.
    pub fn occupant(&self, slot: Slot) -> Option<Occupant> {
        let slots = lock(&self.slots);
        let function = slots[usize::from(slot.0)].as_ref()?;
        Some(Occupant {
            slot,
            function: Arc::downgrade(function),
        })
    }

    /// Waits until a function has been taken out, at most for `timeout`; whether it has. Another one
    /// may be in its slot by then.
    pub fn wait_removed(&self, occupant: &Occupant, timeout: Duration) -> bool {
        let slots = lock(&self.slots);
        let (slots, _) = self
            .removed
            .wait_timeout_while(slots, timeout, |slots| occupant.is_in(slots))
            .unwrap_or_else(PoisonError::into_inner);
        !occupant.is_in(&slots)
    }

    /// Reads configuration space of function `function` in slot `slot`. An access that is not aligned,
    /// or is longer than 8 bytes, finds nobody.
    pub fn read_config(&self, slot: usize, function: usize, offset: usize, data: &mut [u8]) {
        match self.find(slot, function, offset, data.len()) {
            Some((function, offset)) => lock(&function).read_config(offset, data),
            None => data.fill(NOBODY),
        }
    }

    /// Writes to it.
    pub fn write_config(&self, slot: usize, function: usize, offset: usize, data: &[u8]) {
        if let Some((function, offset)) = self.find(slot, function, offset, data.len()) {
            lock(&function).write_config(offset, data);
        }
    }

    fn find(
        &self,
        slot: usize,
        function: usize,
        offset: usize,
        len: usize,
    ) -> Option<(SharedFunction, u16)> {
        let is_access = matches!(len, 1 | 2 | 4 | 8)
            && offset.is_multiple_of(len)
            && offset < EXTENDED_SIZE
            && function == 0;
        if !is_access {
            return None;
        }
        let function = lock(&self.slots).get(slot)?.clone()?;
        Some((function, u16::try_from(offset).ok()?))
    }
}

/// The ECAM window: [`ECAM_SIZE`] bytes.
pub struct Ecam(pub Arc<Root>);

/// Slot, function and offset that an address of the window means.
fn decode(offset: u64) -> (usize, usize, usize) {
    // The bus gives no offsets beyond the window.
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let function = offset / EXTENDED_SIZE;
    (
        function / FUNCTIONS,
        function % FUNCTIONS,
        offset % EXTENDED_SIZE,
    )
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (slot, function, offset) = decode(offset);
        self.0.read_config(slot, function, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (slot, function, offset) = decode(offset);
        self.0.write_config(slot, function, offset, data);
    }
}

/// What a guest finds first, and from which it knows that there is a bus.
struct HostBridge(Space);

impl Function for HostBridge {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn unplug(&mut self) {
        // It stays.
    }
}

#[cfg(test)]
#[path = "root_test.rs"]
mod tests;
