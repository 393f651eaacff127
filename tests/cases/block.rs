//! Disks: roots, checked data under load and after cuts, shared bases, discard, limits, errors.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::disk::{self, FileSystem, allocated, filled, generations, hash, qcow2, sparse};
use tests::guest::{self, packaged_kernel, run_probing};
use tests::live::Live;
use tests::monitor::{Running, mote, path as mote_path};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("roots", roots),
    ("roots_with_modules", roots_with_modules),
    ("file_systems_of_every_compression", every_compression),
    ("data_is_right_with_every_engine", every_engine),
    ("flushed_data_survives_a_kill", flushed_data_survives),
    ("two_guests_share_a_base", two_guests_share_a_base),
    ("what_a_disk_says_and_gives_back", what_a_disk_says),
    ("rates", rates),
];

/// Cases that mount something on the host.
pub(crate) const HOST_CASES: &[Case] = &[("a_full_host_is_an_error_in_the_guest", full_host)];

const MIB: u64 = 1 << 20;

/// The init of a root file system: says what it finds, and whether it is whole.
const INIT: &str = r#"
    export PATH=/bin
    mount -t proc proc /proc
    grep ' / ' /proc/mounts
    sha256sum /noise
    cat /kept 2>/dev/null
    if ! grep -q ' / .* ro[ ,]' /proc/mounts; then echo kept >/kept; sync; mount -o remount,ro /; fi
    echo THE END
    stty onlcr
    mount -t sysfs sys /sys
    poweroff -f"#;

/// `disk=PATH` and its settings.
fn with(image: &Path, settings: &str) -> String {
    format!("{}{settings}", image.display())
}

/// Boots from this disk; fails unless the root is of this kind and whole. Returns what was printed.
#[track_caller]
fn boots_from(options: &[&str], system: FileSystem, contents: &Path, access: &str) -> String {
    let ended = mote(["run"].iter().chain(options)).expect_status(0);
    let output = guest::output(&ended);
    let mounted = output.lines().find(|line| line.contains(" / "));
    let fields: Vec<&str> = mounted.unwrap_or_default().split(' ').collect();
    assert_eq!(fields.get(2), Some(&system.name()), "{ended:#?}");
    assert!(fields[3].starts_with(access), "{ended:#?}");
    assert!(output.contains("THE END\n"), "{ended:#?}");
    let hash: String = hash(&contents.join("noise"))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(output.contains(&hash), "{ended:#?}");
    output
}

fn roots() {
    let directory = TempDir::new().unwrap();
    let contents = disk::root(directory.as_path(), INIT);
    for system in [
        FileSystem::Squashfs("zstd"),
        FileSystem::Erofs("lz4hc"),
        FileSystem::Ext4(64 * MIB),
    ] {
        let image = system.image(directory.as_path(), system.name(), &contents);
        let read_only = with(&image, ",ro");
        if let FileSystem::Ext4(_) = system {
            let writable = image.to_str().unwrap();
            let output = boots_from(&["--rootfs", writable], system, &contents, "rw");
            assert!(!output.contains("kept"), "{output}");
            // What the first guest wrote.
            let output = boots_from(&["--rootfs", &read_only], system, &contents, "ro");
            assert!(output.contains("kept\n"), "{output}");
        } else {
            boots_from(&["--rootfs", &read_only], system, &contents, "ro");
        }
    }
}

/// Debian's kernel has the drivers of disks and of these file systems as modules.
fn roots_with_modules() {
    let directory = TempDir::new().unwrap();
    let contents = disk::root(directory.as_path(), INIT);
    let cache = directory.as_path().join("cache/mote/kernel");
    fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(packaged_kernel(), cache.join("packaged")).unwrap();
    for system in [FileSystem::Erofs("lz4"), FileSystem::Ext4(64 * MIB)] {
        let image = system.image(directory.as_path(), system.name(), &contents);
        let mut command = std::process::Command::new(mote_path());
        command
            .args(["run", "--memory", "256m", "--rootfs", &with(&image, ",ro")])
            .env("XDG_CACHE_HOME", directory.as_path().join("cache"))
            .stdin(std::process::Stdio::null());
        let ended = Running::start(command).wait().expect_status(0);
        let output = guest::output(&ended);
        let mounted = format!(" / {} ro", system.name());
        assert!(output.contains(&mounted), "{ended:#?}");
        assert!(output.contains("THE END\n"), "{ended:#?}");
    }
}

