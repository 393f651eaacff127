//! With real taps, which takes root and /dev/net/tun: without, these tests say that they were skipped.

use std::fs;
use std::mem::{size_of, zeroed};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::virtio::net::backend::Pair;
use crate::virtio::net::{Net, NetConfig, NetControl};
use crate::virtio::test_support::{Driver, TestLoop};

/// For experiments on one's own network (IEEE 802): nobody else sends such frames.
const ETHERTYPE: u16 = 0x88b5;
const RX: usize = 0;
const TX: usize = 1;

/// Whether there can be taps here.
fn can_make_taps() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let can = is_root && Path::new(TUN).exists();
    if !can {
        eprintln!("SKIPPED: taps need root and {TUN}");
    }
    can
}

fn new_tap(queues: usize, mtu: Option<u16>, address: Option<&str>) -> Tap {
    let address = address.map(|address| address.parse().unwrap());
    let config = TapConfig {
        source: TapSource::New { address },
        queues,
        mtu,
    };
    Tap::open(&config).unwrap()
}

fn open(name: &str, queues: usize) -> Result<Tap, Error> {
    Tap::open(&TapConfig {
        source: TapSource::Existing(name.to_owned()),
        queues,
        mtu: None,
    })
}

/// The name of an interface that no other run of these tests has.
fn name(number: usize) -> String {
    format!("mote{number}t{}", std::process::id())
}

/// A network of 256 addresses that hardly any other run has, as the first three numbers.
fn network(kind: u8) -> [u8; 3] {
    [198, kind, std::process::id() as u8]
}

fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// A tap that stays until this is dropped, though nobody has it open.
struct Persistent(String);

impl Persistent {
    fn new(name: &str, flags: c_int) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(TUN).unwrap();
        let mut request = Name::new(name).unwrap().request();
        request.ifr_ifru.ifru_flags = flags as c_short;
        SET_IFF.call(&file, &mut request).unwrap();
        set_persist(&file, true);
        Self(name.to_owned())
    }
}

impl Drop for Persistent {
    fn drop(&mut self) {
        for flags in [libc::IFF_TAP, libc::IFF_TUN] {
            for more in [0, libc::IFF_MULTI_QUEUE] {
                let file = OpenOptions::new().read(true).write(true).open(TUN).unwrap();
                let mut request = Name::new(&self.0).unwrap().request();
                request.ifr_ifru.ifru_flags = (flags | more) as c_short;
                if SET_IFF.call(&file, &mut request).is_ok() {
                    set_persist(&file, false);
                    return;
                }
            }
        }
    }
}

fn set_persist(file: &File, persist: bool) {
    // SAFETY: takes a number.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, c_int::from(persist)) };
    assert_eq!(result, 0);
}

/// The host's end: what goes over the interface.
struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    fn new(interface: &str) -> Self {
        // SAFETY: takes numbers. Without a protocol it hears nothing before it is bound: there are other
        // interfaces.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: it was just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = Interface::new(Name::new(interface).unwrap())
            .index()
            .unwrap();
        // SAFETY: a plain C structure, for which all zeroes are a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE.to_be();
        address.sll_ifindex = index;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the structure has that length.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(result, 0);
        let timeout = libc::timeval {
            tv_sec: 60,
            tv_usec: 0,
        };
        let len = size_of::<libc::timeval>() as u32;
        // SAFETY: the structure has that length.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                len,
            )
        };
        assert_eq!(result, 0);
        Self { fd }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: reads the frame only.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize);
    }

    /// What the guest has sent.
    fn recv(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        // SAFETY: writes to the buffer only.
        let len = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        frame.truncate(usize::try_from(len).expect("no frame came"));
        frame
    }
}

/// A broadcast of `len` bytes.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend((14..len).map(|at| (at as u8).wrapping_mul(13).wrapping_add(seed)));
    frame
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN], frame].concat()
}

fn card(tap: Tap) -> (Driver, NetControl) {
    let pairs = tap.queues.into_iter().map(|queue| Pair {
        backend: Box::new(queue),
        kernel: None,
    });
    let config = NetConfig {
        mtu: Some(tap.mtu),
        ..NetConfig::default()
    };
    let (net, control) = Net::new(config, pairs.collect(), TestLoop::start()).unwrap();
    (Driver::new(net), control)
}

