use std::time::Duration;

use super::backend::{HEADER_LEN, LINK_HEADER, MAX_FRAME, MIN_FRAME};
use super::double::{ALL, RX, TX, VERSION_1, Wire, card, config, driver, frame, received};
use super::*;
use crate::lock;
use crate::virtio::test_support::{Desc, GuestQueue, TestLoop, lifecycle_suite};

/// A frame that says nothing.
const SHORTEST: usize = HEADER_LEN + MIN_FRAME;

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
        // With the event index a driver that looks early enough needs none.
        if features != u64::MAX {
            assert!(driver.interrupts.used(0) >= 1 && driver.interrupts.used(1) >= 1);
        }
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
    // All at once, so once told; and before the driver has seen any, which would tell what it waits for.
    driver.wait_until("interrupt", |driver| driver.interrupts.used(0) == 1);
    let used = driver.queues[RX].take_used();
    assert_eq!(used.len(), 44);
    assert!(used[..43].iter().all(|(_, len)| *len == 1500));
    let all: Vec<u8> = (used.iter().zip(&buffers))
        .flat_map(|((_, len), buffer)| driver.read(buffer.gpa, *len))
        .collect();
    assert!(all == received(&long, 44));
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
    // Tables of 256 buffers of a byte, none beside another: the kernel takes no more than four of them
    // at once.
    for number in 0..8 {
        let table = buffer.gpa + 0x10_0000 + number * 4096;
        let pieces: Vec<Desc> = (0..256)
            .map(|at| Desc::writable(buffer.gpa + number * 512 + 2 * at, 1))
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
    let bytes: Vec<u8> = driver
        .read(buffer.gpa, 1400)
        .into_iter()
        .step_by(2)
        .collect();
    assert_eq!(bytes, received(&frame(700, 2), 3));
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
