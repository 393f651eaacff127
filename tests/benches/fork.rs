//! How long `PUT /fork` takes, as its client sees it, and what copies have of the host's memory.
//!
//! ```text
//! cargo bench -p tests --bench fork -- [--rounds N] [--copies N]... [--memory MIB] [--linux] [--settle SECONDS]
//! ```
//! The guest is one of a few instructions, which waits; with `--linux` it is a shell that waits for a line, of a guest with a user
//! network, for a host that can boot it. Copies are answered when they run. What they have is looked at so many seconds later, at first one:
//! - their proportional set size (`smaps_rollup`), the monitor's and the guest's, together, divided by how many there are: pages that
//!   several share are counted once;
//! - the part of it that is nobody else's;
//! - by how much the host's `MemAvailable` is less than before, divided in the same way: with what its kernel has for them, page tables for
//!   instance.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::idle_kernel;
use tests::guest;
use tests::live::Live;
use tests::service::request;
use tests::times::FEW;

fn main() {
    let mut rounds = 10;
    let mut counts = Vec::new();
    let (mut memory, mut linux, mut settle) = (128, false, 1);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--copies" => counts.push(arguments.next().unwrap().parse().unwrap()),
            "--memory" => memory = arguments.next().unwrap().parse().unwrap(),
            "--linux" => linux = true,
            "--settle" => settle = arguments.next().unwrap().parse().unwrap(),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if counts.is_empty() {
        counts = vec![1, 100];
    }
    let host = Host::new();
    let parent = if linux {
        start_linux(&host, memory)
    } else {
        start_tiny(&host, memory)
    };
    FEW.head(rounds, "rounds");
    let socket = host.run_dir().join("parent/api.sock");
    for count in counts {
        let mut times = Vec::new();
        let (mut sizes, mut own, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let before = available();
            let body = json!({ "count": count }).to_string();
            let start = Instant::now();
            let answer = request(&socket, "PUT", "/fork", Some(&body));
            times.push(start.elapsed());
            assert_eq!(answer.status, 200, "{answer:?}");
            thread::sleep(Duration::from_secs(settle));
            gone.push(before.saturating_sub(available()) / count);
            let copies = answer.body.as_array().unwrap();
            let sum = |what| copies.iter().map(|copy| size(copy, what)).sum::<u64>() / count;
            sizes.push(sum(&["Pss"]));
            own.push(sum(&["Private_Clean", "Private_Dirty"]));
            let mut kill = vec!["kill"];
            kill.extend(copies.iter().map(|copy| copy["id"].as_str().unwrap()));
            host.ask(&kill);
            // What they leave to the kernel is done by then.
            thread::sleep(Duration::from_secs(1));
        }
        FEW.row(&format!("{count} copies"), times);
        println!(
            "{count} copies have {} KiB each, {} of their own, and take {} (medians)",
            median(sizes),
            median(own),
            median(gone)
        );
    }
    host.ask(&["kill", "parent"]);
    assert_eq!(parent.wait().status, 0);
}

fn start_tiny(host: &Host, memory: u64) -> Live {
    let kernel = host.write("kernel", idle_kernel());
    let document = json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": memory },
    });
    let file = host.write("guest.json", document.to_string());
    let parent = host.vmm("parent", &["--config-file", &file]);
    until("the start", || {
        (host.state("parent") == "Running").then_some(())
    });
    parent
}

fn start_linux(host: &Host, memory: u64) -> Live {
    let initrd = guest::probing(host.path(), "echo READY; read -r end");
    let mut command = host.command(&["run", "--id", "parent", "--api-sock", "--console", "serial"]);
    command
        .args(["--net", "user", "--append", "ip=dhcp"])
        .args(["--memory", &format!("{memory}m"), "--initrd"])
        .arg(initrd);
    let mut parent = Live::start(command);
    parent.expect("READY");
    parent
}

/// What lines of these names in a copy's `smaps_rollup` have together, in KiB.
fn size(copy: &Value, names: &[&str]) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", copy["pid"])).unwrap();
    kib(&rollup, names)
}

/// Memory that the host has left, in KiB.
fn available() -> u64 {
    kib(
        &fs::read_to_string("/proc/meminfo").unwrap(),
        &["MemAvailable"],
    )
}

fn kib(text: &str, names: &[&str]) -> u64 {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| names.contains(name))
        .map(|(_, value)| {
            let number = value.split_whitespace().next();
            number.unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[(values.len() - 1) / 2]
}