fn send(driver: &mut Driver, queue: usize, frame: &[u8]) {
    let buffer = driver.buffer_with(&with_header(frame));
    driver.request(queue, &[buffer.readable()]);
}

/// Waits until `frame` has come to one of `queues`, whatever else comes, into the buffers in them.
#[track_caller]
fn wait_for(driver: &mut Driver, queues: &[usize], room: &[u64], frame: &[u8]) -> usize {
    let mut came_to = None;
    driver.wait_until("frame", |driver| {
        for &queue in queues {
            for (head, len) in driver.queues[queue].take_used() {
                let gpa = room[usize::from(head)] + (queue as u64) * 0x10_0000;
                let got = driver.read(gpa, len);
                if got[HEADER_LEN..] == *frame {
                    assert_eq!(got[10..12], [1, 0]);
                    came_to = Some(queue);
                }
            }
        }
        came_to.is_some()
    });
    came_to.unwrap()
}

/// Fills a queue with buffers of `len` bytes; those of queue n are n MiB behind those of the first.
fn fill(driver: &mut Driver, queue: usize, len: u32) -> Vec<u64> {
    let first = 0x90_0000;
    let room: Vec<u64> = (0..64)
        .map(|number| first + number * u64::from(len))
        .collect();
    for gpa in &room {
        let gpa = gpa + (queue as u64) * 0x10_0000;
        driver.queues[queue].add(&[crate::virtio::test_support::Desc::writable(gpa, len)]);
    }
    driver.kick(queue);
    room
}

