#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| mote_fuzz::targets::working_set(input));
