//! Persistent memory: files that Debian's kernel, which has a driver for that, has as memory.

use std::fs;
use std::path::Path;

use tests::disk::{self, FileSystem, dax_image, generations, hash, sparse};
use tests::driven::Driven;
use tests::guest::{self, packaged_kernel};
use tests::monitor::{Running, path as mote_path};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("flushed_data_survives_a_kill", flushed_data_survives),
    ("other_devices_reach_it", other_devices_reach_it),
    ("read_only_memory_stays_as_it_is", read_only),
    ("roots", roots),
    ("rates", rates),
    ("a_file_that_is_cut_ends_nothing", cut),
];

const MIB: u64 = 1 << 20;

fn start(directory: &Path, options: &[&str]) -> Driven {
    let mut all = vec!["--memory", "256m"];
    all.extend(options);
    Driven::start_packaged(directory, &all)
}

/// A file system on one, and bytes on another; the monitor is killed after they were flushed.
fn flushed_data_survives() {
    const SIZE: u64 = 4 * MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = dax_image(directory, 64 * MIB);
    // Not whole pages of 2 MiB.
    let raw = sparse(directory, "raw", SIZE + 4096);
    let (image, raw_path) = (image.to_str().unwrap(), raw.to_str().unwrap());
    for pci in [false, true] {
        let mut options = vec!["--pmem", image, "--pmem", raw_path];
        options.extend(pci.then_some("--pci"));
        let mut guest = start(directory, &options);
        guest.guest("must mount -t ext4 -o dax /dev/pmem0 /mnt");
        guest.guest("must grep -q dax /proc/mounts");
        if pci {
            guest.guest("must guest-probe block check /mnt/file --seed 7 --generation 3");
            guest.end();
            continue;
        }
        guest.guest("must touch /mnt/new; must guest-probe block fill /mnt/new --size 3m --seed 7 --generation 3");
        guest.guest("must mv /mnt/new /mnt/file; must sync");
        guest.guest(&format!(
            "must guest-probe block fill /dev/pmem1 --size {SIZE} --seed 5 --generation 2"
        ));
        let counters = guest.numbers("counters pmem pmem0");
        assert!(counters["flushes"] > 0, "{counters:?}");
        assert_eq!((counters["errors"], counters["bad"]), (0, 0));
        guest.kill();
        assert_eq!(generations(&raw, 5, SIZE), (2, 2));
        assert_eq!(fs::metadata(&raw).unwrap().len(), SIZE + 4096);
    }
}

/// A disk moves its data from and to the memory of a file.
fn other_devices_reach_it() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = dax_image(directory, 64 * MIB);
    let disk = sparse(directory, "disk", 8 * MIB);
    let options = [
        "--pmem",
        image.to_str().unwrap(),
        "--disk",
        disk.to_str().unwrap(),
    ];
    let mut guest = start(directory, &options);
    guest.guest("must mount -t ext4 -o dax /dev/pmem0 /mnt");
    guest.guest("must guest-probe mapped /mnt/file /dev/vda --size 4m --seed 3");
    guest.guest("must guest-probe block check /mnt/file --seed 3");
    guest.end();
    assert_eq!(generations(&disk, 3, 4 * MIB), (1, 1));
}

fn read_only() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = disk::filled(directory, "image", 4 * MIB, 9);
    let before = hash(&image);
    let option = format!("{},ro", image.display());
    let initrd = guest::probing_packaged(
        directory,
        "must guest-probe block check /dev/pmem0 --seed 9
        dd if=/dev/zero of=/dev/pmem0 bs=4k count=4 oflag=direct
        # What the kernel has of it in its own cache is not what counts.
        must guest-probe block check /dev/pmem0 --seed 9 --direct",
    );
    let mut command = std::process::Command::new(mote_path());
    command
        .args(["run", "--memory", "256m", "--pmem", &option])
        .args(["--kernel", &guest::packaged_vmlinuz(), "--initrd"])
        .arg(initrd)
        .stdin(std::process::Stdio::null());
    let ended = Running::start(command).wait();
    guest::expect_success(&ended);
    assert_eq!(ended.stderr.matches("read-only").count(), 1, "{ended:#?}");
    assert!(hash(&image) == before, "the file has changed");
}

