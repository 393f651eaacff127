use std::io;
use std::sync::Mutex;

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::backend::guest_ram::tests::is_resident;
use crate::virtio::test_support::{Desc, Driver, HOLE, TestLoop, lifecycle_suite};
use crate::virtio::transport::core::feature;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const SLOT: u64 = 128 * MIB;
/// The first eight blocks are memory; the monitor has all of them be.
const START: u64 = HOLE.0 + HOLE.1;
const NEEDED: u64 = 1 << F_UNPLUGGED_INACCESSIBLE;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);

/// The monitor's half: which slots there are.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<(Vec<usize>, Vec<usize>)>>);

impl Slots {
    fn there(&self) -> Vec<usize> {
        let mut there = lock(&self.0).0.clone();
        there.sort_unstable();
        there
    }

    /// This one cannot be made.
    fn refuse(&self, slots: &[usize]) {
        lock(&self.0).1 = slots.to_vec();
    }
}

impl MemorySlots for Slots {
    fn insert(&self, index: usize) -> io::Result<()> {
        let (there, refused) = &mut *lock(&self.0);
        if refused.contains(&index) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert!(!there.contains(&index), "{index} is there already");
        there.push(index);
        Ok(())
    }

    fn remove(&self, index: usize) -> io::Result<()> {
        let there = &mut lock(&self.0).0;
        let at = there.iter().position(|slot| *slot == index);
        there.swap_remove(at.expect("a slot that is there"));
        Ok(())
    }
}

fn config() -> MemConfig {
    MemConfig::new(4 * SLOT, BLOCK, SLOT).unwrap()
}

fn mem() -> (Mem, Slots) {
    let mem = Mem::new(config(), TestLoop::start());
    let slots = Slots::default();
    mem.control().set_place(START, Box::new(slots.clone()));
    (mem, slots)
}

lifecycle_suite!(mem().0, NEEDED);

mod before_it_has_a_place {
    use super::*;

    lifecycle_suite!(Mem::new(config(), TestLoop::start()), NEEDED);
}

struct Guest {
    driver: Driver,
    control: MemControl,
    slots: Slots,
}

fn guest() -> Guest {
    let (mem, slots) = mem();
    let control = mem.control();
    let driver = Driver::started(mem);
    Guest {
        driver,
        control,
        slots,
    }
}

