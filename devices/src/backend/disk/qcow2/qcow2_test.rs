use std::fs;
use std::path::{Path, PathBuf};

use super::super::test_support::*;
use super::super::{Disk, Options, Overlay, Qcow2Error};
use super::*;

const MIB: usize = 1 << 20;

fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        ..Options::default()
    }
}

/// An empty image; None without qemu-img.
fn create(dir: &TempDir, name: &str, with: &str, size: &str) -> Option<PathBuf> {
    let path = dir.path(name);
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    if !with.is_empty() {
        arguments.extend(["-o", with]);
    }
    arguments.extend([text(&path), size]);
    qemu_img(&arguments)?;
    Some(path)
}

/// QEMU finds no errors, and if `leaks` is false no lost clusters.
#[track_caller]
fn check(path: &Path, leaks: bool) {
    let output = std::process::Command::new("qemu-img")
        .args(["check", "-f", "qcow2", text(path)])
        .output()
        .unwrap();
    let code = output.status.code();
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(code == Some(0) || leaks && code == Some(3), "{output}");
}

/// What QEMU reads.
fn contents(dir: &TempDir, path: &Path) -> Vec<u8> {
    let raw = dir.path("converted");
    qemu_img(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(path),
        text(&raw),
    ]);
    fs::read(raw).unwrap()
}

#[test]
fn is_what_was_written_with_all_layouts() {
    let dir = TempDir::new();
    let layouts = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=1024,refcount_bits=1",
        "cluster_size=4096,refcount_bits=4",
        "cluster_size=2M,refcount_bits=8",
        "cluster_size=65536,refcount_bits=32,preallocation=metadata",
        "cluster_size=4096,preallocation=falloc",
    ];
    for (index, layout) in layouts.into_iter().enumerate() {
        // The last cluster is not whole.
        let len = 9 * MIB + 1536;
        let size = len.to_string();
        for (mode, (engine, cache)) in modes().enumerate() {
            if index > 3 && mode > 1 {
                continue;
            }
            let name = format!("{index}-{mode}.qcow2");
            let Some(path) = create(&dir, &name, layout, &size) else {
                return;
            };
            let options = Options {
                engine,
                cache,
                ..options(&path)
            };
            let mut model = vec![0; len];
            for round in 0..2 {
                let mut test = TestDisk::open(&options);
                let seed = (index * 100 + mode * 10 + round) as u64;
                model = compare_with_model(&mut test, model, 120, seed);
                drop(test);
                check(&path, false);
                assert!(contents(&dir, &path) == model, "{layout}");
            }
        }
    }
}

#[test]
fn reads_compressed_images_and_writes_over_them() {
    let dir = TempDir::new();
    let raw = dir.file("raw", 3 * MIB);
    for compression in [
        "compression_type=zlib",
        "compression_type=zstd,cluster_size=4096",
    ] {
        let path = dir.path("compressed.qcow2");
        let converted = qemu_img(&[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            compression,
            text(&raw),
            text(&path),
        ]);
        if converted.is_none() {
            return;
        }
        assert!(fs::metadata(&path).unwrap().len() < 2 << 20);
        let mut test = TestDisk::open(&options(&path));
        assert_same(&mut test, &pattern(3 * MIB));
        let model = compare_with_model(&mut test, pattern(3 * MIB), 200, 11);
        drop(test);
        check(&path, false);
        assert!(contents(&dir, &path) == model);
    }
}

#[test]
fn a_snapshot_stays_as_it_is() {
    let dir = TempDir::new();
    let Some(path) = create(&dir, "disk.qcow2", "cluster_size=4096", "4M") else {
        return;
    };
    let mut test = TestDisk::open(&options(&path));
    let before = compare_with_model(&mut test, vec![0; 4 * MIB], 100, 1);
    drop(test);
    qemu_img(&["snapshot", "-c", "before", text(&path)]);
    let mut test = TestDisk::open(&options(&path));
    assert_same(&mut test, &before);
    let after = compare_with_model(&mut test, before.clone(), 200, 2);
    drop(test);
    check(&path, false);
    assert!(contents(&dir, &path) == after);
    qemu_img(&["snapshot", "-a", "before", text(&path)]);
    assert!(contents(&dir, &path) == before);
}

