use std::os::unix::fs::MetadataExt;

use vmm_sys_util::tempdir::TempDir;

use super::super::memory::{DIFF_TRAILER, Id};
use super::super::test_support::{self, regions, state, write_memory, write_state};
use super::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const BASE: Id = [1; 16];
const FIRST: Id = [2; 16];
const SECOND: Id = [3; 16];

/// A whole snapshot, and two differential ones, each in a directory of its own.
fn snapshots(directory: &Path) -> [PathBuf; 3] {
    let paths = ["base", "first", "second"].map(|name| directory.join(name));
    for path in &paths {
        fs::create_dir(path).unwrap();
    }
    let [base, first, second] = &paths;
    write_state(base, &state(BASE, None));
    let contents: [(u64, &[u8]); 4] = [
        (0, &[1; 3 * PAGE as usize]),
        (MIB, &[1; PAGE as usize]),
        (5 * MIB - PAGE, &[1; PAGE as usize]),
        (6 * MIB, &[1; PAGE as usize]),
    ];
    write_memory(&base.join("memory"), BASE, &contents, None);
    write_state(first, &state(FIRST, Some(BASE)));
    let contents: [(u64, &[u8]); 2] = [(PAGE, &[2; 2]), (6 * MIB, &[2; PAGE as usize])];
    // A page that has become zero, one that was before, and what nothing was written to.
    let changes = [(PAGE, PAGE), (MIB, PAGE), (2 * MIB, PAGE), (6 * MIB, PAGE)];
    write_memory(
        &first.join("memory-0000000000000001"),
        FIRST,
        &contents,
        Some((BASE, &changes)),
    );
    write_state(second, &state(SECOND, Some(FIRST)));
    let contents: [(u64, &[u8]); 1] = [(9 * MIB - PAGE, &[3; PAGE as usize])];
    let changes = [(0, PAGE), (9 * MIB - PAGE, PAGE)];
    write_memory(
        &second.join("memory"),
        SECOND,
        &contents,
        Some((FIRST, &changes)),
    );
    paths
}

/// The first byte of each page that is not zero.
fn contents(directory: &Path) -> Vec<(u64, u8)> {
    let file = File::open(directory::memory(directory)).unwrap();
    let mut bytes = vec![0; 9 * MIB as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    (0..)
        .zip(bytes.chunks(PAGE as usize))
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(index, page)| (index * PAGE, page[0]))
        .collect()
}

fn check(directory: &Path, id: Id) {
    let (state, _) = directory::read_state(directory).unwrap();
    assert_eq!((state.memory_id, state.memory_base), (id, None));
    let file = File::open(directory::memory(directory)).unwrap();
    memory::check_file(&regions(), &id, &file).unwrap();
}

const AFTER_FIRST: [(u64, u8); 5] = [
    (0, 1),
    (PAGE, 2),
    (2 * PAGE, 1),
    (5 * MIB - PAGE, 1),
    (6 * MIB, 2),
];

#[test]
fn a_chain_becomes_one() {
    let directory = TempDir::new().unwrap();
    let [base, first, second] = snapshots(directory.as_path());
    let old = File::open(base.join("memory")).unwrap();
    merge(&base, &first, &base).unwrap();
    check(&base, FIRST);
    assert_eq!(contents(&base), AFTER_FIRST);
    // Whoever runs on it still has it as it was.
    let mut byte = [0];
    old.read_exact_at(&mut byte, MIB).unwrap();
    assert_eq!(byte, [1]);
    assert_eq!(old.metadata().unwrap().nlink(), 0);
    merge(&base, &second, &base).unwrap();
    check(&base, SECOND);
    let mut expected = AFTER_FIRST[1..].to_vec();
    expected.push((9 * MIB - PAGE, 3));
    assert_eq!(contents(&base), expected);
    let stored = fs::metadata(directory::memory(&base)).unwrap().blocks() * 512;
    assert!(stored < MIB, "{stored}");
    assert_eq!(fs::read_dir(&base).unwrap().count(), 2);
}

#[test]
fn the_result_may_be_elsewhere() {
    let directory = TempDir::new().unwrap();
    let [base, first, second] = snapshots(directory.as_path());
    let elsewhere = directory.as_path().join("elsewhere");
    merge(&base, &first, &elsewhere).unwrap();
    check(&base, BASE);
    check(&elsewhere, FIRST);
    assert_eq!(contents(&elsewhere), AFTER_FIRST);
    let mode = fs::metadata(directory::memory(&elsewhere)).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Into the differential one's own.
    merge(&elsewhere, &second, &second).unwrap();
    check(&second, SECOND);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 2);
    assert!(merge(&base, &first, &directory.as_path().join("no/such")).is_err());
}

#[test]
fn what_does_not_go_together_is_refused_and_left_as_it_was() {
    let directory = TempDir::new().unwrap();
    let [base, first, second] = snapshots(directory.as_path());
    let refused = |one: &Path, other: &Path| merge(one, other, one).unwrap_err();
    let of = refused(&base, &second);
    assert!(matches!(of, Error::Unrelated { .. }), "{of}");
    let of = refused(&first, &second);
    assert!(matches!(of, Error::BaseIsDifferential { .. }), "{of}");
    let of = refused(&base, &base);
    assert!(matches!(of, Error::Whole { .. }), "{of}");
    let of = refused(&base, directory.as_path());
    assert!(matches!(of, Error::State { .. }), "{of}");
    let memory = directory::memory(&first);
    let good = fs::read(&memory).unwrap();
    let end = 9 * MIB as usize;
    for at in [end, end + 17, end + 33, end + DIFF_TRAILER as usize + 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&memory, bad).unwrap();
        let of = refused(&base, &first);
        assert!(matches!(of, Error::Memory { .. }), "{at}: {of}");
    }
    // A table that is right by itself and another snapshot's.
    test_support::write_memory(&memory, FIRST, &[], Some((SECOND, &[])));
    let of = refused(&base, &first);
    assert!(matches!(of, Error::Unrelated { .. }), "{of}");
    fs::remove_file(&memory).unwrap();
    let of = refused(&base, &first);
    assert!(matches!(of, Error::Memory { .. }), "{of}");
    fs::write(&memory, good).unwrap();
    let mut other = state(FIRST, Some(BASE));
    other.memory.truncate(1);
    write_state(&first, &other);
    let of = refused(&base, &first);
    assert!(matches!(of, Error::Unrelated { .. }), "{of}");
    check(&base, BASE);
    assert_eq!(fs::read_dir(&base).unwrap().count(), 2);
    write_state(&first, &state(FIRST, Some(BASE)));
    merge(&base, &first, &base).unwrap();
}
