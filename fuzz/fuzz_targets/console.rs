#![no_main]

use std::fs::File;

use devices::console_io::{Input, InputFilter, Output};
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::console::{Config, Console};
use libfuzzer_sys::fuzz_target;

struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

fuzz_target!(|input: &[u8]| mote_fuzz::run(input, |event_loop| {
    let config = Config {
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
}));