fn every_compression() {
    let directory = TempDir::new().unwrap();
    let contents = disk::root(directory.as_path(), INIT);
    let mut systems = vec![];
    for compression in ["gzip", "lz4", "xz", "zstd"] {
        systems.push(FileSystem::Squashfs(compression));
    }
    for compression in ["", "lz4", "lz4hc"] {
        systems.push(FileSystem::Erofs(compression));
    }
    let mut options = vec![];
    let mut script = String::new();
    for (letter, system) in ('a'..).zip(&systems) {
        let image = system.image(directory.as_path(), &letter.to_string(), &contents);
        options.extend(["--disk".to_owned(), with(&image, ",ro")]);
        script.push_str(&format!(
            "must mount -t {} -o ro /dev/vd{letter} /mnt; must sha256sum /mnt/noise; must umount /mnt\n",
            system.name()
        ));
    }
    let output = run_probing(&options, &script);
    let right: String = hash(&contents.join("noise"))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(output.matches(&right).count(), systems.len(), "{output}");
}

/// Parallel random and sequential writes and reads, with and without the guest's cache, on each kind
/// of disk; checked in the guest, and afterwards in the files.
fn every_engine() {
    const SIZE: u64 = 8 * MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let base = filled(directory, "base", 2 * SIZE, 100);
    let base_hash = hash(&base);
    let raw = |name| sparse(directory, name, SIZE);
    let overlay = format!(",overlay={}", directory.join("overlay").display());
    let disks = [
        (raw("a"), ",engine=io_uring,cache=writeback", "--direct"),
        (raw("b"), ",engine=sync,cache=writeback", "--direct"),
        (raw("c"), ",engine=io_uring,cache=unsafe", "--sequential"),
        (
            raw("d"),
            ",engine=sync,cache=unsafe",
            "--sequential --direct",
        ),
        (
            raw("e"),
            ",engine=io_uring,iothread=on",
            "--direct --block 512",
        ),
        (qcow2(directory, "f", SIZE), ",format=qcow2", "--direct"),
        (base.clone(), overlay.as_str(), "--direct"),
        (base.clone(), ",overlay=temp", "--block 8192"),
    ];
    let mut options = vec!["--cpus".to_owned(), "2".to_owned()];
    options.extend(["--memory".to_owned(), "256m".to_owned()]);
    let mut script = String::new();
    for ((image, settings, plan), (letter, seed)) in disks.iter().zip(('a'..).zip(1..)) {
        options.extend(["--disk".to_owned(), with(image, settings)]);
        script.push_str(&format!(
            "(guest-probe block verify /dev/vd{letter} --size {SIZE} --seed {seed} --threads 2 \
             --operations 400 --fsync-every 40 {plan} && echo vd{letter} is right) &\n"
        ));
    }
    script.push_str("wait\n");
    // Overlays: what was not written is the base's.
    for letter in ['g', 'h'] {
        script.push_str(&format!(
            "must guest-probe block check /dev/vd{letter} --from {SIZE} --size {SIZE} --seed 100\n"
        ));
    }
    let output = run_probing(&options, &script);
    for letter in 'a'..='h' {
        let line = format!("vd{letter} is right\n");
        assert!(output.contains(&line), "no {line} in {output}");
    }
    for ((image, ..), seed) in disks.iter().take(5).zip(1..) {
        let (_, newest) = generations(image, seed, SIZE);
        assert!(newest > 10, "{image:?}: {newest}");
    }
    assert!(hash(&base) == base_hash, "the base has changed");
    // What was written to an overlay that is a file is there for the next guest.
    let next = [
        "--disk".to_owned(),
        with(&base, &overlay),
        "--disk".to_owned(),
        with(&disks[5].0, ",format=qcow2,ro"),
    ];
    let output = run_probing(
        &next,
        &format!(
            "must guest-probe block check /dev/vda --from {SIZE} --size {SIZE} --seed 100
             must guest-probe block generations /dev/vdb --seed 6"
        ),
    );
    let line = output.lines().find(|line| line.starts_with("GENERATIONS"));
    let newest = line.unwrap().rsplit_once(' ').unwrap().1;
    assert!(newest.parse::<u64>().unwrap() > 10, "{output}");
}

