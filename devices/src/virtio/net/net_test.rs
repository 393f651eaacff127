use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use super::backend::{HEADER_LEN, KernelError, KernelRings, LINK_HEADER, MAX_FRAME, NetBackend};
use super::*;
use crate::lock;
use crate::rate_limiter::Bucket;
use crate::virtio::test_support::{Desc, Driver, GuestQueue, TestLoop, lifecycle_suite};
use crate::virtio::transport::core::feature as transport;

const RX: usize = 0;
const TX: usize = 1;
const VERSION_1: u64 = 1 << transport::VERSION_1;
/// A frame that says nothing.
const SHORTEST: usize = HEADER_LEN + backend::MIN_FRAME;

/// What was asked of a [`Double`].
#[derive(Default)]
struct Asked {
    offloads: Vec<Offloads>,
    enabled: Vec<bool>,
    fails: bool,
}

/// A backend whose other end is a socket.
struct Double {
    socket: UnixDatagram,
    asked: Arc<Mutex<Asked>>,
    support: Support,
}

impl NetBackend for Double {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        false
    }

    fn work(&mut self) {}

    fn support(&self) -> Support {
        self.support
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        lock(&self.asked).offloads.push(offloads);
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        lock(&self.asked).enabled.push(enabled);
        Ok(())
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        if lock(&self.asked).fails {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut bytes = Vec::new();
        for piece in frame {
            let mut copy = vec![0; piece.len()];
            piece.copy_to(&mut copy);
            bytes.extend(copy);
        }
        self.socket.send(&bytes).map(|_| ())
    }

    fn flush(&mut self) -> bool {
        false
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if lock(&self.asked).fails {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame)?;
        let mut left = &frame[..len];
        for piece in room {
            let (now, later) = left.split_at(left.len().min(piece.len()));
            piece.copy_from(now);
            left = later;
        }
        Ok(len - left.len())
    }
}

/// The other end of a pair.
struct Wire {
    socket: UnixDatagram,
    asked: Arc<Mutex<Asked>>,
}

