//! The guest's half of the end-to-end tests: one static program that exercises devices from inside
//! and checks every byte.
//!
//! Exit status: 0 all is well, 1 something was not as it must be, 2 wrong usage.
//!
//! Sizes take the suffixes k, m and g.

mod arguments;
mod block;
mod features;
mod mapped;
mod measured;
mod memory;
mod net;
mod random;
mod ring;
mod vsock;

use std::io;
use std::process::ExitCode;

use arguments::{Arguments, Failure};

const USAGE: &str = "\
Usage: guest-probe COMMAND [ARGUMENT]... [--OPTION VALUE]...

  block verify FILE [--size N] [--block N] [--threads N] [--operations N] [--fsync-every N] [--seed N]
                    [--direct] [--sequential]
      Random (or sequential) writes and reads of checked data on parallel threads, then all of it again
  block fill|check FILE [--from N] [--size N] [--generation N] [--seed N] [--direct]
      Write one generation of checked data; check it
  block generations FILE [--from N] [--size N] [--seed N]
      Check that every sector is of some generation (0: zeroes), and print \"GENERATIONS OLDEST NEWEST\"
  block durable FILE [--size N] [--block N] [--seed N] [--generations N]
      Write generation after generation, flush, and print \"DURABLE N\" after each
  block zero FILE --from N --size N [--unmap]
      Write zeroes the device's own way, check that they are read
  tcp|vsock client ADDRESS [--connections N] [--workers N] [--bytes N] [--seed N]
                   [--mode send|receive|both|half-close]
  tcp|vsock server ADDRESS [--connections N]
      Checked data through streams; a server prints \"LISTENING\" and ends after N connections.
      ADDRESS: IP:PORT, [IP]:PORT; for vsock CID:PORT, or PORT for a server
  udp client ADDRESS [--count N] [--size N] [--attempts N]
  udp server ADDRESS [--count N]
      Datagrams that are echoed; each is sent again until its echo comes
  memory SIZE [--wait]
      Fill memory and print \"FILLED\"; with --wait keep it until a line comes in; free it, print \"FREED\"
  mapped FILE DISK [--size N] [--seed N]
      Map a new file, and have its memory written to a disk and read from there, past the kernel's cache
  random FILE [--bytes N]
      Read, and fail where it is plainly not random
  ring INTERFACE [--rx N] [--tx N]
      Change the sizes of a network card's rings, and print \"RING RX TX\"
  load disk FILE [--block N] [--depth N] [--operations N] [--write] [--sequential] [--direct] [--wait]
  load tcp ADDRESS [--mode send|receive|round-trip] [--amount N] [--wait]
      Load that is measured: prints \"DONE OPERATIONS BYTES NANOSECONDS\"; with --wait prints \"READY\"
      first and waits for a line
  features
      One line a virtio device: name, device ID, status, numbers of the negotiated features
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(what)) => {
            eprintln!("guest-probe: {what}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Failure::Check(what)) => {
            eprintln!("guest-probe: {what}");
            ExitCode::from(1)
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut arguments = Arguments::parse(std::env::args().skip(1))?;
    match arguments.next("a command")?.as_str() {
        "block" => block::run(arguments),
        "tcp" => net::tcp(arguments),
        "udp" => net::udp(arguments),
        "vsock" => vsock::run(arguments),
        "memory" => memory::run(arguments),
        "mapped" => mapped::run(arguments),
        "random" => random::run(arguments),
        "ring" => ring::run(arguments),
        "load" => measured::run(arguments),
        "features" => {
            arguments.end()?;
            features::print()
        }
        other => Err(Failure::Usage(format!("unknown command '{other}'"))),
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Check(error.to_string())
    }
}