/// The last generation that one of the writers said was on its disk.
#[track_caller]
fn last_durable(output: &str, writer: &str) -> u64 {
    let prefix = format!("{writer} DURABLE ");
    let numbers = output.lines().filter_map(|line| line.strip_prefix(&prefix));
    // The last line may be cut off.
    let complete = numbers.filter_map(|number| number.parse::<u64>().ok());
    complete.max().unwrap_or_else(|| panic!("none in {output}"))
}

/// The monitor is killed while guests write. Whatever was flushed is there.
fn flushed_data_survives() {
    const SIZE: u64 = MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let base = filled(directory, "base", 2 * SIZE, 4);
    let overlay = format!(",overlay={}", directory.join("overlay").display());
    let disks = [
        (sparse(directory, "a", SIZE), ",engine=io_uring"),
        (sparse(directory, "b", SIZE), ",engine=sync"),
        (qcow2(directory, "c", SIZE), ",format=qcow2"),
        (base.clone(), overlay.as_str()),
    ];
    let mut options = vec!["--memory".to_owned(), "256m".to_owned()];
    let mut script = String::new();
    for ((image, settings), (letter, seed)) in disks.iter().zip(('a'..).zip(1..)) {
        options.extend(["--disk".to_owned(), with(image, settings)]);
        script.push_str(&format!(
            "guest-probe block durable /dev/vd{letter} --size {SIZE} --seed {seed} --direct |
                while read line; do echo \"{letter} $line\"; done &\n"
        ));
    }
    let mut live = Live::probing(directory, &options, &script);
    for _ in 0..20 {
        live.expect("DURABLE");
    }
    let output = live.kill();
    for ((image, _), (letter, seed)) in disks.iter().take(2).zip([("a", 1), ("b", 2)]) {
        let (oldest, _) = generations(image, seed, SIZE);
        let durable = last_durable(&output, letter);
        assert!(oldest >= durable, "{letter}: {oldest} < {durable}");
    }
    // The others are read by the next guest; no lock is left.
    let output_after = run_probing(
        &[
            "--disk".to_owned(),
            with(&disks[2].0, ",format=qcow2"),
            "--disk".to_owned(),
            with(&base, &overlay),
        ],
        &format!(
            "must guest-probe block generations /dev/vda --size {SIZE} --seed 3
             must guest-probe block generations /dev/vdb --size {SIZE} --seed 4
             must guest-probe block check /dev/vdb --from {SIZE} --size {SIZE} --seed 4"
        ),
    );
    let oldest: Vec<u64> = output_after
        .lines()
        .filter_map(|line| line.strip_prefix("GENERATIONS "))
        .map(|numbers| numbers.split_once(' ').unwrap().0.parse().unwrap())
        .collect();
    for (letter, oldest) in ["c", "d"].iter().zip(oldest) {
        let durable = last_durable(&output, letter);
        assert!(oldest >= durable, "{letter}: {oldest} < {durable}");
    }
}

fn two_guests_share_a_base() {
    const SIZE: u64 = 8 * MIB;
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let base = filled(directories[0].as_path(), "base", SIZE, 1);
    let before = hash(&base);
    let settings = with(&base, ",overlay=temp");
    let guests = directories.each_ref().map(|directory| {
        let script = "must guest-probe block check /dev/vda --seed 1
            echo READY; read generation
            must guest-probe block fill /dev/vda --seed 1 --size 4m --generation $generation
            echo WRITTEN; read go
            must guest-probe block check /dev/vda --seed 1 --size 4m --generation $generation
            must guest-probe block check /dev/vda --seed 1 --from 4m --generation 1";
        Live::probing(directory.as_path(), &["--disk", &settings], script)
    });
    let [mut first, mut second] = guests;
    for (guest, generation) in [(&mut first, "5"), (&mut second, "6")] {
        guest.expect("READY");
        guest.send(generation);
        guest.expect("WRITTEN");
    }
    // Nobody writes to what others read: the base is locked.
    let locked = mote(["run", "--disk", base.to_str().unwrap(), "--", "true"]);
    locked.expect_error(125, &["base"]);
    for mut guest in [first, second] {
        guest.send("go");
        guest.wait_for_success();
    }
    assert!(hash(&base) == before, "the base has changed");
    // Two writers of one file, too.
    let mut writer = Live::probing(
        directories[0].as_path(),
        &["--disk", base.to_str().unwrap()],
        "echo READY; read go",
    );
    writer.expect("READY");
    let locked = mote(["run", "--disk", base.to_str().unwrap(), "--", "true"]);
    locked.expect_error(125, &["base"]);
    writer.send("go");
    writer.wait_for_success();
}