impl Wire {
    fn new(support: Support) -> (Self, Pair) {
        let (here, there) = UnixDatagram::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        here.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let asked = Arc::<Mutex<Asked>>::default();
        let backend = Double {
            socket: there,
            asked: Arc::clone(&asked),
            support,
        };
        let pair = Pair {
            backend: Box::new(backend),
            kernel: None,
        };
        (
            Self {
                socket: here,
                asked,
            },
            pair,
        )
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send(frame).unwrap(), frame.len());
    }

    fn recv(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    #[track_caller]
    fn assert_silent(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = self.socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

const ALL: Support = Support {
    from_guest: Offloads::ALL,
    to_guest: Offloads::ALL,
};

fn config() -> NetConfig {
    NetConfig {
        id: "net0".to_owned(),
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        ..NetConfig::default()
    }
}

fn card(config: NetConfig, pairs: usize) -> (Net, NetControl, Vec<Wire>) {
    let (wires, pairs) = (0..pairs).map(|_| Wire::new(ALL)).unzip();
    let (net, control) = Net::new(config, pairs, TestLoop::start()).unwrap();
    (net, control, wires)
}

/// One pair, driven with these features.
fn driver(features: u64) -> (Driver, Wire, NetControl) {
    let (net, control, mut wires) = card(config(), 1);
    let mut driver = Driver::new(net);
    driver.start(features);
    (driver, wires.remove(0), control)
}

/// A frame with a header of zeroes, and a payload that tells `seed`.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len - HEADER_LEN).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed));
    [0; HEADER_LEN].into_iter().chain(payload).collect()
}

/// `frame` as the driver gets it, in `buffers` buffers.
fn received(frame: &[u8], buffers: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

lifecycle_suite!(card(config(), 2).0);

#[test]
fn frames_go_both_ways_whatever_was_negotiated() {
    for features in [VERSION_1, VERSION_1 | 1 << feature::MRG_RXBUF, u64::MAX] {
        let (mut driver, wire, control) = driver(features);
        for (len, seed) in [(SHORTEST, 1), (600, 2), (HEADER_LEN + 1514, 3)] {
            let frame = frame(len, seed);
            let parts = frame.split_at(HEADER_LEN);
            let descs = [parts.0, parts.1].map(|part| driver.buffer_with(part).readable());
            assert_eq!(driver.request(TX, &descs), 0);
            assert_eq!(wire.recv(), frame);

            let buffer = driver.buffer(2000);
            driver.submit(RX, &[buffer.writable()]);
            wire.send(&frame);
            let used = driver.wait_used(RX, 1);
            assert_eq!(used[0].1 as usize, len);
            assert_eq!(driver.read(buffer.gpa, len as u32), received(&frame, 1));
        }
        let counters = control.counters();
        assert_eq!((counters.rx.frames, counters.tx.frames), (3, 3));
        let bytes = (14 + 588 + 1514) as u64;
        assert_eq!((counters.rx.bytes, counters.tx.bytes), (bytes, bytes));
        assert!(driver.interrupts.used(0) >= 1 && driver.interrupts.used(1) >= 1);
    }
}

#[test]
fn a_long_frame_is_in_as_many_buffers_as_it_takes() {
    let (mut driver, wire, _) = driver(u64::MAX);
    let buffers: Vec<_> = (0..100).map(|_| driver.buffer(1500)).collect();
    for buffer in &buffers {
        driver.queues[RX].add(&[buffer.writable()]);
    }
    driver.kick(RX);
    let long = frame(HEADER_LEN + MAX_FRAME, 9);
    wire.send(&long);
    let used = driver.wait_used(RX, 44);
    assert_eq!(used.len(), 44);
    assert!(used[..43].iter().all(|(_, len)| *len == 1500));
    let all: Vec<u8> = (used.iter().zip(&buffers))
        .flat_map(|((_, len), buffer)| driver.read(buffer.gpa, *len))
        .collect();
    assert!(all == received(&long, 44));
    // All at once, so once told.
    driver.wait_until("interrupt", |driver| driver.interrupts.used(0) == 1);
    // What it did not need is for the next one.
    wire.send(&frame(100, 1));
    let next = driver.wait_used(RX, 1);
    assert_eq!(next[0].1, 100);
    assert_eq!(
        driver.read(buffers[44].gpa, 100),
        received(&frame(100, 1), 1)
    );
}

#[test]
fn the_end_of_a_frame_waits_for_buffers() {
    let (mut driver, wire, control) = driver(u64::MAX);
    let buffers: Vec<_> = (0..4).map(|_| driver.buffer(1000)).collect();
    driver.submit(RX, &[buffers[0].writable()]);
    let long = frame(3500, 5);
    wire.send(&long);
    wire.send(&frame(50, 6));
    for (number, buffer) in buffers.iter().enumerate().skip(1) {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(driver.queues[RX].take_used(), [], "after {number}");
        driver.submit(RX, &[buffer.writable()]);
    }
    let used = driver.wait_used(RX, 4);
    let lens: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lens, [1000, 1000, 1000, 500]);
    let all: Vec<u8> = (used.iter().zip(&buffers))
        .flat_map(|((_, len), buffer)| driver.read(buffer.gpa, *len))
        .collect();
    assert!(all == received(&long, 4));
    let buffer = driver.buffer(100);
    driver.submit(RX, &[buffer.writable()]);
    assert_eq!(driver.wait_used(RX, 1)[0].1, 50);
    assert_eq!(control.counters().rx.dropped, 0);
}

#[test]
fn nothing_is_lost_while_there_are_no_buffers() {
    let (mut driver, wire, control) = driver(VERSION_1);
    for seed in 0..5 {
        wire.send(&frame(64, seed));
    }
    std::thread::sleep(Duration::from_millis(5));
    for seed in 0..5 {
        let buffer = driver.buffer(64);
        driver.submit(RX, &[buffer.writable()]);
        driver.wait_used(RX, 1);
        assert_eq!(driver.contents(buffer), received(&frame(64, seed), 1));
    }
    assert_eq!(control.counters().rx.dropped, 0);
}

#[test]
fn a_frame_that_fits_nowhere_is_dropped() {
    // One buffer a frame.
    let (mut driver, wire, control) = driver(VERSION_1);
    let buffer = driver.buffer(100);
    driver.submit(RX, &[buffer.writable()]);
    wire.send(&frame(101, 1));
    wire.send(&frame(100, 2));
    driver.wait_used(RX, 1);
    assert_eq!(driver.contents(buffer), received(&frame(100, 2), 1));
    assert_eq!(control.counters().rx.dropped, 1);

    // Longer than any can be; and a ring that is too small for it.
    let (mut driver, wire, control) = self::driver(u64::MAX);
    let buffer = driver.buffer(100);
    for _ in 0..256 {
        driver.queues[RX].add(&[buffer.writable()]);
    }
    driver.kick(RX);
    wire.send(&frame(HEADER_LEN + MAX_FRAME + 1, 1));
    wire.send(&frame(25_601, 2));
    wire.send(&frame(60, 3));
    let used = driver.wait_used(RX, 1);
    assert_eq!((used.len(), used[0].1), (1, 60));
    assert_eq!(control.counters().rx.dropped, 2);

    // Without segmentation the MTU is the limit, if the buffers are as small as that.
    let (mut driver, wire, control) = self::driver(VERSION_1 | 1 << feature::MRG_RXBUF);
    for _ in 0..20 {
        driver.queues[RX].add(&[buffer.writable()]);
    }
    driver.kick(RX);
    wire.send(&frame(HEADER_LEN + LINK_HEADER + 1500 + 100, 1));
    wire.send(&frame(HEADER_LEN + LINK_HEADER + 1500, 2));
    assert_eq!(driver.wait_used(RX, 16).len(), 16);
    assert_eq!(control.counters().rx.dropped, 1);
}

#[test]
fn what_is_no_frame_is_dropped() {
    let (mut driver, wire, control) = driver(u64::MAX);
    for len in [
        0,
        1,
        HEADER_LEN - 1,
        SHORTEST - 1,
        HEADER_LEN + MAX_FRAME + 1,
    ] {
        let mut buffer = driver.buffer(len as u32);
        buffer.len = len as u32;
        driver.request(TX, &[buffer.readable()]);
    }
    // Nothing to read.
    let buffer = driver.buffer(100);
    driver.request(TX, &[buffer.writable()]);
    wire.assert_silent();
    assert_eq!(control.counters().tx.dropped, 6);
    // As many pieces as there can be.
    let bytes = frame(256, 1);
    let buffer = driver.buffer_with(&bytes);
    let pieces: Vec<Desc> = (0..256)
        .map(|at| Desc::readable(buffer.gpa + at, 1))
        .collect();
    driver.request(TX, &pieces);
    assert_eq!(wire.recv(), bytes);

    // From the other side.
    wire.send(&[0; SHORTEST - 1]);
    wire.send(&frame(SHORTEST, 1));
    // Buffers that are too small for a header go back unused.
    for len in [0, 11] {
        driver.submit(RX, &[Desc::writable(buffer.gpa, len)]);
    }
    driver.submit(RX, &[Desc::readable(buffer.gpa, 2000)]);
    driver.submit(RX, &[Desc::writable(buffer.gpa, 2000)]);
    let lens: Vec<u32> = driver.wait_used(RX, 4).iter().map(|used| used.1).collect();
    assert_eq!(lens, [0, 0, 0, SHORTEST as u32]);
    assert_eq!(control.counters().rx.dropped, 1);
}

#[test]
fn buffers_of_many_pieces_do_not_stop_it() {
    let (mut driver, wire, control) = driver(u64::MAX);
    let buffer = driver.buffer(4096);
    // Tables of 256 buffers of a byte: the kernel takes no more than four of them at once.
    for number in 0..8 {
        let table = buffer.gpa + 0x10_0000 + number * 4096;
        let pieces: Vec<Desc> = (0..256)
            .map(|at| Desc::writable(buffer.gpa + number * 256 + at, 1))
            .collect();
        driver.queues[RX].write_table(table, &pieces);
        driver.queues[RX].add(&[Desc {
            flags: Desc::INDIRECT,
            ..Desc::readable(table, 4096)
        }]);
    }
    driver.kick(RX);
    wire.send(&frame(1500, 1));
    wire.send(&frame(700, 2));
    let lens: Vec<u32> = driver.wait_used(RX, 3).iter().map(|used| used.1).collect();
    assert_eq!(lens, [256, 256, 188]);
    assert_eq!(driver.read(buffer.gpa, 700), received(&frame(700, 2), 3));
    assert_eq!(control.counters().rx.dropped, 1);
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let (mut driver, wire, _) = driver(VERSION_1);
    let sent = driver.buffer_with(&frame(100, 1));
    let flags = driver.queues[TX].config().avail;
    driver.write(flags, &[1, 0]);
    for _ in 0..3 {
        driver.request(TX, &[sent.readable()]);
        wire.recv();
    }
    // The turn of the last one has ended when the next one is served.
    driver.write(flags, &[0, 0]);
    driver.request(TX, &[sent.readable()]);
    driver.wait_until("interrupt", |driver| driver.interrupts.used(1) >= 1);
    assert!(driver.interrupts.used(1) <= 2);
}

#[test]
fn headers_go_both_ways_as_they_are() {
    let (mut driver, wire, _) = driver(u64::MAX);
    let mut bytes = frame(200, 1);
    // NEEDS_CSUM, GSO_TCPV4, and all the lengths.
    bytes[..10].copy_from_slice(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0]);
    let buffer = driver.buffer_with(&bytes);
    driver.request(TX, &[buffer.readable()]);
    assert_eq!(wire.recv(), bytes);
    let buffer = driver.buffer(200);
    driver.submit(RX, &[buffer.writable()]);
    wire.send(&bytes);
    driver.wait_used(RX, 1);
    assert_eq!(driver.contents(buffer), received(&bytes, 1));
    // A driver that knows no checksums gets no flags (section 5.1.6.4.1).
    let (mut driver, wire, _) = self::driver(VERSION_1);
    let buffer = driver.buffer(200);
    driver.submit(RX, &[buffer.writable()]);
    wire.send(&bytes);
    driver.wait_used(RX, 1);
    bytes[0] = 0;
    assert_eq!(driver.contents(buffer), received(&bytes, 1));
}

