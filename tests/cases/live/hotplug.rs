//! Disks and cards that come and go, and what is left of them.

use guest_probe::stream::Mode;
use tests::disk::{dax_image, filled, generations, hash, qcow2, sparse};
use tests::driven::{Driven, until};
use tests::monitor::files;
use tests::network::{ip, serve_tcp, tap};
use vmm_sys_util::tempdir::TempDir;

const MIB: u64 = 1 << 20;
/// More rounds than anything that leaks by the piece could hide in.
const ROUNDS: usize = 20;

pub(super) fn disks() {
    const SIZE: u64 = 4 * MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let first = filled(directory, "first", SIZE, 1);
    let second = qcow2(directory, "second.qcow2", SIZE);
    let mut guest = Driven::start(directory, &["--pci", "--cpus", "2"]);
    assert_eq!(guest.guest("ls /sys/block"), "");
    assert_eq!(guest.ask("devices"), "");

    let slot = guest.ask(&format!("plug disk {},id=a,serial=one", first.display()));
    guest.guest("await test -b /dev/vda; await is /sys/block/vda/serial one");
    assert_eq!(guest.ask("devices"), "disk 'a'");
    guest.guest("must guest-probe block check /dev/vda --seed 1");
    guest.guest("must guest-probe block fill /dev/vda --seed 1 --generation 2");
    // Where it is, by PCI's count.
    let address = format!("0000:00:{:02x}.0", slot.parse::<u8>().unwrap());
    let devices = guest.guest("ls /sys/bus/pci/devices");
    assert!(devices.contains(&address), "{devices}");

    assert_eq!(guest.ask("unplug disk a"), "gone");
    assert_eq!(guest.guest("ls /sys/block"), "");
    assert_eq!(guest.ask("devices"), "");
    assert_eq!(generations(&first, 1, SIZE), (2, 2));
    guest.refused("resize a", &["no disk 'a'"]);
    guest.refused("unplug disk a", &["no disk 'a'"]);

    // Another disk in the same slot, on a thread of its own; then the first one beside it.
    let again = guest.ask(&format!("plug disk {},id=b,iothread=on", second.display()));
    assert_eq!(again, slot);
    assert!(guest.threads().contains(&"io-b".to_owned()));
    guest.guest("await test -b /dev/vda");
    let plug = format!("plug disk {},id=a,queues=2", first.display());
    assert_ne!(guest.ask(&plug), slot);
    guest.guest("await test -b /dev/vdb");
    guest.guest("must guest-probe block verify /dev/vda --seed 5 --direct --operations 200 --fsync-every 50");
    guest.guest("must guest-probe block check /dev/vdb --seed 1 --generation 2");
    guest.guest("must guest-probe block verify /dev/vdb --seed 1 --threads 4 --operations 200");
    assert_eq!(guest.ask("devices"), "disk 'a', disk 'b'");
    assert_eq!(guest.ask("unplug disk b"), "gone");
    until("the thread's end", || {
        (!guest.threads().contains(&"io-b".to_owned())).then_some(())
    });
    assert_eq!(guest.guest("ls /sys/block"), "vdb\n");
    guest.guest("must guest-probe block verify /dev/vdb --seed 1 --operations 100");
    guest.end();
}

/// What comes before Linux has looked at the bus is found like what was there from the start, and goes
/// like anything else.
pub(super) fn early() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = filled(directory, "image", MIB, 1);
    let mut guest = Driven::start_early(directory, &["--pci"]);
    guest.ask(&format!("plug disk {},id=early", image.display()));
    guest.ready();
    guest.guest("await test -b /dev/vda");
    guest.guest("must guest-probe block check /dev/vda --seed 1");
    assert_eq!(guest.ask("unplug disk early"), "gone");
    assert_eq!(guest.guest("ls /sys/block"), "");
    guest.end();
}

