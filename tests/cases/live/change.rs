//! What is changed about devices that stay.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::disk::{filled, generations, qcow2, sparse};
use tests::driven::{Driven, until};
use tests::network::{serve_tcp, tap};
use tests::vsock::serve;
use vmm_sys_util::tempdir::TempDir;

const MIB: u64 = 1 << 20;

fn set_size(image: &Path, size: u64) {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.set_len(size).unwrap();
}

/// Waits until the guest sees this size.
fn sees(guest: &mut Driven, disk: &str, size: u64) {
    guest.guest(&format!("await is /sys/block/{disk}/size {}", size / 512));
}

pub(super) fn sizes() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    for pci in [false, true] {
        let image = filled(directory, "image", 8 * MIB, 1);
        let own_thread = filled(directory, "own-thread", 8 * MIB, 1);
        let disks = [
            image.display().to_string(),
            format!(
                "{},iothread=on,engine=sync,cache=unsafe",
                own_thread.display()
            ),
        ];
        let mut options = vec!["--cpus", "2", "--disk", &disks[0], "--disk", &disks[1]];
        options.extend(pci.then_some("--pci"));
        let mut guest = Driven::start(directory, &options);
        for (disk, id, image) in [("vda", "disk0", &image), ("vdb", "disk1", &own_thread)] {
            let resize = format!("resize {id}");
            assert_eq!(guest.ask(&resize), (8 * MIB).to_string());
            // The guest goes on meanwhile.
            guest.guest(&format!(
                "guest-probe block verify /dev/{disk} --size 8m --seed 1 --threads 2 --operations 600 --direct & true"
            ));
            set_size(image, 16 * MIB);
            assert_eq!(guest.ask(&resize), (16 * MIB).to_string());
            sees(&mut guest, disk, 16 * MIB);
            guest.guest("must wait $!");
            guest.guest(&format!(
                "must guest-probe block fill /dev/{disk} --seed 1 --generation 3 --direct"
            ));
            guest.guest(&format!(
                "must guest-probe block check /dev/{disk} --seed 1 --generation 3"
            ));
            assert_eq!(generations(image, 1, 16 * MIB), (3, 3));
            // Smaller: what is left is as it was, and behind it there is nothing.
            set_size(image, 4 * MIB);
            assert_eq!(guest.ask(&resize), (4 * MIB).to_string());
            sees(&mut guest, disk, 4 * MIB);
            guest.guest(&format!(
                "must guest-probe block check /dev/{disk} --seed 1 --generation 3 --size 4m"
            ));
            let behind =
                format!("dd if=/dev/{disk} bs=4k skip=1024 iflag=direct 2>/dev/null | wc -c");
            assert_eq!(guest.guest(&behind), "0\n");
            assert_eq!(guest.numbers(&format!("counters disk {id}"))["errors"], 0);
        }
        guest.end();
    }
}

/// Another file in the same place, with another size.
pub(super) fn other_files() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let first = filled(directory, "first", 4 * MIB, 1);
    let second = filled(directory, "second", 8 * MIB, 2);
    let disk = first.display().to_string();
    let mut guest = Driven::start(directory, &["--disk", &disk]);
    guest.guest("must guest-probe block fill /dev/vda --seed 1 --generation 2 --direct");
    let replace = format!("replace disk0 {}", second.display());
    assert_eq!(guest.ask(&replace), (8 * MIB).to_string());
    sees(&mut guest, "vda", 8 * MIB);
    guest.guest("must guest-probe block check /dev/vda --seed 2 --direct");
    guest.guest("must guest-probe block fill /dev/vda --seed 2 --generation 4 --direct");
    assert_eq!(generations(&first, 1, 4 * MIB), (2, 2));
    assert_eq!(generations(&second, 2, 8 * MIB), (4, 4));
    guest.refused("replace disk0 /no/such/file", &["/no/such/file"]);
    guest.refused(
        &format!("replace disk0 {}", directory.display()),
        &["neither a file"],
    );
    guest.guest("must guest-probe block check /dev/vda --seed 2 --generation 4 --direct");
    guest.end();
}

