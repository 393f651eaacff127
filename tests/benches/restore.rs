//! How long `mote restore` takes, from exec on, as another process sees it.
//!
//! ```text
//! cargo bench -p tests --bench restore -- [--rounds N] [--memory SIZE]...
//! ```
//! A guest of a few instructions writes to all of its memory, at most the first GiB, and prints lines. It is paused and
//! written; then it is restored so many times. "first" is when a byte of it arrives here: it runs again by then. The
//! pages that are read for that are in the host's page cache.
//!
//! A process that does nothing is timed beside them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;
use tests::service::{Service, snapshot_to};
use tests::times::FEW;
use tests::{executable, monitor};
use vmm_sys_util::tempdir::TempDir;

fn main() {
    let mut rounds = 50;
    let mut sizes = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => {
                sizes.push(cli::quantity::parse_size(&arguments.next().unwrap()).unwrap());
            }
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![128 << 20, 1 << 30];
    }
    FEW.head(rounds, "rounds");
    let directory = TempDir::new().unwrap();
    let nothing = directory.as_path().join("nothing");
    fs::write(&nothing, executable::nothing()).unwrap();
    fs::set_permissions(&nothing, fs::Permissions::from_mode(0o755)).unwrap();
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        Command::new(&nothing).status().unwrap();
        times.push(start.elapsed());
    }
    FEW.row("exec and exit", times);
    for bytes in sizes {
        restore(bytes, rounds);
    }
}

fn restore(bytes: u64, rounds: usize) {
    let mebibytes = bytes >> 20;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let touched = u32::try_from(bytes.min(1 << 30)).unwrap();
    let kernel = directory.join("kernel");
    fs::write(&kernel, executable::touching_kernel(touched)).unwrap();
    let mut service = Service::start(directory, &[""; 0]);
    service.put("/boot-source", json!({ "kernel_image_path": kernel }));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": mebibytes}),
    );
    service.act("InstanceStart");
    service.live().expect(".");
    service.patch("/vm", json!({"state": "Paused"}));
    let start = Instant::now();
    service.put("/snapshot/create", snapshot_to(directory));
    let created = start.elapsed();
    drop(service.terminate());
    let mut times = Vec::new();
    for round in 0..rounds + 2 {
        let start = Instant::now();
        let mut child = Command::new(monitor::path())
            .arg("restore")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env("XDG_RUNTIME_DIR", directory)
            .spawn()
            .unwrap();
        let mut byte = [0];
        child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
        let first = start.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        // The first rounds fill caches.
        if round >= 2 {
            times.push(first);
        }
    }
    FEW.row(&format!("{mebibytes} MiB, first"), times);
    println!(
        "{mebibytes} MiB were written in {:.0} ms",
        created.as_secs_f64() * 1e3
    );
}
