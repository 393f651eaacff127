//! The fuzz targets: each takes the fuzzer's bytes.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::time::{Duration, Instant};

use devices::console_io::{Input, InputFilter, Output};
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::balloon::{self, Balloon};
use devices::virtio::console::{self, Console};
use devices::virtio::rng::Rng;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

pub use crate::api_request::run as api_request;
pub use crate::block::run as block;
pub use crate::memory::{mem, pmem};
pub use crate::merge::run as merge;
pub use crate::mmds::run as mmds;
pub use crate::net::run as net;
pub use crate::pci::run as pci;
pub use crate::qcow2::run as qcow2;
pub use crate::snapshot::run as snapshot;
pub use crate::vsock::run as vsock;
pub use crate::working_set::run as working_set;

/// Runs one guest.
pub type Target = fn(&[u8]);

/// All of them, by their names.
pub const ALL: [(&str, Target); 15] = [
    ("transport", transport),
    ("pci", pci),
    ("block", block),
    ("qcow2", qcow2),
    ("net", net),
    ("mmds", mmds),
    ("vsock", vsock),
    ("balloon", balloon),
    ("console", console),
    ("api_request", api_request),
    ("pmem", pmem),
    ("mem", mem),
    ("snapshot", snapshot),
    ("merge", merge),
    ("working_set", working_set),
];

/// virtio over MMIO, with the device that does least behind it.
pub fn transport(input: &[u8]) {
    crate::run(input, |event_loop| {
        (Rng::new(event_loop).unwrap(), Box::new(|_| {}))
    });
}

/// A balloon that can do everything.
pub fn balloon(input: &[u8]) {
    crate::run(input, |event_loop| {
        let config = balloon::Config {
            target: 1 << 20,
            deflate_on_oom: true,
            free_page_reporting: true,
            free_page_hinting: true,
            stats_interval: Duration::from_millis(1),
        };
        let balloon = Balloon::new(event_loop, config).unwrap();
        let control = balloon.control();
        let host = move |what: u8| match what % 4 {
            0 => control.set_target(u64::from(what) << 14),
            1 => {
                let interval = Duration::from_millis(u64::from(what >> 6));
                control.set_stats_interval(interval).unwrap();
            }
            2 => assert!(control.actual() <= u64::from(u32::MAX) << 12),
            _ => {
                let counters = control.counters();
                let told = counters.inflated + counters.reported;
                assert!(counters.discarded <= told);
                let _ = (control.stats(), control.target());
            }
        };
        (balloon, Box::new(host))
    });
}

struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

/// A program of the host that reads a little at a time what a console prints.
struct Reader(PipeReader);

impl MutEventSubscriber for Reader {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.read(&mut [0; 100]);
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }
}

/// A console on which someone types without end. Its output goes, by the last byte, nowhere, to a full
/// disk, to a pipe that nobody reads, or to one that someone does.
pub fn console(input: &[u8]) {
    // As in all programs of Rust, but for those whose main function is a fuzzer's.
    // SAFETY: nobody handles it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    crate::run(input, |event_loop| {
        let pipe = || {
            let (reader, writer) = std::io::pipe().unwrap();
            rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
            (reader, Output::new(writer.into()).unwrap())
        };
        let mut nobody = None;
        let output = match input.last().copied().unwrap_or(0) % 4 {
            0 => Output::discard(),
            1 => Output::new(File::create("/dev/full").unwrap().into()).unwrap(),
            2 => {
                let (reader, output) = pipe();
                nobody = Some(reader);
                output
            }
            _ => {
                let (reader, output) = pipe();
                event_loop.attach(Box::new(Reader(reader))).unwrap();
                output
            }
        };
        let config = console::Config {
            input: Some(Input::new(File::open("/dev/zero").unwrap().into())),
            output,
            filter: Box::new(Transparent),
            rate_limit: RateLimit {
                bandwidth: None,
                ops: Bucket::new(10, 1, 0),
            },
            size: (80, 25),
        };
        let mut console = Console::new(event_loop, config).unwrap();
        console.attach().unwrap();
        let control = console.control();
        let host = move |what: u8| match what % 5 {
            0 => control.resize(u16::from(what), 25),
            1 => {
                let ops = Bucket::new(u64::from(what >> 4), 1, 0);
                let limit = RateLimit {
                    bandwidth: Bucket::new(u64::from(what & 0xf), 1, 0),
                    ops,
                };
                control.set_rate_limit(limit).unwrap();
            }
            2 => assert!(control.tail().len() <= 4096),
            3 => control.flush_blocking(Instant::now()),
            // The reader goes.
            _ => {
                drop(nobody.take());
                let _ = control.take_error();
            }
        };
        (console, Box::new(host))
    });
}
