use std::fs;
use std::path::Path;

use super::*;
use crate::backend::disk::test_support::{Random, TempDir, modes, pattern};
use crate::rate_limiter::Bucket;
use crate::virtio::test_support::{Desc, Driver, TestLoop, lifecycle_suite};
use crate::virtio::transport::core::status;

const KIB: usize = 1 << 10;

// Types of requests, and answers.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[path = "placeholder_test.rs"]
mod placeholder;

mod sync {
    use super::*;

    lifecycle_suite!(device(|config| config.engine = EngineKind::Sync));
}

mod uring {
    use super::*;

    lifecycle_suite!(device(|config| config.queues = 4));
}

mod overlay {
    use super::*;

    lifecycle_suite!(device(|config| config.overlay = Overlay::Temporary));
}

mod limited {
    use super::*;

    lifecycle_suite!(device(|config| config.rate.ops = Bucket::new(3, 10, 0)));
}

/// A disk of 256 KiB whose file has no name any more.
fn device(change: impl Fn(&mut BlockConfig)) -> Block {
    let dir = TempDir::new();
    let mut config = BlockConfig::new("disk", dir.file("disk", 256 * KIB));
    change(&mut config);
    Block::new(config, TestLoop::start()).unwrap().0
}

fn started(config: BlockConfig) -> (Driver, BlockControl) {
    let (block, control) = Block::new(config, TestLoop::start()).unwrap();
    (Driver::started(block), control)
}

