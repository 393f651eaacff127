use super::*;
use crate::virtio::test_support::{Desc, Driver, TestLoop, lifecycle_suite};

lifecycle_suite!(Rng::new(TestLoop::start()).unwrap());

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