fn request(kind: u16, gpa: u64, blocks: u16) -> Vec<u8> {
    // Padding is not looked at.
    let mut bytes = vec![0x55; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&gpa.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

impl Guest {
    fn ask(&mut self, kind: u16, block: u64, blocks: u16) -> (u16, u16) {
        self.ask_at(kind, START + block * BLOCK, blocks)
    }

    fn ask_at(&mut self, kind: u16, gpa: u64, blocks: u16) -> (u16, u16) {
        let request = self.driver.buffer_with(&request(kind, gpa, blocks));
        let answer = self.driver.buffer(10);
        let written = self
            .driver
            .request(0, &[request.readable(), answer.writable()]);
        assert_eq!(written, 10);
        let bytes = self.driver.contents(answer);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (word(0), word(8))
    }

    fn request_size(&self, blocks: u64) {
        self.control.set_requested(blocks * BLOCK).unwrap();
    }

    fn plugged(&self) -> u64 {
        self.control.status().plugged / BLOCK
    }

    /// A field of the configuration, in blocks.
    fn field(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.driver.core.read_config(offset, &mut bytes);
        u64::from_le_bytes(bytes) / BLOCK
    }
}

#[test]
fn blocks_are_plugged_and_unplugged() {
    let mut guest = guest();
    guest.request_size(70);
    assert_eq!(guest.ask(PLUG, 0, 1), ACK);
    assert_eq!(guest.slots.there(), [0]);
    assert_eq!(guest.ask(PLUG, 60, 10), ACK);
    assert_eq!(guest.slots.there(), [0, 1]);
    assert_eq!(guest.plugged(), 11);
    assert_eq!(guest.ask(STATE, 60, 10), (0, 0));
    assert_eq!(guest.ask(STATE, 1, 59), (0, 1));
    assert_eq!(guest.ask(STATE, 0, 70), (0, 2));
    assert_eq!(guest.ask(UNPLUG, 64, 6), ACK);
    assert_eq!(guest.slots.there(), [0]);
    assert_eq!(guest.ask(UNPLUG, 60, 4), ACK);
    assert_eq!(guest.slots.there(), [0]);
    assert_eq!(guest.ask(UNPLUG, 0, 1), ACK);
    assert_eq!((guest.slots.there(), guest.plugged()), (vec![], 0));
    let counters = guest.control.counters();
    let operations = [counters.plug, counters.unplug, counters.state];
    let counts = operations.map(|operation| (operation.count, operation.failed));
    assert_eq!(counts, [(2, 0), (3, 0), (3, 0)]);
    assert_eq!(
        (counters.plug.bytes, counters.unplug.bytes),
        (11 * BLOCK, 11 * BLOCK)
    );
    assert!(counters.plug.sum_us >= counters.plug.max_us);
}

#[test]
fn wrong_requests_change_nothing() {
    let mut guest = guest();
    guest.request_size(64);
    assert_eq!(guest.ask(PLUG, 4, 4), ACK);
    for kind in [PLUG, UNPLUG, STATE] {
        for (gpa, blocks) in [
            (START, 0),
            (START + 4096, 1),
            (START - BLOCK, 1),
            (0, 1),
            // Beyond what is usable, of which there is a slot.
            (START + 63 * BLOCK, 2),
            (START + 64 * BLOCK, 1),
            (START, u16::MAX),
            (u64::MAX - BLOCK + 1, 1),
            (u64::MAX, u16::MAX),
        ] {
            assert_eq!(guest.ask_at(kind, gpa, blocks), ERROR, "{gpa:#x} {blocks}");
        }
    }
    // Some of it is plugged already, or unplugged.
    for (first, blocks) in [(4, 1), (3, 2), (7, 2), (0, 64)] {
        assert_eq!(guest.ask(PLUG, first, blocks), ERROR);
    }
    for (first, blocks) in [(3, 2), (7, 2), (0, 1), (0, 64)] {
        assert_eq!(guest.ask(UNPLUG, first, blocks), ERROR);
    }
    for kind in [4, 0x100, u16::MAX] {
        assert_eq!(guest.ask(kind, 0, 1), ERROR);
    }
    assert_eq!((guest.plugged(), guest.slots.there()), (4, vec![0]));
    assert_eq!(guest.control.counters().bad_requests, 3);
}

#[test]
fn no_more_is_plugged_than_is_requested() {
    let mut guest = guest();
    assert_eq!(guest.ask(PLUG, 0, 1), ERROR, "nothing is usable");
    guest.request_size(3);
    assert_eq!(guest.ask(PLUG, 0, 4), NACK);
    assert_eq!(guest.ask(PLUG, 0, 3), ACK);
    assert_eq!(guest.ask(PLUG, 3, 1), NACK);
    // Less than is plugged: it is the guest's to unplug, block by block.
    guest.request_size(1);
    assert_eq!(guest.ask(PLUG, 3, 1), NACK);
    assert_eq!(guest.ask(UNPLUG, 1, 2), ACK);
    assert_eq!(guest.plugged(), 1);
    // What is wrong is an error before it is too much.
    assert_eq!(guest.ask(PLUG, 0, 2), ERROR);
}

#[test]
fn sizes_are_told_to_the_driver() {
    let mut guest = guest();
    let usable = 32;
    assert_eq!((guest.field(0), guest.field(24)), (1, 256));
    let mut start = [0; 8];
    guest.driver.core.read_config(16, &mut start);
    assert_eq!(u64::from_le_bytes(start), START);
    assert_eq!((guest.field(usable), guest.field(48)), (0, 0));
    let before = (
        guest.driver.interrupts.config(),
        guest.driver.core.config_generation(),
    );
    guest.request_size(70);
    assert_eq!(guest.driver.interrupts.config(), before.0 + 1);
    assert_ne!(guest.driver.core.config_generation(), before.1);
    assert_eq!((guest.field(usable), guest.field(48)), (128, 70));
    guest.request_size(70);
    assert_eq!(guest.driver.interrupts.config(), before.0 + 1);
    assert_eq!(guest.ask(PLUG, 100, 2), ACK);
    assert_eq!(guest.field(40), 2);
    // It does not shrink while something may be plugged, and nobody is interrupted for what it has done
    // itself.
    guest.request_size(0);
    assert_eq!(guest.driver.interrupts.config(), before.0 + 2);
    assert_eq!((guest.field(usable), guest.field(48)), (128, 0));
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!((guest.field(usable), guest.field(40)), (0, 0));
    assert_eq!(guest.driver.interrupts.config(), before.0 + 2);
    // The driver cannot change any of it.
    for offset in 0..56 {
        guest.driver.core.write_config(offset, &[0xff]);
    }
    assert_eq!((guest.field(0), guest.field(48)), (1, 0));
}

#[test]
fn only_possible_sizes_are_requested() {
    let guest = guest();
    assert_eq!(
        guest.control.set_requested(BLOCK + 1),
        Err(RequestError::Blocks {
            bytes: BLOCK + 1,
            block: BLOCK
        })
    );
    assert_eq!(
        guest.control.set_requested(4 * SLOT + BLOCK),
        Err(RequestError::TooMuch {
            bytes: 4 * SLOT + BLOCK,
            total: 4 * SLOT
        })
    );
    guest.control.set_requested(4 * SLOT).unwrap();
    assert_eq!(
        guest.control.status(),
        MemStatus {
            block: BLOCK,
            total: 4 * SLOT,
            slot: SLOT,
            plugged: 0,
            requested: 4 * SLOT,
        }
    );
    let (mem, _) = mem();
    let idle = mem.control().set_requested(BLOCK);
    assert_eq!(idle, Err(RequestError::NotActive));
}

#[test]
fn what_is_unplugged_goes_back_to_the_host() {
    fn resident(memory: &GuestMemoryMmap) -> Vec<u64> {
        let blocks = 0..8;
        blocks
            .filter(|block| is_resident(memory, START + block * BLOCK))
            .collect()
    }

    let mut guest = guest();
    let fill = |driver: &Driver| {
        for block in 0..8 {
            driver.write(START + block * BLOCK, &[1; 100]);
        }
    };
    guest.request_size(64);
    assert_eq!(guest.ask(PLUG, 0, 8), ACK);
    fill(&guest.driver);
    assert_eq!(resident(&guest.driver.memory).len(), 8);
    assert_eq!(guest.ask(UNPLUG, 2, 3), ACK);
    assert_eq!(resident(&guest.driver.memory), [0, 1, 5, 6, 7]);
    fill(&guest.driver);
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), ACK);
    assert!(resident(&guest.driver.memory).is_empty());
}

