use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::stats::MAX_ENTRIES;
use super::worker::{MAX_PFNS, coalesce};
use super::*;
use crate::backend::guest_ram::tests::is_resident;
use crate::virtio::test_support::{
    Desc, Driver, GuestQueue, HOLE, MEMORY_SIZE, TestLoop, lifecycle_suite,
};
use crate::virtio::transport::core::{Half, status};

/// Queues as Linux numbers them when it has all that is offered.
const STATS: usize = 2;
const LINUX_REPORTING: usize = 3;
/// Pages that no test's buffers are in.
const FREE: u64 = HOLE.0 + HOLE.1;

fn all() -> Config {
    Config {
        target: 4 << 20,
        deflate_on_oom: true,
        free_page_reporting: true,
        free_page_hinting: false,
        stats_interval: Duration::ZERO,
    }
}

fn balloon(config: Config) -> Balloon {
    Balloon::new(TestLoop::start(), config).unwrap()
}

fn start(config: Config) -> (Driver, BalloonControl) {
    let balloon = balloon(config);
    let control = balloon.control();
    (Driver::started(balloon), control)
}

lifecycle_suite!(balloon(all()));

mod with_hints {
    use super::*;

    lifecycle_suite!(balloon(Config {
        free_page_hinting: true,
        ..all()
    }));
}

/// Where Linux has the queue when it has statistics too.
const LINUX_HINTING: usize = 3;

