//! How long `PUT /fork` takes, as its client sees it, and what copies have of the host's memory.
//!
//! ```text
//! cargo bench -p tests --bench fork -- [--rounds N] [--copies N]...
//! ```
//! The guest is one of a few instructions, which waits; it has 128 MiB of memory. Copies are answered when they run. What they
//! have is their proportional set size (`smaps_rollup`), the monitor's and the guest's, a second after that, together, divided by how many there
//! are: pages that several share are counted once.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::idle_kernel;
use tests::service::request;
use tests::times::FEW;

fn main() {
    let mut rounds = 10;
    let mut counts = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--copies" => counts.push(arguments.next().unwrap().parse().unwrap()),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if counts.is_empty() {
        counts = vec![1, 100];
    }
    let host = Host::new();
    let kernel = host.write("kernel", idle_kernel());
    let document = json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
    });
    let file = host.write("guest.json", document.to_string());
    let parent = host.vmm("parent", &["--config-file", &file]);
    until("the start", || {
        (host.state("parent") == "Running").then_some(())
    });
    FEW.head(rounds, "rounds");
    let socket = host.run_dir().join("parent/api.sock");
    for count in counts {
        let (mut times, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let body = json!({ "count": count }).to_string();
            let start = Instant::now();
            let answer = request(&socket, "PUT", "/fork", Some(&body));
            times.push(start.elapsed());
            assert_eq!(answer.status, 200, "{answer:?}");
            thread::sleep(Duration::from_secs(1));
            let copies = answer.body.as_array().unwrap();
            let size: u64 = copies.iter().map(proportional).sum();
            sizes.push(size / count);
            let mut kill = vec!["kill"];
            kill.extend(copies.iter().map(|copy| copy["id"].as_str().unwrap()));
            host.ask(&kill);
        }
        FEW.row(&format!("{count} copies"), times);
        sizes.sort_unstable();
        println!(
            "{count} copies have {} KiB each (median)",
            sizes[(sizes.len() - 1) / 2] >> 10
        );
    }
    host.ask(&["kill", "parent"]);
    assert_eq!(parent.wait().status, 0);
}

/// What a copy has of the host's memory, in bytes.
fn proportional(copy: &Value) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", copy["pid"])).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}
