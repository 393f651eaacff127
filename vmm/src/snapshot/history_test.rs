use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::memory::lay_out;
use super::*;

const MIB: u64 = 1 << 20;
const LOADED: Id = [1; 16];
const FIRST: Id = [2; 16];
const SECOND: Id = [3; 16];
const THIRD: Id = [4; 16];

fn memory() -> (Arc<GuestMemoryMmap>, Map) {
    let places = [(GuestAddress(0), 4 * MIB as usize)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&places).unwrap());
    memory
        .write_slice(&vec![1; 4 * MIB as usize], GuestAddress(0))
        .unwrap();
    let map = Map::of(&memory, &lay_out([(0, 4 * MIB)])).unwrap();
    (memory, map)
}

/// What a snapshot is relative to, and what has been written to since if that is known.
fn base(what: &What) -> Option<(Id, Option<&[Range<u64>]>)> {
    match what {
        What::All => None,
        What::Diff { base, changed } => Some((
            *base,
            match changed {
                Changed::SinceLoad => None,
                Changed::Written(ranges) => Some(ranges),
            },
        )),
    }
}

#[test]
fn without_tracking_a_loaded_file_stays_what_all_is_relative_to() {
    let (_, map) = memory();
    let mut history = History::new(false, Some(LOADED));
    history.prepare(&map).unwrap();
    for (id, differential) in [(FIRST, true), (SECOND, false), (THIRD, true)] {
        let what = history.turn(&map, id, differential);
        assert_eq!(base(&what), differential.then_some((LOADED, None)));
        history.settle(true);
    }
    let mut history = History::new(false, None);
    for id in [FIRST, SECOND] {
        assert_eq!(base(&history.turn(&map, id, true)), None);
        history.settle(true);
    }
}

#[test]
fn nothing_is_lost_when_a_file_does_not_come_to_be() {
    let (memory, map) = memory();
    let mut history = History::new(true, Some(LOADED));
    if let Err(error) = history.prepare(&map) {
        eprintln!("SKIPPED: this host cannot track writes: {error}");
        return;
    }
    let touch = |page: u64| {
        memory.write_slice(b"x", GuestAddress(page * 4096)).unwrap();
    };
    let page = |page: u64| page * 4096..(page + 1) * 4096;
    // It may fail before there is any other one.
    assert_eq!(base(&history.turn(&map, FIRST, true)), Some((LOADED, None)));
    history.settle(false);
    assert_eq!(base(&history.turn(&map, FIRST, true)), Some((LOADED, None)));
    history.settle(true);
    touch(1);
    assert_eq!(
        base(&history.turn(&map, SECOND, true)),
        Some((FIRST, Some(&[page(1)][..])))
    );
    // What is written to while that one is being written is for the next one; so is what is in this one, which fails.
    touch(7);
    history.settle(false);
    touch(5);
    let expected = [page(1), page(5), page(7)];
    assert_eq!(
        base(&history.turn(&map, SECOND, true)),
        Some((FIRST, Some(&expected[..])))
    );
    history.settle(false);
    // Whether it was to be whole or not.
    assert_eq!(base(&history.turn(&map, SECOND, false)), None);
    history.settle(false);
    assert_eq!(
        base(&history.turn(&map, THIRD, true)),
        Some((FIRST, Some(&expected[..])))
    );
    history.settle(true);
    touch(2);
    assert_eq!(
        base(&history.turn(&map, SECOND, true)),
        Some((THIRD, Some(&[page(2)][..])))
    );
}