/// Size, serial number, queues, write protection; discard and zeroes free blocks of the host.
fn what_a_disk_says() {
    const SIZE: u64 = 32 * MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = filled(directory, "image", SIZE, 1);
    let protected = filled(directory, "protected", MIB, 2);
    let before = allocated(&image);
    let options = [
        "--cpus",
        "2",
        "--disk",
        &with(&image, ",serial=number-1"),
        "--disk",
        &with(&protected, ",ro,id=second,serial=number-2"),
    ];
    let output = run_probing(
        &options,
        "cd /sys/block/vda
        echo $(cat size) $(cat serial) $(cat ro) $(ls mq | wc -l) $(cat queue/write_cache)
        [ $(cat queue/discard_max_bytes) -gt 0 ] && echo discards
        [ $(cat queue/write_zeroes_max_bytes) -gt 0 ] && echo zeroes
        echo $(cat /sys/block/vdb/size) $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/ro)
        must_not dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null
        must guest-probe block check /dev/vdb --seed 2
        must blkdiscard -o 0 -l 8388608 /dev/vda
        must guest-probe block zero /dev/vda --from 8m --size 8m
        must guest-probe block zero /dev/vda --from 16m --size 8m --unmap
        must guest-probe block check /dev/vda --from 24m --seed 1",
    );
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "65536 number-1 0 2 write back", "{output}");
    assert_eq!(lines[1..3], ["discards", "zeroes"], "{output}");
    assert_eq!(lines[3], "2048 number-2 1", "{output}");
    let freed = before - allocated(&image);
    assert!(freed >= 15 * MIB, "{freed} bytes were freed");
    assert!(fs::metadata(&image).unwrap().len() == SIZE);
    assert_eq!(generations(&protected, 2, MIB), (1, 1));
}

/// Faster than its rate no disk is: one that is, is not limited. Nothing is said about the opposite.
fn rates() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let bytes = sparse(directory, "bytes", 64 * MIB);
    let operations = sparse(directory, "operations", MIB);
    let mut live = Live::probing(
        directory,
        &[
            "--disk",
            &with(&bytes, ",rate=4194304"),
            "--disk",
            &with(&operations, ",iops=100"),
        ],
        "echo READY; read go
        must dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct 2>/dev/null
        echo BYTES; read go
        must dd if=/dev/vdb of=/dev/null bs=4k count=256 iflag=direct 2>/dev/null
        echo OPERATIONS",
    );
    live.expect("READY");
    // A bucket that is full at first, and 4 MiB a second: 16 MiB take 3 seconds.
    let start = Instant::now();
    live.send("go");
    live.expect("BYTES");
    assert!(start.elapsed() > Duration::from_millis(2500), "not limited");
    // 256 operations at 100 a second, the first 100 at once.
    let start = Instant::now();
    live.send("go");
    live.expect("OPERATIONS");
    assert!(start.elapsed() > Duration::from_millis(1200), "not limited");
    live.wait_for_success();
}

/// There is no room for what a guest writes: it gets errors, and goes on.
fn full_host() {
    let directory = TempDir::new().unwrap();
    let small = directory.as_path().join("small");
    fs::create_dir(&small).unwrap();
    mount(c"tmpfs", &small, c"tmpfs", MountFlags::empty(), c"size=4m").unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let mut options = vec![];
        for engine in ["io_uring", "sync"] {
            let image = sparse(&small, engine, 64 * MIB);
            options.extend([
                "--disk".to_owned(),
                with(&image, &format!(",engine={engine}")),
            ]);
        }
        run_probing(
            &options,
            "for disk in vda vdb; do
                must_not dd if=/dev/zero of=/dev/$disk bs=1M count=16 oflag=direct 2>/dev/null
                must dd if=/dev/$disk of=/dev/null bs=1M count=16 iflag=direct 2>/dev/null
            done
            dmesg | grep -c 'I/O error, dev vd'",
        )
    });
    unmount(&small, UnmountFlags::DETACH).unwrap();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
