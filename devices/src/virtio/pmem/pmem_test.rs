use std::fs::OpenOptions;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::backend::disk::test_support::TempDir;
use crate::rate_limiter::Bucket;
use crate::virtio::chain::Chain;
use crate::virtio::test_support::{Desc, Driver, TestLoop, lifecycle_suite};

const GPA: u64 = 1 << 33;
const FLUSH: u32 = 0;

fn config(directory: &TempDir, name: &str) -> PmemConfig {
    PmemConfig {
        id: name.into(),
        path: directory.file(name, 3 << 20),
        read_only: false,
        rate: RateLimit::default(),
    }
}

/// The file is unlinked, and open as long as it is needed.
fn pmem() -> Pmem {
    let directory = TempDir::new();
    let (pmem, control) = Pmem::new(config(&directory, "pmem"), TestLoop::start()).unwrap();
    // For the rest of the process: where it is mapped has to be nobody else's for as long as the device
    // looks after it, and the suite has no place to keep it.
    std::mem::forget(control.map(GPA).unwrap());
    pmem
}

lifecycle_suite!(pmem());

mod with_a_limit {
    use super::*;

    fn limited() -> Pmem {
        let pmem = super::pmem();
        let limit = RateLimit {
            bandwidth: Bucket::new(4 << 20, 5, 0),
            ops: Bucket::new(3, 5, 0),
        };
        PmemControl(Arc::clone(&pmem.shared))
            .set_rate_limit(limit)
            .unwrap();
        pmem
    }

    lifecycle_suite!(limited());
}

struct Guest {
    driver: Driver,
    control: PmemControl,
    /// Has the file mapped. Last, as the device looks after it.
    memory: GuestMemoryMmap,
}

fn start(config: PmemConfig) -> Guest {
    let (pmem, control) = Pmem::new(config, TestLoop::start()).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![control.map(GPA).unwrap()]).unwrap();
    let driver = Driver::started(pmem);
    Guest {
        driver,
        control,
        memory,
    }
}