#[test]
fn more_frames_than_fit_into_a_turn() {
    let (mut driver, wire, _) = driver(u64::MAX);
    let wire = std::thread::spawn(move || {
        for number in 0..1000_u32 {
            let got = wire.recv();
            assert_eq!(got[HEADER_LEN..HEADER_LEN + 4], number.to_le_bytes());
            wire.send(&got);
        }
    });
    let sent: Vec<_> = (0..200).map(|_| driver.buffer(64)).collect();
    let room: Vec<_> = (0..200).map(|_| driver.buffer(2000)).collect();
    for round in 0..5 {
        for (number, (sent, room)) in (0..).zip(sent.iter().zip(&room)) {
            let mut bytes = vec![0; 64];
            bytes[HEADER_LEN..HEADER_LEN + 4]
                .copy_from_slice(&(round * 200_u32 + number).to_le_bytes());
            driver.write(sent.gpa, &bytes);
            driver.queues[RX].add(&[room.writable()]);
            driver.queues[TX].add(&[sent.readable()]);
        }
        driver.kick(TX);
        driver.kick(RX);
        assert_eq!(driver.wait_used(TX, 200).len(), 200);
        assert_eq!(driver.wait_used(RX, 200).len(), 200);
        for (number, room) in (0..).zip(&room) {
            let got = driver.read(room.gpa + HEADER_LEN as u64, 4);
            assert_eq!(got, (round * 200_u32 + number).to_le_bytes());
        }
    }
    wire.join().unwrap();
}

