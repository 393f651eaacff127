#![no_main]

use devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| mote_fuzz::run(input, |event_loop| Rng::new(event_loop).unwrap()));