#[test]
fn an_overlay_on_one() {
    let dir = TempDir::new();
    let raw = dir.file("raw", 2 * MIB);
    let base = dir.path("base.qcow2");
    if qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&base)]).is_none() {
        return;
    }
    let before = fs::read(&base).unwrap();
    let options = Options {
        overlay: Overlay::File(dir.path("overlay")),
        ..options(&base)
    };
    let mut test = TestDisk::open(&options);
    let model = compare_with_model(&mut test, pattern(2 * MIB), 200, 8);
    drop(test);
    assert_same(&mut TestDisk::open(&options), &model);
    assert!(fs::read(&base).unwrap() == before);
}

/// The file as it is at any time has no errors, and what was flushed.
#[test]
fn a_crash_loses_nothing_that_was_flushed() {
    let dir = TempDir::new();
    let Some(path) = create(&dir, "disk.qcow2", "cluster_size=1024", "2M") else {
        return;
    };
    let crashed = dir.path("crashed.qcow2");
    let mut test = TestDisk::open(&options(&path));
    let mut random = Random(1);
    let mut flushed = vec![0; 2 * MIB];
    let mut now = flushed.clone();
    for round in 0..60 {
        for _ in 0..8 {
            let at = random.below(4096 - 64) as usize * 512;
            let len = (1 + random.below(64) as usize) * 512;
            if random.below(4) == 0 {
                test.disk.write_zeroes(at as u64, len as u64, true).unwrap();
                now[at..at + len].fill(0);
            } else {
                let bytes = vec![round as u8 + 1; len];
                test.write(at as u64, &bytes).unwrap();
                now[at..at + len].copy_from_slice(&bytes);
            }
        }
        if round % 3 == 0 {
            test.flush().unwrap();
            flushed.copy_from_slice(&now);
        }
        fs::copy(&path, &crashed).unwrap();
        check(&crashed, true);
        if round % 3 == 0 {
            let mut after = TestDisk::open(&options(&crashed));
            assert_same(&mut after, &flushed);
        }
    }
}

#[test]
fn what_is_discarded_is_used_again() {
    let dir = TempDir::new();
    let Some(path) = create(&dir, "disk.qcow2", "", "64M") else {
        return;
    };
    let mut test = TestDisk::open(&options(&path));
    for round in 0..20 {
        for at in 0..8 {
            test.write(at << 20, &vec![round; MIB]).unwrap();
        }
        test.flush().unwrap();
        test.disk.discard(0, 8 << 20).unwrap();
        test.flush().unwrap();
    }
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.len() < 24 << 20, "{} bytes", metadata.len());
    let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
    assert!(blocks * 512 < 2 << 20, "{blocks} blocks");
    drop(test);
    check(&path, false);
}

/// A guest that never flushes cannot make the file grow for ever either.
#[test]
fn clusters_are_reused_without_flushes() {
    let dir = TempDir::new();
    let Some(path) = create(&dir, "disk.qcow2", "cluster_size=2M", "64M") else {
        return;
    };
    let mut test = TestDisk::open(&options(&path));
    for _ in 0..400 {
        test.write(0, &[1; 4096]).unwrap();
        test.disk.discard(0, 2 << 20).unwrap();
    }
    let len = fs::metadata(&path).unwrap().len();
    assert!(len < 600 << 20, "{len} bytes");
    drop(test);
    check(&path, false);
}

