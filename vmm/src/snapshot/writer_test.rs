use std::os::unix::fs::MetadataExt;

use vm_memory::GuestRegionMmap;
use vmm_sys_util::tempfile::TempFile;

use super::super::memory::{Diff, lay_out};
use super::*;

const MIB: u64 = 1 << 20;
const ID: Id = *b"0123456789abcdef";
const BASE: Id = *b"fedcba9876543210";
const PAGE: usize = PAGE_SIZE as usize;

/// Two regions, as around the device hole.
fn guest_memory() -> (Arc<GuestMemoryMmap>, Vec<RegionState>) {
    let ranges = [(0, 5 * MIB), (1 << 32, 3 * MIB)];
    let places = ranges.map(|(gpa, bytes)| (GuestAddress(gpa), bytes as usize));
    let memory = GuestMemoryMmap::from_ranges(&places).unwrap();
    (Arc::new(memory), lay_out(ranges))
}

fn write(
    memory: &Arc<GuestMemoryMmap>,
    regions: &[RegionState],
    what: What,
) -> Result<(u64, File), Error> {
    let file = TempFile::new().unwrap().into_file();
    let mut job = Job::new(Arc::clone(memory), regions, ID)?;
    job.choose(what);
    let written = job.run(&file)?;
    Ok((written, file))
}

#[test]
fn what_is_in_memory_is_in_the_file_and_nothing_else() {
    let (memory, regions) = guest_memory();
    assert_eq!(regions[1].offset, 6 * MIB);
    memory.write_slice(b"first", GuestAddress(0)).unwrap();
    memory
        .write_slice(&[7; 5000], GuestAddress(2 * MIB + 100))
        .unwrap();
    memory
        .write_slice(b"last", GuestAddress((1 << 32) + 3 * MIB - 4))
        .unwrap();
    // Touched, and zero again.
    memory
        .write_slice(&[0; 8192], GuestAddress(4 * MIB))
        .unwrap();
    let (written, file) = write(&memory, &regions, What::All).unwrap();
    assert_eq!(written, 4096 + 2 * 4096 + 4096);
    assert_eq!(file.metadata().unwrap().len(), 9 * MIB + 16);
    assert!(file.metadata().unwrap().blocks() * 512 < MIB);
    memory::check_file(&regions, &ID, &file).unwrap();
    for region in &regions {
        let mut expected = vec![0; region.bytes as usize];
        memory
            .read_slice(&mut expected, GuestAddress(region.gpa))
            .unwrap();
        let mut found = vec![0xaa; region.bytes as usize];
        file.read_exact_at(&mut found, region.offset).unwrap();
        assert!(found == expected, "{region:?}");
    }
}

/// Memory that is a file's, mapped privately.
fn of_file(contents: File) -> Arc<GuestMemoryMmap> {
    let mapping = vm_memory::MmapRegion::build(
        Some(vm_memory::FileOffset::new(contents, 0)),
        2 * MIB as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE,
    )
    .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())
}

#[test]
fn memory_of_a_file_is_saved_whether_or_not_it_was_touched() {
    let contents = TempFile::new().unwrap().into_file();
    contents.set_len(2 * MIB).unwrap();
    contents.write_all_at(b"kernel", MIB).unwrap();
    let memory = of_file(contents);
    let (written, file) = write(&memory, &lay_out([(0, 2 * MIB)]), What::All).unwrap();
    assert_eq!(written, 4096);
    let mut found = [0; 6];
    file.read_exact_at(&mut found, MIB).unwrap();
    assert_eq!(&found, b"kernel");
}

#[test]
fn memory_that_there_is_not_is_not_written() {
    let (memory, _) = guest_memory();
    for range in [(1 << 33, MIB), (0, 6 * MIB), (4096, MIB)] {
        let refused = write(&memory, &lay_out([range]), What::All).map(|_| ());
        assert!(matches!(refused, Err(Error::NotRam { .. })), "{refused:?}");
    }
}