/// Makes a request; returns the answer and what was read.
fn request(driver: &mut Driver, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, Vec<u8>) {
    request_on(driver, 0, kind, sector, out, room)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

fn request_on(
    driver: &mut Driver,
    queue: usize,
    kind: u32,
    sector: u64,
    out: &[u8],
    room: u32,
) -> (u8, Vec<u8>) {
    // One place for all, so that memory is not used up.
    const AT: u64 = 0x1a0_0000;
    let header = header(kind, sector);
    driver.write(AT, &header);
    driver.write(AT + 16, out);
    let answer = AT + 0x10_0000;
    driver.write(answer, &vec![0xaa; room as usize + 1]);
    let mut descs = vec![Desc::readable(AT, 16)];
    for (index, chunk) in out.chunks(5000).enumerate() {
        let at = AT + 16 + 5000 * index as u64;
        descs.push(Desc::readable(at, chunk.len() as u32));
    }
    descs.push(Desc::writable(answer, room + 1));
    let used = driver.request(queue, &descs);
    assert_eq!(used, room + 1);
    let mut data = driver.read(answer, room + 1);
    (data.pop().unwrap(), data)
}

fn read(driver: &mut Driver, sector: u64, len: usize) -> Vec<u8> {
    let (answer, data) = request(driver, IN, sector, &[], len as u32);
    assert_eq!(answer, OK);
    data
}

fn write(driver: &mut Driver, sector: u64, bytes: &[u8]) {
    assert_eq!(request(driver, OUT, sector, bytes, 0).0, OK);
}

fn ranges(driver: &mut Driver, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend(flags.to_le_bytes());
    request(driver, kind, 0, &range, 0).0
}

fn config_field(driver: &Driver, offset: u64, len: usize) -> u64 {
    let mut bytes = [0; 8];
    driver.core.read_config(offset, &mut bytes[..len]);
    u64::from_le_bytes(bytes)
}

fn has_feature(driver: &Driver, bit: u32) -> bool {
    use crate::virtio::transport::core::Half;

    driver.core.offered_features(Half::Low) & 1 << bit != 0
}

#[test]
fn does_what_a_driver_asks() {
    let dir = TempDir::new();
    for (engine, cache) in modes() {
        let path = dir.file("disk", 256 * KIB);
        let (mut driver, control) = started(BlockConfig {
            engine,
            cache,
            serial: Some("a serial number".into()),
            ..BlockConfig::new("disk", &path)
        });
        let mut model = pattern(256 * KIB);
        assert!(read(&mut driver, 0, 256 * KIB) == model);
        write(&mut driver, 5, &[1; 20 * KIB]);
        model[5 * 512..][..20 * KIB].fill(1);
        assert_eq!(request(&mut driver, FLUSH, 0, &[], 0).0, OK);
        assert_eq!(ranges(&mut driver, WRITE_ZEROES, 64, 9, 0), OK);
        assert_eq!(ranges(&mut driver, WRITE_ZEROES, 128, 9, 1), OK);
        model[64 * 512..73 * 512].fill(0);
        model[128 * 512..137 * 512].fill(0);
        assert!(read(&mut driver, 0, 256 * KIB) == model);
        assert_eq!(ranges(&mut driver, DISCARD, 256, 128, 0), OK);
        assert_eq!(read(&mut driver, 256, 64 * KIB), vec![0; 64 * KIB]);
        model[256 * 512..384 * 512].fill(0);

        let (answer, serial) = request(&mut driver, GET_ID, 0, &[], 20);
        assert_eq!(
            (answer, &serial[..]),
            (OK, &b"a serial number\0\0\0\0\0"[..])
        );
        let (answer, serial) = request(&mut driver, GET_ID, 0, &[], 4);
        assert_eq!((answer, &serial[..]), (OK, &b"a se"[..]));

        // Beyond the end, half a sector, unknown.
        assert_eq!(request(&mut driver, IN, 512, &[], 512).0, IO_ERROR);
        assert_eq!(request(&mut driver, OUT, 511, &[0; 1024], 0).0, IO_ERROR);
        assert_eq!(request(&mut driver, OUT, 0, &[0; 100], 0).0, IO_ERROR);
        assert_eq!(ranges(&mut driver, DISCARD, 512, 1, 0), IO_ERROR);
        assert_eq!(request(&mut driver, 99, 0, &[], 0).0, UNSUPPORTED);

        driver.reset();
        let counters = control.counters();
        assert_eq!(counters.reads, 3);
        assert_eq!(counters.read_bytes, (512 + 64) * KIB as u64);
        assert_eq!((counters.writes, counters.write_bytes), (1, 20 << 10));
        assert_eq!((counters.flushes, counters.discards), (1, 1));
        assert_eq!(counters.write_zeroes, 2);
        assert_eq!((counters.bad_requests, counters.host_errors), (5, 0));
        let latencies = control.latencies();
        assert_eq!((latencies.reads.count(), latencies.writes.count()), (3, 1));
        assert_eq!(latencies.flushes.count(), 1);
        assert!(latencies.reads.min_ns <= latencies.reads.max_ns);
        drop(driver);
        assert!(fs::read(&path).unwrap() == model);
    }
}

#[test]
fn announces_what_it_can() {
    let dir = TempDir::new();
    let path = dir.file("disk", 256 * KIB);
    let config = BlockConfig::new("disk", &path);
    let driver = Driver::new(device(|_| ()));
    assert_eq!(config_field(&driver, 0, 8), 512);
    assert_eq!(config_field(&driver, 12, 4), 254);
    assert_eq!(config_field(&driver, 20, 4), 512);
    assert_eq!(config_field(&driver, 34, 2), 1);
    assert_eq!(config_field(&driver, 56, 1), 1);
    assert_eq!(config_field(&driver, 60, 8), 0);
    for bit in [1, 2, 6, 9, 10, 11, 13, 14] {
        assert!(has_feature(&driver, bit), "{bit}");
    }
    for bit in [0, 3, 4, 5, 7, 12, 15, 16] {
        assert!(!has_feature(&driver, bit), "{bit}");
    }
    let driver = Driver::new(device(|config| config.read_only = true));
    assert!(has_feature(&driver, feature::RO));
    for bit in [9, 11, 13, 14] {
        assert!(!has_feature(&driver, bit), "{bit}");
    }
    let driver = Driver::new(device(|config| config.cache = Cache::Unsafe));
    assert!(!has_feature(&driver, feature::FLUSH));
    let driver = Driver::new(device(|config| config.queues = 8));
    assert!(has_feature(&driver, feature::MQ));
    assert_eq!(config_field(&driver, 34, 2), 8);
    assert_eq!(driver.core.queue_count(), 8);

    let error = |config| Block::new(config, TestLoop::start()).err().unwrap();
    for queues in [0, 9, u16::MAX] {
        let error = error(BlockConfig {
            queues,
            ..config.clone()
        });
        assert!(matches!(error, Error::Queues { .. }));
    }
    let error = error(BlockConfig {
        serial: Some("x".repeat(21)),
        ..config
    });
    assert!(matches!(error, Error::Serial { .. }));
}

#[test]
fn all_queues_work_at_once() {
    let dir = TempDir::new();
    for (engine, cache) in modes() {
        let path = dir.sparse("disk", 4 << 20);
        let (mut driver, control) = started(BlockConfig {
            queues: 8,
            engine,
            cache,
            ..BlockConfig::new("disk", &path)
        });
        let answers = driver.buffer(1024);
        for round in 0..10u8 {
            for queue in 0..8usize {
                for slot in 0..64u64 {
                    let at = (queue as u64 * 64 + slot) * 8192;
                    let base = 0x180_0000 + (queue as u64 * 64 + slot) * 1024;
                    driver.write(base, &header(OUT, at / 512));
                    driver.write(base + 16, &[round + queue as u8; 512]);
                    driver.queues[queue].add(&[
                        Desc::readable(base, 528),
                        Desc::writable(answers.gpa + queue as u64 * 64 + slot, 1),
                    ]);
                }
                driver.kick(queue);
            }
            for queue in 0..8 {
                assert_eq!(driver.wait_used(queue, 64).len(), 64);
            }
            assert_eq!(driver.contents(answers)[..512], [0; 512]);
        }
        for queue in 0..8 {
            let (answer, data) = request_on(&mut driver, queue, IN, queue as u64 * 1024, &[], 512);
            assert_eq!((answer, data), (OK, vec![9 + queue as u8; 512]));
        }
        driver.reset();
        assert_eq!(control.counters().writes, 8 * 64 * 10);
        assert_eq!(control.counters().host_errors, 0);
    }
}

/// A driver that makes the same request available again and again, faster than the disk.
#[test]
fn a_flood_is_served_in_bounded_memory() {
    let dir = TempDir::new();
    let (mut driver, control) = started(BlockConfig::new("disk", dir.sparse("disk", 64 << 20)));
    let out = driver.buffer_with(&header(OUT, 0));
    let data = driver.buffer(1 << 20);
    let answer = driver.buffer(1);
    let head = driver.queues[0].add(&[out.readable(), data.readable(), answer.writable()]);
    for _ in 1..200 {
        driver.queues[0].make_available(head);
    }
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 200).len(), 200);
    assert_eq!(driver.contents(answer), [OK]);
    driver.reset();
    assert_eq!(control.counters().writes, 200);
}

