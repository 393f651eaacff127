use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::test_support::{Driver, GuestQueue, TestLoop};

fn driver() -> Driver {
    Driver::new(Rng::new(TestLoop::start()).unwrap())
}

#[test]
fn offers_what_all_devices_have() {
    let driver = driver();
    assert_eq!(driver.core.offered_features(Half::Low), 1 << 28 | 1 << 29);
    assert_eq!(driver.core.offered_features(Half::High), 1 << 0 | 1 << 8);
}

#[test]
fn a_status_bit_is_set_once_and_cleared_by_a_reset_only() {
    let mut driver = driver();
    driver.core.set_status(status::ACKNOWLEDGE);
    driver.core.set_status(status::DRIVER);
    let both = status::ACKNOWLEDGE | status::DRIVER;
    assert_eq!(driver.core.status(), both);
    // Not the driver's to set.
    driver.core.set_status(both | status::DEVICE_NEEDS_RESET);
    assert_eq!(driver.core.status(), both);
    driver.core.set_status(0);
    assert_eq!(driver.core.status(), 0);
}

#[test]
fn a_queue_in_use_is_not_changed() {
    let mut driver = driver();
    driver.start(u64::MAX);
    let before = driver.core.queue(0);
    driver.core.set_queue_size(0, 2);
    driver
        .core
        .set_queue_address(0, Ring::Used, Half::Low, 0x1234);
    driver.core.set_queue_ready(0, false);
    assert_eq!(driver.core.queue(0), before);
}

#[test]
fn queues_that_do_not_exist_are_ignored() {
    let mut driver = driver();
    driver.core.set_queue_size(1, 2);
    driver.core.set_queue_ready(usize::MAX, true);
    driver.core.reset_queue(7);
    driver.core.kick(usize::MAX);
    assert_eq!(driver.core.queue_max_size(1), 0);
    assert_eq!(driver.core.queue(1), QueueConfig::default());
}

#[test]
fn a_queue_goes_on_where_it_stopped_when_another_is_reset() {
    let mut driver = driver();
    driver.start(u64::MAX);
    let buffer = driver.buffer(8);
    for _ in 0..3 {
        assert_eq!(driver.request(0, &[buffer.writable()]), 8);
    }
    // As a device with two queues does for the one that stays.
    driver.core.restart();
    assert_eq!(driver.request(0, &[buffer.writable()]), 8);
}

#[test]
fn a_queue_without_ring_reset_is_not_reset() {
    let mut driver = driver();
    driver.start(1 << feature::VERSION_1);
    driver.core.reset_queue(0);
    assert!(driver.core.queue(0).ready);
}

#[test]
fn a_reset_queue_starts_anew_elsewhere() {
    let mut driver = driver();
    driver.start(u64::MAX);
    let buffer = driver.buffer(8);
    assert_eq!(driver.request(0, &[buffer.writable()]), 8);
    driver.core.reset_queue(0);
    driver.queues[0] = GuestQueue::new(driver.memory.clone(), 0x30_0000, 8);
    driver.set_up_queue(0);
    assert_eq!(driver.request(0, &[buffer.writable()]), 8);
}

#[test]
fn without_event_idx_too() {
    let mut driver = driver();
    driver.start(1 << feature::VERSION_1);
    let buffer = driver.buffer(8);
    assert_eq!(driver.request(0, &[buffer.writable()]), 8);
    let head = driver.queues[0].add(&[buffer.writable()]);
    assert_eq!(driver.queues[0].take_used(), []);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 1), [(head, 8)]);
}