#[test]
fn a_host_that_takes_no_more_holds_the_driver_back() {
    let (mut driver, wire, control) = driver(u64::MAX);
    let mut next = 0;
    let mut done = 0;
    // Until nothing moves any more.
    while next - done < 100 {
        let mut bytes = frame(30_000, 0);
        bytes[20..24].copy_from_slice(&u32::to_le_bytes(next));
        driver.write(0x100_0000 - 0x8000, &bytes);
        driver.submit(TX, &[Desc::readable(0x100_0000 - 0x8000, 30_000)]);
        next += 1;
        std::thread::sleep(Duration::from_millis(1));
        done += driver.queues[TX].take_used().len() as u32;
    }
    assert_eq!(control.counters().tx.frames, u64::from(done));
    let mut got = 0;
    while got < next {
        let frame = wire.recv();
        assert_eq!(frame.len(), 30_000);
        got += 1;
    }
    driver.wait_until("used buffers", |driver| {
        done += driver.queues[TX].take_used().len() as u32;
        done == next
    });
    let counters = control.counters().tx;
    assert_eq!((counters.frames, counters.dropped), (u64::from(next), 0));
}

#[test]
fn tells_what_the_backend_can_do() {
    let features = |support| {
        let (_wire, pair) = Wire::new(support);
        let (net, _) = Net::new(config(), vec![pair], TestLoop::start()).unwrap();
        net.features()
    };
    let always = 1 << 5 | 1 << 15 | 1 << 16 | 1 << 17;
    assert_eq!(features(Support::default()), always);
    let both = features(ALL);
    let to_guest = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 54 | 1 << 55 | 1 << 2;
    let from_guest = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 56;
    assert_eq!(both, always | to_guest | from_guest);
    let only = features(Support {
        from_guest: Offloads::ALL,
        to_guest: Offloads::default(),
    });
    assert_eq!(only, always | from_guest);
}