#[test]
fn a_driver_that_cannot_flush_loses_nothing() {
    let dir = TempDir::new();
    let base = dir.file("base", 256 * KIB);
    for engine in [EngineKind::IoUring, EngineKind::Sync] {
        for wce in [false, true] {
            let overlay = dir.path(&format!("overlay-{engine:?}-{wce}"));
            let config = BlockConfig {
                engine,
                overlay: Overlay::File(overlay.clone()),
                ..BlockConfig::new("disk", &base)
            };
            let (block, _) = Block::new(config.clone(), TestLoop::start()).unwrap();
            let mut driver = Driver::new(block);
            if wce {
                driver.start(u64::MAX);
                assert_eq!(config_field(&driver, 32, 1), 1);
                driver.core.write_config(32, &[0]);
                assert_eq!(config_field(&driver, 32, 1), 0);
            } else {
                driver.start(!(1 << feature::FLUSH | 1 << feature::CONFIG_WCE));
            }
            write(&mut driver, 8, &[7; 4096]);
            assert_eq!(ranges(&mut driver, WRITE_ZEROES, 16, 8, 1), OK);
            // What is on the disk now, as after a crash: the map knows of the blocks.
            let crashed = dir.path("crashed");
            fs::copy(&overlay, &crashed).unwrap();
            let config = BlockConfig {
                overlay: Overlay::File(crashed),
                ..config
            };
            let (mut after, _) = started(config);
            assert_eq!(read(&mut after, 8, 4096), [7; 4096]);
            assert_eq!(read(&mut after, 16, 4096), [0; 4096]);
            // One that can flush has not written its map yet.
            if wce {
                driver.core.write_config(32, &[1]);
                write(&mut driver, 24, &[9; 4096]);
                let crashed = dir.path("crashed-again");
                fs::copy(&overlay, &crashed).unwrap();
                let config = BlockConfig {
                    overlay: Overlay::File(crashed),
                    ..BlockConfig::new("disk", &base)
                };
                let (mut after, _) = started(config);
                assert_ne!(read(&mut after, 24, 4096), [9; 4096]);
            }
        }
    }
}

#[test]
fn a_write_protected_disk_says_so() {
    let dir = TempDir::new();
    let path = dir.file("disk", 256 * KIB);
    let (mut driver, control) = started(BlockConfig {
        read_only: true,
        ..BlockConfig::new("disk", &path)
    });
    assert_eq!(request(&mut driver, OUT, 0, &[0; 512], 0).0, IO_ERROR);
    assert_eq!(ranges(&mut driver, DISCARD, 0, 8, 0), IO_ERROR);
    assert_eq!(ranges(&mut driver, WRITE_ZEROES, 0, 8, 1), IO_ERROR);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], 0).0, OK);
    assert!(read(&mut driver, 0, 256 * KIB) == pattern(256 * KIB));
    drop(driver);
    assert_eq!(control.counters().bad_requests, 3);
    assert!(fs::read(&path).unwrap() == pattern(256 * KIB));
}

