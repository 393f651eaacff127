use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, FileOffset};

use super::*;

const MIB: u64 = 1 << 20;

/// Whether the page at `gpa` takes memory of the host.
pub(crate) fn is_resident(memory: &GuestMemoryMmap, gpa: u64) -> bool {
    let address = memory.get_host_address(GuestAddress(gpa)).unwrap() as u64;
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap
        .read_exact_at(&mut entry, address / PAGE_SIZE * 8)
        .unwrap();
    entry[7] & 0x80 != 0
}

/// Pages of `memory` from `start` on that take memory of the host.
fn resident(memory: &GuestMemoryMmap, start: u64, pages: u64) -> u64 {
    let all = 0..pages;
    all.filter(|page| is_resident(memory, start + page * PAGE_SIZE))
        .count() as u64
}

fn fill(memory: &GuestMemoryMmap, start: u64, len: u64) {
    memory
        .write_slice(&vec![0x55; len as usize], GuestAddress(start))
        .unwrap();
}

/// Two regions with a hole of 1 MiB between them, and nothing of them used.
fn memory() -> GuestMemoryMmap {
    let ranges = [
        (GuestAddress(0), MIB as usize),
        (GuestAddress(2 * MIB), MIB as usize),
    ];
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

#[test]
fn whole_pages_go_and_what_is_around_them_stays() {
    let memory = memory();
    fill(&memory, 0, 10 * PAGE_SIZE);
    assert_eq!(resident(&memory, 0, 10), 10);
    // From the middle of page 1 to the middle of page 5.
    let discarded = discard(&memory, GuestAddress(PAGE_SIZE + 7), 4 * PAGE_SIZE).unwrap();
    assert_eq!(discarded, 3 * PAGE_SIZE);
    assert_eq!(resident(&memory, 0, 10), 7);
    let mut all = vec![0; 10 * PAGE_SIZE as usize];
    memory.read_slice(&mut all, GuestAddress(0)).unwrap();
    let page = PAGE_SIZE as usize;
    assert!(all[..2 * page].iter().all(|byte| *byte == 0x55));
    assert!(all[2 * page..5 * page].iter().all(|byte| *byte == 0));
    assert!(all[5 * page..].iter().all(|byte| *byte == 0x55));
}

#[test]
fn less_than_a_page_is_nothing() {
    let memory = memory();
    fill(&memory, 0, 2 * PAGE_SIZE);
    for (start, len) in [(0, 0), (0, PAGE_SIZE - 1), (1, PAGE_SIZE), (5, 7)] {
        assert_eq!(discard(&memory, GuestAddress(start), len).unwrap(), 0);
    }
    assert_eq!(resident(&memory, 0, 2), 2);
}

#[test]
fn what_is_no_memory_is_left_out() {
    let memory = memory();
    fill(&memory, 0, MIB);
    fill(&memory, 2 * MIB, MIB);
    // Over the hole, and beyond the end.
    let discarded = discard(&memory, GuestAddress(MIB / 2), 100 * MIB).unwrap();
    assert_eq!(discarded, MIB / 2 + MIB);
    assert_eq!(resident(&memory, 0, 256), 128);
    assert_eq!(resident(&memory, 2 * MIB, 256), 0);
    for (start, len) in [
        (MIB, MIB),
        (10 * MIB, u64::MAX),
        (u64::MAX, u64::MAX),
        (u64::MAX - PAGE_SIZE, 2 * PAGE_SIZE),
    ] {
        assert_eq!(discard(&memory, GuestAddress(start), len).unwrap(), 0);
    }
    assert_eq!(
        discard(&memory, GuestAddress(0), u64::MAX).unwrap(),
        2 * MIB
    );
}

#[test]
fn shared_memory_is_freed_in_its_file() {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.set_len(MIB).unwrap();
    let shared = FileOffset::new(file.try_clone().unwrap(), 0);
    let ranges = [(GuestAddress(0), MIB as usize, Some(shared))];
    let memory = GuestMemoryMmap::from_ranges_with_files(&ranges).unwrap();
    fill(&memory, 0, MIB);
    let mut byte = [0];
    file.read_exact_at(&mut byte, PAGE_SIZE).unwrap();
    assert_eq!(byte, [0x55]);
    match discard(&memory, GuestAddress(0), MIB) {
        Ok(discarded) => assert_eq!(discarded, MIB),
        // Not every file system can punch holes.
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            return;
        }
    }
    file.read_exact_at(&mut byte, PAGE_SIZE).unwrap();
    assert_eq!(byte, [0]);
}