#[test]
fn one_that_is_made_has_an_address_and_is_gone_at_the_end() {
    if !can_make_taps() {
        return;
    }
    let [a, b, c] = network(18);
    let tap = new_tap(1, Some(9000), Some(&format!("{a}.{b}.{c}.1/24")));
    assert!(tap.name.starts_with("mote"), "{}", tap.name);
    assert_eq!((tap.mtu, tap.queues.len()), (9000, 1));
    let read = |name: &str, what| {
        let path = Path::new("/sys/class/net").join(name).join(what);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(read(&tap.name, "mtu"), "9000");
    assert!(
        Interface::new(Name::new(&tap.name).unwrap())
            .is_up()
            .unwrap()
    );
    UdpSocket::bind(format!("{a}.{b}.{c}.1:0")).unwrap();
    // The whole network is behind it, and not only what its class would be.
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    let route = routes
        .lines()
        .find(|line| line.starts_with(&tap.name))
        .unwrap();
    assert!(
        route.contains(&format!("\t00{c:02X}12C6\t")) && route.contains("\t00FFFFFF\t"),
        "{route}"
    );
    // A second one has another name.
    let six = new_tap(1, None, Some("fd5e::77:1/64"));
    assert_ne!(six.name, tap.name);
    assert_eq!(six.mtu, 1500);
    let address: Ipv6Addr = "fd5e::77:1".parse().unwrap();
    let hex: String = address
        .octets()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap();
    assert!(
        addresses
            .lines()
            .any(|line| line.starts_with(&hex) && line.ends_with(&six.name))
    );
    // Names are given again at once, indices are not.
    let interfaces = [&tap, &six].map(|tap| Interface::new(Name::new(&tap.name).unwrap()));
    let indices = interfaces
        .each_ref()
        .map(|interface| interface.index().unwrap());
    drop((tap, six));
    for (interface, index) in interfaces.iter().zip(indices) {
        assert_ne!(interface.index().ok(), Some(index));
    }
}

#[test]
fn one_that_is_there_is_opened_and_stays() {
    if !can_make_taps() {
        return;
    }
    let name = &name(0);
    let persistent = Persistent::new(name, libc::IFF_TAP);
    let tap = open(name, 1).unwrap();
    assert_eq!(tap.name, *name);
    let error = open(name, 1).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let error = open(name, 2).unwrap_err();
    assert!(
        matches!(error, Error::OneQueue { queues: 2, .. }),
        "{error}"
    );
    drop(tap);
    assert!(exists(name));
    drop(open(name, 1).unwrap());
    drop(persistent);
    assert!(!exists(name));

    let name = &self::name(1);
    let _persistent = Persistent::new(name, libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
    assert_eq!(open(name, 4).unwrap().queues.len(), 4);
    // One queue of one that could have several.
    assert_eq!(open(name, 1).unwrap().queues.len(), 1);
}

#[test]
fn one_that_cannot_be_had_says_why() {
    if !can_make_taps() {
        return;
    }
    let error = open("motetest-none", 1).unwrap_err();
    assert!(matches!(error, Error::NoSuchTap { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("ip tuntap add dev motetest-none"),
        "{error}"
    );
    assert!(!exists("motetest-none"));
    let error = open("lo", 1).unwrap_err();
    assert!(matches!(error, Error::NoTap { .. }), "{error}");
    for name in ["", "a/b", "far-too-long-for-an-interface", "mote%d"] {
        let error = open(name, 1).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name}: {error}");
    }
    let _tun = Persistent::new(&name(2), libc::IFF_TUN | libc::IFF_NO_PI);
    let error = open(&name(2), 1).unwrap_err();
    assert!(matches!(error, Error::NoTap { .. }), "{error}");
    let address = "198.19.78.1/24".parse().ok();
    let error = Tap::open(&TapConfig {
        source: TapSource::New { address },
        queues: 1,
        mtu: Some(u16::MAX),
    });
    assert!(matches!(error, Err(Error::Mtu { .. })), "{error:?}");
}

#[test]
fn frames_go_both_ways_up_to_the_mtu() {
    if !can_make_taps() {
        return;
    }
    let tap = new_tap(1, Some(9000), None);
    let socket = PacketSocket::new(&tap.name);
    let (mut driver, control) = card(tap);
    for features in [u64::MAX, 1 << 32] {
        driver.start(features);
        let room = fill(&mut driver, RX, 12_000);
        for (len, seed) in [(60, 1), (1514, 2), (9014, 3)] {
            let frame = frame(len, seed);
            send(&mut driver, TX, &frame);
            assert!(socket.recv() == frame);
            socket.send(&frame);
            wait_for(&mut driver, &[RX], &room, &frame);
        }
        assert!(!driver.is_broken());
    }
    let counters = control.counters();
    assert_eq!(
        (counters.tx.frames, counters.tx.errors, counters.tx.dropped),
        (6, 0, 0)
    );
    assert_eq!((counters.rx.errors, counters.rx.dropped), (0, 0));
}

#[test]
fn hostile_headers_are_refused_by_the_kernel() {
    if !can_make_taps() {
        return;
    }
    let tap = new_tap(1, None, None);
    let socket = PacketSocket::new(&tap.name);
    let (mut driver, control) = card(tap);
    driver.start(u64::MAX);
    let good = frame(100, 1);
    let headers: [[u8; 10]; 5] = [
        // A checksum far behind the end.
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        // A header longer than the frame.
        [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        // Segmentation of a kind that there is not, and into segments of nothing.
        [0, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0],
        [0xff; 10],
    ];
    for header in headers {
        let mut bytes = with_header(&good);
        bytes[..10].copy_from_slice(&header);
        let buffer = driver.buffer_with(&bytes);
        driver.request(TX, &[buffer.readable()]);
    }
    let counters = control.counters().tx;
    assert_eq!(counters.frames + counters.errors, 5);
    assert!(counters.errors >= 3, "{counters:?}");
    send(&mut driver, TX, &frame(100, 2));
    // Whatever it made of the others, this one comes.
    while socket.recv() != frame(100, 2) {}
}

#[test]
fn checksums_and_segments_are_left_to_the_host() {
    if !can_make_taps() {
        return;
    }
    let [a, b, c] = network(19);
    let tap = new_tap(1, None, Some(&format!("{a}.{b}.{c}.1/24")));
    let socket = UdpSocket::bind(format!("{a}.{b}.{c}.1:0")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let has_uso = tap.queues[0].has_uso;
    let mac = fs::read_to_string(format!("/sys/class/net/{}/address", tap.name)).unwrap();
    let mac: crate::virtio::net::Mac = mac.trim().parse().unwrap();
    let (mut driver, _) = card(tap);
    driver.start(u64::MAX);
    let port = socket.local_addr().unwrap().port();
    let payload: Vec<u8> = (0..3000_u32).map(|at| at as u8).collect();
    // One datagram, and three that the host cuts.
    for (len, gso_size) in [(1000_usize, 0_u16), (3000, 1000)] {
        if gso_size > 0 && !has_uso {
            eprintln!("SKIPPED: this kernel cuts no UDP");
            continue;
        }
        let mut bytes = vec![0; HEADER_LEN];
        bytes[0] = 1;
        if gso_size > 0 {
            // GSO_UDP_L4.
            bytes[1] = 5;
            bytes[2..4].copy_from_slice(&42_u16.to_le_bytes());
            bytes[4..6].copy_from_slice(&gso_size.to_le_bytes());
        }
        bytes[6..8].copy_from_slice(&34_u16.to_le_bytes());
        bytes[8..10].copy_from_slice(&6_u16.to_le_bytes());
        bytes.extend(mac.bytes());
        bytes.extend([2, 0, 0, 0, 0, 1, 8, 0]);
        let udp_len = (8 + len) as u16;
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0, a, b, c, 2, a, b, c, 1]);
        let checksum = !sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(&ip);
        bytes.extend(1234_u16.to_be_bytes());
        bytes.extend(port.to_be_bytes());
        bytes.extend(udp_len.to_be_bytes());
        // Only that of the pseudo header: the rest is the host's.
        let pseudo = [&ip[12..20], &[0, 17], &udp_len.to_be_bytes()].concat();
        bytes.extend(sum(&pseudo).to_be_bytes());
        bytes.extend(&payload[..len]);
        let buffer = driver.buffer_with(&bytes);
        driver.request(TX, &[buffer.readable()]);
        let step = if gso_size > 0 { gso_size.into() } else { len };
        for expected in payload[..len].chunks(step) {
            let mut got = [0; 4000];
            let got_len = socket.recv(&mut got).unwrap();
            assert_eq!(got[..got_len], *expected);
        }
    }
}

/// The one's complement sum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[test]
fn several_queues_work_and_those_not_in_use_get_nothing() {
    if !can_make_taps() {
        return;
    }
    let tap = new_tap(2, None, None);
    let socket = PacketSocket::new(&tap.name);
    let (mut driver, control) = card(tap);
    driver.start(u64::MAX);
    let room = fill(&mut driver, RX, 2000);
    fill(&mut driver, 2, 2000);
    let set_pairs = |driver: &mut Driver, count| {
        let sent = driver.buffer_with(&[4, 0, count, 0]);
        let answer = driver.buffer(1);
        driver.request(4, &[sent.readable(), answer.writable()]);
        assert_eq!(driver.contents(answer), [0]);
    };
    for round in 0..3 {
        set_pairs(&mut driver, 2);
        for (queue, seed) in [(TX, 1), (3, 2)] {
            send(&mut driver, queue, &frame(200, seed + round));
            assert!(socket.recv() == frame(200, seed + round));
        }
        socket.send(&frame(300, round));
        wait_for(&mut driver, &[RX, 2], &room, &frame(300, round));
        set_pairs(&mut driver, 1);
        for seed in 0..8 {
            socket.send(&frame(400, seed));
            let queue = wait_for(&mut driver, &[RX, 2], &room, &frame(400, seed));
            assert_eq!(queue, RX);
        }
    }
    assert_eq!(control.counters().rx.errors, 0);
}

#[test]
fn an_interface_that_goes_away_does_not_keep_the_host_busy() {
    if !can_make_taps() {
        return;
    }
    let name = &name(3);
    let persistent = Persistent::new(name, libc::IFF_TAP);
    let (mut driver, control) = card(open(name, 1).unwrap());
    driver.start(u64::MAX);
    fill(&mut driver, RX, 2000);
    // Down, it takes nothing.
    send(&mut driver, TX, &frame(100, 1));
    assert_eq!(control.counters().tx.errors, 1);
    let gone = std::process::Command::new("ip")
        .args(["link", "delete", name])
        .status();
    std::mem::forget(persistent);
    if !gone.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no ip to delete an interface with");
        return;
    }
    driver.wait_until("error", |_| control.counters().rx.errors == 1);
    send(&mut driver, TX, &frame(100, 2));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(control.counters().rx.errors, 1);
    assert_eq!(control.counters().tx.errors, 2);
    assert!(!driver.is_broken());
}