pub(super) fn wrong_sizes() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let raw = filled(directory, "raw", MIB, 1);
    let base = filled(directory, "base", MIB, 1);
    let disks = [
        raw.display().to_string(),
        qcow2(directory, "image.qcow2", MIB).display().to_string(),
        format!("{},overlay=temp", base.display()),
    ];
    let mut options = vec![];
    for disk in &disks {
        options.extend(["--disk", disk]);
    }
    let mut guest = Driven::start(directory, &options);
    for id in ["disk1", "disk2"] {
        guest.refused(&format!("resize {id}"), &["raw image"]);
    }
    for size in [MIB + 1, 0, 511] {
        set_size(&raw, size);
        guest.refused("resize disk0", &["multiple of 512"]);
    }
    set_size(&raw, MIB);
    guest.refused("resize", &["no disk ''"]);
    for disk in ["vda", "vdb", "vdc"] {
        sees(&mut guest, disk, MIB);
    }
    guest.end();
}

/// Waits until so much is resident, or less.
#[track_caller]
fn shrinks_to(guest: &mut Driven, limit: u64) {
    until("less memory", || {
        (guest.live().resident() <= limit).then_some(())
    });
}

/// Waits for statistics that say what the guest itself does.
#[track_caller]
fn statistics_as_in_the_guest(guest: &mut Driven) -> HashMap<String, u64> {
    let total = guest.guest("awk '/^MemTotal/ { print $2 }' /proc/meminfo");
    let total = total.trim().parse::<u64>().unwrap() << 10;
    until("new statistics", || {
        let stats = guest.numbers("balloon-stats");
        (stats.get("total") == Some(&total)).then_some(stats)
    })
}

pub(super) fn balloon() {
    let directory = TempDir::new().unwrap();
    let options = ["--memory", "256m", "--balloon", "0,stats=1"];
    let mut guest = Driven::start(directory.as_path(), &options);
    // The first ones are from before Linux has freed what it needs for its start only.
    let told = statistics_as_in_the_guest(&mut guest);
    assert!(
        told["total"] > 200 * MIB && told["total"] < 256 * MIB,
        "{told:?}"
    );
    guest.guest("must guest-probe memory 180m");
    for round in 0..2 {
        let before = guest.live().resident();
        assert!(before > 180 * MIB, "round {round}: {} MiB", before / MIB);
        guest.ask("balloon 128m");
        until("a full balloon", || {
            (guest.numbers("balloon-stats")["actual"] == 128 * MIB).then_some(())
        });
        shrinks_to(&mut guest, (256 - 128 + 24) * MIB);
        // By the guest's own word too: it has so much less.
        let less = statistics_as_in_the_guest(&mut guest);
        assert_eq!(less["total"] + 128 * MIB, told["total"], "{less:?}");
        assert!(less["inflated"] >= 128 * MIB, "{less:?}");
        guest.guest("must guest-probe memory 50m");

        guest.ask("balloon 16m");
        until("a smaller balloon", || {
            (guest.numbers("balloon-stats")["actual"] == 16 * MIB).then_some(())
        });
        guest.ask("balloon 0");
        until("an empty balloon", || {
            (guest.numbers("balloon-stats")["actual"] == 0).then_some(())
        });
        // It can have all of it again.
        guest.guest("must guest-probe memory 180m");
        until("the old statistics", || {
            (guest.numbers("balloon-stats")["total"] == told["total"]).then_some(())
        });
    }
    // Nobody asks any more: the last ones grow old, until somebody does.
    guest.ask("stats-interval 0");
    until("old statistics", || {
        (guest.numbers("balloon-stats")["age"] > 3000).then_some(())
    });
    guest.ask("stats-interval 1");
    until("fresh statistics", || {
        (guest.numbers("balloon-stats")["age"] < 3000).then_some(())
    });
    let counters = guest.numbers("balloon-stats");
    assert_eq!(counters["failed"], 0, "{counters:?}");
    assert_eq!(counters["inflated"], counters["deflated"], "{counters:?}");
    guest.end();
}