impl Guest {
    fn request(&mut self, kind: u32) -> u32 {
        let request = self.driver.buffer_with(&kind.to_le_bytes());
        let answer = self.driver.buffer(4);
        let written = self
            .driver
            .request(0, &[request.readable(), answer.writable()]);
        assert_eq!(written, 4);
        let bytes = self.driver.contents(answer);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    fn submit_flushes(&mut self, count: usize) {
        let request = self.driver.buffer_with(&FLUSH.to_le_bytes());
        let answer = self.driver.buffer(4);
        for _ in 0..count {
            self.driver.queues[0].add(&[request.readable(), answer.writable()]);
        }
        self.driver.kick(0);
    }
}

#[test]
fn it_says_where_it_is() {
    let directory = TempDir::new();
    let guest = start(config(&directory, "a"));
    let mut bytes = [0; 20];
    guest.driver.core.read_config(0, &mut bytes);
    assert_eq!(bytes[..8], GPA.to_le_bytes());
    assert_eq!(bytes[8..16], (4_u64 << 20).to_le_bytes());
    assert_eq!(bytes[16..], [0; 4]);
    assert_eq!(guest.control.size(), 4 << 20);
}

#[test]
fn flushes_are_answered() {
    let directory = TempDir::new();
    let mut guest = start(config(&directory, "a"));
    assert_eq!(guest.request(FLUSH), 0);
    assert_eq!(guest.request(FLUSH), 0);
    let counters = guest.control.counters();
    assert_eq!((counters.flushes, counters.syncs), (2, 2));
    // As many as there are, in few syncs.
    for _ in 0..20 {
        guest.submit_flushes(128);
        assert_eq!(guest.driver.wait_used(0, 128).len(), 128);
    }
    let counters = guest.control.counters();
    assert_eq!(counters.flushes, 2 + 20 * 128);
    assert!(counters.syncs <= 2 + 20 * 3, "{counters:?}");
}

#[test]
fn other_requests_fail() {
    let directory = TempDir::new();
    let mut guest = start(config(&directory, "a"));
    for kind in [1, 0x100, u32::MAX] {
        assert_eq!(guest.request(kind), u32::MAX);
    }
    let flush = guest.driver.buffer_with(&FLUSH.to_le_bytes());
    let answer = guest.driver.buffer(3);
    for descs in [
        &[flush.readable()][..],
        &[flush.readable(), answer.writable()],
        &[Desc::readable(0, 0)],
    ] {
        assert_eq!(guest.driver.request(0, descs), 0);
    }
    let answer = guest.driver.buffer(4);
    let short = Desc::readable(flush.gpa, 3);
    assert_eq!(guest.driver.request(0, &[short, answer.writable()]), 4);
    assert_eq!(guest.driver.contents(answer), [0xff; 4]);
    assert_eq!(guest.control.counters().bad_requests, 7);
    assert_eq!(guest.control.counters().syncs, 0);
    assert_eq!(guest.request(FLUSH), 0);
}

#[test]
fn a_limit_holds_flushes_until_it_is_lifted() {
    let directory = TempDir::new();
    let mut config = config(&directory, "a");
    // Two files' lengths; the rest would take longer than anybody waits.
    config.rate.bandwidth = Bucket::new(6 << 20, 1_000_000_000, 0);
    let mut guest = start(config);
    // Requests that are wrong cost nothing.
    for _ in 0..5 {
        assert_eq!(guest.request(1), u32::MAX);
    }
    assert_eq!(guest.request(FLUSH), 0);
    assert_eq!(guest.request(FLUSH), 0);
    guest.submit_flushes(3);
    guest
        .driver
        .wait_until("a wait", |_| guest.control.counters().throttled > 0);
    assert!(guest.driver.queues[0].take_used().is_empty());
    // A reset is no way around it.
    guest.driver.reset();
    guest.driver.start(u64::MAX);
    guest.submit_flushes(3);
    assert!(guest.driver.queues[0].take_used().is_empty());
    guest.control.set_rate_limit(RateLimit::default()).unwrap();
    guest.driver.wait_used(0, 3);
}

#[test]
fn flushes_of_a_file_that_was_cut_fail() {
    let directory = TempDir::new();
    let config = config(&directory, "a");
    let path = config.path.clone();
    let mut guest = start(config);
    assert_eq!(guest.request(FLUSH), 0);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(1 << 20).unwrap();
    guest
        .memory
        .write_slice(b"gone", GuestAddress(GPA + (2 << 20)))
        .unwrap();
    assert_eq!(guest.request(FLUSH), u32::MAX);
    assert_eq!(guest.control.counters().host_errors, 1);
}

#[test]
fn a_cut_is_noticed_before_anyone_touches_what_is_lost() {
    let directory = TempDir::new();
    let config = config(&directory, "a");
    let path = config.path.clone();
    let mut guest = start(config);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(1 << 20).unwrap();
    guest.driver.wait_until("error", |guest_driver| {
        let request = guest_driver.buffer_with(&FLUSH.to_le_bytes());
        let answer = guest_driver.buffer(4);
        guest_driver.request(0, &[request.readable(), answer.writable()]);
        guest_driver.contents(answer) == [0xff; 4]
    });
    // A driver that comes later finds the same.
    guest.driver.reset();
    guest.driver.start(u64::MAX);
    assert_eq!(guest.request(FLUSH), u32::MAX);
}

#[test]
fn devices_write_only_where_they_may() {
    let directory = TempDir::new();
    for read_only in [false, true] {
        let mut config = config(&directory, "a");
        config.read_only = read_only;
        let (_pmem, control) = Pmem::new(config, TestLoop::start()).unwrap();
        assert_eq!(control.is_read_only(), read_only);
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let region = Arc::new(control.map(GPA).unwrap());
        let memory = ram.insert_region(region).unwrap();
        for (flags, good) in [(0_u16, true), (2, !read_only)] {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&GPA.to_le_bytes());
            descriptor[8] = 64;
            descriptor[12] = flags as u8;
            memory.write_slice(&descriptor, GuestAddress(0)).unwrap();
            let chain = Chain::read(&memory, GuestAddress(0), 1, 0);
            assert_eq!(chain.is_ok(), good, "{chain:?}");
            if let Ok(chain) = chain {
                let buffers = [&chain.readable, &chain.writable];
                let buffer = buffers.into_iter().find(|buffer| !buffer.is_empty());
                let mut bytes = [0; 64];
                buffer.unwrap().read(&memory, 0, &mut bytes).unwrap();
                assert_eq!(bytes[..], crate::backend::disk::test_support::pattern(64));
            }
        }
    }
}