#[test]
fn what_names_other_files_or_is_unknown_is_refused() {
    let dir = TempDir::new();
    let Some(path) = create(&dir, "disk.qcow2", "", "1M") else {
        return;
    };
    let error = |path: &Path| match Disk::open(&options(path)) {
        Err(super::super::Error::Qcow2 { source, .. }) => source,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no error"),
    };
    let backed = dir.path("backed.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu_img(&[&create[..], &[text(&path), text(&backed)]].concat());
    assert!(matches!(error(&backed), Qcow2Error::BackingFile));
    let external = dir.path("external.qcow2");
    let data = format!("data_file={}", text(&dir.path("data")));
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &data,
        text(&external),
        "1M",
    ]);
    assert!(matches!(
        error(&external),
        Qcow2Error::Features { features: 4 }
    ));
    let extended = dir.path("extended.qcow2");
    let with = "extended_l2=on,cluster_size=128k";
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        with,
        text(&extended),
        "1M",
    ]);
    assert!(matches!(
        error(&extended),
        Qcow2Error::Features { features: 16 }
    ));

    let good = fs::read(&path).unwrap();
    let changed = dir.path("changed.qcow2");
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&changed, image).unwrap();
        error(&changed)
    };
    assert!(matches!(with(0, b"QFJ"), Qcow2Error::NotQcow2));
    assert!(matches!(with(7, &[1]), Qcow2Error::Version { version: 1 }));
    assert!(matches!(with(35, &[2]), Qcow2Error::Encrypted));
    assert!(matches!(with(79, &[1]), Qcow2Error::NeedsRepair));
    assert!(matches!(with(79, &[2]), Qcow2Error::NeedsRepair));
    assert!(matches!(with(72, &[1]), Qcow2Error::Features { .. }));
    for (at, bytes) in [
        (20, [0, 0, 0, 8]),
        (20, [0, 0, 0, 22]),
        (20, [255; 4]),
        (24, [255; 4]),
        (28, [0, 0, 0, 1]),
        (40, [255; 4]),
        (44, [0; 4]),
        (48, [1; 4]),
        (56, [255; 4]),
        (56, [0; 4]),
        (96, [0, 0, 0, 7]),
        (100, [255; 4]),
    ] {
        let error = with(at, &bytes);
        assert!(matches!(error, Qcow2Error::Damaged { .. }), "{at}: {error}");
    }
    fs::write(&changed, &good[..60]).unwrap();
    assert!(matches!(error(&changed), Qcow2Error::NotQcow2));
}

/// Whatever is in an image: requests may fail, and that is all.
#[test]
fn damaged_images_do_no_harm() {
    let dir = TempDir::new();
    let mut random = Random(77);
    for layout in [
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "compat=0.10",
    ] {
        let Some(path) = create(&dir, "disk.qcow2", layout, "2M") else {
            return;
        };
        let mut test = TestDisk::open(&options(&path));
        compare_with_model(&mut test, vec![0; 2 * MIB], 40, 5);
        drop(test);
        let good = fs::read(&path).unwrap();
        let damaged = dir.path("damaged.qcow2");
        let mut opened = 0;
        for _ in 0..200 {
            let mut image = good.clone();
            for _ in 0..=random.below(40) {
                // Tables are mostly at the start; a header that is damaged is soon refused.
                let limit = if random.below(12) == 0 {
                    112
                } else {
                    image.len() as u64
                };
                let at = random.below(limit) as usize & !7;
                let value = match random.below(4) {
                    0 => random.below(1 << 20),
                    1 => random.below(256) * 512,
                    2 => (random.below(256) * 512) | (1 << 63),
                    _ => random.below(u64::MAX) << 33 | random.below(1 << 31),
                };
                let end = (at + 8).min(image.len());
                image[at..end].copy_from_slice(&value.to_be_bytes()[..end - at]);
            }
            image.truncate(good.len() - random.below(3) as usize * 700);
            fs::write(&damaged, &image).unwrap();
            let Ok(disk) = Disk::open(&options(&damaged)) else {
                continue;
            };
            opened += 1;
            let size = disk.info().size();
            let mut test = TestDisk::new(disk);
            for _ in 0..30 {
                let at = random.below(size.min(2 << 20) / 512) * 512;
                let len = (512 * (1 + random.below(200))).min(size - at);
                match random.below(6) {
                    0 => _ = test.disk.discard(at, len),
                    1 => _ = test.disk.write_zeroes(at, len, random.below(2) == 0),
                    2 => _ = test.flush(),
                    3 => _ = test.write(at, &vec![1; len as usize]),
                    _ => _ = test.read(at, len as usize),
                }
            }
            drop(test);
            // No offset of the image makes the file grow without bound.
            assert!(fs::metadata(&damaged).unwrap().len() < 1 << 33);
        }
        assert!(opened > 20, "{opened}");
    }
}

#[test]
fn entries_of_compressed_clusters() {
    let place = Place::from_entry(COMPRESSED | 3 << 54 | 0x1234, 16);
    assert_eq!(place.offset, 0x1234);
    assert_eq!(place.len, 4 * 512 - 0x34);
    let place = Place::from_entry(u64::MAX, 21);
    assert_eq!(place.offset, (1 << 49) - 1);
    assert_eq!(place.len, (1 << 22) - 511);
}