const INIT: &str = r#"
    export PATH=/bin
    mount -t proc proc /proc
    grep ' / ' /proc/mounts
    sha256sum /noise
    sync; mount -o remount,ro /
    echo THE END
    stty onlcr
    mount -t sysfs sys /sys
    poweroff -f"#;

/// By mote's own initial RAM disk, which loads the drivers.
fn roots() {
    let directory = TempDir::new().unwrap();
    let contents = disk::root(directory.as_path(), INIT);
    let cache = directory.as_path().join("cache/mote/kernel");
    fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(packaged_kernel(), cache.join("packaged")).unwrap();
    let image = FileSystem::Ext4(64 * MIB).image(directory.as_path(), "image", &contents);
    let first = sparse(directory.as_path(), "first", 2 * MIB);
    for access in ["rw", "ro"] {
        let option = format!("{},root,{access}", image.display());
        let mut command = std::process::Command::new(mote_path());
        command
            .args(["run", "--memory", "256m"])
            .args(["--pmem", first.to_str().unwrap(), "--pmem", &option])
            .env("XDG_CACHE_HOME", directory.as_path().join("cache"))
            .stdin(std::process::Stdio::null());
        let ended = Running::start(command).wait().expect_status(0);
        let output = guest::output(&ended);
        let mounted = format!("/dev/pmem1 / ext4 {access}");
        assert!(output.contains(&mounted), "{ended:#?}");
        assert!(output.contains("THE END\n"), "{ended:#?}");
        let noise: String = hash(&contents.join("noise"))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(output.contains(&noise), "{ended:#?}");
    }
}

/// Flushes wait for a limit, and go on when it is lifted.
fn rates() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", 2 * MIB);
    let option = format!("{},id=data,iops=20", image.display());
    let mut guest = start(directory, &["--pmem", &option]);
    let write = "for n in 1 2 3 4 5 6 7 8; do
        must dd if=/dev/urandom of=/dev/pmem0 bs=4k count=1 conv=fsync 2>/dev/null; done"
        .replace('\n', " ");
    guest.guest(&write);
    let counters = guest.numbers("counters pmem data");
    assert!(counters["flushes"] >= 8, "{counters:?}");
    // More than the file's length at once would never come.
    guest.ask("rate pmem data rate=4k");
    guest.tell(&write);
    tests::driven::until("a wait", || {
        (guest.numbers("counters pmem data")["throttled"] > counters["throttled"]).then_some(())
    });
    guest.ask("rate pmem data");
    guest.done();
    assert!(guest.numbers("counters pmem data")["flushes"] >= 16);
    guest.end();
}

/// Someone cuts the file of a guest that uses it. The guest finds zeroes and errors, and can be ended.
fn cut() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = disk::filled(directory, "image", 8 * MIB, 4);
    let disk = sparse(directory, "disk", 8 * MIB);
    let options = [
        "--pmem",
        image.to_str().unwrap(),
        "--disk",
        disk.to_str().unwrap(),
    ];
    let mut guest = start(directory, &options);
    guest.guest("must guest-probe block check /dev/pmem0 --seed 4 --direct");
    // Without a flush: those fail as soon as it is noticed.
    let kept = "dd if=/dev/pmem0 bs=1M count=4 iflag=direct 2>/dev/null | sha256sum";
    let before = guest.guest(kept);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(4 * MIB).unwrap();
    assert_eq!(guest.guest(kept), before);
    let lost = "dd if=/dev/pmem0 bs=1M skip=4 count=4 iflag=direct 2>/dev/null";
    assert_eq!(guest.guest(&format!("{lost} | wc -c")).trim(), "4194304");
    assert_eq!(
        guest
            .guest(&format!("{lost} | tr -d '\\000' | wc -c"))
            .trim(),
        "0"
    );
    guest.guest("must_not dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 conv=fsync");
    let counters = guest.numbers("counters pmem pmem0");
    assert!(counters["errors"] > 0, "{counters:?}");
    guest.guest("must guest-probe block fill /dev/vda --size 1m --seed 1 --direct");
    guest.end();
}