#[test]
fn its_configuration_is_the_one_that_was_asked_for() {
    let with_mtu = NetConfig {
        mtu: Some(9000),
        ..config()
    };
    let (net, _, _wires) = card(with_mtu, 4);
    assert_ne!(net.features() & 1 << feature::MTU, 0);
    assert_ne!(net.features() & 1 << feature::MQ, 0);
    assert_eq!(net.queue_sizes(), [256; 9]);
    let mut bytes = [0xff; 16];
    net.read_config(0, &mut bytes);
    let expected = [2, 0, 0, 0, 0, 1, 1, 0, 4, 0, 0x28, 0x23, 0, 0, 0, 0];
    assert_eq!(bytes, expected);
    // Random where none was given.
    let random = || card(NetConfig::default(), 1).1.mac();
    assert_ne!(random(), random());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let make = |config, count| {
        let pairs = (0..count).map(|_| Wire::new(ALL).1).collect();
        Net::new(config, pairs, TestLoop::start()).map(|_| ())
    };
    for pairs in [0, MAX_PAIRS + 1] {
        assert!(matches!(make(config(), pairs), Err(Error::Pairs { .. })));
    }
    assert!(make(config(), MAX_PAIRS).is_ok());
    for (mtu, good) in [(67, false), (68, true), (65521, true), (65522, false)] {
        let mtu = Some(mtu);
        assert_eq!(make(NetConfig { mtu, ..config() }, 1).is_ok(), good);
    }
}

/// Sends a command, and returns the answer; 0xaa if there was none.
fn command(driver: &mut Driver, queue: usize, bytes: &[u8]) -> u8 {
    let sent = driver.buffer_with(bytes);
    let answer = driver.buffer(1);
    driver.request(queue, &[sent.readable(), answer.writable()]);
    driver.contents(answer)[0]
}

#[test]
fn the_control_queue_takes_what_it_knows_and_nothing_else() {
    let (net, _, wires) = card(config(), 2);
    let mut driver = Driver::started(net);
    let bad: [&[u8]; 10] = [
        &[],
        &[4],
        &[4, 0],
        &[4, 0, 1],
        // No, too many, and far too many pairs.
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0xff, 0xff],
        // RSS, promiscuous mode, and what there is not.
        &[4, 1, 1, 0],
        &[0, 0, 1],
        &[0xff, 0xff, 1, 0],
    ];
    for bytes in bad {
        assert_eq!(command(&mut driver, 4, bytes), 1, "{bytes:?}");
    }
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(command(&mut driver, 4, &[4, 0, 1, 0]), 0);
    assert_eq!(lock(&wires[0].asked).enabled, []);
    assert_eq!(lock(&wires[1].asked).enabled, [false, true, false]);
    // Nowhere to answer to.
    let buffer = driver.buffer_with(&[4, 0, 2, 0]);
    assert_eq!(driver.request(4, &[buffer.readable()]), 0);
    driver.reset();
    assert_eq!(
        lock(&wires[1].asked).enabled,
        [false, true, false, true, false]
    );
}