/// Freed memory goes back by itself where that was asked for, and stays where it was not.
pub(super) fn reporting() {
    let directory = TempDir::new().unwrap();
    for (balloon, reports) in [("0,reporting=on,iothread=on", true), ("0", false)] {
        let options = ["--pci", "--memory", "512m", "--balloon", balloon];
        let mut guest = Driven::start(directory.as_path(), &options);
        guest.guest("must guest-probe memory 300m");
        if reports {
            until("reports", || {
                (guest.numbers("balloon-stats")["reported"] > 220 * MIB).then_some(())
            });
            shrinks_to(&mut guest, 160 * MIB);
        } else {
            assert!(guest.live().resident() > 300 * MIB);
            assert_eq!(guest.numbers("balloon-stats")["reported"], 0);
        }
        guest.guest("must guest-probe memory 300m");
        guest.end();
    }
}

/// Has the guest do something; says how long it took.
fn timed(guest: &mut Driven, command: &str) -> Duration {
    let start = Instant::now();
    guest.guest(command);
    let elapsed = start.elapsed();
    println!("{elapsed:?}: {command}");
    elapsed
}

pub(super) fn disk_limits() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", 16 * MIB);
    let plain = image.display().to_string();
    let other = sparse(directory, "other", 16 * MIB);
    let own_thread = format!("{},iothread=on,engine=sync", other.display());
    let options = ["--disk", &plain, "--disk", &own_thread, "--pci"];
    let mut guest = Driven::start(directory, &options);
    for (disk, id) in [("vda", "disk0"), ("vdb", "disk1")] {
        let read = |count, size| {
            format!(
                "must dd if=/dev/{disk} of=/dev/null bs={size} count={count} iflag=direct 2>/dev/null"
            )
        };
        let counters = format!("counters disk {id}");
        let throttled = |guest: &mut Driven| guest.numbers(&counters)["throttled"];
        timed(&mut guest, &read(1000, "4k"));
        assert_eq!(throttled(&mut guest), 0);
        // A hundred at once, and a hundred a second.
        guest.ask(&format!("rate disk {id} iops=100"));
        let elapsed = timed(&mut guest, &read(400, "4k"));
        assert!(elapsed > Duration::from_millis(2900), "{elapsed:?}");
        // Bytes instead: an eighth of a MiB at once, and a MiB a second.
        guest.ask(&format!("rate disk {id} rate=1m"));
        let elapsed = timed(&mut guest, &read(4, "1M"));
        assert!(elapsed > Duration::from_millis(2700), "{elapsed:?}");
        // While requests wait for years to pass, there is no limit any more.
        guest.ask(&format!("rate disk {id} iops=1"));
        guest.tell(&read(1000, "4k"));
        let before = throttled(&mut guest);
        until("a limit", || {
            (throttled(&mut guest) > before + 1).then_some(())
        });
        guest.ask(&format!("rate disk {id}"));
        guest.done();
        let unlimited = throttled(&mut guest);
        timed(&mut guest, &read(1000, "4k"));
        assert_eq!(throttled(&mut guest), unlimited);
    }
    guest.end();
}

pub(super) fn card_limits() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    let networks = ["tap=tap0", "user,iothread=on"];
    let options = ["--net", networks[0], "--net", networks[1]];
    let mut guest = Driven::start(directory.as_path(), &options);
    guest.guest("must ip addr add 10.9.0.2/24 dev eth0; must ip link set eth0 up");
    guest.guest("must ip addr add 10.0.2.15/24 dev eth1; must ip link set eth1 up");
    for (id, server, listener) in [
        ("net0", "10.9.0.1:5000", "10.9.0.1:5000"),
        ("net1", "10.0.2.2:5001", "127.0.0.1:5001"),
    ] {
        let stream = serve_tcp(listener, 7);
        let client = |bytes, mode| {
            format!("must guest-probe tcp client {server} --bytes {bytes} --mode {mode} >/dev/null")
        };
        let counters = format!("counters net {id}");
        let throttled = |guest: &mut Driven| guest.numbers(&counters)["throttled"];
        timed(&mut guest, &client("4m", "send"));
        timed(&mut guest, &client("4m", "receive"));
        assert_eq!(throttled(&mut guest), 0);
        guest.ask(&format!("rate net {id} rate=1m"));
        for mode in ["send", "receive"] {
            let elapsed = timed(&mut guest, &client("4m", mode));
            assert!(elapsed > Duration::from_millis(2700), "{elapsed:?}");
        }
        // Nothing would ever arrive.
        let before = throttled(&mut guest);
        guest.ask(&format!("rate net {id} iops=1"));
        guest.tell(&client("4m", "both"));
        until("a limit", || {
            (throttled(&mut guest) > before + 1).then_some(())
        });
        guest.ask(&format!("rate net {id}"));
        guest.done();
        let unlimited = throttled(&mut guest);
        timed(&mut guest, &client("4m", "send"));
        timed(&mut guest, &client("4m", "receive"));
        assert_eq!(throttled(&mut guest), unlimited);
        stream.join().unwrap().unwrap();
    }
    guest.end();
}