/// Requests are in flight, and more wait for a limit. They fail in the guest, or end; nothing hangs.
pub(super) fn busy_disks() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", 16 * MIB);
    let mut guest = Driven::start(directory, &["--pci", "--cpus", "2"]);
    for (round, settings) in ["", ",iothread=on", ",engine=sync", ",iops=200"]
        .iter()
        .enumerate()
    {
        guest.ask(&format!("plug disk {},id=busy{settings}", image.display()));
        guest.guest("await test -b /dev/vda");
        guest.guest(
            "for n in 1 2 3 4; do (guest-probe block verify /dev/vda --direct --from ${n}m \
             --size 1m --operations 1000000; echo ENDED) >/tmp/busy$n 2>&1 & done",
        );
        let reads = |guest: &mut Driven| guest.numbers("counters disk busy")["writes"];
        until("I/O", || (reads(&mut guest) > 100).then_some(()));
        assert_eq!(guest.ask("unplug disk busy"), "gone", "{round}");
        guest.guest("wait");
        assert_eq!(guest.guest("cat /tmp/busy* | grep -c ENDED"), "4\n");
        assert_eq!(guest.guest("ls /sys/block"), "", "{round}");
    }
    // All is as before.
    guest.ask(&format!("plug disk {},id=busy", image.display()));
    guest.guest("await test -b /dev/vda");
    guest.guest("must guest-probe block verify /dev/vda --direct --operations 200");
    guest.end();
}

/// A guest switches a slot off by itself.
pub(super) fn unasked() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = filled(directory, "image", MIB, 1);
    let start = format!("{},id=start", image.display());
    let options = [
        "--pci",
        "--disk",
        &start,
        "--balloon",
        "0",
        "--entropy",
        "on",
    ];
    let mut guest = Driven::start(directory, &options);
    assert_eq!(
        guest.ask("devices"),
        "disk 'start', balloon, entropy device"
    );
    guest.guest("for slot in /sys/bus/pci/slots/*; do echo 0 >$slot/power; done");
    until("the end", || guest.ask("devices").is_empty().then_some(()));
    assert_eq!(guest.guest("ls /sys/block; guest-probe features"), "");
    guest.refused("balloon 10m", &["no balloon"]);
    // The image is free, and the guest takes it back.
    assert_eq!(guest.ask(&format!("plug disk {start}")), "1");
    guest.guest("await test -b /dev/vda");
    guest.guest("must guest-probe block check /dev/vda --seed 1");
    guest.end();
}

/// Files become memory and go again: those that come later, one that is there from the start, and one that is only
/// read. Disks reach what has come.
pub(super) fn pmem() {
    const SIZE: u64 = 4 * MIB;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let first = filled(directory, "first", SIZE, 1);
    // Not whole pages of 2 MiB.
    let second = filled(directory, "second", SIZE + 4096, 2);
    let there = filled(directory, "there", SIZE, 3);
    let disk = sparse(directory, "disk", SIZE);
    let dax = dax_image(directory, 64 * MIB);
    let before = hash(&second);
    let there_option = format!("{},id=there", there.display());
    let disk_option = format!("{},id=d", disk.display());
    let options = [
        "--pci",
        "--memory",
        "256m",
        "--pmem",
        &there_option,
        "--disk",
        &disk_option,
    ];
    let mut guest = Driven::start_packaged(directory, &options);
    guest.guest("must guest-probe block check /dev/pmem0 --seed 3");
    let plug_first = format!("plug pmem {},id=a", first.display());
    let mut held = None;
    for round in 1..4 {
        guest.ask(&plug_first);
        guest.guest("await test -b /dev/pmem1");
        guest.guest(&format!(
            "must guest-probe block check /dev/pmem1 --seed 1 --generation {round} --direct"
        ));
        guest.guest(&format!(
            "must guest-probe block fill /dev/pmem1 --seed 1 --generation {}",
            round + 1
        ));
        assert!(guest.numbers("counters pmem a")["flushes"] > 0);
        assert_eq!(guest.ask("unplug pmem a"), "gone");
        guest.guest("must gone /dev/pmem1");
        let next = round + 1;
        assert_eq!(generations(&first, 1, SIZE), (next, next));
        let held = *held.get_or_insert_with(|| guest.holds());
        assert_eq!(guest.holds_again(held), held);
    }

    // In the same place a file that can only be read.
    guest.ask(&format!("plug pmem {},id=b,ro", second.display()));
    guest.guest("await test -b /dev/pmem1");
    // What is behind the end of the file is zeroes.
    let check = format!(
        "must guest-probe block check /dev/pmem1 --seed 2 --size {} --direct",
        SIZE + 4096
    );
    guest.guest(&check);
    guest.guest("dd if=/dev/zero of=/dev/pmem1 bs=4k count=4 oflag=direct 2>/dev/null; true");
    guest.guest(&check);
    // Two at once; a disk reads into one of them, and writes from it.
    guest.ask(&format!("plug pmem {},id=dax", dax.display()));
    guest.guest("await test -b /dev/pmem2");
    guest.guest("must mount -t ext4 -o dax /dev/pmem2 /mnt");
    guest.guest("must guest-probe mapped /mnt/file /dev/vda --size 4m --seed 3");
    guest.guest("must guest-probe block check /mnt/file --seed 3; must umount /mnt");
    assert_eq!(guest.ask("unplug pmem b"), "gone");
    assert_eq!(guest.ask("unplug pmem dax"), "gone");
    assert_eq!(generations(&disk, 3, SIZE), (1, 1));
    assert!(hash(&second) == before, "the file has changed");

    // What was there from the start goes too, and comes back elsewhere.
    assert_eq!(guest.ask("unplug pmem there"), "gone");
    guest.guest("must gone /dev/pmem0");
    guest.ask(&format!("plug pmem {},id=there", there.display()));
    guest.guest("await test -b /dev/pmem0");
    guest.guest("must guest-probe block check /dev/pmem0 --seed 3 --direct");
    guest.refused(&plug_first.replace("=a", "=there"), &["same name"]);
    let huge = sparse(directory, "huge", 65 << 30);
    guest.refused(
        &format!("plug pmem {},id=huge", huge.display()),
        &["no place for 69793218560 bytes"],
    );
    assert_eq!(guest.ask("devices"), "disk 'd', persistent memory 'there'");
    guest.end();
}