#[test]
fn a_pair_works_once_it_is_in_use() {
    let (net, _, wires) = card(config(), 2);
    let mut driver = Driver::started(net);
    let sent = driver.buffer_with(&frame(100, 1));
    let room = driver.buffer(100);
    driver.submit(3, &[sent.readable()]);
    driver.submit(2, &[room.writable()]);
    wires[1].send(&frame(100, 2));
    std::thread::sleep(Duration::from_millis(5));
    wires[1].assert_silent();
    assert_eq!(driver.queues[2].take_used(), []);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(wires[1].recv(), frame(100, 1));
    driver.wait_used(2, 1);
    assert_eq!(driver.contents(room), received(&frame(100, 2), 1));
}

#[test]
fn without_mq_the_control_queue_is_behind_the_first_pair() {
    let (net, _, wires) = card(config(), 2);
    let mut driver = Driver::new(net);
    driver.start(!(1 << feature::MQ));
    // There are no pairs to set.
    assert_eq!(command(&mut driver, 2, &[4, 0, 1, 0]), 1);
    let set = [5, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(command(&mut driver, 2, &set), 0);
    assert_eq!(lock(&wires[0].asked).offloads.len(), 2);
}

#[test]
fn offloads_are_those_that_were_negotiated_and_can_be_changed() {
    let (net, _, wires) = card(config(), 1);
    let mut driver = Driver::new(net);
    let last = || *lock(&wires[0].asked).offloads.last().unwrap();
    driver.start(VERSION_1);
    assert_eq!(last(), Offloads::default());
    // What lacks its foundation does not count.
    driver.start(VERSION_1 | 1 << feature::GUEST_TSO4);
    assert_eq!(last(), Offloads::default());
    driver.start(!(1 << feature::GUEST_USO6 | 1 << feature::GUEST_TSO6));
    let negotiated = Offloads {
        tso6: false,
        uso: false,
        ..Offloads::ALL
    };
    assert_eq!(last(), negotiated);
    let set = |bits: u64| [vec![5, 0], bits.to_le_bytes().to_vec()].concat();
    // What is so already is not asked again.
    let asked = lock(&wires[0].asked).offloads.len();
    assert_eq!(command(&mut driver, 2, &set(1 << 1 | 1 << 7 | 1 << 9)), 0);
    assert_eq!(lock(&wires[0].asked).offloads.len(), asked);
    assert_eq!(command(&mut driver, 2, &set(1 << 1 | 1 << 7)), 0);
    let fewer = Offloads {
        csum: true,
        tso4: true,
        ..Offloads::default()
    };
    assert_eq!(last(), fewer);
    // Not negotiated, and no offloads.
    for bit in [8, 0, 55, 63] {
        assert_eq!(command(&mut driver, 2, &set(1 << bit)), 1, "{bit}");
    }
    assert_eq!(last(), fewer);
    assert_eq!(command(&mut driver, 2, &set(0)), 0);
    assert_eq!(last(), Offloads::default());
}

#[test]
fn a_pulled_cable_loses_frames_and_says_so() {
    let (mut driver, wire, control) = driver(u64::MAX);
    let status = |driver: &Driver| {
        let mut status = [0; 2];
        driver.core.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&driver), 1);
    control.set_link(false);
    control.set_link(false);
    assert_eq!((driver.interrupts.config(), status(&driver)), (1, 0));
    assert_eq!(driver.core.config_generation(), 1);
    let room = driver.buffer(100);
    driver.submit(RX, &[room.writable()]);
    wire.send(&frame(100, 1));
    let sent = driver.buffer_with(&frame(100, 2));
    driver.request(TX, &[sent.readable()]);
    driver.wait_until("dropped frame", |_| control.counters().rx.dropped == 1);
    assert_eq!(control.counters().tx.dropped, 1);
    control.set_link(true);
    assert_eq!((driver.interrupts.config(), status(&driver)), (2, 1));
    wire.send(&frame(100, 3));
    driver.wait_used(RX, 1);
    assert_eq!(driver.contents(room), received(&frame(100, 3), 1));
    driver.request(TX, &[sent.readable()]);
    assert_eq!(wire.recv(), frame(100, 2));
    // Idle, it is only remembered.
    driver.reset();
    control.set_link(false);
    assert_eq!(driver.interrupts.config(), 2);
}