#[test]
fn everything_is_unplugged_at_once() {
    let mut guest = guest();
    guest.request_size(256);
    assert_eq!(guest.ask(PLUG, 0, 256), ACK);
    assert_eq!(guest.slots.there(), [0, 1, 2, 3]);
    guest.request_size(10);
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!((guest.slots.there(), guest.plugged()), (vec![], 0));
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), ACK);
    // As much is usable as a driver needs that starts again.
    assert_eq!(guest.ask(STATE, 0, 65), ERROR);
    assert_eq!(guest.ask(PLUG, 54, 10), ACK);
    assert_eq!(guest.control.counters().unplug_all.bytes, 256 * BLOCK);
}

#[test]
fn a_reset_changes_nothing_of_it() {
    let mut guest = guest();
    guest.request_size(10);
    assert_eq!(guest.ask(PLUG, 0, 5), ACK);
    guest.driver.reset();
    assert_eq!(
        guest.control.set_requested(0),
        Err(RequestError::NotActive),
        "nobody is there"
    );
    guest.driver.start(u64::MAX);
    assert_eq!(guest.plugged(), 5);
    assert_eq!(guest.ask(STATE, 0, 5), (0, 0));
    assert_eq!(guest.ask(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(guest.ask(PLUG, 0, 10), ACK);
}

#[test]
fn a_host_that_has_none_is_busy() {
    let mut guest = guest();
    guest.request_size(256);
    guest.slots.refuse(&[2]);
    assert_eq!(guest.ask(PLUG, 0, 256), BUSY);
    assert_eq!((guest.slots.there(), guest.plugged()), (vec![], 0));
    assert_eq!(guest.ask(PLUG, 64, 64), ACK);
    assert_eq!(guest.ask(PLUG, 0, 64), ACK);
    assert_eq!(guest.ask(PLUG, 128, 1), BUSY);
    assert_eq!(guest.slots.there(), [0, 1]);
    guest.slots.refuse(&[]);
    assert_eq!(guest.ask(PLUG, 128, 1), ACK);
    assert_eq!(guest.control.counters().plug.failed, 2);
}

#[test]
fn requests_without_room_do_nothing() {
    let mut guest = guest();
    guest.request_size(10);
    let good = guest.driver.buffer_with(&request(PLUG, START, 1));
    let short = guest.driver.buffer(9);
    let answer = guest.driver.buffer(10);
    for descs in [
        &[good.readable(), short.writable()][..],
        &[good.readable()],
        &[Desc::readable(0, 0)],
    ] {
        assert_eq!(guest.driver.request(0, descs), 0);
    }
    let half = Desc::readable(good.gpa, 23);
    assert_eq!(guest.driver.request(0, &[half, answer.writable()]), 10);
    assert_eq!(guest.driver.contents(answer)[..2], [3, 0]);
    assert_eq!(guest.plugged(), 0);
    assert_eq!(guest.control.counters().bad_requests, 4);
}

#[test]
fn requests_that_came_at_once_are_all_served() {
    let mut guest = guest();
    guest.request_size(256);
    let answer = guest.driver.buffer(10);
    for block in 0..30 {
        let bytes = request(PLUG, START + block * BLOCK, 1);
        let request = guest.driver.buffer_with(&bytes);
        guest.driver.queues[0].add(&[request.readable(), answer.writable()]);
    }
    guest.driver.kick(0);
    guest.driver.wait_used(0, 30);
    assert_eq!(guest.plugged(), 30);
}

#[test]
fn a_driver_that_promises_nothing_is_refused() {
    let mut driver = Driver::new(mem().0);
    driver.start(1 << feature::VERSION_1);
    assert!(driver.is_broken());
    driver.start(1 << feature::VERSION_1 | NEEDED);
    assert!(!driver.is_broken());
}

#[test]
fn configurations_are_checked() {
    let new = MemConfig::new;
    for block in [0, MIB, 3 * MIB, 2 * MIB + 1] {
        assert_eq!(new(SLOT, block, SLOT), Err(ConfigError::Block { block }));
    }
    let slot = 64 * MIB;
    assert_eq!(new(SLOT, BLOCK, slot), Err(ConfigError::Slot { slot }));
    let slot = SLOT + MIB;
    assert_eq!(
        new(SLOT, BLOCK, slot),
        Err(ConfigError::SlotBlocks { slot, block: BLOCK })
    );
    let total = SLOT - BLOCK;
    assert_eq!(
        new(total, BLOCK, SLOT),
        Err(ConfigError::Total { total, slot: SLOT })
    );
    let total = SLOT + BLOCK;
    assert_eq!(
        new(total, BLOCK, SLOT),
        Err(ConfigError::TotalSlots { total, slot: SLOT })
    );
    let total = MAX_TOTAL + SLOT;
    assert_eq!(new(total, BLOCK, SLOT), Err(ConfigError::TooMuch { total }));
    assert!(new(u64::MAX / SLOT * SLOT, BLOCK, SLOT).is_err());
    // A block may be as large as a slot.
    assert_eq!(new(2 * SLOT, SLOT, SLOT).unwrap().slots(), 2);
}
