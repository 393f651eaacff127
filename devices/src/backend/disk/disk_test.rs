use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use vm_memory::{Bytes, GuestAddress};

use super::test_support::*;
use super::*;

const MIB: usize = 1 << 20;

fn options(path: &std::path::Path) -> Options {
    Options {
        path: path.to_owned(),
        ..Options::default()
    }
}

#[test]
fn a_raw_image_is_what_was_written() {
    let dir = TempDir::new();
    for (index, (engine, cache)) in modes().enumerate() {
        let path = dir.file("raw", 4 * MIB);
        let mut test = TestDisk::open(&Options {
            engine,
            cache,
            ..options(&path)
        });
        assert_eq!(test.disk.event().is_some(), engine == EngineKind::IoUring);
        let model = compare_with_model(&mut test, pattern(4 * MIB), 400, index as u64);
        drop(test);
        assert!(fs::read(&path).unwrap() == model);
    }
}

#[test]
fn many_requests_are_in_flight_at_once() {
    let dir = TempDir::new();
    for (engine, cache) in modes() {
        let path = dir.sparse("raw", 8 << 20);
        let mut test = TestDisk::open(&Options {
            engine,
            cache,
            ..options(&path)
        });
        // More than the ring holds, in one batch.
        let count = 1000u32;
        for at in 0..u64::from(count) {
            test.memory
                .write_slice(&[(at % 251) as u8; 4096], GuestAddress(at * 4096))
                .unwrap();
        }
        for id in 0..count {
            let at = u64::from(id) * 4096;
            let buffer = Buffer::at(&test.memory, at, 4096, 4096);
            test.disk.write(id, at, buffer.clone());
        }
        test.disk.submit();
        let mut completions = Vec::new();
        test.disk.drain();
        test.disk.completions(&mut completions);
        let mut ids: Vec<u32> = completions.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..count));
        assert!(completions.into_iter().all(|(_, result)| result.is_ok()));
        let model: Vec<u8> = (0..u64::from(count))
            .flat_map(|at| [(at % 251) as u8; 4096])
            .collect();
        assert_same(&mut test, &model);
    }
}

#[test]
fn the_event_tells_of_completions() {
    let dir = TempDir::new();
    let path = dir.sparse("raw", 1 << 20);
    let mut test = TestDisk::open(&options(&path));
    let event = test.disk.event().unwrap();
    let buffer = test.buffer(4096);
    test.disk.write(7, 0, buffer.clone());
    test.disk.flush(8, &buffer);
    test.disk.submit();
    let mut completions = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        test.disk.completions(&mut completions);
        if completions.len() == 2 {
            break;
        }
        assert!(std::time::Instant::now() < deadline);
        wait_readable(event);
        test.disk.clear_event();
    }
    completions.sort_by_key(|(id, _)| *id);
    assert!(matches!(completions[..], [(7, Ok(())), (8, Ok(()))]));
}

#[expect(unsafe_code, reason = "poll")]
fn wait_readable(fd: RawFd) {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives during the call.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
}

#[test]
fn dropping_a_disk_waits_for_what_is_in_flight() {
    let dir = TempDir::new();
    let path = dir.sparse("raw", 8 << 20);
    let mut test = TestDisk::open(&options(&path));
    test.memory
        .write_slice(&[7; 4 << 20], GuestAddress(0))
        .unwrap();
    for id in 0..64 {
        let buffer = Buffer::at(&test.memory, u64::from(id) << 16, 1 << 16, 1 << 16);
        test.disk.write(id, u64::from(id) << 16, buffer.clone());
    }
    test.disk.submit();
    drop(test);
    assert!(fs::read(&path).unwrap()[..4 << 20] == [7; 4 << 20]);
}

#[test]
fn nothing_is_outside_a_disk() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    for (engine, _) in modes() {
        let mut test = TestDisk::open(&Options {
            engine,
            ..options(&path)
        });
        for offset in [MIB as u64, MIB as u64 - 512, u64::MAX - 511, 1 << 63] {
            assert!(test.read(offset, 1024).is_err());
            assert!(test.write(offset, &[0; 1024]).is_err());
            assert!(test.disk.discard(offset, 1024).is_err());
            assert!(test.disk.write_zeroes(offset, 1024, false).is_err());
        }
        assert!(test.disk.discard(0, u64::MAX).is_err());
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB as u64);
}