#[test]
fn errors_of_the_host_are_the_guests() {
    let dir = TempDir::new();
    for engine in [EngineKind::IoUring, EngineKind::Sync] {
        let path = dir.file("disk", 256 * KIB);
        let (mut driver, control) = started(BlockConfig {
            engine,
            ..BlockConfig::new("disk", &path)
        });
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(request(&mut driver, IN, 8, &[], 512).0, IO_ERROR);
        assert_eq!(request(&mut driver, IN, 0, &[], 512).0, OK);
        assert!(!driver.is_broken());
        driver.reset();
        assert_eq!(control.counters().host_errors, 1);
    }
}

#[test]
fn a_chain_without_room_for_the_answer_comes_back() {
    let mut driver = Driver::started(device(|_| ()));
    let out = driver.buffer_with(&header(IN, 0));
    assert_eq!(driver.request(0, &[out.readable()]), 0);
    assert!(!driver.is_broken());
    driver.submit(0, &[Desc::writable(u64::MAX - 8, 16)]);
    driver.wait_broken();
    driver.start(u64::MAX);
    assert!(read(&mut driver, 0, 512) == pattern(512));
}

#[test]
fn requests_in_flight_end_before_a_reset() {
    let dir = TempDir::new();
    for (engine, cache) in modes() {
        let path = dir.sparse("disk", 64 << 20);
        let (mut driver, control) = started(BlockConfig {
            engine,
            cache,
            ..BlockConfig::new("disk", &path)
        });
        let data = driver.buffer(256 << 10);
        let answer = driver.buffer(1);
        for round in 0..10 {
            for slot in 0..64u64 {
                let at = 0x180_0000 + slot * 32;
                driver.write(at, &header(OUT, slot * 512));
                driver.queues[0].add(&[Desc::readable(at, 16), data.readable(), answer.writable()]);
            }
            driver.kick(0);
            if round % 2 == 0 {
                driver.wait_until("a write", |_| control.counters().writes > 0);
            }
            driver.reset();
            // Memory is the guest's again.
            driver.write(answer.gpa, &[0xaa]);
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert_eq!(driver.contents(answer), [0xaa]);
            driver.start(u64::MAX);
        }
    }
}

#[test]
fn a_new_size_is_announced() {
    let dir = TempDir::new();
    let path = dir.file("disk", 256 * KIB);
    let (mut driver, control) = started(BlockConfig::new("disk", &path));
    let generation = driver.core.config_generation();
    assert_eq!(control.resize().unwrap(), 256 << 10);
    assert_eq!(driver.interrupts.config(), 0);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(512 << 10).unwrap();
    assert_eq!(request(&mut driver, IN, 512, &[], 512).0, IO_ERROR);
    assert_eq!(control.resize().unwrap(), 512 << 10);
    assert_eq!(driver.interrupts.config(), 1);
    assert_ne!(driver.core.config_generation(), generation);
    assert_eq!(config_field(&driver, 0, 8), 1024);
    assert_eq!(read(&mut driver, 512, 512), [0; 512]);
    file.set_len(1000).unwrap();
    assert!(control.resize().is_err());
    assert_eq!(control.size(), 512 << 10);
    // An overlay is as large as its base was.
    let overlay = BlockConfig {
        overlay: Overlay::Temporary,
        ..BlockConfig::new("disk", dir.file("base", 4096))
    };
    let (_, control) = Block::new(overlay, TestLoop::start()).unwrap();
    assert!(control.resize().is_err());
}

