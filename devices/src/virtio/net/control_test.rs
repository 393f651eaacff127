//! What the driver and the host can change while a card works.

use std::os::fd::RawFd;
use std::sync::Mutex;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::{KernelError, KernelRings};
use super::double::{ALL, RX, TX, VERSION_1, Wire, card, config, driver, frame, received};
use super::*;
use crate::lock;
use crate::rate_limiter::Bucket;
use crate::virtio::test_support::{Driver, GuestQueue, TestLoop};

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
    assert_eq!(lock(&wires[0].asked).enabled, [false; 0]);
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
fn the_reset_of_a_queue_leaves_what_was_set_as_it_is() {
    let (net, _, wires) = card(config(), 2);
    let mut driver = Driver::started(net);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    let mut offloads = vec![5, 0];
    offloads.extend((1u64 << feature::GUEST_CSUM).to_le_bytes());
    assert_eq!(command(&mut driver, 4, &offloads), 0);
    let csum_only = Offloads {
        csum: true,
        ..Offloads::default()
    };
    let is_as_set = || {
        let offloads = lock(&wires[0].asked).offloads.last().copied();
        let enabled = lock(&wires[1].asked).enabled.last().copied();
        (offloads, enabled) == (Some(csum_only), Some(true))
    };
    assert!(is_as_set());
    driver.core.reset_queue(RX);
    assert!(is_as_set());
    // It comes back smaller; the other pair has gone on.
    let base = driver.queues[RX].config().desc;
    driver.queues[RX] = GuestQueue::new(Arc::clone(&driver.memory), base, 64);
    driver.set_up_queue(RX);
    assert!(is_as_set());
    let room = driver.buffer(100);
    driver.submit(2, &[room.writable()]);
    wires[1].send(&frame(100, 2));
    driver.wait_used(2, 1);
    // A driver that starts anew has set nothing.
    driver.reset();
    driver.start(u64::MAX);
    assert!(!is_as_set());
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
    // From none to one, and then the timer has to be watched.
    let (mut driver, wire, control) = self::driver(u64::MAX);
    let fast = RateLimit {
        ops: None,
        bandwidth: Bucket::new(100, 1, 0),
    };
    control.set_rate(fast, fast).unwrap();
    let sent = driver.buffer_with(&frame(112, 1));
    for _ in 0..20 {
        driver.submit(TX, &[sent.readable()]);
    }
    for _ in 0..20 {
        assert_eq!(wire.recv(), frame(112, 1));
    }
    assert!(control.counters().tx.throttled > 0);
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

/// A card whose driver uses both of its pairs goes on as another one: what served it says how far it came.
#[test]
fn pairs_in_use_go_on_as_those_of_another_card() {
    let card_with = |kernels: &[Kernel; 2]| {
        let (wires, mut pairs): (Vec<_>, Vec<_>) = (0..2).map(|_| Wire::new(ALL)).unzip();
        for (pair, kernel) in pairs.iter_mut().zip(kernels) {
            pair.kernel = Some(Box::new(kernel.clone()));
        }
        let (net, _) = Net::new(config(), pairs, TestLoop::start()).unwrap();
        (net, wires)
    };
    let log = |kernel: &Kernel| std::mem::take(&mut *lock(&kernel.0));
    let first = [Kernel::default(), Kernel::default()];
    let (net, _wires) = card_with(&first);
    let mut driver = Driver::started(net);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    let csum = 1_u64 << feature::GUEST_CSUM;
    let offloads = [vec![5, 0], csum.to_le_bytes().to_vec()].concat();
    assert_eq!(command(&mut driver, 4, &offloads), 0);
    driver.core.pause();
    let state = driver.core.save().unwrap();
    let positions: Vec<_> = state.queues.iter().map(|queue| queue.next_avail).collect();
    assert_eq!(positions, [5, 7, 5, 7, 2]);

    let second = [Kernel::default(), Kernel::default()];
    let (net, wires) = card_with(&second);
    let mut other = Driver::in_memory(net, Arc::clone(&driver.memory));
    other.core.restore(&state).unwrap();
    assert_eq!(log(&second[0]), [""; 0]);
    other.core.resume();
    assert!(!other.is_broken());
    for kernel in &second {
        assert_eq!(log(kernel), ["start (5, 0) (7, 0)"]);
    }
    assert_eq!(lock(&wires[1].asked).enabled, [false, true]);
    let left = lock(&wires[0].asked).offloads.last().copied().unwrap();
    assert!(left.csum && !left.tso4);

    // What no driver can have set.
    for (pairs, offloads) in [
        (Some(0), None),
        (Some(3), None),
        (None, Some(1)),
        (None, Some(u64::MAX)),
    ] {
        let (net, _wires) = card_with(&second);
        let mut other = Driver::in_memory(net, Arc::clone(&driver.memory));
        let mut bad = state.clone();
        bad.device = DeviceState::Net(NetState { pairs, offloads });
        let refused = other.core.restore(&bad);
        assert!(matches!(refused, Err(BadState::Value { .. })), "{bad:?}");
    }
    // Another number of pairs.
    let (net, _, _wires) = card(config(), 1);
    let mut other = Driver::in_memory(net, Arc::clone(&driver.memory));
    assert!(matches!(
        other.core.restore(&state),
        Err(BadState::Count { .. })
    ));
}