pub(super) fn entropy_limit() {
    let directory = TempDir::new().unwrap();
    for options in [
        &["--entropy", "on"][..],
        &["--entropy", "on,iothread=on", "--pci"],
    ] {
        let mut guest = Driven::start(directory.as_path(), options);
        let read = |bytes| format!("must guest-probe random /dev/hwrng --bytes {bytes}");
        timed(&mut guest, &read("16k"));
        // An eighth of 4 KiB at once, and 4 KiB a second; the kernel may take of that too.
        guest.ask("rate entropy rate=4096");
        let elapsed = timed(&mut guest, &read("16k"));
        assert!(elapsed > Duration::from_millis(2700), "{elapsed:?}");
        guest.ask("rate entropy rate=1");
        guest.tell(&read("16k"));
        // It waits, or is about to.
        std::thread::sleep(Duration::from_millis(300));
        guest.ask("rate entropy");
        guest.done();
        timed(&mut guest, &read("16k"));
        guest.end();
    }
}

pub(super) fn console_limit() {
    let directory = TempDir::new().unwrap();
    let mut guest = Driven::start(directory.as_path(), &["--console", "virtio"]);
    let print = "dd if=/dev/zero bs=1024 count=8 2>/dev/null | tr '\\000' x; echo";
    let printed = guest.guest(print);
    assert_eq!(printed.trim_end().len(), 8192);
    guest.ask("rate console rate=2048");
    let start = Instant::now();
    let printed = guest.guest(print);
    assert_eq!(printed.trim_end().len(), 8192);
    assert!(start.elapsed() > Duration::from_millis(2900), "not limited");
    guest.ask("rate console rate=1");
    guest.tell(print);
    std::thread::sleep(Duration::from_millis(300));
    guest.ask("rate console");
    assert_eq!(guest.done().trim_end().len(), 8192);
    guest.end();
}

/// Each device has its thread, by its name, and does its work on it.
pub(super) fn own_threads() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let disk = format!(
        "{},iothread=on",
        sparse(directory, "image", 4 * MIB).display()
    );
    for pci in [false, true] {
        let vsock = directory.join(format!("vsock-{pci}"));
        let server = serve(&vsock, 2000, 2);
        // The host as a guest sees it in the user network.
        let port = if pci { 28101 } else { 28100 };
        let stream = serve_tcp(&format!("127.0.0.1:{port}"), 1);
        let sockets = format!("cid=3,path={},iothread=on", vsock.display());
        let mut options = vec![
            "--disk",
            &disk,
            "--net",
            "user,iothread=on,id=a-long-name-of-a-card",
        ];
        options.extend(["--vsock", &sockets, "--balloon", "0,iothread=on"]);
        options.extend(["--entropy", "on,iothread=on", "--memory", "256m"]);
        options.extend(["--console", "virtio,iothread=on"]);
        options.extend(pci.then_some("--pci"));
        let mut guest = Driven::start(directory, &options);
        let threads = guest.threads();
        for name in [
            "io-disk0",
            "io-a-long-name-",
            "io-vsock",
            "io-balloon",
            "io-entropy",
            "io-console",
        ] {
            assert!(threads.iter().any(|thread| thread == name), "{threads:?}");
        }
        guest.guest("must guest-probe block verify /dev/vda --direct --threads 2 --operations 200 --fsync-every 20");
        guest.guest("must ip addr add 10.0.2.15/24 dev eth0; must ip link set eth0 up");
        guest.guest(&format!(
            "must guest-probe tcp client 10.0.2.2:{port} --bytes 1m --mode both"
        ));
        guest
            .guest("must guest-probe vsock client 2:2000 --bytes 500k --mode both --connections 2");
        guest.guest("must guest-probe random /dev/hwrng");
        guest.ask("balloon 64m");
        until("a full balloon", || {
            (guest.numbers("balloon-stats")["actual"] == 64 * MIB).then_some(())
        });
        // All of them have come to the same end, and use their time for nothing else.
        server.join().unwrap().unwrap();
        stream.join().unwrap().unwrap();
        guest.end();
    }
}

