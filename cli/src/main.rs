//! The `mote` binary.

use std::time::Instant;

fn main() {
    let started = Instant::now();
    cli::status::exit(cli::main(std::env::args_os(), started, |_| {}))
}
