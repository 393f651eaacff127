use std::fs;
use std::path::Path;

use super::super::test_support::*;
use super::super::{Disk, Options, Overlay as Choice, OverlayError};
use super::*;

const MIB: usize = 1 << 20;

fn options(base: &Path, overlay: &Path) -> Options {
    Options {
        path: base.to_owned(),
        overlay: Choice::File(overlay.to_owned()),
        ..Options::default()
    }
}

fn error(options: &Options) -> OverlayError {
    match Disk::open(options) {
        Err(super::super::Error::Overlay { source, .. }) => source,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn is_what_was_written_and_lasts() {
    let dir = TempDir::new();
    // The last block is short.
    let len = 3 * MIB + 1536;
    let base = dir.file("base", len);
    for (index, (engine, cache)) in modes().enumerate() {
        let overlay = dir.path(&format!("overlay{index}"));
        let options = Options {
            engine,
            cache,
            ..options(&base, &overlay)
        };
        let mut model = pattern(len);
        for round in 0..4 {
            let mut test = TestDisk::open(&options);
            assert_same(&mut test, &model);
            model = compare_with_model(&mut test, model, 150, index as u64 * 10 + round);
        }
        assert_same(&mut TestDisk::open(&options), &model);
    }
    assert!(fs::read(&base).unwrap() == pattern(len));
}

#[test]
fn a_temporary_one_leaves_nothing() {
    let dir = TempDir::new();
    let base = dir.file("base", 2 * MIB);
    let options = Options {
        overlay: Choice::Temporary,
        ..options(&base, Path::new(""))
    };
    for (engine, cache) in modes() {
        let mut test = TestDisk::open(&Options {
            engine,
            cache,
            ..options.clone()
        });
        compare_with_model(&mut test, pattern(2 * MIB), 300, 5);
    }
    assert_same(&mut TestDisk::open(&options), &pattern(2 * MIB));
    assert!(fs::read(&base).unwrap() == pattern(2 * MIB));
}

#[test]
fn two_share_a_base() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlays = ["one", "two"].map(|name| dir.path(name));
    let mut tests = overlays
        .each_ref()
        .map(|overlay| TestDisk::open(&options(&base, overlay)));
    for (index, test) in tests.iter_mut().enumerate() {
        test.write(8192, &[index as u8; 4096]).unwrap();
        test.write(512 * (index as u64 + 1), &[9; 512]).unwrap();
    }
    for (index, test) in tests.iter_mut().enumerate() {
        let mut model = pattern(MIB);
        model[8192..12288].fill(index as u8);
        model[512 * (index + 1)..][..512].fill(9);
        assert_same(test, &model);
    }
    // Nobody writes to the base, and nobody shares an overlay.
    let writer = Options {
        path: base.clone(),
        ..Options::default()
    };
    assert!(Disk::open(&writer).is_err());
    let again = Disk::open(&options(&base, &overlays[0])).err().unwrap();
    assert!(again.to_string().contains(text(&overlays[0])));
    drop(tests);
    assert!(fs::read(&base).unwrap() == pattern(MIB));
}

#[test]
fn an_aligned_write_copies_nothing() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlay = dir.path("overlay");
    let mut test = TestDisk::open(&options(&base, &overlay));
    test.write(65536, &[1; 4096]).unwrap();
    test.flush().unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&overlay).unwrap());
    assert!(blocks * 512 <= 5 * 4096, "{blocks} blocks");
}

/// What is in the file at some time is what a guest finds after a crash at that time.
#[test]
fn a_crash_loses_nothing_that_was_flushed() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlay = dir.path("overlay");
    let crashed = dir.path("crashed");
    let mut test = TestDisk::open(&options(&base, &overlay));
    let mut random = Random(1);
    let mut flushed = pattern(MIB);
    let mut now = flushed.clone();
    for round in 0..100 {
        let at = random.below(2048 - 16) as usize * 512;
        let len = (1 + random.below(16) as usize) * 512;
        let bytes = vec![round as u8; len];
        test.write(at as u64, &bytes).unwrap();
        now[at..at + len].copy_from_slice(&bytes);
        if random.below(3) == 0 {
            test.flush().unwrap();
            flushed.copy_from_slice(&now);
        }
        fs::copy(&overlay, &crashed).unwrap();
        let mut after = TestDisk::open(&options(&base, &crashed));
        let found = after.read(0, MIB).unwrap();
        for (sector, found) in found.chunks(512).enumerate() {
            let range = sector * 512..sector * 512 + 512;
            assert!(
                found == &flushed[range.clone()] || found == &now[range],
                "round {round}, sector {sector}"
            );
        }
    }
}

