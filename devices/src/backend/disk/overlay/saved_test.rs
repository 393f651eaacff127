use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::backend::disk::test_support::*;
use crate::backend::disk::{Disk, Error as DiskError, Options, Overlay as Choice};

const MIB: usize = 1 << 20;
const ID: Id = *b"one snapshot's..";

fn temporary(base: &Path) -> Options {
    Options {
        path: base.to_owned(),
        overlay: Choice::Temporary,
        ..Options::default()
    }
}

fn from(base: &Path, path: &Path) -> Options {
    Options {
        overlay: Choice::Saved {
            path: path.to_owned(),
            id: ID,
        },
        ..temporary(base)
    }
}

/// Has `test` saved in a file of this name.
fn save(test: &TestDisk, dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path(name);
    let file = File::create_new(&path).unwrap();
    test.disk.save_overlay(&file, &ID).unwrap();
    path
}

fn refused(options: &Options) -> Error {
    match Disk::open(options) {
        Err(DiskError::Overlay { source, .. }) => source,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn goes_on_with_what_was_written_generation_after_generation() {
    let dir = TempDir::new();
    let len = 3 * MIB + 1536;
    let base = dir.file("base", len);
    for (index, (engine, cache)) in modes().enumerate() {
        let mut model = pattern(len);
        let mut options = temporary(&base);
        for generation in 0..5 {
            options = Options {
                engine,
                cache,
                ..options
            };
            let mut test = TestDisk::open(&options);
            assert_same(&mut test, &model);
            let seed = index as u64 * 10 + generation;
            model = compare_with_model(&mut test, model, 100, seed);
            let path = save(&test, &dir, &format!("{index}-{generation}"));
            options = from(&base, &path);
        }
        // One that nobody has written to since.
        let path = save(&TestDisk::open(&options), &dir, &format!("{index}-last"));
        options = from(&base, &path);
        // All copies have the same, and none sees what another writes.
        let mut copies = [(); 2].map(|()| TestDisk::open(&options));
        copies[0].write(4096, &[7; 8192]).unwrap();
        assert_same(&mut copies[1], &model);
        model[4096..12288].fill(7);
        assert_same(&mut copies[0], &model);
    }
    assert!(fs::read(&base).unwrap() == pattern(len));
}

#[test]
fn only_what_was_written_takes_room() {
    let dir = TempDir::new();
    let base = dir.sparse("base", 1 << 40);
    let mut test = TestDisk::open(&temporary(&base));
    test.write(5 << 38, &[1; 4096]).unwrap_err();
    test.write(3 << 38, &[1; 4096]).unwrap();
    test.write(1 << 20, &[2; 8192]).unwrap();
    let path = save(&test, &dir, "saved");
    let room = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(room < 1 << 20, "{room}");
    let mut copy = TestDisk::open(&from(&base, &path));
    assert_eq!(copy.read(3 << 38, 4096).unwrap(), [1; 4096]);
    assert_eq!(copy.read(1 << 20, 12288).unwrap()[8192..], [0; 4096]);
}

#[test]
fn where_the_kernel_does_not_copy_it_is_copied() {
    let dir = TempDir::new();
    let from = File::options()
        .read(true)
        .open(dir.file("from", 2 * MIB))
        .unwrap();
    let to = dir.path("to");
    let to_file = File::create_new(&to).unwrap();
    copy_chunks(&from, 4096, &to_file, 512, MIB as u64 + 7).unwrap();
    let copied = fs::read(&to).unwrap();
    assert_eq!(copied.len(), 512 + MIB + 7);
    assert!(copied[512..] == pattern(2 * MIB)[4096..][..MIB + 7]);
}

#[test]
fn what_a_file_says_is_not_believed() {
    let dir = TempDir::new();
    let base = dir.file("base", MIB);
    let mut test = TestDisk::open(&temporary(&base));
    test.write(8192, &[1; 4096]).unwrap();
    let good = fs::read(save(&test, &dir, "good")).unwrap();
    let empty = save(&TestDisk::open(&temporary(&base)), &dir, "empty");
    assert_same(&mut TestDisk::open(&from(&base, &empty)), &pattern(MIB));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let path = dir.path("changed");
        fs::write(&path, bytes).unwrap();
        refused(&from(&base, &path))
    };
    let other = changed(&|bytes| bytes[ID_OFFSET as usize] ^= 1);
    assert!(matches!(other, Error::OtherSnapshot), "{other}");
    for len in [0, 1, HEADER_SIZE, HEADER_SIZE + 16, 4095] {
        let cut = changed(&|bytes| bytes.truncate(len));
        assert!(matches!(cut, Error::NotAnOverlay), "{cut}");
    }
    for at in 0..56 {
        changed(&|bytes| bytes[at] ^= 0x40);
    }
    // An overlay that was never in a snapshot, and one of another base.
    let plain = changed(&|bytes| bytes[ID_OFFSET as usize..][..16].fill(0));
    assert!(matches!(plain, Error::OtherSnapshot), "{plain}");
    let path = dir.path("good");
    let base2 = dir.file("base2", MIB);
    assert!(matches!(refused(&from(&base2, &path)), Error::OtherBase));
    let missing = Disk::open(&from(&base, &dir.path("missing")))
        .err()
        .unwrap();
    assert!(missing.to_string().contains("missing"), "{missing}");
    // A disk without an overlay has none to save.
    let disk = Disk::open(&Options {
        path: base2,
        ..Options::default()
    });
    let nowhere = File::create_new(dir.path("nowhere")).unwrap();
    disk.unwrap().save_overlay(&nowhere, &ID).unwrap_err();
}
