use super::*;
use crate::rate_limiter::Bucket;
use crate::virtio::test_support::{Desc, Driver, TestLoop, lifecycle_suite};

lifecycle_suite!(Rng::new(TestLoop::start()).unwrap());

mod with_a_limit {
    use super::*;

    fn limited() -> Rng {
        let rng = Rng::new(TestLoop::start()).unwrap();
        let limit = RateLimit {
            bandwidth: Bucket::new(100, 5, 0),
            ops: Bucket::new(3, 5, 0),
        };
        rng.control().set_rate_limit(limit).unwrap();
        rng
    }

    lifecycle_suite!(limited());
}

fn driver() -> Driver {
    Driver::started(Rng::new(TestLoop::start()).unwrap())
}

#[test]
fn fills_buffers_with_randomness() {
    let mut driver = driver();
    let buffers = [driver.buffer(16), driver.buffer(100)];
    let written = driver.request(0, &buffers.map(|buffer| buffer.writable()));
    assert_eq!(written, 116);
    let random = driver.contents(buffers[1]);
    // All alike once in 2^792.
    assert!(random.windows(2).any(|pair| pair[0] != pair[1]));
    assert_ne!(random, vec![0xaa; 100]);
    assert!(driver.interrupts.used(0) >= 1);
}

#[test]
fn gives_no_more_than_its_limit() {
    let mut driver = driver();
    let buffer = driver.buffer(1 << 20);
    let written = driver.request(0, &[buffer.writable()]);
    assert_eq!(written as usize, MAX_BYTES);
    assert_eq!(driver.read(buffer.gpa + u64::from(written), 64), [0xaa; 64]);
}

#[test]
fn gives_nothing_where_there_is_no_room() {
    let mut driver = driver();
    let buffer = driver.buffer(16);
    assert_eq!(driver.request(0, &[buffer.readable()]), 0);
    assert_eq!(driver.contents(buffer), [0xaa; 16]);
}

#[test]
fn serves_more_requests_than_fit_into_a_turn() {
    let mut driver = driver();
    let buffer = driver.buffer(8);
    for _ in 0..40 {
        for _ in 0..32 {
            driver.queues[0].add(&[buffer.writable()]);
        }
        driver.kick(0);
        assert_eq!(driver.wait_used(0, 32).len(), 32);
    }
}

#[test]
fn a_bad_chain_breaks_it_until_it_is_reset() {
    let mut driver = driver();
    driver.submit(0, &[Desc::writable(u64::MAX - 8, 16)]);
    driver.wait_broken();
    assert!(driver.interrupts.config() >= 1);
    driver.start(u64::MAX);
    let buffer = driver.buffer(16);
    assert_eq!(driver.request(0, &[buffer.writable()]), 16);
}

#[test]
fn a_limit_holds_the_guest_until_it_is_lifted() {
    let rng = Rng::new(TestLoop::start()).unwrap();
    let control = rng.control();
    let limit = RateLimit {
        // The rest would take longer than anybody waits.
        bandwidth: Bucket::new(1000, 1_000_000_000, 0),
        ops: None,
    };
    control.set_rate_limit(limit).unwrap();
    let mut driver = Driver::started(rng);
    let buffer = driver.buffer(300);
    for _ in 0..8 {
        driver.submit(0, &[buffer.writable()]);
    }
    driver.wait_used(0, 3);
    assert!(driver.queues[0].take_used().is_empty());
    // A reset is no way around it.
    driver.reset();
    driver.start(u64::MAX);
    driver.submit(0, &[buffer.writable()]);
    driver.submit(0, &[buffer.writable()]);
    assert!(driver.queues[0].take_used().is_empty());
    control.set_rate_limit(RateLimit::default()).unwrap();
    driver.wait_used(0, 2);
}

#[test]
fn a_limit_only_slows_it_down() {
    let mut driver = driver_with(RateLimit {
        bandwidth: None,
        ops: Bucket::new(5, 1, 0),
    });
    let buffer = driver.buffer(300);
    for _ in 0..32 {
        driver.queues[0].add(&[buffer.writable()]);
    }
    driver.kick(0);
    let used = driver.wait_used(0, 32);
    assert!(used.iter().all(|(_, len)| *len == 300));
}

fn driver_with(limit: RateLimit) -> Driver {
    let rng = Rng::new(TestLoop::start()).unwrap();
    rng.control().set_rate_limit(limit).unwrap();
    Driver::started(rng)
}
