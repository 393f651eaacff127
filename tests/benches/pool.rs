//! How long it takes until a guest does something that somebody asks for, with a pool and without: a guest of a few instructions,
//! which prints what it is told and ends.
//!
//! ```text
//! cargo bench -p tests --bench pool -- [--rounds N] [--memory SIZE]
//! ```
//! In turn: `mote run --template` without a pool and with one, from exec to the first byte that the guest prints and to the exit status; and a
//! request on the pool's socket from a process that is there (docs/templates.md has what is said there), from connect(2) to the same
//! two. Nothing is begun before all guests of the pool are ready again.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs::{self, File};
use std::io::{IoSlice, PipeReader, PipeWriter, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;
use tests::ctl::Host;
use tests::executable::job_kernel;
use tests::times::MANY;

/// What a run leaves to the kernel to be done later is done by then.
const PAUSE: Duration = Duration::from_millis(20);
const RUN: [&str; 5] = ["run", "--template", "t", "--", "0"];
/// The job of that, as the agent's crate has it.
const JOB: &[u8] = b"w0 0\0hmote\0a0\0";

/// Times from the start on.
#[derive(Default)]
struct Row {
    outputs: Vec<Duration>,
    exits: Vec<Duration>,
}

impl Row {
    /// Both, of what `begin` begins with its output to a pipe, and of which `end` waits for the status.
    fn measure<T>(&mut self, keep: bool, begin: impl FnOnce(PipeWriter) -> T, end: impl FnOnce(T)) {
        let (mut reader, writer): (PipeReader, PipeWriter) = pipe().unwrap();
        let start = Instant::now();
        let begun = begin(writer);
        reader.read_exact(&mut [0]).unwrap();
        let output = start.elapsed();
        end(begun);
        let exit = start.elapsed();
        if keep {
            self.outputs.push(output);
            self.exits.push(exit);
        }
    }

    fn command(&mut self, keep: bool, host: &Host) {
        let begin = |writer: PipeWriter| {
            let mut command = host.command(&RUN);
            command.stdin(Stdio::null()).stdout(writer).spawn().unwrap()
        };
        self.measure(keep, begin, |mut child| {
            assert!(child.wait().unwrap().success());
        });
    }

    fn request(&mut self, keep: bool, host: &Host) {
        let null = File::open("/dev/null").unwrap();
        let path = host.run_dir().join("pool.of.t/guests");
        let request = json!({"id": null, "timeout": null, "is_interactive": false}).to_string();
        let begin = |writer: PipeWriter| {
            let mut stream = UnixStream::connect(&path).unwrap();
            let streams = [null.as_fd(), writer.as_fd(), null.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut with = SendAncillaryBuffer::new(&mut space);
            with.push(SendAncillaryMessage::ScmRights(&streams));
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
            let header = [length(request.as_bytes()), length(JOB)].concat();
            sendmsg(
                &stream,
                &[IoSlice::new(&header)],
                &mut with,
                SendFlags::empty(),
            )
            .unwrap();
            stream
                .write_all(&[request.as_bytes(), JOB].concat())
                .unwrap();
            stream
        };
        self.measure(keep, begin, |mut stream| {
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert_eq!(reply, r#"{"Ended":0}"#);
        });
    }
}

/// Waits until as many guests wait as are to, and what was run before is gone.
fn settle(host: &Host) {
    loop {
        thread::sleep(PAUSE);
        let pool = host.ask_json(&["pool", "ls", "--json"]);
        if pool["ready"] == pool["count"] {
            thread::sleep(PAUSE);
            return;
        }
    }
}

fn template(memory: &str) -> Host {
    let host = Host::new();
    let kernel = host.write("kernel", job_kernel());
    let initrd = host.write("initrd", "none");
    host.ask(&[
        "template",
        "create",
        "t",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--console",
        "serial",
        "--memory",
        memory,
    ]);
    host
}

fn main() {
    let mut rounds = 200;
    let mut memory = "128m".to_owned();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => memory = arguments.next().unwrap(),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    let (without, with) = (template(&memory), template(&memory));
    with.ask(&["pool", "start", "t", "-n", "2"]);
    let mut rows = [Row::default(), Row::default(), Row::default()];
    for round in 0..rounds + 5 {
        // The first rounds fill caches.
        let keep = round >= 5;
        for (index, row) in rows.iter_mut().enumerate() {
            settle(&with);
            match index {
                0 => row.command(keep, &without),
                1 => row.command(keep, &with),
                _ => row.request(keep, &with),
            }
        }
    }
    let status = with.ask_json(&["pool", "ls", "--json"]);
    assert_eq!(status["taken"], 2 * (rounds + 5));
    with.ask(&["pool", "stop", "t"]);
    assert_eq!(fs::read_dir(with.run_dir()).unwrap().count(), 0);
    MANY.head(rounds, "rounds");
    let names = ["mote run, no pool", "mote run, pool", "a request, pool"];
    for (name, row) in names.into_iter().zip(rows) {
        MANY.row(&format!("{name}, output"), row.outputs);
        MANY.row(&format!("{name}, exit"), row.exits);
    }
}
