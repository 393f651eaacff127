//! Load that somebody else measures.

use std::io;
use std::net::TcpStream;

use guest_probe::load::{DiskLoad, Outcome, StreamKind, stream_client};

use crate::arguments::{Arguments, Failure};

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let what = arguments.next("disk or tcp")?;
    let target = arguments.next("the disk or address")?;
    let wait = arguments.flag("wait");
    let start = || if wait { wait_for_line() } else { Ok(()) };
    let outcome = match what.as_str() {
        "disk" => {
            let load = DiskLoad {
                path: target.into(),
                write: arguments.flag("write"),
                sequential: arguments.flag("sequential"),
                direct: arguments.flag("direct"),
                block: arguments.number("block", 4096)?,
                depth: arguments.number("depth", 1)?,
                operations: arguments.number("operations", 1000)?,
            };
            arguments.end()?;
            load.run(start)?
        }
        "tcp" => {
            let kind = arguments.text("mode").unwrap_or_else(|| "send".into());
            let found = StreamKind::ALL.iter().find(|(name, _)| *name == kind);
            let kind = found
                .ok_or_else(|| Failure::Usage(format!("no mode '{kind}'")))?
                .1;
            let amount = arguments.number("amount", 1 << 20)?;
            arguments.end()?;
            let mut stream = TcpStream::connect(&target)?;
            stream_client(&mut stream, kind, amount, start)?
        }
        other => return Err(Failure::Usage(format!("unknown: load {other}"))),
    };
    let Outcome {
        operations,
        bytes,
        time,
    } = outcome;
    println!("DONE {operations} {bytes} {}", time.as_nanos());
    Ok(())
}

/// Says that all is ready, and waits for a line.
fn wait_for_line() -> io::Result<()> {
    println!("READY");
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