#[test]
fn limits_hold_frames_back_until_they_are_lifted() {
    let two_an_hour = RateLimit {
        ops: Bucket::new(2, 3_600_000, 0),
        bandwidth: None,
    };
    let limited = NetConfig {
        rx_rate: two_an_hour,
        tx_rate: two_an_hour,
        ..config()
    };
    let (net, control, wires) = card(limited, 1);
    let mut driver = Driver::started(net);
    let rooms: Vec<_> = (0..5).map(|_| driver.buffer(100)).collect();
    for (seed, room) in (0..).zip(&rooms) {
        let sent = driver.buffer_with(&frame(100, seed));
        driver.submit(TX, &[sent.readable()]);
        driver.submit(RX, &[room.writable()]);
        wires[0].send(&frame(100, seed));
    }
    assert_eq!(driver.wait_used(TX, 2).len(), 2);
    assert_eq!(driver.wait_used(RX, 2).len(), 2);
    driver.wait_until("throttling", |_| {
        let counters = control.counters();
        (counters.tx.throttled, counters.rx.throttled) == (1, 1)
    });
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(driver.queues[TX].take_used(), []);
    assert_eq!(driver.queues[RX].take_used(), []);
    control
        .set_rate(RateLimit::default(), RateLimit::default())
        .unwrap();
    assert_eq!(driver.wait_used(TX, 3).len(), 3);
    assert_eq!(driver.wait_used(RX, 3).len(), 3);
    for (seed, room) in (0..).zip(&rooms) {
        assert_eq!(wires[0].recv(), frame(100, seed));
        assert_eq!(driver.contents(*room), received(&frame(100, seed), 1));
    }
}

#[test]
fn a_first_limit_may_come_while_it_works_and_a_reset_fills_no_bucket() {
    let (mut driver, wire, control) = driver(u64::MAX);
    let once_an_hour = RateLimit {
        ops: None,
        bandwidth: Bucket::new(100, 3_600_000, 0),
    };
    control.set_rate(once_an_hour, once_an_hour).unwrap();
    let sent = driver.buffer_with(&frame(112, 1));
    driver.request(TX, &[sent.readable()]);
    assert_eq!(wire.recv(), frame(112, 1));
    driver.start(u64::MAX);
    driver.submit(TX, &[sent.readable()]);
    driver.wait_until("throttling", |_| control.counters().tx.throttled == 1);
    wire.assert_silent();
    // A little more than nothing: the timer has to be watched.
    let fast = RateLimit {
        ops: None,
        bandwidth: Bucket::new(100, 1, 0),
    };
    control.set_rate(fast, fast).unwrap();
    for _ in 0..20 {
        driver.submit(TX, &[sent.readable()]);
    }
    for _ in 0..21 {
        assert_eq!(wire.recv(), frame(112, 1));
    }
}

#[test]
fn held_buffers_come_back_when_a_queue_is_reset() {
    let (mut driver, wire, _) = driver(u64::MAX);
    let rooms: Vec<_> = (0..4).map(|_| driver.buffer(100)).collect();
    for room in &rooms {
        driver.queues[RX].add(&[room.writable()]);
    }
    driver.kick(RX);
    wire.send(&frame(100, 0));
    driver.wait_used(RX, 1);
    driver.core.reset_queue(TX);
    let base = driver.queues[TX].config().desc;
    driver.queues[TX] = GuestQueue::new(driver.memory.clone(), base, 256);
    driver.set_up_queue(TX);
    for seed in 1..4 {
        wire.send(&frame(100, seed));
    }
    driver.wait_used(RX, 3);
    for (seed, room) in (0..).zip(&rooms) {
        assert_eq!(driver.contents(*room), received(&frame(100, seed), 1));
    }
}