/// Each is refused in one line, and leaves nothing: no device, no descriptor, no lock.
pub(super) fn bad_input() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", MIB);
    let other = sparse(directory, "other", MIB);
    let (image, other) = (image.display(), other.display());
    let disk = format!("{image},id=there");
    let options = ["--pci", "--disk", &disk, "--balloon", "0"];
    let mut guest = Driven::start(directory, &options);
    let held = guest.holds();
    let before = (held, guest.ask("devices"), files(directory));
    for (command, parts) in [
        (
            "plug disk /no/such/file",
            &["/no/such/file", "No such file"][..],
        ),
        (
            &format!("plug disk {}", directory.display()),
            &["neither a file"],
        ),
        (
            &format!("plug disk {image},id=second"),
            &["image", "in use"],
        ),
        (
            &format!("plug disk {other},id=there"),
            &["disk 'there'", "same name"],
        ),
        (&format!("plug disk {other},colour=red"), &["colour"]),
        (&format!("plug disk {other},queues=9"), &["9 queues"]),
        (
            &format!("plug disk {other},iothread=on,serial={}", "x".repeat(21)),
            &["serial"],
        ),
        ("plug disk", &["path"]),
        ("plug net user,mac=7", &["mac"]),
        ("plug net tap=nosuchtap0", &["nosuchtap0"]),
        ("plug net bridge", &["bridge"]),
        ("plug net user,forward=1", &["forward"]),
        ("plug balloon 10m", &["balloon"]),
        ("unplug disk nobody", &["no disk 'nobody'"]),
        ("unplug net there", &["no network card 'there'"]),
        ("unplug balloon x", &["balloon cannot come or go"]),
        ("resize nobody", &["no disk 'nobody'"]),
        ("rate disk nobody rate=1", &["no disk 'nobody'"]),
        ("rate disk there rate=much", &["rate=much"]),
        ("rate disk there speed=1", &["speed"]),
        ("rate net there rate=1", &["no network card"]),
        ("rate entropy rate=1", &["no such device"]),
        ("balloon 128m", &["leaves the guest nothing"]),
        ("balloon 9999999t", &["leaves the guest nothing"]),
        ("balloon -1", &["-1"]),
    ] {
        guest.refused(command, parts);
        let after = (
            guest.holds_again(held),
            guest.ask("devices"),
            files(directory),
        );
        assert_eq!(after, before, "{command}");
    }
    assert_eq!(guest.numbers("balloon-stats")["target"], 0);
    // Two networks cannot have one port of the host.
    guest.ask("plug net user,id=first,forward=127.0.0.1:28080:80");
    guest.refused(
        "plug net user,id=second,forward=127.0.0.1:28080:80",
        &["28080"],
    );
    assert_eq!(guest.ask("unplug net first"), "gone");
    guest.ask("plug net user,id=second,forward=127.0.0.1:28080:80");
    // No slot is left.
    let mut plugged = 0;
    while plugged < 31 - 3 {
        let image = sparse(directory, &format!("many{plugged}"), 512);
        guest.ask(&format!("plug disk {},id=many{plugged}", image.display()));
        plugged += 1;
    }
    let full = guest.holds();
    guest.refused(&format!("plug disk {other},id=late"), &["31 PCI slots"]);
    assert_eq!(guest.holds_again(full), full);
    guest.guest("await test -b /dev/vdab");
    guest.end();
}

