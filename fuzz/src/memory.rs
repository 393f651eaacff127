//! Guests with persistent memory, which their host cuts, and with memory that is plugged and unplugged.
//! Both are guest memory, so that requests and rings are in there as well.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::mem::{Mem, MemConfig, MemorySlots};
use devices::virtio::pmem::{Pmem, PmemConfig};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use crate::images::{Memory, prepare};

/// Where either is.
const START: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
/// Bytes of the file.
const FILE: u64 = 2 * MIB + 5000;
const BLOCK: u64 = 2 * MIB;
const SLOT: u64 = 128 * MIB;
const TOTAL: u64 = 4 * SLOT;

/// A file that is read-only if bit 0 of the last byte is set, and flushes that have a limit if bit 1 is.
pub fn pmem(input: &[u8]) {
    prepare();
    let shape = input.last().copied().unwrap_or(0);
    let file = Memory::new(b"persistent", FILE);
    crate::run_with_memory(input, |event_loop| {
        let ops = (shape & 2 != 0).then(|| Bucket::new(2, 1, 0)).flatten();
        let config = PmemConfig {
            id: "pmem".into(),
            path: file.path(),
            read_only: shape & 1 != 0,
            rate: RateLimit {
                bandwidth: None,
                ops,
            },
        };
        let (pmem, control) = Pmem::new(config, event_loop).unwrap();
        let region = control.map(START).unwrap();
        let host = move |what: u8| match what % 4 {
            0 => file.set_len(u64::from(what) << 13),
            1 => {
                let limit = RateLimit {
                    bandwidth: Bucket::new(u64::from(what) << 16, 1, 0),
                    ops: Bucket::new(u64::from(what >> 4), 1, 0),
                };
                control.set_rate_limit(limit).unwrap();
            }
            2 => control.set_rate_limit(RateLimit::default()).unwrap(),
            _ => {
                let counters = control.counters();
                assert!(counters.syncs <= counters.flushes + counters.host_errors);
                assert_eq!(control.size(), 4 * MIB);
            }
        };
        (pmem, Box::new(host), vec![region])
    });
}

/// The monitor's half: which slots the guest can access.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    there: BTreeSet<usize>,
    /// The host has no more than so many.
    limit: usize,
}

impl MemorySlots for Slots {
    fn insert(&self, index: usize) -> io::Result<()> {
        let mut given = self.0.lock().unwrap();
        assert!((index as u64) < TOTAL / SLOT);
        if given.there.len() >= given.limit {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert!(given.there.insert(index));
        Ok(())
    }

    fn remove(&self, index: usize) -> io::Result<()> {
        assert!(self.0.lock().unwrap().there.remove(&index));
        Ok(())
    }
}

/// Memory that can be plugged, on a host that may have too little of it.
pub fn mem(input: &[u8]) {
    crate::run_with_memory(input, |event_loop| {
        let config = MemConfig::new(TOTAL, BLOCK, SLOT).unwrap();
        let mem = Mem::new(config, event_loop);
        let control = mem.control();
        let slots = Slots::default();
        slots.0.lock().unwrap().limit = usize::MAX;
        control.set_place(START, Box::new(slots.clone()));
        let region = MmapRegion::new(TOTAL as usize).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(START)).unwrap();
        let host = move |what: u8| match what % 4 {
            // Fails before there is a driver, and with what is not there.
            0 | 1 => _ = control.set_requested(u64::from(what >> 1) * BLOCK * 3),
            2 => slots.0.lock().unwrap().limit = usize::from(what >> 5),
            _ => {
                let status = control.status();
                let there = slots.0.lock().unwrap().there.len() as u64;
                assert!(status.plugged <= there * SLOT && there * BLOCK <= status.plugged);
                assert!(status.requested <= status.total);
                let counters = control.counters();
                assert_eq!(counters.discard_errors, 0);
                let gone = counters.unplug.bytes + counters.unplug_all.bytes;
                assert_eq!(counters.plug.bytes - gone, status.plugged);
            }
        };
        (mem, Box::new(host), vec![region])
    });
}
