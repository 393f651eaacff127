//! What a 4 KiB request costs the monitor: the CPU time of all threads but the driver's, from the kick
//! to the used ring, with a file that the page cache holds.
//!
//! `TMPDIR=/dev/shm cargo test --release -p devices block_bench -- --ignored --nocapture --test-threads=1`

use std::fs;
use std::time::Instant;

use rustix::time::ClockId;

use super::*;
use crate::backend::disk::test_support::{Random, TempDir};
use crate::virtio::test_support::{Desc, Driver, TestLoop};

const FILE: u64 = 256 << 20;
const BLOCK: u32 = 4096;
const REQUESTS: usize = 50_000;
/// Where the requests of the driver are: header, answer, data of each.
const AT: u64 = 0x120_0000;
const STRIDE: u64 = 3 * BLOCK as u64;

/// CPU time in nanoseconds of all threads but this one, also of those that have ended.
fn cpu_of_others() -> u64 {
    let nanos = |clock| {
        let time = rustix::time::clock_gettime(clock);
        u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
    };
    nanos(ClockId::ProcessCPUTime) - nanos(ClockId::ThreadCPUTime)
}

fn run(config: &BlockConfig, write: bool, depth: usize) {
    let (block, _) = Block::new(config.clone(), TestLoop::start()).unwrap();
    let mut driver = Driver::started(block);
    let mut random = Random(1);
    let cpu = cpu_of_others();
    let start = Instant::now();
    for _ in 0..REQUESTS / depth {
        for slot in 0..depth as u64 {
            let sector = random.below(FILE / u64::from(BLOCK)) * 8;
            let at = AT + slot * STRIDE;
            let mut header = u32::from(write).to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(sector.to_le_bytes());
            driver.write(at, &header);
            let data = at + u64::from(BLOCK);
            let data = if write {
                Desc::readable(data, BLOCK)
            } else {
                Desc::writable(data, BLOCK)
            };
            driver.queues[0].add(&[Desc::readable(at, 16), data, Desc::writable(at + 64, 1)]);
        }
        driver.kick(0);
        let mut returned = 0;
        while returned < depth {
            returned += driver.queues[0].take_used().len();
            std::thread::yield_now();
        }
    }
    let wall = start.elapsed().as_nanos() as u64;
    let cpu = cpu_of_others() - cpu;
    let each = |nanos: u64| nanos / REQUESTS as u64;
    println!(
        "{:?} {:7} {} depth {depth:2}: {:5} ns CPU, {:5} ns in all, a request",
        config.engine,
        match config.overlay {
            Overlay::None if config.format == Format::Qcow2 => "qcow2",
            Overlay::None => "raw",
            _ => "overlay",
        },
        if write { "write" } else { "read " },
        each(cpu),
        each(wall),
    );
}

#[test]
#[ignore = "measures"]
fn block_bench() {
    let dir = TempDir::new();
    let raw = dir.path("raw");
    fs::write(&raw, vec![1; FILE as usize]).unwrap();
    let qcow2 = dir.path("qcow2.qcow2");
    let converted = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status();
    for engine in [EngineKind::Sync, EngineKind::IoUring] {
        let plain = BlockConfig {
            engine,
            ..BlockConfig::new("disk", &raw)
        };
        let overlay = BlockConfig {
            overlay: Overlay::Temporary,
            ..plain.clone()
        };
        let mut configs = vec![plain, overlay];
        if converted.as_ref().is_ok_and(|status| status.success()) {
            configs.push(BlockConfig {
                engine,
                format: Format::Qcow2,
                ..BlockConfig::new("disk", &qcow2)
            });
        }
        for config in configs {
            for write in [false, true] {
                for depth in [1, 32] {
                    run(&config, write, depth);
                }
            }
        }
    }
}