#[test]
fn a_backend_that_fails_stops_nobody_else() {
    let (mut driver, wire, control) = driver(u64::MAX);
    lock(&wire.asked).fails = true;
    let room = driver.buffer(100);
    driver.submit(RX, &[room.writable()]);
    wire.send(&frame(100, 0));
    driver.wait_until("error", |_| control.counters().rx.errors == 1);
    let sent = driver.buffer_with(&frame(100, 1));
    for _ in 0..3 {
        driver.request(TX, &[sent.readable()]);
    }
    assert_eq!(control.counters().tx.errors, 3);
    assert!(!driver.is_broken());
    // It is not asked again before the driver begins anew.
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(control.counters().rx.errors, 1);
    lock(&wire.asked).fails = false;
    driver.start(u64::MAX);
    driver.submit(RX, &[room.writable()]);
    driver.wait_used(RX, 1);
    assert_eq!(driver.contents(room), received(&frame(100, 0), 1));
}

/// The kernel, as far as a card sees it.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Vec<String>>>);

impl KernelRings for Kernel {
    fn features(&self) -> u64 {
        VERSION_1
    }

    fn start(
        &mut self,
        features: u64,
        _: &GuestMemoryMmap,
        rx: &Queue,
        tx: &Queue,
        _: RawFd,
    ) -> Result<(), KernelError> {
        assert_ne!(features & VERSION_1, 0);
        let [rx, tx] = [rx, tx].map(Queue::position);
        lock(&self.0).push(format!("start {rx:?} {tx:?}"));
        Ok(())
    }

    fn stop(&mut self) -> Result<[u16; 2], KernelError> {
        lock(&self.0).push("stop".to_owned());
        Ok([5, 7])
    }
}

#[test]
fn the_kernel_serves_the_rings_of_pairs_in_use() {
    let kernels = [Kernel::default(), Kernel::default()];
    let (_wires, mut pairs): (Vec<_>, Vec<_>) = (0..2).map(|_| Wire::new(ALL)).unzip();
    for (pair, kernel) in pairs.iter_mut().zip(&kernels) {
        pair.kernel = Some(Box::new(kernel.clone()));
    }
    let (net, control) = Net::new(config(), pairs, TestLoop::start()).unwrap();
    // The kernel does not know it.
    assert_eq!(net.features() & 1 << feature::MRG_RXBUF, 0);
    let log = |kernel: &Kernel| std::mem::take(&mut *lock(&kernel.0));
    let mut driver = Driver::started(net);
    assert_eq!(log(&kernels[0]), ["start (0, 0) (0, 0)"]);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(log(&kernels[1]), ["start (0, 0) (0, 0)"]);
    assert_eq!(command(&mut driver, 4, &[4, 0, 1, 0]), 0);
    assert_eq!(log(&kernels[1]), ["stop"]);
    // A cable that is pulled and plugged in: it goes on where it was, by what it says itself.
    let used = |driver: &Driver, queue: usize, index: u16| {
        let ring = driver.queues[queue].config().used;
        driver
            .memory
            .write_obj(index, GuestAddress(ring + 2))
            .unwrap();
    };
    used(&driver, RX, 3);
    used(&driver, TX, 4);
    control.set_link(false);
    driver.wait_until("stop", |_| lock(&kernels[0].0).len() == 1);
    control.set_link(true);
    driver.wait_until("start", |_| lock(&kernels[0].0).len() == 2);
    assert_eq!(log(&kernels[0]), ["stop", "start (5, 3) (7, 4)"]);
    driver.core.reset_queue(3);
    assert_eq!(log(&kernels[0]), ["stop", "start (5, 3) (7, 4)"]);
    // Kicks are the kernel's.
    driver.kick(TX);
    std::thread::sleep(Duration::from_millis(5));
    assert!(driver.core.kick_fd(TX).unwrap().read().is_ok());
    drop(driver);
    assert_eq!(log(&kernels[0]), ["stop"]);
    // It keeps to no limits.
    let limit = RateLimit {
        ops: Bucket::new(1, 1, 0),
        bandwidth: None,
    };
    let error = control.set_rate(limit, limit).unwrap_err();
    assert!(matches!(error, Error::RateLimitWithVhost { .. }));
}