#[test]
fn a_read_only_disk_is_not_written_to() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    let mut test = TestDisk::open(&Options {
        read_only: true,
        ..options(&path)
    });
    assert!(test.write(0, &[0; 512]).is_err());
    assert!(test.disk.discard(0, 4096).is_err());
    assert!(test.disk.write_zeroes(0, 4096, true).is_err());
    assert!(test.flush().is_ok());
    assert_same(&mut test, &pattern(MIB));
}

#[test]
fn a_file_that_was_cut_gives_errors() {
    let dir = TempDir::new();
    for (engine, _) in modes() {
        let path = dir.file("raw", MIB);
        let mut test = TestDisk::open(&Options {
            engine,
            ..options(&path)
        });
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MIB as u64 / 2 + 100).unwrap();
        assert!(test.read(MIB as u64 / 2, 512).is_err());
        assert!(test.read(MIB as u64 - 4096, 4096).is_err());
        assert!(test.read(0, 4096).is_ok());
    }
}

#[test]
fn the_host_being_full_is_an_error() {
    let dir = TempDir::new();
    let mount = dir.path("small");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none", text(&mount)])
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: cannot mount a tmpfs here");
        return;
    }
    for (engine, cache) in modes() {
        let path = mount.join("raw");
        fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut test = TestDisk::open(&Options {
            engine,
            cache,
            ..options(&path)
        });
        assert!(test.write(0, &[1; MIB / 2]).is_ok());
        assert!(test.write(MIB as u64, &[1; MIB]).is_err());
        assert!(test.write(2 << 20, &[1; MIB]).is_err());
        // Room again.
        test.disk.discard(0, 4 << 20).unwrap();
        assert!(test.write(3 << 20, &[1; 4096]).is_ok());
        drop(test);

        let base = dir.file("base", 4 * MIB);
        let mut test = TestDisk::open(&Options {
            engine,
            cache,
            overlay: Overlay::File(mount.join("raw.overlay")),
            ..options(&base)
        });
        assert!(test.write(0, &[1; 4 * MIB]).is_err());
        assert!(test.read(MIB as u64 * 2, 4096).is_ok());
        drop(test);
        fs::remove_file(&path).unwrap();
        fs::remove_file(mount.join("raw.overlay")).unwrap();
    }
    let _ = Command::new("umount").arg(&mount).status();
}

#[test]
fn discarding_gives_room_back() {
    let dir = TempDir::new();
    let path = dir.file("raw", 4 * MIB);
    let mut test = TestDisk::open(&options(&path));
    let before = fs::metadata(&path).unwrap().blocks();
    test.disk.discard(MIB as u64, 2 << 20).unwrap();
    let after = fs::metadata(&path).unwrap().blocks();
    assert!(after + 4000 < before, "{before} to {after} blocks");
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
}

#[test]
fn one_writer_or_many_readers() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    let writer = options(&path);
    let reader = Options {
        read_only: true,
        ..writer.clone()
    };
    let is_locked = |options: &Options| {
        let error = Disk::open(options).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        text.contains(super::test_support::text(&path)) && text.contains("in use")
    };
    let first = Disk::open(&writer).unwrap();
    assert!(is_locked(&writer));
    assert!(is_locked(&reader));
    drop(first);
    let readers = [&reader, &reader, &reader].map(|reader| Disk::open(reader).unwrap());
    assert!(is_locked(&writer));
    drop(readers);
    Disk::open(&writer).unwrap();
}

/// As that of a monitor that was killed, whose ring keeps the file for a moment.
#[test]
fn a_lock_that_is_about_to_go_is_waited_for() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    let first = Disk::open(&options(&path)).unwrap();
    let leaving = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(first);
    });
    Disk::open(&options(&path)).unwrap();
    leaving.join().unwrap();
}

#[test]
fn the_tools_of_qemu_keep_off() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    let info = |path| {
        Command::new("qemu-img")
            .args(["map", "-f", "raw", text(path)])
            .output()
    };
    let Ok(output) = info(&path) else {
        eprintln!("SKIPPED: no qemu-img here (package qemu-utils)");
        return;
    };
    assert!(output.status.success());
    let writer = Disk::open(&options(&path)).unwrap();
    assert!(!info(&path).unwrap().status.success());
    drop(writer);
    let reader = Disk::open(&Options {
        read_only: true,
        ..options(&path)
    });
    assert!(info(&path).unwrap().status.success());
    let resize = ["resize", "-f", "raw", text(&path), "2M"];
    let resized = Command::new("qemu-img").args(resize).output().unwrap();
    assert!(!resized.status.success());
    drop(reader);
}