/// Without PCI all that can be said is why not.
pub(super) fn no_bus() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", MIB);
    let disk = format!("{},id=there", image.display());
    let mut guest = Driven::start(directory, &["--disk", &disk]);
    let why = ["no PCI bus"];
    guest.refused("plug net user", &why);
    guest.refused("plug disk /no/such/file", &why);
    guest.refused("unplug disk there", &why);
    assert_eq!(guest.ask("devices"), "disk 'there'");
    guest.guest("must guest-probe block verify /dev/vda --operations 100");
    guest.end();
}

/// Has the guest configure its newest card; the gateway is the host.
fn configure(guest: &mut Driven, name: &str, address: &str) {
    guest.guest(&format!("await test -d /sys/class/net/{name}"));
    guest.guest(&format!(
        "must ip addr add {address} dev {name}; must ip link set {name} up"
    ));
}

fn transfer(guest: &mut Driven, server: &str) {
    let stream = serve_tcp(server, 3);
    let server = server.replace("127.0.0.1", "10.0.2.2");
    for (mode, bytes) in [("send", "2m"), ("receive", "2m"), ("both", "500k")] {
        guest.guest(&format!(
            "must guest-probe tcp client {server} --bytes {bytes} --mode {mode}"
        ));
    }
    stream.join().unwrap().unwrap();
}

pub(super) fn cards() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 9000, false, &["10.9.0.1/24"]);
    let mut guest = Driven::start(directory.as_path(), &["--pci", "--cpus", "2"]);
    let slot = guest.ask("plug net user,id=u,mac=06:00:00:00:00:07,forward=9000:7000");
    configure(&mut guest, "eth0", "10.0.2.15/24");
    let mac = guest.guest("cat /sys/class/net/eth0/address");
    assert_eq!(mac, "06:00:00:00:00:07\n");
    transfer(&mut guest, "127.0.0.1:5000");
    guest.guest("guest-probe tcp server 0.0.0.0:7000 --connections 5 >/tmp/server & true");
    guest.guest("await grep LISTENING /tmp/server");
    let asked = guest_probe::stream::Request {
        mode: Mode::Both,
        seed: 1,
        length: 50_000,
    };
    tests::network::request_tcp("127.0.0.1:9000", 5, asked);
    guest.guest("must wait $!");
    assert_eq!(guest.ask("unplug net u"), "gone");
    assert_eq!(guest.guest("ls /sys/class/net"), "lo\n");

    // A tap of the host's, which stays; its MTU is the card's.
    assert_eq!(guest.ask("plug net tap=tap0,id=t,iothread=on"), slot);
    configure(&mut guest, "eth0", "10.9.0.2/24");
    assert_eq!(guest.guest("cat /sys/class/net/eth0/mtu"), "9000\n");
    transfer(&mut guest, "10.9.0.1:5001");
    // One that mote makes, beside it.
    let before = ip("-br link").lines().count();
    guest.ask("plug net tap,id=own,ip=10.9.1.1/24");
    assert_eq!(ip("-br link").lines().count(), before + 1);
    configure(&mut guest, "eth1", "10.9.1.2/24");
    transfer(&mut guest, "10.9.1.1:5002");
    assert_eq!(guest.ask("unplug net own"), "gone");
    assert_eq!(ip("-br link").lines().count(), before);
    transfer(&mut guest, "10.9.0.1:5003");
    assert_eq!(guest.ask("unplug net t"), "gone");
    assert!(ip("-br link").contains("tap0"));
    assert_eq!(guest.guest("ls /sys/class/net"), "lo\n");
    guest.end();
}