#[test]
fn another_file_takes_its_place() {
    let dir = TempDir::new();
    let first = dir.file("first", 256 * KIB);
    let second = dir.sparse("second", 1 << 20);
    let third = dir.sparse("third", 512);
    for engine in [EngineKind::IoUring, EngineKind::Sync] {
        let config = BlockConfig {
            engine,
            ..BlockConfig::new("disk", &first)
        };
        let (mut driver, control) = started(config.clone());
        write(&mut driver, 0, &[1; 512]);
        control.replace_file(&second).unwrap();
        assert_eq!(driver.interrupts.config(), 1);
        assert_eq!(config_field(&driver, 0, 8), 2048);
        write(&mut driver, 2047, &[2; 512]);
        assert_eq!(fs::read(&second).unwrap()[2047 * 512..], [2; 512]);
        // The first one is free.
        drop(Block::new(config, TestLoop::start()).unwrap());
        // While idle.
        driver.reset();
        control.replace_file(&third).unwrap();
        assert_eq!(config_field(&driver, 0, 8), 1);
        driver.start(u64::MAX);
        assert_eq!(request(&mut driver, IN, 1, &[], 512).0, IO_ERROR);
        write(&mut driver, 0, &[3; 512]);
        assert_eq!(fs::read(&third).unwrap(), [3; 512]);
        // One that is not there leaves things as they are.
        assert!(control.replace_file(Path::new("/does/not/exist")).is_err());
        assert_eq!(read(&mut driver, 0, 512), [3; 512]);
        // The same one, larger.
        let file = fs::OpenOptions::new().write(true).open(&third).unwrap();
        file.set_len(1024).unwrap();
        control.replace_file(&third).unwrap();
        assert_eq!(config_field(&driver, 0, 8), 2);
        assert_eq!(read(&mut driver, 1, 512), [0; 512]);
        drop(driver);
        fs::OpenOptions::new()
            .write(true)
            .open(&third)
            .unwrap()
            .set_len(512)
            .unwrap();
    }
}

#[test]
fn a_limit_holds_and_can_be_lifted() {
    let dir = TempDir::new();
    let path = dir.file("disk", 256 * KIB);
    // Four operations now, and no more for the life of this test.
    let ops = Bucket::new(4, 1 << 40, 0);
    let (mut driver, control) = started(BlockConfig {
        rate: RateLimit {
            bandwidth: None,
            ops,
        },
        ..BlockConfig::new("disk", &path)
    });
    let out = driver.buffer_with(&header(IN, 0));
    let room = driver.buffer(513);
    for _ in 0..10 {
        driver.submit(0, &[out.readable(), room.writable()]);
    }
    assert_eq!(driver.wait_used(0, 4).len(), 4);
    driver.wait_until("a throttled request", |_| control.counters().throttled > 0);
    driver.wait_until("counters", |_| control.counters().reads == 4);
    control.set_rate_limit(RateLimit::default());
    assert_eq!(driver.wait_used(0, 6).len(), 6);
    // A limit comes while the device runs.
    let throttled = control.counters().throttled;
    control.set_rate_limit(RateLimit {
        bandwidth: Bucket::new(1024, 1 << 40, 0),
        ops: None,
    });
    driver.wait_until("a limit", |driver| {
        driver.submit(0, &[out.readable(), room.writable()]);
        control.counters().throttled > throttled
    });
    let reads = control.counters().reads;
    control.set_rate_limit(RateLimit::default());
    driver.wait_until("an end", |_| control.counters().reads > reads);
}

#[test]
fn a_slow_limit_lets_all_through_in_the_end() {
    let mut driver = Driver::started(device(|config| {
        config.queues = 2;
        config.rate.ops = Bucket::new(5, 5, 0);
    }));
    let out = driver.buffer_with(&header(IN, 0));
    let room = driver.buffer(513);
    for _ in 0..60 {
        for queue in 0..2 {
            driver.queues[queue].add(&[out.readable(), room.writable()]);
        }
    }
    driver.kick(0);
    driver.kick(1);
    assert_eq!(driver.wait_used(0, 60).len(), 60);
    assert_eq!(driver.wait_used(1, 60).len(), 60);
}

#[test]
fn any_request_does_no_harm() {
    for engine in [EngineKind::IoUring, EngineKind::Sync] {
        let mut driver = Driver::started(device(|config| {
            config.engine = engine;
            config.overlay = Overlay::Temporary;
        }));
        let mut random = Random(4);
        let kinds = [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 2, 99];
        let base = 0x180_0000;
        for _ in 0..3000 {
            let kind = kinds[random.below(8) as usize];
            driver.write(base, &header(kind, random.below(520)));
            driver.write(
                base + 16,
                &header(random.below(520) as u32, random.below(64)),
            );
            let mut descs = Vec::new();
            for _ in 0..random.below(4) {
                let at = base + random.below(3) * 16;
                descs.push(Desc::readable(
                    at,
                    [0, 1, 8, 16, 512][random.below(5) as usize],
                ));
            }
            for _ in 0..random.below(4) {
                let len = [0, 1, 20, 511, 512, 513][random.below(6) as usize];
                descs.push(Desc::writable(base + 0x1000 + random.below(4096), len));
            }
            if descs.is_empty() {
                continue;
            }
            driver.submit(0, &descs);
            assert_eq!(driver.wait_used(0, 1).len(), 1);
        }
        assert_eq!(driver.core.status() & status::DEVICE_NEEDS_RESET, 0);
    }
}
