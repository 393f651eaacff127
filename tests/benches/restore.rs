//! How long it takes until a guest goes on from a snapshot, from exec of its monitor on, as another process sees it.
//!
//! ```text
//! cargo bench -p tests --bench restore -- [--rounds N] [--memory SIZE]... [--peer FIRECRACKER]
//! ```
//! A guest of a few instructions writes to all of its memory, at most the first 3 GiB, and prints lines. It is paused and
//! written; then it goes on so many times, in turn (A B C A B C …): by `mote restore`; by `mote vmm` that is told to load it by
//! its API; and the same of the peer, which has a guest of its own. The time ends when a byte of the guest arrives here: it
//! runs again by then. "from main on" is what `mote restore` notes: the time from when its `main` began until the first vCPU enters
//! the guest. Files are in the host's page cache.
//!
//! A process that does nothing is timed beside them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::service::{snapshot_from, snapshot_to};
use tests::times::MANY;
use tests::{executable, monitor};
use vmm_sys_util::tempdir::TempDir;

/// What a monitor notes of a restore.
const NOTED: &str = "memory.restored";
/// How often a socket that is not there yet is looked at.
const INTERVAL: Duration = Duration::from_micros(50);
/// What a monitor that was ended leaves to the kernel is done by then.
const PAUSE: Duration = Duration::from_millis(50);

fn main() {
    let mut rounds = 100;
    let mut sizes = Vec::new();
    let mut peer = None;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => {
                sizes.push(cli::quantity::parse_size(&arguments.next().unwrap()).unwrap());
            }
            "--peer" => peer = Some(PathBuf::from(arguments.next().unwrap())),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![128 << 20, 2 << 30];
    }
    MANY.head(rounds, "rounds");
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
    MANY.row("exec and exit", times);
    for bytes in sizes {
        restore(bytes, rounds, peer.as_deref());
    }
}

/// A program that serves Firecracker's API.
struct Served {
    child: Child,
    socket: PathBuf,
}

impl Served {
    fn start(directory: &Path, peer: Option<&Path>) -> Self {
        let socket = directory.join("api.sock");
        // That of the last one, which was killed.
        let _ = fs::remove_file(&socket);
        let mut command = if let Some(path) = peer {
            Command::new(path)
        } else {
            let mut command = Command::new(monitor::path());
            command.arg("vmm").env("XDG_RUNTIME_DIR", directory);
            command
        };
        // Nothing but the guest writes to the standard output.
        command
            .args(["--level", "Error", "--api-sock"])
            .arg(&socket);
        Self {
            child: start(command),
            socket,
        }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) {
        let mut stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(INTERVAL),
            }
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        if !line.contains(" 204 ") {
            let rest = answer
                .lines()
                .map_while(Result::ok)
                .find(|line| line.contains('{'));
            panic!("{method} {path} {body}: {line}{rest:?}");
        }
    }
}

fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn first_byte(child: &mut Child) {
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
}

/// When the first vCPU entered the guest, as its monitor notes it soon after the first byte; its output is read until then.
fn noted(child: &mut Child, path: &Path) -> Duration {
    let stdout = child.stdout.as_mut().unwrap();
    let mut output = [0; 4096];
    loop {
        if let Ok(text) = fs::read(path) {
            let noted: Value = serde_json::from_slice(&text).unwrap();
            return Duration::from_secs_f64(noted["running"]["ms"].as_f64().unwrap() / 1e3);
        }
        assert!(stdout.read(&mut output).unwrap() > 0);
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Writes a guest to `directory` that has written to all of its memory; says how long that took.
fn create(directory: &Path, bytes: u64, peer: Option<&Path>) -> Duration {
    let touched = u32::try_from(bytes.min(3 << 30)).unwrap();
    let kernel = directory.join("kernel");
    fs::write(&kernel, executable::touching_kernel(touched)).unwrap();
    let mut served = Served::start(directory, peer);
    if peer.is_some() {
        // Firecracker insists on XCRs, which the CPU of the emulated host does not have.
        let config = json!({ "kvm_capabilities": ["!56"] });
        served.ask("PUT", "/cpu-config", &config);
    }
    let source = json!({ "kernel_image_path": kernel });
    served.ask("PUT", "/boot-source", &source);
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": bytes >> 20 });
    served.ask("PUT", "/machine-config", &machine);
    served.ask(
        "PUT",
        "/actions",
        &json!({ "action_type": "InstanceStart" }),
    );
    first_byte(&mut served.child);
    let mut stdout = served.child.stdout.take().unwrap();
    let drain = thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
    served.ask("PATCH", "/vm", &json!({ "state": "Paused" }));
    let start = Instant::now();
    served.ask("PUT", "/snapshot/create", &snapshot_to(directory));
    let created = start.elapsed();
    end(served.child);
    drain.join().unwrap().unwrap();
    created
}

/// From exec to the first byte, by the API.
fn load(directory: &Path, peer: Option<&Path>) -> Duration {
    let mut order = snapshot_from(directory);
    order["resume_vm"] = json!(true);
    let start = Instant::now();
    let mut served = Served::start(directory, peer);
    served.ask("PUT", "/snapshot/load", &order);
    first_byte(&mut served.child);
    let first = start.elapsed();
    end(served.child);
    first
}

fn restore(bytes: u64, rounds: usize, peer: Option<&Path>) {
    let mebibytes = bytes >> 20;
    let (directory, peers) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let directory = directory.as_path();
    let created = create(directory, bytes, None);
    if peer.is_some() {
        create(peers.as_path(), bytes, peer);
    }
    let (mut restored, mut ran) = (Vec::new(), Vec::new());
    let (mut loaded, mut others) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let mut command = Command::new(monitor::path());
        command
            .arg("restore")
            .arg(directory)
            .env("XDG_RUNTIME_DIR", directory);
        let _ = fs::remove_file(directory.join(NOTED));
        let began = Instant::now();
        let mut child = start(command);
        first_byte(&mut child);
        let first = began.elapsed();
        let first_run = noted(&mut child, &directory.join(NOTED));
        end(child);
        thread::sleep(PAUSE);
        let by_api = load(directory, None);
        thread::sleep(PAUSE);
        let other = peer.map(|peer| {
            let first = load(peers.as_path(), Some(peer));
            thread::sleep(PAUSE);
            first
        });
        // The first rounds fill caches.
        if round >= 2 {
            restored.push(first);
            ran.push(first_run);
            loaded.push(by_api);
            others.extend(other);
        }
    }
    MANY.row(&format!("{mebibytes} MiB, restore"), restored);
    MANY.row(&format!("{mebibytes} MiB, from main on"), ran);
    MANY.row(&format!("{mebibytes} MiB, by the API"), loaded);
    if !others.is_empty() {
        MANY.row(&format!("{mebibytes} MiB, peer"), others);
    }
    println!(
        "{mebibytes} MiB were written in {:.0} ms",
        created.as_secs_f64() * 1e3
    );
}
