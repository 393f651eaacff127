#![no_main]

use std::time::Duration;

use devices::virtio::balloon::{Balloon, Config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| mote_fuzz::run(input, |event_loop| {
    let config = Config {
        target: 1 << 20,
        deflate_on_oom: true,
        free_page_reporting: true,
        stats_interval: Duration::from_millis(1),
    };
    Balloon::new(event_loop, config).unwrap()
}));