pub(super) fn cable() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    let mut guest = Driven::start(directory.as_path(), &["--net", "tap=tap0"]);
    guest.guest("must ip addr add 10.9.0.2/24 dev eth0; must ip link set eth0 up");
    guest.guest("await is /sys/class/net/eth0/carrier 1; must ping -c 1 -W 10 10.9.0.1 >/dev/null");
    guest.ask("link net0 down");
    guest.guest("await is /sys/class/net/eth0/carrier 0");
    guest.guest("must_not ping -c 1 -W 1 10.9.0.1 >/dev/null");
    guest.ask("link net0 up");
    guest.guest("await is /sys/class/net/eth0/carrier 1; await ping -c 1 -W 1 10.9.0.1");
    guest.end();
}

/// ethtool has Linux reset single queues (RING_RESET), on PCI, where it can.
pub(super) fn rings(vhost: &str) {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    tap("tap0", 1500, true, &["10.9.0.1/24"]);
    let disk = sparse(directory, "image", MIB).display().to_string();
    let mut options = vec!["--pci", "--cpus", "2", "--disk", &disk, "--balloon", "0"];
    options.extend(["--entropy", "on"]);
    let network = format!("tap=tap0,queues=2,{vhost}");
    options.extend(["--net", &network, "--net", "user,iothread=on"]);
    let mut guest = Driven::start(directory, &options);
    let features = guest.guest("guest-probe features");
    assert_eq!(features.lines().count(), 5, "{features}");
    for line in features.lines() {
        let mut bits = line.rsplit(' ').next().unwrap().split(',');
        assert!(bits.any(|bit| bit == "40"), "{line}");
    }
    guest.guest("must ip addr add 10.9.0.2/24 dev eth0; must ip link set eth0 up");
    guest.guest("must ip addr add 10.0.2.15/24 dev eth1; must ip link set eth1 up");
    for (name, server, listener) in [
        ("eth0", "10.9.0.1:5000", "10.9.0.1:5000"),
        ("eth1", "10.0.2.2:5001", "127.0.0.1:5001"),
    ] {
        let stream = serve_tcp(listener, 5);
        let transfer = format!("must guest-probe tcp client {server} --bytes 1m --mode both");
        for (settings, sizes) in [
            ("", "RING 256 256"),
            ("--rx 64", "RING 64 256"),
            ("--rx 128 --tx 32", "RING 128 32"),
            ("--rx 256 --tx 256", "RING 256 256"),
        ] {
            let said = guest.guest(&format!("must guest-probe ring {name} {settings}"));
            assert_eq!(said.trim_end(), sizes);
            guest.guest(&transfer);
        }
        // And in the middle of traffic.
        guest.guest(&format!(
            "(must guest-probe tcp client {server} --bytes 6m --mode both >/dev/null; echo $failures >/tmp/failures) & true"
        ));
        for size in [64, 256, 32, 128, 256] {
            guest.guest(&format!(
                "must guest-probe ring {name} --rx {size} --tx {size}"
            ));
        }
        guest.guest("wait; must is /tmp/failures $failures");
        stream.join().unwrap().unwrap();
    }
    guest.guest("must_not guest-probe ring eth0 --rx 100000 2>/dev/null");
    guest.end();
}