/// The host's kernel serves the rings of what comes, and lets go of them.
pub(super) fn cards_with_vhost() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, true, &["10.9.0.1/24"]);
    let mut guest = Driven::start(directory.as_path(), &["--pci", "--cpus", "2"]);
    let mut before = None;
    for round in 0..3 {
        guest.ask("plug net tap=tap0,vhost=on,queues=2,id=t");
        configure(&mut guest, "eth0", "10.9.0.2/24");
        transfer(&mut guest, &format!("10.9.0.1:{}", 5000 + round));
        guest.refused("rate net t rate=1m", &["vhost"]);
        assert_eq!(guest.ask("unplug net t"), "gone");
        assert_eq!(guest.guest("ls /sys/class/net"), "lo\n");
        let before = *before.get_or_insert_with(|| guest.holds());
        assert_eq!(guest.holds_again(before), before);
    }
    guest.end();
}

/// Traffic goes both ways when the card goes.
pub(super) fn busy_cards() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    let mut guest = Driven::start(directory.as_path(), &["--pci", "--cpus", "2"]);
    for (number, (network, address, server)) in [
        ("tap=tap0", "10.9.0.2/24", "10.9.0.1"),
        ("user,iothread=on", "10.0.2.15/24", "10.0.2.2"),
        ("tap=tap0,iops=2000", "10.9.0.2/24", "10.9.0.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 5000 + number;
        let listener = server.replace("10.0.2.2", "127.0.0.1");
        let streams = serve_tcp(&format!("{listener}:{port}"), 4);
        guest.ask(&format!("plug net {network},id=busy"));
        configure(&mut guest, "eth0", address);
        guest.tell(&format!(
            "guest-probe tcp client {server}:{port} --bytes 10g --mode both --connections 4 >/dev/null 2>&1 & true"
        ));
        guest.done();
        until("traffic", || {
            let counters = guest.numbers("counters net busy");
            (counters["rx"] > 500 && counters["tx"] > 500).then_some(())
        });
        assert_eq!(guest.ask("unplug net busy"), "gone");
        assert_eq!(guest.guest("ls /sys/class/net"), "lo\n");
        // Neither side hears of the other again.
        guest.guest("kill $!; wait");
        drop(streams);
    }
    guest.ask("plug net tap=tap0,id=busy");
    configure(&mut guest, "eth0", "10.9.0.2/24");
    transfer(&mut guest, "10.9.0.1:6000");
    guest.end();
}

/// Descriptors, threads, slots, names and files are as before.
pub(super) fn twenty_rounds() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let image = sparse(directory, "image", MIB);
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    let mut guest = Driven::start(directory, &["--pci", "--cpus", "2"]);
    let mut before = None;
    for round in 0..=ROUNDS {
        let plug = format!("plug disk {},id=d,iothread=on", image.display());
        assert_eq!(guest.ask(&plug), "1");
        assert_eq!(guest.ask("plug net user,id=u,iothread=on"), "2");
        assert_eq!(guest.ask("plug net tap=tap0,id=t"), "3");
        guest.guest("await test -b /dev/vda; await test -d /sys/class/net/eth1");
        guest.guest("must guest-probe block verify /dev/vda --direct --operations 20 >/dev/null");
        guest.guest("must ip link set eth0 up; must ip link set eth1 up");
        assert_eq!(guest.ask("unplug net u"), "gone");
        assert_eq!(guest.ask("unplug disk d"), "gone");
        assert_eq!(guest.ask("unplug net t"), "gone");
        assert_eq!(
            guest.guest("ls /sys/block /sys/class/net | grep -c 'vd\\|eth'"),
            "0\n"
        );
        // What is made once is there after the first.
        let rest = (files(directory), ip("-br link").lines().count());
        let before = before.get_or_insert_with(|| (guest.holds(), rest.clone()));
        let now = (guest.holds_again(before.0), rest);
        assert_eq!(&now, before, "round {round}");
    }
    let warnings = guest.guest("dmesg -r | grep -c '^<[0-3]>' || true");
    assert_eq!(warnings, "0\n");
    guest.end();
}
