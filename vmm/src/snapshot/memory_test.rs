use std::os::unix::fs::MetadataExt;

use vm_memory::GuestRegionMmap;
use vmm_sys_util::tempfile::TempFile;

use super::*;

fn check(
    regions: &[RegionState],
    wanted: impl IntoIterator<Item = (u64, u64)>,
    id: &Id,
    file: &File,
) -> Result<(), Error> {
    check_regions(regions, wanted)?;
    check_file(regions, id, file)
}

const MIB: u64 = 1 << 20;
const ID: Id = *b"0123456789abcdef";

/// Two regions, as around the device hole.
fn guest_memory() -> (GuestMemoryMmap, Vec<(u64, u64)>) {
    let ranges = vec![(0, 5 * MIB), (1 << 32, 3 * MIB)];
    let places: Vec<_> = ranges
        .iter()
        .map(|&(gpa, bytes)| (GuestAddress(gpa), bytes as usize))
        .collect();
    (GuestMemoryMmap::from_ranges(&places).unwrap(), ranges)
}

#[test]
fn what_is_in_memory_is_in_the_file_and_nothing_else() {
    let (memory, ranges) = guest_memory();
    let regions = lay_out(ranges.clone());
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
    let file = TempFile::new().unwrap().into_file();
    let written = write(&memory, &regions, &ID, &file, false).unwrap();
    assert_eq!(written, 4096 + 2 * 4096 + 4096);
    assert_eq!(file.metadata().unwrap().len(), 9 * MIB + 16);
    assert!(file.metadata().unwrap().blocks() * 512 < MIB);
    check(&regions, ranges, &ID, &file).unwrap();
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

#[test]
fn memory_of_a_file_is_saved_whether_or_not_it_was_touched() {
    let contents = TempFile::new().unwrap().into_file();
    contents.set_len(2 * MIB).unwrap();
    contents.write_all_at(b"kernel", MIB).unwrap();
    let mapping = vm_memory::MmapRegion::build(
        Some(vm_memory::FileOffset::new(contents, 0)),
        2 * MIB as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE,
    )
    .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    let file = TempFile::new().unwrap().into_file();
    let written = write(&memory, &lay_out([(0, 2 * MIB)]), &ID, &file, false).unwrap();
    assert_eq!(written, 4096);
    let mut found = [0; 6];
    file.read_exact_at(&mut found, MIB).unwrap();
    assert_eq!(&found, b"kernel");
}

#[test]
fn what_the_state_says_of_the_file_is_not_believed() {
    let ranges = [(0, 5 * MIB), (1 << 32, 3 * MIB)];
    let good = lay_out(ranges);
    let file = TempFile::new().unwrap().into_file();
    let cut = check(&good, ranges, &ID, &file).unwrap_err();
    assert!(matches!(cut, Error::Size { found: 0, .. }), "{cut}");
    file.write_all_at(&ID, 9 * MIB).unwrap();
    check(&good, ranges, &ID, &file).unwrap();
    let other = check(&good, ranges, &Id::default(), &file);
    assert!(matches!(other, Err(Error::Other)), "{other:?}");
    file.set_len(9 * MIB + 17).unwrap();
    assert!(check(&good, ranges, &ID, &file).is_err());
    file.set_len(9 * MIB + 16).unwrap();
    for change in [
        |region: &mut RegionState| region.offset = u64::MAX,
        |region: &mut RegionState| region.bytes = u64::MAX,
        |region: &mut RegionState| region.gpa += 1,
    ] {
        let mut bad = good.clone();
        change(&mut bad[1]);
        let refused = check(&bad, ranges, &ID, &file);
        assert!(matches!(refused, Err(Error::Regions)), "{refused:?}");
    }
    assert!(check(&good[..1], ranges, &ID, &file).is_err());
}

#[test]
fn memory_that_there_is_not_is_not_written() {
    let (memory, _) = guest_memory();
    let file = TempFile::new().unwrap().into_file();
    for range in [(1 << 33, MIB), (0, 6 * MIB), (4096, MIB)] {
        let refused = write(&memory, &lay_out([range]), &ID, &file, false);
        assert!(matches!(refused, Err(Error::NotRam { .. })), "{refused:?}");
    }
}
