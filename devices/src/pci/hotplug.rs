//! How a guest with ACPI hears of functions that come and go: a few ports that the methods of the DSDT
//! read and write. The interrupt that makes them do so is the generic event device's
//! ([`Ged`](crate::legacy::ged::Ged)).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::root::{Root, Slot};
use crate::bus::BusDevice;

/// Ports.
pub const SIZE: u16 = 12;
// Registers of 32 bits each, as offsets; one bit a slot.
/// Slots with a new function. Reading clears it.
pub const INSERTED: u64 = 0;
/// Slots whose function is asked to go. Reading clears it.
pub const LEAVING: u64 = 4;
/// Written with the slots whose function is to be taken out: the guest has done with it. Reads as 0.
pub const EJECT: u64 = 8;

/// What the guest has not heard of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    inserted: u32,
    leaving: u32,
}

/// The registers.
pub struct Hotplug {
    // Runtime glue.
    root: Arc<Root>,

    // Volatile state.
    inserted: u32,
    leaving: u32,
}

impl Hotplug {
    /// For the slots of `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self {
            root,
            inserted: 0,
            leaving: 0,
        }
    }

    /// A function has come into `slot`. The guest is to be interrupted then.
    pub fn inserted(&mut self, slot: Slot) {
        self.inserted |= slot.bit();
        self.leaving &= !slot.bit();
    }

    /// The function in `slot` is asked to go. The guest is to be interrupted then.
    pub fn ask_to_leave(&mut self, slot: Slot) {
        self.leaving |= slot.bit();
    }

    /// See [`crate::state`].
    pub fn save(&self) -> HotplugState {
        HotplugState {
            inserted: self.inserted,
            leaving: self.leaving,
        }
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, state: &HotplugState) {
        self.inserted = state.inserted;
        self.leaving = state.leaving;
    }

    fn eject(&mut self, slots: u32) {
        for slot in Slot::all().filter(|slot| slots & slot.bit() != 0) {
            // Whether it was asked to go or not: the guest may give up what it likes.
            self.inserted &= !slot.bit();
            self.leaving &= !slot.bit();
            self.root.remove(slot);
        }
    }
}

impl BusDevice for Hotplug {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Only a whole register: half of it would be cleared unread.
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            let register = match offset {
                INSERTED => std::mem::take(&mut self.inserted),
                LEAVING => std::mem::take(&mut self.leaving),
                _ => 0,
            };
            *data = register.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(data)) = (offset, data.try_into()) {
            self.eject(u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::pci::Function;
    use crate::pci::root::Full;

    struct Card;

    impl Function for Card {
        fn read_config(&mut self, _: u16, data: &mut [u8]) {
            data.fill(0);
        }
        fn write_config(&mut self, _: u16, _: &[u8]) {}
        fn unplug(&mut self) {}
    }

    fn insert(hotplug: &mut Hotplug) -> Slot {
        let slot = hotplug
            .root
            .insert(|_| Ok::<_, Full>(Arc::new(Mutex::new(Card))))
            .unwrap();
        hotplug.inserted(slot);
        slot
    }

    fn read(hotplug: &mut Hotplug, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        hotplug.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_guest_hears_once_of_what_comes_and_goes() {
        let mut hotplug = Hotplug::new(Arc::new(Root::new()));
        let (first, second) = (insert(&mut hotplug), insert(&mut hotplug));
        assert_eq!(read(&mut hotplug, LEAVING), 0);
        assert_eq!(read(&mut hotplug, INSERTED), first.bit() | second.bit());
        assert_eq!(read(&mut hotplug, INSERTED), 0);
        hotplug.ask_to_leave(second);
        assert_eq!(read(&mut hotplug, INSERTED), 0);
        assert_eq!(read(&mut hotplug, LEAVING), second.bit());
        assert_eq!(read(&mut hotplug, LEAVING), 0);
        assert!(hotplug.root.is_occupied(second));
        hotplug.write(EJECT, &second.bit().to_le_bytes());
        assert!(hotplug.root.is_occupied(first));
        assert!(!hotplug.root.is_occupied(second));
        assert_eq!(read(&mut hotplug, EJECT), 0);
    }

    #[test]
    fn what_is_gone_is_announced_no_more() {
        let mut hotplug = Hotplug::new(Arc::new(Root::new()));
        let slot = insert(&mut hotplug);
        hotplug.ask_to_leave(slot);
        hotplug.write(EJECT, &u32::MAX.to_le_bytes());
        assert_eq!(read(&mut hotplug, INSERTED), 0);
        assert_eq!(read(&mut hotplug, LEAVING), 0);
        // The next one in that slot is not asked to go at once.
        hotplug.ask_to_leave(slot);
        assert_eq!(insert(&mut hotplug), slot);
        assert_eq!(read(&mut hotplug, LEAVING), 0);
        assert_eq!(read(&mut hotplug, INSERTED), slot.bit());
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut hotplug = Hotplug::new(Arc::new(Root::new()));
        let slot = insert(&mut hotplug);
        for offset in [0, 1, 2, 3, 4, 7, 8, 11, u64::MAX] {
            for len in [0, 1, 2, 3, 5, 8] {
                let mut data = vec![0xaa; len];
                hotplug.read(offset, &mut data);
                assert_eq!(data, vec![0; len]);
                hotplug.write(offset, &vec![0xff; len]);
            }
        }
        hotplug.write(INSERTED, &[0xff; 4]);
        hotplug.write(LEAVING, &[0xff; 4]);
        hotplug.write(9, &[0xff; 4]);
        assert!(hotplug.root.is_occupied(slot));
        assert_eq!(read(&mut hotplug, INSERTED), slot.bit());
    }
}