/// A host that stops may have written the blocks or not, but the map says only what was durable: with
/// the blocks gone that were written since the last flush, what was flushed is there.
#[test]
fn the_map_comes_after_the_blocks() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlay = dir.path("overlay");
    let mut test = TestDisk::open(&options(&base, &overlay));
    test.write(0, &[1; 8192]).unwrap();
    test.flush().unwrap();
    let durable = fs::read(&overlay).unwrap();
    test.write(4096 * 9, &[2; 4096]).unwrap();
    let later = fs::read(&overlay).unwrap();
    assert_eq!(durable[..DATA_ALIGN as usize], later[..DATA_ALIGN as usize]);
    let crashed = dir.path("crashed");
    fs::write(&crashed, durable).unwrap();
    let mut model = pattern(MIB);
    model[..8192].fill(1);
    assert_same(&mut TestDisk::open(&options(&base, &crashed)), &model);
}

#[test]
fn discarding_gives_room_back() {
    let dir = TempDir::new();
    let base = dir.file("base", 4 * MIB);
    let overlay = dir.path("overlay");
    let mut test = TestDisk::open(&options(&base, &overlay));
    test.write(0, &vec![1; 4 * MIB]).unwrap();
    test.flush().unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&overlay).unwrap());
    let before = blocks();
    test.disk.discard(0, 3 << 20).unwrap();
    assert!(blocks() + 6000 < before);
    assert_eq!(test.read(0, MIB).unwrap(), vec![0; MIB]);
    assert_eq!(test.read(3 << 20, MIB).unwrap(), vec![1; MIB]);
}

#[test]
fn belongs_to_one_base() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlay = dir.path("overlay");
    drop(TestDisk::open(&options(&base, &overlay)));
    let other = dir.file("other", MIB);
    assert!(matches!(
        error(&options(&other, &overlay)),
        OverlayError::OtherBase
    ));
    // Written to, and of the same size.
    let file = fs::OpenOptions::new().write(true).open(&base).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    file.set_modified(later).unwrap();
    assert!(matches!(
        error(&options(&base, &overlay)),
        OverlayError::OtherBase
    ));
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    for (name, len) in [("short", 3), ("long", MIB)] {
        let file = dir.file(name, len);
        assert!(matches!(
            error(&options(&base, &file)),
            OverlayError::NotAnOverlay
        ));
        assert!(fs::read(&file).unwrap() == pattern(len));
    }
    assert!(Disk::open(&options(&base, &dir.path("no/such/place"))).is_err());
    // The overlay is not the base.
    assert!(Disk::open(&options(&base, &base)).is_err());
    assert!(fs::read(&base).unwrap() == pattern(MIB));
}

#[test]
fn a_damaged_header_is_refused_or_harmless() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let overlay = dir.path("overlay");
    let mut test = TestDisk::open(&options(&base, &overlay));
    test.write(0, &[1; 8192]).unwrap();
    drop(test);
    let good = fs::read(&overlay).unwrap();
    let damaged = dir.path("damaged");
    let mut random = Random(3);
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            bytes[random.below(4200) as usize] = random.below(256) as u8;
        }
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        fs::write(&damaged, bytes).unwrap();
        if let Ok(disk) = Disk::open(&options(&base, &damaged)) {
            let mut test = TestDisk::new(disk);
            let _ = test.read(0, MIB);
            let _ = test.write(512, &[3; 8192]);
        }
    }
}

#[test]
fn blocks_of_huge_disks_are_larger() {
    assert_eq!(block_for(512), 4096);
    assert_eq!(block_for(1 << 40), 4096);
    assert_eq!(block_for((1 << 40) + 512), 8192);
    assert_eq!(block_for(u64::MAX - 511).div_ceil(4096) * 4096, 1 << 36);
}
