//! Huge pages, and what of a kernel is copied; that kernels boot is seen by the end-to-end cases.

use std::os::unix::fs::FileExt;

use vmm_sys_util::tempfile::TempFile;

use super::*;

#[test]
fn what_the_host_lacks_is_said_with_how_to_get_it() {
    // More than any host sets aside, and less than it may have in all.
    let size = host_memory() / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE;
    let error = allocate(size, HugePages::TwoMiB, Vec::new()).unwrap_err();
    let Error::NoHugePages {
        needed,
        free,
        total,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(needed, size / HUGE_PAGE_SIZE);
    assert!(free < needed);
    let text = error.to_string();
    let command = format!(
        "echo {} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        total + needed - free
    );
    assert!(text.contains(&command), "{text}");
    assert!(text.contains(&format!("{needed} huge pages")), "{text}");
}

#[test]
fn ordinary_memory_needs_none() {
    let memory = allocate(16 << 20, HugePages::None, Vec::new()).unwrap();
    assert_eq!(memory.num_regions(), 1);
}

/// Two huge pages, if the host has them.
fn two_huge_pages() -> Option<GuestMemoryMmap> {
    match allocate(2 * HUGE_PAGE_SIZE, HugePages::TwoMiB, Vec::new()) {
        Ok(memory) => Some(memory),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn a_memory_file_gets_into_huge_pages_without_its_holes() {
    const START: u64 = 1 << 20;
    let file = TempFile::new().unwrap().into_file();
    let end = START + 2 * HUGE_PAGE_SIZE;
    file.set_len(end + 4096).unwrap();
    file.write_all_at(b"before", START - 6).unwrap();
    file.write_all_at(b"first", START).unwrap();
    file.write_all_at(&[7; 8192], START + 10_000).unwrap();
    file.write_all_at(b"last", end - 4).unwrap();
    file.write_all_at(b"behind", end).unwrap();
    let memories = [
        allocate(2 * HUGE_PAGE_SIZE, HugePages::None, Vec::new()).ok(),
        two_huge_pages(),
    ];
    for memory in memories.iter().flatten() {
        put_file(memory, 0, 2 * HUGE_PAGE_SIZE, &file, START).unwrap();
        let mut found = vec![0xaa; 2 * HUGE_PAGE_SIZE as usize];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        let mut expected = vec![0; found.len()];
        file.read_exact_at(&mut expected, START).unwrap();
        assert!(found == expected);
        // It is the guest's alone.
        memory.write_slice(b"other", GuestAddress(0)).unwrap();
        let mut kept = [0; 5];
        file.read_exact_at(&mut kept, START).unwrap();
        assert_eq!(&kept, b"first");
        assert!(put_file(memory, HUGE_PAGE_SIZE, 2 * HUGE_PAGE_SIZE, &file, START).is_err());
    }
}

#[test]
fn what_a_kernel_writes_to_is_copied_and_the_rest_mapped() {
    const TEXT: u64 = 0x20_0000;
    const DATA: u64 = 0x20_3000;
    let file = TempFile::new().unwrap().into_file();
    file.write_all_at(&[1; 5 * PAGE_SIZE as usize], 0).unwrap();
    let segment = |file_offset, pages: u64, gpa, writable| Segment {
        file_offset,
        file_size: pages * PAGE_SIZE,
        gpa,
        memory_size: (pages + 1) * PAGE_SIZE,
        writable,
    };
    let segments = [
        segment(0, 2, TEXT, false),
        segment(2 * PAGE_SIZE, 3, DATA, true),
    ];
    let memory = allocate(16 << 20, HugePages::None, Vec::new()).unwrap();
    load_kernel(&memory, HugePages::None, &file, &segments).unwrap();
    // Pages that are mapped, and that nobody has written to, are the file's.
    file.write_all_at(&[2; 5 * PAGE_SIZE as usize], 0).unwrap();
    let byte = |gpa| memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
    assert_eq!([byte(TEXT), byte(TEXT + 2 * PAGE_SIZE - 1)], [2; 2]);
    assert_eq!([byte(DATA), byte(DATA + 3 * PAGE_SIZE - 1)], [1; 2]);
    assert_eq!(byte(TEXT + 2 * PAGE_SIZE), 0);
    assert_eq!(byte(DATA + 3 * PAGE_SIZE), 0);
}

#[test]
fn huge_pages_are_asked_for_where_only_writable_segments_are() {
    const BLOCK: u64 = HUGE_PAGE_SIZE;
    let segment = |gpa, memory_size, writable| Segment {
        file_offset: 0,
        file_size: 0,
        gpa,
        memory_size,
        writable,
    };
    let blocks = |segments: &[Segment]| -> Vec<(u64, u64)> {
        let blocks = writable_blocks(segments).into_iter();
        blocks.map(|range| (range.start, range.end)).collect()
    };
    // The tuned kernel's.
    let tuned = [
        segment(0x100_0000, 0x94_207c, false),
        segment(0x1a0_0000, 0xe_2000, true),
        segment(0x1ae_2000, 0x2_2bd8, true),
        segment(0x1b0_5000, 0x31_1000, true),
    ];
    assert_eq!(blocks(&tuned), [(0x1a0_0000, 0x1e0_0000)]);
    // A page between two of them is somebody else's.
    let apart = [
        segment(BLOCK, BLOCK / 2, true),
        segment(BLOCK * 3 / 2 + PAGE_SIZE, BLOCK, true),
    ];
    assert_eq!(blocks(&apart), []);
    let read_only_between = [
        segment(BLOCK, BLOCK, true),
        segment(BLOCK * 2, BLOCK, false),
        segment(BLOCK * 3, BLOCK + 1, true),
    ];
    assert_eq!(
        blocks(&read_only_between),
        [(BLOCK, BLOCK * 2), (BLOCK * 3, BLOCK * 4)]
    );
    assert_eq!(blocks(&[segment(BLOCK + 1, BLOCK, true)]), []);
    assert_eq!(blocks(&[segment(BLOCK, BLOCK * 3, true)]), []);
    assert_eq!(blocks(&[]), []);
}