#[test]
fn what_was_written_to_since_it_was_loaded_is_known() {
    let contents = TempFile::new().unwrap().into_file();
    contents
        .write_all_at(&vec![1; 2 * MIB as usize], 0)
        .unwrap();
    let memory = of_file(contents);
    let regions = lay_out([(0, 2 * MIB)]);
    // Read, written to, and made zero.
    memory
        .read_slice(&mut [0; 3 * PAGE], GuestAddress(0))
        .unwrap();
    memory
        .write_slice(b"new", GuestAddress(5 * PAGE_SIZE))
        .unwrap();
    memory
        .write_slice(&[0; 2 * PAGE], GuestAddress(6 * PAGE_SIZE))
        .unwrap();
    let changed = Changed::SinceLoad;
    let what = What::Diff {
        base: BASE,
        changed,
    };
    let (written, file) = write(&memory, &regions, what).unwrap();
    assert_eq!(written, PAGE_SIZE);
    let diff = Diff::read(&regions, &ID, &file).unwrap();
    assert_eq!(diff.base, BASE);
    assert_eq!(diff.ranges.len(), 1);
    assert_eq!(diff.ranges[0], 5 * PAGE_SIZE..8 * PAGE_SIZE);
}

#[test]
fn a_differential_file_has_what_it_is_told_to_and_what_was_given_back() {
    let (memory, regions) = guest_memory();
    for region in &regions {
        let bytes = vec![1; region.bytes as usize];
        memory
            .write_slice(&bytes, GuestAddress(region.gpa))
            .unwrap();
    }
    let gone = devices::backend::guest_ram::discard(&memory, GuestAddress(MIB), MIB).unwrap();
    assert_eq!(gone, MIB);
    let changed = vec![4096..8192, 5 * MIB - 4096..5 * MIB, 6 * MIB..6 * MIB + 4096];
    let what = What::Diff {
        base: BASE,
        changed: Changed::Written(changed),
    };
    let (written, file) = write(&memory, &regions, what).unwrap();
    assert_eq!(written, 3 * 4096);
    assert_eq!(
        Diff::read(&regions, &ID, &file).unwrap().ranges,
        [
            4096..8192,
            MIB..2 * MIB,
            5 * MIB - 4096..5 * MIB,
            6 * MIB..6 * MIB + 4096
        ]
    );
}

#[test]
fn a_table_may_be_longer_than_what_is_kept_of_it() {
    let bytes = 64 * MIB;
    let places = [(GuestAddress(0), bytes as usize)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&places).unwrap());
    memory
        .write_slice(&vec![1; bytes as usize], GuestAddress(0))
        .unwrap();
    let regions = lay_out([(0, bytes)]);
    let odd: Vec<_> = (0..bytes / PAGE_SIZE / 2)
        .map(|index| (2 * index + 1) * PAGE_SIZE)
        .map(|start| start..start + PAGE_SIZE)
        .collect();
    assert!(odd.len() * ENTRY as usize > 2 * WORDS - 1);
    let what = What::Diff {
        base: BASE,
        changed: Changed::Written(odd.clone()),
    };
    let (_, file) = write(&memory, &regions, what).unwrap();
    assert!(Diff::read(&regions, &ID, &file).unwrap().ranges == odd);
}

#[test]
fn huge_pages_that_nobody_has_touched_are_not_looked_at() {
    const HUGE: u64 = 2 * MIB;
    let huge = crate::memory::allocate(2 * HUGE, crate::config::HugePages::TwoMiB, Vec::new());
    let memory = match huge {
        Ok(memory) => Arc::new(memory),
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    memory.write_slice(b"here", GuestAddress(HUGE)).unwrap();
    let regions = lay_out([(0, 2 * HUGE)]);
    let (written, file) = write(&memory, &regions, What::All).unwrap();
    assert_eq!(written, 4096);
    let mut found = [0; 4];
    file.read_exact_at(&mut found, HUGE).unwrap();
    assert_eq!(&found, b"here");
    // What says that all of it may hold something has all of it touched.
    let map = super::super::pages::Map::of(&memory, &regions).unwrap();
    assert!(map.parts.iter().all(|part| !part.is_of_file));
}
