use std::fs::File;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::memory::{PAGE_SIZE, lay_out};
use super::*;

const MIB: u64 = 1 << 20;

/// A tracker of some memory, if the host has such a thing.
fn tracked() -> Option<(Arc<GuestMemoryMmap>, Map, Tracker)> {
    let tracker = match Tracker::new() {
        Ok(tracker) => tracker,
        Err(error) => {
            eprintln!("SKIPPED: this host cannot track writes: {error}");
            return None;
        }
    };
    let places = [
        (GuestAddress(0), 8 * MIB as usize),
        (GuestAddress(1 << 32), 2 * MIB as usize),
    ];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&places).unwrap());
    let regions = lay_out([(0, 8 * MIB), (1 << 32, 2 * MIB)]);
    let map = Map::of(&memory, &regions).unwrap();
    tracker.watch(&map).unwrap();
    Some((memory, map, tracker))
}

fn has(ranges: &[Range<u64>], at: u64) -> bool {
    ranges.iter().any(|range| range.contains(&at))
}

#[test]
fn what_was_written_to_is_found_once() {
    let Some((memory, map, mut tracker)) = tracked() else {
        return;
    };
    memory
        .write_slice(&vec![1; 8 * MIB as usize], GuestAddress(0))
        .unwrap();
    tracker.start_over(&map).unwrap();
    let mut take = || {
        let mut written = Vec::new();
        tracker.take(&map, &mut written).unwrap();
        written
    };
    // Nobody has touched the second region: there is nothing to be protected.
    assert!(take().iter().all(|range| range.start >= 8 * MIB));
    memory
        .read_slice(&mut [0; 4096], GuestAddress(3 * PAGE_SIZE))
        .unwrap();
    memory
        .write_slice(b"x", GuestAddress(5 * PAGE_SIZE))
        .unwrap();
    // This process's own writes and the kernel's for it are the same to the host.
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"yy").unwrap();
    memory
        .read_exact_volatile_from(
            GuestAddress(7 * PAGE_SIZE),
            &mut File::from(OwnedFd::from(reader)),
            2,
        )
        .unwrap();
    memory
        .write_slice(b"z", GuestAddress((1 << 32) + MIB))
        .unwrap();
    let found = take();
    for (page, is_there) in [(3, false), (4, false), (5, true), (6, false), (7, true)] {
        assert_eq!(has(&found, page * PAGE_SIZE), is_there, "{page}: {found:?}");
    }
    assert!(has(&found, 9 * MIB), "{found:?}");
    assert!(!has(&take(), 5 * PAGE_SIZE));
    memory
        .write_slice(b"x", GuestAddress(5 * PAGE_SIZE))
        .unwrap();
    assert!(has(&take(), 5 * PAGE_SIZE));
}

#[test]
fn lists_are_put_together() {
    assert_eq!(union(&[], &[]), []);
    assert_eq!(union(&[0..1, 5..6], &[]), [0..1, 5..6]);
    assert_eq!(union(&[0..1, 5..6], &[1..2, 4..9]), [0..2, 4..9]);
    assert_eq!(union(&[0..9, 9..10], &[2..3, 12..13]), [0..10, 12..13]);
}
