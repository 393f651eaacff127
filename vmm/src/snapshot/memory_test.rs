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
const BASE: Id = *b"fedcba9876543210";
/// Two regions, as around the device hole.
const RANGES: [(u64, u64); 2] = [(0, 5 * MIB), (1 << 32, 3 * MIB)];
const END: u64 = 9 * MIB;

#[test]
fn what_the_state_says_of_the_file_is_not_believed() {
    let good = lay_out(RANGES);
    let file = TempFile::new().unwrap().into_file();
    let cut = check(&good, RANGES, &ID, &file).unwrap_err();
    assert!(matches!(cut, Error::Size { found: 0, .. }), "{cut}");
    file.write_all_at(&ID, END).unwrap();
    check(&good, RANGES, &ID, &file).unwrap();
    let other = check(&good, RANGES, &Id::default(), &file);
    assert!(matches!(other, Err(Error::Other)), "{other:?}");
    file.set_len(END + 17).unwrap();
    assert!(check(&good, RANGES, &ID, &file).is_err());
    file.set_len(END + 16).unwrap();
    for change in [
        |region: &mut RegionState| region.offset = u64::MAX,
        |region: &mut RegionState| region.bytes = u64::MAX,
        |region: &mut RegionState| region.gpa += 1,
    ] {
        let mut bad = good.clone();
        change(&mut bad[1]);
        let refused = check(&bad, RANGES, &ID, &file);
        assert!(matches!(refused, Err(Error::Regions)), "{refused:?}");
    }
    assert!(check(&good[..1], RANGES, &ID, &file).is_err());
}

#[test]
fn more_memory_than_any_file_has_bytes() {
    let good = lay_out(RANGES);
    for wanted in [
        [(0, u64::MAX), (1, MIB)],
        [(0, u64::MAX - MIB), (1 << 32, MIB)],
    ] {
        assert!(check_regions(&good, wanted).is_err());
        assert!(check_layout(&lay_out(wanted)).is_err());
    }
}

#[test]
fn regions_that_no_machine_has() {
    check_layout(&lay_out(RANGES)).unwrap();
    for change in [
        |region: &mut RegionState| region.offset = u64::MAX,
        |region: &mut RegionState| region.bytes = u64::MAX,
        |region: &mut RegionState| region.bytes = 0,
        |region: &mut RegionState| region.bytes += 1,
        |region: &mut RegionState| region.offset += 4096,
    ] {
        let mut bad = lay_out(RANGES);
        change(&mut bad[1]);
        assert!(check_layout(&bad).is_err(), "{bad:?}");
    }
    let many = lay_out((0..=MAX_REGIONS as u64).map(|index| (index << 32, MIB)));
    assert!(check_layout(&many).is_err());
}

/// A file with this table.
fn differential(ranges: &[(u64, u64)]) -> File {
    let file = TempFile::new().unwrap().into_file();
    let table: Vec<u8> = ranges
        .iter()
        .flat_map(|(start, bytes)| [start.to_le_bytes(), bytes.to_le_bytes()].concat())
        .collect();
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&table);
    let trailer = diff_trailer(&ID, &BASE, ranges.len() as u64, checksum);
    file.write_all_at(&trailer, END).unwrap();
    file.write_all_at(&table, END + DIFF_TRAILER).unwrap();
    file
}

#[test]
fn the_table_of_a_differential_file_is_read() {
    let regions = lay_out(RANGES);
    let read = |ranges: &[(u64, u64)]| Diff::read(&regions, &ID, &differential(ranges));
    let found = read(&[(0, 4096), (8192, 8192), (4 * MIB, MIB), (6 * MIB, 3 * MIB)]).unwrap();
    assert_eq!(found.base, BASE);
    assert_eq!(
        found.ranges,
        [0..4096, 8192..16384, 4 * MIB..5 * MIB, 6 * MIB..9 * MIB]
    );
    assert_eq!(read(&[]).unwrap().ranges, []);
    for bad in [
        &[(4 * MIB, 2 * MIB)][..], // into the gap
        &[(5 * MIB, 4096)],
        &[(9 * MIB, 4096)],
        &[(8192, 4096), (0, 4096)],
        &[(0, 8192), (4096, 4096)],
        &[(0, 0)],
        &[(1, 4096)],
        &[(0, 4097)],
        &[(4096, u64::MAX)],
    ] {
        assert!(matches!(read(bad), Err(Error::Table)), "{bad:?}");
    }
}

#[test]
fn every_bit_of_the_table_counts() {
    let regions = lay_out(RANGES);
    let file = differential(&[(0, 4096), (8192, 4096)]);
    let len = file.metadata().unwrap().len();
    for at in END..len {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        for bit in 0..8 {
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            let refused = Diff::read(&regions, &ID, &file);
            assert!(refused.is_err(), "bit {bit} of byte {at}: {refused:?}");
        }
        file.write_all_at(&byte, at).unwrap();
    }
    for size in [0, END, END + 47, len - 1, len + 1, len + 16] {
        file.set_len(size).unwrap();
        assert!(Diff::read(&regions, &ID, &file).is_err(), "{size}");
    }
}
