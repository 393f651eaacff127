use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::memory::lay_out;
use super::super::tracking::Tracker;
use super::*;

const MIB: u64 = 1 << 20;
/// Enough for whole blocks wherever it begins.
const BYTES: u64 = 8 * MIB;

fn memory() -> (Arc<GuestMemoryMmap>, Map) {
    let places = [(GuestAddress(0), BYTES as usize)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&places).unwrap());
    let map = Map::of(&memory, &lay_out([(0, BYTES)])).unwrap();
    (memory, map)
}

fn fill(memory: &GuestMemoryMmap, value: u8) {
    let all = vec![value; BYTES as usize];
    memory.write_slice(&all, GuestAddress(0)).unwrap();
}

/// Blocks that are huge pages; nothing if the host does not say.
fn huge(map: &Map) -> Option<u64> {
    let pages = Pages {
        have: HUGE,
        lack: 0,
        protect: false,
    };
    let mut bytes = 0;
    let mut add = |run: Range<u64>| bytes += run.end - run.start;
    let scanned = Scanner::new()
        .unwrap()
        .scan(&map.parts[0], pages, Some(&mut add));
    if let Err(error) = scanned {
        eprintln!("SKIPPED: this host does not say which pages are huge: {error}");
        return None;
    }
    Some(bytes / HUGE_PAGE)
}

/// All blocks of memory that are whole.
fn blocks(map: &Map) -> u64 {
    let part = &map.parts[0];
    blocks_of(part, &part.file).map_or(0, |all| (all.end - all.start) / HUGE_PAGE)
}

#[test]
fn only_what_takes_as_much_memory_becomes_huge() {
    let (memory, map) = self::memory();
    collapse(&map).unwrap();
    if huge(&map).is_none_or(|count| count > 0) {
        // A host that has made huge pages of its own accord.
        return;
    }
    // What was only read takes no memory.
    memory
        .read_slice(&mut vec![0; BYTES as usize], GuestAddress(0))
        .unwrap();
    collapse(&map).unwrap();
    assert_eq!(huge(&map), Some(0));
    fill(&memory, 7);
    collapse(&map).unwrap();
    let found = huge(&map).unwrap();
    if found == 0 {
        eprintln!("SKIPPED: this host has no huge pages");
        return;
    }
    assert_eq!(found, blocks(&map));
    // Where the host does not say which are huge it is the same.
    let (other, map_of_other) = self::memory();
    fill(&other, 7);
    collapse_unseen(&map_of_other.parts[0]).unwrap();
    assert_eq!(huge(&map_of_other), Some(blocks(&map_of_other)));
    let mut all = vec![0; BYTES as usize];
    memory.read_slice(&mut all, GuestAddress(0)).unwrap();
    assert!(all.iter().all(|byte| *byte == 7));
}

#[test]
fn what_is_tracked_becomes_huge_again_when_all_of_it_was_written_to() {
    let (memory, map) = memory();
    let Ok(mut tracker) = Tracker::new() else {
        eprintln!("SKIPPED: this host cannot track writes");
        return;
    };
    tracker.watch(&map).unwrap();
    fill(&memory, 1);
    collapse(&map).unwrap();
    let all = blocks(&map);
    if huge(&map) != Some(all) {
        eprintln!("SKIPPED: this host has no huge pages");
        return;
    }
    // Huge pages are left alone by this, and are written to as before.
    let mut written = Vec::new();
    tracker.take_small(&map, &mut written).unwrap();
    assert!(
        written
            .iter()
            .all(|run| blocks_of(&map.parts[0], run).is_none())
    );
    fill(&memory, 2);
    assert_eq!(huge(&map), Some(all));
    // Not by this.
    tracker.start_over(&map).unwrap();
    assert_eq!(huge(&map), Some(all));
    let middle = GuestAddress(BYTES / 2);
    memory.write_slice(b"x", middle).unwrap();
    assert_eq!(huge(&map), Some(all - 1));
    collapse(&map).unwrap();
    assert_eq!(huge(&map), Some(all - 1));
    fill(&memory, 3);
    assert_eq!(huge(&map), Some(0));
    collapse(&map).unwrap();
    assert_eq!(huge(&map), Some(all));
    let mut written = Vec::new();
    tracker.take(&map, &mut written).unwrap();
    assert_eq!(written.first(), Some(&(0..BYTES)));
}
