//! How long the control API takes to answer, beside a guest that does nothing and one that works.
//!
//! ```text
//! cargo bench -p tests --bench api -- [--rounds N] [--option ARGUMENT]...
//! ```
//! A Linux guest with a disk and a network card of the user network, served by `mote run --api-sock`. Under
//! load it reads and writes 4 KiB blocks at a depth of 32 each, and sends on one TCP connection, all at the same
//! time and without an end. Requests come one after the other, each on a connection of its own; times are
//! those from connecting to the last byte of the answer. Options are mote's.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use guest_probe::load::serve_streams;
use tests::live::Live;
use tests::service::request;
use tests::times::MANY;
use tests::{disk, guest, monitor};
use vmm_sys_util::tempdir::TempDir;

const REQUESTS: [(&str, &str, Option<&str>); 4] = [
    ("GET", "/", None),
    ("GET", "/vm/config", None),
    ("GET", "/metrics", None),
    (
        "PATCH",
        "/drives/disk0",
        Some(
            r#"{"drive_id": "disk0", "rate_limiter": {"ops": {"size": 1000000, "refill_time": 100}}}"#,
        ),
    ),
];
/// More than is done before the measurement ends.
const ENDLESS: u64 = 1 << 40;

fn main() {
    let mut rounds = 1000;
    let mut options = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--option" => options.push(arguments.next().unwrap()),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let file = disk::filled(directory, "disk", 256 << 20, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve_streams(listener);
    let block = format!("--direct --block 4096 --depth 32 --operations {ENDLESS}");
    let script = format!(
        "echo IDLE; read -r line
        guest-probe load disk /dev/vda {block} &
        guest-probe load disk /dev/vda {block} --write &
        guest-probe load tcp 10.0.2.2:{port} --mode send --amount {ENDLESS} &
        sleep 2; echo BUSY; read -r line"
    );
    let initrd = guest::probing(directory, &script);
    let socket = directory.join("api");
    let mut command = Command::new(monitor::path());
    command
        .args([
            "run", "--memory", "256m", "--append", "ip=dhcp", "--net", "user", "--disk",
        ])
        .arg(&file)
        .arg("--initrd")
        .arg(initrd)
        .arg("--api-sock")
        .arg(&socket)
        .args(&options);
    let mut live = Live::start(command);
    MANY.head(rounds, "requests");
    live.expect("IDLE");
    measure("idle", &socket, rounds);
    let before = operations(&socket);
    live.send("work");
    live.expect("BUSY");
    let start = Instant::now();
    measure("busy", &socket, rounds);
    let took = start.elapsed().as_secs_f64();
    let done = operations(&socket) - before;
    println!(
        "The disk did {:.0} operations a second meanwhile, all told.",
        done / took
    );
    drop(live.kill());
}

/// What the disk has done.
fn operations(socket: &Path) -> f64 {
    let answer = request(socket, "GET", "/metrics", None);
    let text = answer.body.as_str().unwrap_or_default();
    let of_disk = |line: &&str| line.starts_with("mote_block_operations_total{");
    let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    text.lines().filter(of_disk).filter_map(value).sum()
}

fn measure(name: &str, socket: &Path, rounds: usize) {
    for (method, path, body) in REQUESTS {
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            let answer = request(socket, method, path, body);
            times.push(start.elapsed());
            assert!(answer.status < 300, "{answer:?}");
        }
        MANY.row(&format!("{name}, {method} {path}"), times);
    }
}