#[test]
fn what_is_no_disk_is_refused() {
    let dir = TempDir::new();
    let error = |path: &std::path::Path| Disk::open(&options(path)).err().unwrap();
    assert!(matches!(error(&dir.path("missing")), Error::Open { .. }));
    assert!(matches!(error(&dir.path("")), Error::Kind { .. }));
    assert!(matches!(error("/dev/null".as_ref()), Error::Kind { .. }));
    let odd = dir.file("odd", 1000);
    assert!(matches!(error(&odd), Error::Size { len: 1000, .. }));
    assert!(error(&odd).to_string().contains("multiple of 512"));
    assert!(matches!(error(&dir.file("empty", 0)), Error::Empty { .. }));
    let pipe = dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    assert!(matches!(error(&pipe), Error::Kind { .. }));
    let not_qcow2 = dir.file("raw.qcow2", MIB);
    assert!(matches!(error(&not_qcow2), Error::Qcow2 { .. }));
    let both = Options {
        read_only: true,
        overlay: Overlay::Temporary,
        ..options(&dir.file("raw", MIB))
    };
    assert!(matches!(
        Disk::open(&both).err().unwrap(),
        Error::ReadOnlyOverlay { .. }
    ));
}

#[test]
fn a_guest_cannot_choose_the_format() {
    let dir = TempDir::new();
    let path = dir.sparse("disk.img", 1 << 20);
    let mut test = TestDisk::open(&options(&path));
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    test.write(0, &sector).unwrap();
    drop(test);
    let mut test = TestDisk::open(&options(&path));
    assert_eq!(test.read(0, 512).unwrap(), sector);
}

#[test]
fn a_raw_disk_takes_on_the_size_of_its_file() {
    let dir = TempDir::new();
    let path = dir.file("raw", MIB);
    let mut test = TestDisk::open(&options(&path));
    let info = Arc::clone(test.disk.info());
    assert!(info.is_file(&path));
    assert!(!info.is_file(&dir.file("other", 512)));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    assert!(test.read(MIB as u64, 512).is_err());
    assert_eq!(info.resize().unwrap(), 2 << 20);
    assert_eq!(test.read(MIB as u64, 512).unwrap(), [0; 512]);
    for bad in [0, 1000] {
        file.set_len(bad).unwrap();
        assert!(info.resize().is_err());
        assert_eq!(info.size(), 2 << 20);
    }
}

fn any_size(path: &std::path::Path) -> Options {
    Options {
        any_size: true,
        ..options(path)
    }
}

#[test]
fn a_disk_of_any_size_is_its_whole_sectors() {
    let dir = TempDir::new();
    for (len, size) in [(0, 0), (1, 0), (511, 0), (512, 512), (1300, 1024)] {
        let path = dir.file("odd", len);
        let disk = Disk::open(&any_size(&path)).unwrap();
        assert_eq!(disk.info().size(), size, "{len}");
        fs::write(&path, vec![1; len + 100]).unwrap();
        let grown = disk.info().resize().unwrap();
        assert_eq!(grown, (len as u64 + 100) / 512 * 512, "{len}");
    }
    // With an overlay the size of the image is that of the overlay, for good.
    let overlay = Options {
        overlay: Overlay::Temporary,
        ..any_size(&dir.file("empty", 0))
    };
    let error = Disk::open(&overlay).err().unwrap();
    assert!(matches!(error, Error::Empty { .. }));
    // What is no raw image is not taken for one.
    let qcow2 = Disk::open(&any_size(&dir.file("empty.qcow2", 0)));
    assert!(matches!(qcow2.err().unwrap(), Error::Qcow2 { .. }));
}

#[test]
fn many_hold_a_place_and_one_gets_it() {
    let dir = TempDir::new();
    let path = dir.file("placeholder", 0);
    let first = Disk::open(&any_size(&path)).unwrap();
    let second = Disk::open(&any_size(&path)).unwrap();
    fs::write(&path, [7; 4096]).unwrap();
    let resized = first.info().resize();
    assert!(
        matches!(resized, Err(ResizeError::Locked)),
        "another one could get it as well"
    );
    assert_eq!(first.info().size(), 0);
    drop(second);
    assert_eq!(first.info().resize().unwrap(), 4096);
    // From now on it is as good as any disk.
    let late = Disk::open(&any_size(&path)).err().unwrap();
    assert!(matches!(late, Error::Locked { writable: true, .. }));
    // Empty again, it stays locked: it was somebody's.
    fs::write(&path, []).unwrap();
    assert_eq!(first.info().resize().unwrap(), 0);
    assert!(Disk::open(&any_size(&path)).is_err());
}
