//! How long a guest stands still for a snapshot that it runs on after, and what it costs to keep account of what it writes.
//!
//! ```text
//! cargo bench -p tests --bench snapshot -- [--rounds N] [--memory SIZE]... [--track]
//! ```
//! A guest of a few instructions writes to all of its memory, at most the first GiB, page after page without an end. It is
//! written so many times with `resume_vm`. "pause" is what the monitor's event says; "request" is from the
//! request to its answer, when all is in files. With `--track` each but the first is differential.
//!
//! "passes" is how long the guest takes to write to all of it three times, with nothing else going on; "passes after" is the same
//! right after a snapshot for which it was paused, when the host has to note each page that is written to if it tracks them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::executable;
use tests::service::{Service, open, snapshot_to};
use tests::times::FEW;
use vmm_sys_util::tempdir::TempDir;

/// How often the guest writes to all of its memory for a measurement.
const PASSES: usize = 3;

fn main() {
    let mut rounds = 20;
    let mut sizes = Vec::new();
    let mut tracks = false;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => {
                sizes.push(cli::quantity::parse_size(&arguments.next().unwrap()).unwrap());
            }
            "--track" => tracks = true,
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![128 << 20, 1 << 30];
    }
    FEW.head(rounds, "snapshots of a guest that writes");
    for bytes in sizes {
        snapshots(bytes, rounds, tracks);
    }
}

fn snapshots(bytes: u64, rounds: usize, tracks: bool) {
    let mebibytes = bytes >> 20;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let touched = u32::try_from(bytes.min(1 << 30)).unwrap();
    let kernel = directory.join("kernel");
    fs::write(&kernel, executable::churning_kernel(touched)).unwrap();
    let mut service = Service::start(directory, &[""; 0]);
    service.put("/boot-source", json!({ "kernel_image_path": kernel }));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": mebibytes, "track_dirty_pages": tracks}),
    );
    let (_, mut events) = open(service.socket(), "/events", "");
    service.act("InstanceStart");
    service.live().expect("=0");
    let (mut pauses, mut requests) = (Vec::new(), Vec::new());
    let mut order = snapshot_to(directory);
    order["resume_vm"] = json!(true);
    for _ in 0..rounds {
        let start = Instant::now();
        service.put("/snapshot/create", order.clone());
        requests.push(start.elapsed());
        pauses.push(pause(&mut events));
        if tracks {
            order["snapshot_type"] = json!("Diff");
        }
    }
    // It still runs, and all of its memory is what it should be.
    let passes = |service: &mut Service| {
        let start = Instant::now();
        for _ in 0..PASSES {
            assert_eq!(service.live().count(), 1);
        }
        start.elapsed()
    };
    order["resume_vm"] = json!(false);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for _ in 0..rounds.min(5) {
        passes(&mut service);
        before.push(passes(&mut service));
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", order.clone());
        service.patch("/vm", json!({"state": "Resumed"}));
        after.push(passes(&mut service));
    }
    drop(service.terminate());
    FEW.row(&format!("{mebibytes} MiB, pause"), pauses);
    FEW.row(&format!("{mebibytes} MiB, request"), requests);
    FEW.row(&format!("{mebibytes} MiB, passes"), before);
    FEW.row(&format!("{mebibytes} MiB, passes after"), after);
}

/// What the next event of a snapshot says.
fn pause(events: &mut impl BufRead) -> Duration {
    loop {
        let mut line = String::new();
        assert!(events.read_line(&mut line).unwrap() > 0);
        let Some((_, rest)) = line.split_once("\"pause_us\":") else {
            continue;
        };
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        return Duration::from_micros(number.parse().unwrap());
    }
}
