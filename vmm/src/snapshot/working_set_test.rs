use std::fs;
use std::os::unix::fs::FileExt;

use vmm_sys_util::tempdir::TempDir;

use super::super::memory::lay_out;
use super::*;

const MIB: u64 = 1 << 20;
const ID: Id = *b"0123456789abcdef";

fn regions() -> Vec<RegionState> {
    lay_out([(0, 5 * MIB), (1 << 32, 3 * MIB)])
}

fn run(page: u32, pages: u32, is_written: bool) -> Run {
    Run {
        page,
        pages,
        is_written,
    }
}

fn set(runs: &[Run]) -> WorkingSet {
    WorkingSet {
        id: ID,
        runs: runs.to_vec(),
    }
}

#[test]
fn it_is_found_beside_its_memory_file() {
    let directory = TempDir::new().unwrap();
    let memory = directory.as_path().join("memory");
    let find = |id: &Id| WorkingSet::find(&memory, id, &regions());
    assert_eq!(find(&ID), None);
    let known = set(&[run(0, 2, true), run(2, 1, false), run(6 * 256, 768, false)]);
    known.write(&memory).unwrap();
    assert_eq!(find(&ID), Some(known.clone()));
    let pages = known.pages();
    assert_eq!((pages.all, pages.written), (771, 2));
    assert_eq!(find(b"another file's id"[..16].try_into().unwrap()), None);
    let path = hints::path(&memory, hints::PAGES);
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert_eq!(find(&ID), None, "byte {at}");
        fs::write(&path, &bytes[..at]).unwrap();
        assert_eq!(find(&ID), None, "{at} bytes");
    }
}

#[test]
fn pages_that_are_not_memory_are_none() {
    let regions = regions();
    set(&[]).fits(&regions);
    for bad in [
        &[run(5 * 256 - 1, 2, false)][..], // into the gap
        &[run(5 * 256, 1, false)],
        &[run(9 * 256, 1, false)],
        &[run(u32::MAX, u32::MAX, true)],
        &[run(1, 1, false), run(0, 1, false)],
        &[run(0, 2, false), run(1, 1, true)],
        &[run(0, 0, false)],
    ] {
        assert!(!set(bad).fits(&regions), "{bad:?}");
    }
}

#[test]
fn what_is_close_is_mapped_by_one_call() {
    let known = set(&[
        run(0, 1, true),
        run(2, 1, false),
        run(9, 1, false),
        run(6 * 256, 1, true),
    ]);
    let ranges = known.guest_ranges(&regions());
    assert_eq!(
        ranges,
        [0..3 * 4096, 9 * 4096..10 * 4096, 1 << 32..(1 << 32) + 4096]
    );
}

#[test]
fn a_long_run_is_mapped_in_pieces() {
    let parts: Vec<_> = run(7, 2 * PART as u32 + 1, true).parts().collect();
    let part = PART as u32;
    let expected = [
        run(7, part, true),
        run(7 + part, part, true),
        run(7 + 2 * part, 1, true),
    ];
    assert_eq!(parts, expected);
    assert_eq!(run(1, 1, false).parts().count(), 1);
}

#[test]
fn what_was_touched_is_noted_and_brought_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("memory");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let regions = regions();
    file.set_len(memory::file_size(&regions)).unwrap();
    file.write_all_at(&[7; 4096 * 4], 0).unwrap();
    file.sync_all().unwrap();
    let map = || {
        let places: Vec<_> = (regions.iter())
            .map(|region| {
                (
                    GuestAddress(region.gpa),
                    usize::try_from(region.bytes).unwrap(),
                )
            })
            .collect();
        let memory = GuestMemoryMmap::from_ranges(&places).unwrap();
        for region in &regions {
            crate::memory::put_file(&memory, region.gpa, region.bytes, &file, region.offset)
                .unwrap();
        }
        Arc::new(memory)
    };
    let memory = map();
    read_singly(&memory, &regions, true);
    assert_eq!(WorkingSet::of(&memory, &ID, &regions).unwrap(), set(&[]));
    use vm_memory::Bytes;
    memory.write_slice(b"written", GuestAddress(4096)).unwrap();
    memory
        .write_slice(b"written", GuestAddress(1 << 32))
        .unwrap();
    let mut byte = [0];
    memory.read_slice(&mut byte, GuestAddress(3 * MIB)).unwrap();
    let noted = WorkingSet::of(&memory, &ID, &regions).unwrap();
    let written: Vec<_> = noted.runs.iter().filter(|run| run.is_written).collect();
    assert_eq!(written, [&run(1, 1, true), &run(6 * 256, 1, true)]);
    // The host may have mapped what is next to it.
    let read = noted.runs.iter().filter(|run| !run.is_written);
    let has = |run: &&Run| (run.page..run.page + run.pages).contains(&(3 * 256));
    assert_eq!(read.filter(has).count(), 1, "{noted:?}");

    let again = map();
    let mut populating = Arc::new(noted.clone()).populate(&again, &regions);
    populating.thread.take().unwrap().join().unwrap();
    drop(populating);
    let brought = WorkingSet::of(&again, &ID, &regions).unwrap();
    assert!(brought.pages().all >= noted.pages().all, "{brought:?}");
    assert_eq!(brought.pages().written, 2, "{brought:?}");
    let mut page = [0; 4096];
    again.read_slice(&mut page, GuestAddress(4096)).unwrap();
    assert_eq!(page, [7; 4096]);
}