fn command(driver: &Driver) -> u32 {
    let mut bytes = [0; 4];
    driver.core.read_config(8, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn memory_that_is_hinted_at_in_the_hosts_round_is_the_hosts() {
    let (mut driver, control) = start(Config {
        free_page_hinting: true,
        ..Config::default()
    });
    touch(&driver, FREE, 8);
    assert_eq!(command(&driver), 0);
    assert_eq!(control.hinting(), Ok(HintingStatus::default()));
    let say = |driver: &mut Driver, command: u32| {
        let buffer = driver.buffer_with(&command.to_le_bytes());
        driver.request(LINUX_HINTING, &[buffer.readable()]);
    };
    let tell = |driver: &mut Driver, page: u64| {
        let free = Desc::writable(FREE + page * PAGE_SIZE, PAGE_SIZE as u32);
        assert_eq!(driver.request(LINUX_HINTING, &[free]), 0);
    };
    // Nobody has asked.
    tell(&mut driver, 0);
    say(&mut driver, 2);
    tell(&mut driver, 0);
    assert_eq!(resident(&driver.memory, FREE, 8).len(), 8);

    control.start_hinting(true).unwrap();
    assert_eq!(command(&driver), 2);
    say(&mut driver, 2);
    tell(&mut driver, 1);
    tell(&mut driver, 3);
    assert_eq!(resident(&driver.memory, FREE, 8), [0, 2, 4, 5, 6, 7]);
    say(&mut driver, 0);
    // It has its pages back, and what comes late does not count.
    assert_eq!(command(&driver), 1);
    tell(&mut driver, 2);
    control.start_hinting(false).unwrap();
    assert_eq!(command(&driver), 3);
    // Still of the round before.
    say(&mut driver, 2);
    tell(&mut driver, 2);
    assert_eq!(resident(&driver.memory, FREE, 8), [0, 2, 4, 5, 6, 7]);
    say(&mut driver, 3);
    tell(&mut driver, 2);
    say(&mut driver, 0);
    assert_eq!(command(&driver), 3);
    control.stop_hinting().unwrap();
    assert_eq!(command(&driver), 1);
    assert_eq!(resident(&driver.memory, FREE, 8), [0, 4, 5, 6, 7]);
    let counters = control.counters();
    assert_eq!((counters.hints, counters.hinted), (3, 3 * PAGE_SIZE));
    assert_eq!(counters.discarded, 3 * PAGE_SIZE);
    let status = control.hinting().unwrap();
    assert_eq!((status.host_command, status.guest_command), (1, Some(0)));
}

#[test]
fn hints_are_only_for_who_asked_for_them() {
    let (_driver, control) = start(all());
    assert_eq!(control.start_hinting(true), Err(HintingError::Off));
    assert_eq!(control.stop_hinting(), Err(HintingError::Off));
    assert_eq!(control.hinting(), Err(HintingError::Off));
    let balloon = balloon(Config {
        free_page_hinting: true,
        ..all()
    });
    let control = balloon.control();
    assert_eq!(control.start_hinting(true), Err(HintingError::NotActive));
}

mod with_as_little_as_possible {
    use super::*;

    lifecycle_suite!(balloon(Config::default()));
}

fn pfns(pages: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let numbers = pages.into_iter().map(|gpa| (gpa / PAGE_SIZE) as u32);
    numbers.flat_map(u32::to_le_bytes).collect()
}

fn touch(driver: &Driver, gpa: u64, pages: u64) {
    driver.write(gpa, &vec![0x55; (pages * PAGE_SIZE) as usize]);
}

fn resident(memory: &GuestMemoryMmap, gpa: u64, pages: u64) -> Vec<u64> {
    (0..pages)
        .filter(|page| is_resident(memory, gpa + page * PAGE_SIZE))
        .collect()
}

#[test]
fn pages_in_the_balloon_are_the_hosts() {
    let (mut driver, control) = start(all());
    touch(&driver, FREE, 8);
    // As Linux has them: from the top down, and one that is not next to the others.
    let pages = [6, 4, 3, 2].map(|page| FREE + page * PAGE_SIZE);
    let buffer = driver.buffer_with(&pfns(pages));
    assert_eq!(driver.request(INFLATE, &[buffer.readable()]), 0);
    assert_eq!(resident(&driver.memory, FREE, 8), [0, 1, 5, 7]);
    assert_eq!(driver.read(FREE + 2 * PAGE_SIZE, 1), [0]);
    assert_eq!(driver.read(FREE + 5 * PAGE_SIZE, 1), [0x55]);
    assert_eq!(driver.request(DEFLATE, &[buffer.readable()]), 0);
    touch(&driver, FREE, 8);
    assert_eq!(resident(&driver.memory, FREE, 8).len(), 8);
    assert_eq!(
        control.counters(),
        BalloonCounters {
            inflated: 4 * PAGE_SIZE,
            deflated: 4 * PAGE_SIZE,
            discarded: 4 * PAGE_SIZE,
            inflations: 1,
            deflations: 1,
            ..BalloonCounters::default()
        }
    );
}

#[test]
fn page_numbers_become_few_ranges() {
    assert_eq!(coalesce(vec![]), []);
    assert_eq!(
        coalesce(vec![7, 3, 5, 4, 5, 0, 9, 8]),
        [0..0x1000, 0x3000..0x6000, 0x7000..0xa000]
    );
    let ranges = coalesce(vec![u32::MAX, 0]);
    assert_eq!(ranges[1], (1 << 44) - PAGE_SIZE..1 << 44);
}

#[test]
fn pages_that_are_not_there_do_no_harm() {
    let (mut driver, control) = start(all());
    touch(&driver, FREE, 1);
    let beyond = MEMORY_SIZE + HOLE.1;
    let pages = [HOLE.0, beyond, u64::from(u32::MAX) * PAGE_SIZE, FREE];
    let mut bytes = pfns(pages);
    // And half a number.
    bytes.push(0);
    let buffer = driver.buffer_with(&bytes);
    driver.request(INFLATE, &[buffer.readable()]);
    assert!(resident(&driver.memory, FREE, 1).is_empty());
    assert_eq!(control.counters().discarded, PAGE_SIZE);
    assert_eq!(control.counters().failed, 1);
    assert!(!driver.is_broken());
}

#[test]
fn a_request_has_a_limit() {
    let (mut driver, control) = start(all());
    let pages = MAX_PFNS as u64 + 100;
    let buffer = driver.buffer_with(&pfns((0..pages).map(|page| page * PAGE_SIZE + (1 << 40))));
    for queue in [INFLATE, DEFLATE] {
        driver.request(queue, &[buffer.readable()]);
    }
    assert_eq!(control.counters().inflated, MAX_PFNS as u64 * PAGE_SIZE);
    assert_eq!(control.counters().deflated, MAX_PFNS as u64 * PAGE_SIZE);
    // More than fits into a turn.
    for _ in 0..20 {
        driver.submit(INFLATE, &[buffer.readable()]);
    }
    driver.wait_used(INFLATE, 20);
}

#[test]
fn free_pages_that_are_reported_are_the_hosts() {
    let (mut driver, control) = start(all());
    touch(&driver, FREE, 16);
    let page = PAGE_SIZE as u32;
    let descs = [
        Desc::writable(FREE, 2 * page),
        Desc::writable(FREE + 4 * PAGE_SIZE, 4 * page),
        // Not a whole page.
        Desc::writable(FREE + 10 * PAGE_SIZE + 8, page),
    ];
    assert_eq!(driver.request(LINUX_REPORTING, &descs), 0);
    assert_eq!(
        resident(&driver.memory, FREE, 16),
        [2, 3, 8, 9, 10, 11, 12, 13, 14, 15]
    );
    assert_eq!(control.counters().reported, 7 * PAGE_SIZE);
    assert_eq!(control.counters().discarded, 6 * PAGE_SIZE);
}

#[test]
fn what_the_driver_only_lets_be_read_is_not_free() {
    let (mut driver, _) = start(all());
    touch(&driver, FREE, 1);
    driver.request(LINUX_REPORTING, &[Desc::readable(FREE, 4096)]);
    assert_eq!(resident(&driver.memory, FREE, 1), [0]);
}

#[test]
fn the_reporting_queue_is_where_the_driver_has_it() {
    for (features, queue) in [
        // Without statistics: Linux has it in their place.
        (1 << F_PAGE_REPORTING, STATS),
        (u64::MAX, LINUX_REPORTING),
    ] {
        let mut driver = Driver::new(balloon(all()));
        driver.start(features | 1 << 32);
        touch(&driver, FREE, 1);
        driver.request(queue, &[Desc::writable(FREE, 4096)]);
        assert!(resident(&driver.memory, FREE, 1).is_empty());
    }
    // A driver that goes by the book.
    let mut driver = Driver::new(balloon(all()));
    driver.start(u64::MAX);
    driver.reset();
    driver.negotiate(u64::MAX);
    for index in [INFLATE, DEFLATE, STATS, REPORTING] {
        let base = 0x10_0000 + index as u64 * GuestQueue::SPACE;
        let memory = Arc::clone(&driver.memory);
        driver.queues[index] = GuestQueue::new(memory, base, 64);
        driver.set_up_queue(index);
    }
    driver
        .core
        .set_status(driver.core.status() | status::DRIVER_OK);
    touch(&driver, FREE, 1);
    driver.request(REPORTING, &[Desc::writable(FREE, 4096)]);
    assert!(resident(&driver.memory, FREE, 1).is_empty());
}

#[test]
fn features_are_as_configured() {
    let mut driver = Driver::new(balloon(Config::default()));
    assert_eq!(driver.core.offered_features(Half::Low) & 0xff, 0b10);
    driver = Driver::new(balloon(all()));
    assert_eq!(driver.core.offered_features(Half::Low) & 0xff, 0b10_0110);
}

#[test]
fn a_target_is_told_and_reached() {
    let (mut driver, control) = start(all());
    let config = |driver: &Driver| {
        let mut data = [0xaa; 10];
        driver.core.read_config(0, &mut data);
        data
    };
    assert_eq!(config(&driver), [0, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    let before = (driver.interrupts.config(), driver.core.config_generation());
    control.set_target(3 * PAGE_SIZE + 5);
    assert_eq!(control.target(), 3 * PAGE_SIZE);
    assert_eq!(config(&driver)[..4], [3, 0, 0, 0]);
    assert_eq!(driver.interrupts.config(), before.0 + 1);
    assert_ne!(driver.core.config_generation(), before.1);
    control.set_target(3 * PAGE_SIZE);
    assert_eq!(driver.interrupts.config(), before.0 + 1, "nothing changed");
    driver.core.write_config(4, &[3, 0, 0, 0]);
    assert_eq!(control.actual(), 3 * PAGE_SIZE);
    // What is read-only, or not there, stays.
    driver.core.write_config(0, &[9; 4]);
    driver.core.write_config(4, &[9; 3]);
    driver.core.write_config(u64::MAX, &[9; 4]);
    assert_eq!(config(&driver)[..8], [3, 0, 0, 0, 3, 0, 0, 0]);
    control.set_target(u64::MAX);
    assert_eq!(config(&driver)[..4], [255; 4]);
}

fn stats(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry = |&(tag, value): &(u16, u64)| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(value.to_le_bytes());
        bytes
    };
    entries.iter().flat_map(entry).collect()
}

#[test]
fn all_statistics_are_read() {
    let entries: Vec<_> = (0..20).map(|tag| (tag, 1000 + u64::from(tag))).collect();
    let now = Instant::now();
    let parsed = BalloonStats::parse(&stats(&entries), now);
    assert_eq!(
        parsed,
        BalloonStats {
            swap_in: Some(1000),
            swap_out: Some(1001),
            major_faults: Some(1002),
            minor_faults: Some(1003),
            free_memory: Some(1004),
            total_memory: Some(1005),
            available_memory: Some(1006),
            disk_caches: Some(1007),
            hugetlb_allocations: Some(1008),
            hugetlb_failures: Some(1009),
            oom_kills: Some(1010),
            alloc_stalls: Some(1011),
            async_scans: Some(1012),
            direct_scans: Some(1013),
            async_reclaims: Some(1014),
            direct_reclaims: Some(1015),
            updated: Some(now),
        }
    );
    let half = BalloonStats::parse(&stats(&entries)[..15], now);
    assert_eq!((half.swap_in, half.swap_out), (Some(1000), None));
}

#[test]
fn statistics_come_when_they_are_wanted() {
    let (mut driver, control) = start(all());
    assert_eq!(control.stats(), BalloonStats::default());
    let buffer = driver.buffer_with(&stats(&[(4, 111), (0xffff, 5)]));
    driver.submit(STATS, &[buffer.readable()]);
    driver.wait_until("statistics", |_| control.stats().free_memory == Some(111));
    // It is kept until more is wanted.
    assert!(driver.queues[STATS].take_used().is_empty());
    control
        .set_stats_interval(Duration::from_millis(1))
        .unwrap();
    for value in [222, 333] {
        driver.wait_used(STATS, 1);
        driver.write(buffer.gpa, &stats(&[(4, value)]));
        driver.submit(STATS, &[buffer.readable()]);
        driver.wait_until("statistics", |_| control.stats().free_memory == Some(value));
    }
    assert!(control.stats().updated.is_some());
    control.set_stats_interval(Duration::MAX).unwrap_err();
}

#[test]
fn a_request_for_statistics_survives_a_reset() {
    let mut config = all();
    config.stats_interval = Duration::from_millis(1);
    let (mut driver, control) = start(config);
    for value in 1..5 {
        let buffer = driver.buffer_with(&stats(&[(5, value)]));
        driver.submit(STATS, &[buffer.readable()]);
        driver.wait_until("statistics", |_| {
            control.stats().total_memory == Some(value)
        });
        driver.reset();
        driver.start(u64::MAX);
    }
    assert!(!driver.is_broken());
}

#[test]
fn a_driver_that_sends_too_many_statistics_is_answered_one_by_one() {
    let mut config = all();
    config.stats_interval = Duration::from_millis(1);
    let (mut driver, control) = start(config);
    let entries: Vec<_> = (0..100).map(|index| (4, index)).collect();
    let buffer = driver.buffer_with(&stats(&entries));
    for _ in 0..20 {
        driver.queues[STATS].add(&[buffer.readable()]);
    }
    driver.kick(STATS);
    driver.wait_used(STATS, 19);
    assert_eq!(control.stats().free_memory, Some(MAX_ENTRIES as u64 - 1));
}

#[test]
fn a_bad_chain_breaks_it_until_it_is_reset() {
    for queue in [INFLATE, DEFLATE, STATS, LINUX_REPORTING] {
        let (mut driver, control) = start(all());
        driver.submit(queue, &[Desc::writable(u64::MAX - 8, 16)]);
        driver.wait_broken();
        driver.start(u64::MAX);
        touch(&driver, FREE, 1);
        driver.request(LINUX_REPORTING, &[Desc::writable(FREE, 4096)]);
        assert_eq!(control.counters().discarded, PAGE_SIZE);
    }
}
