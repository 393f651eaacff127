//! The fuzz targets: each takes the fuzzer's bytes.

use std::fs::File;
use std::time::Duration;

use devices::console_io::{Input, InputFilter, Output};
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::balloon::{self, Balloon};
use devices::virtio::console::{self, Console};
use devices::virtio::rng::Rng;

pub use crate::block::run as block;
pub use crate::net::run as net;
pub use crate::pci::run as pci;
pub use crate::qcow2::run as qcow2;
pub use crate::vsock::run as vsock;

/// Runs one guest.
pub type Target = fn(&[u8]);

/// All of them, by their names.
pub const ALL: [(&str, Target); 8] = [
    ("transport", transport),
    ("pci", pci),
    ("block", block),
    ("qcow2", qcow2),
    ("net", net),
    ("vsock", vsock),
    ("balloon", balloon),
    ("console", console),
];

/// virtio over MMIO, with the device that does least behind it.
pub fn transport(input: &[u8]) {
    crate::run(input, |event_loop| Rng::new(event_loop).unwrap());
}

/// A balloon that can do everything.
pub fn balloon(input: &[u8]) {
    crate::run(input, |event_loop| {
        let config = balloon::Config {
            target: 1 << 20,
            deflate_on_oom: true,
            free_page_reporting: true,
            stats_interval: Duration::from_millis(1),
        };
        Balloon::new(event_loop, config).unwrap()
    });
}

struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

/// A console on which someone types without end.
pub fn console(input: &[u8]) {
    crate::run(input, |event_loop| {
        let config = console::Config {
            input: Some(Input::new(File::open("/dev/zero").unwrap().into())),
            output: Output::discard(),
            filter: Box::new(Transparent),
            rate_limit: RateLimit {
                bandwidth: None,
                ops: Bucket::new(10, 1, 0),
            },
            size: (80, 25),
        };
        let mut console = Console::new(event_loop, config).unwrap();
        console.attach().unwrap();
        console
    });
}
