//! What a guest that `mote restore` has go on takes until its first reply, and what it notes of that itself.
//!
//! ```text
//! cargo bench -p tests --bench replies -- [--rounds N] [--memory SIZE]... [--linux]
//! ```
//! A guest that writes to each page of a quarter of its memory when a line is typed, and then replies; with `--linux`, a shell that
//! lists files, for a host that can boot Linux (the emulated host, without its instruction clock). The line is there before the
//! guest is. In turn without a list of pages, which that one notes, and with it; and both when the host has
//! nothing of the memory file in its own memory. Each row has the median of the time from exec on, as seen here, and of the page
//! faults that mote has noted: the process's, the vCPUs' among these, those that were read, and KVM's.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::driven::SCRIPT;
use tests::service::{Service, snapshot_to};
use tests::{executable, guest, monitor};
use vmm::snapshot::working_set;
use vmm_sys_util::tempdir::TempDir;

fn main() {
    let mut rounds = 50;
    let mut sizes = Vec::new();
    let mut linux = false;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => {
                sizes.push(cli::quantity::parse_size(&arguments.next().unwrap()).unwrap());
            }
            "--linux" => linux = true,
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if sizes.is_empty() {
        sizes = vec![128 << 20, 1 << 30];
    }
    println!(
        "{:36} {:>9} {:>8} {:>8} {:>8} {:>8}   medians of {rounds}",
        "", "ms", "faults", "vCPUs'", "read", "KVM's"
    );
    for bytes in sizes {
        first_replies(bytes, rounds, linux);
    }
}

/// Starts a monitor with a guest of so much memory.
fn boot(directory: &Path, bytes: u64, source: &Value) -> Service {
    let service = Service::start(directory, &[""; 0]);
    service.put("/boot-source", source.clone());
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": bytes >> 20}),
    );
    service.act("InstanceStart");
    service
}

/// Writes the guest.
fn save(service: Service, directory: &Path) {
    service.patch("/vm", json!({"state": "Paused"}));
    service.put("/snapshot/create", snapshot_to(directory));
    drop(service.terminate());
}

fn restoring(directory: &Path) -> Command {
    let mut command = Command::new(monitor::path());
    command
        .arg("restore")
        .arg(directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env("XDG_RUNTIME_DIR", directory);
    command
}

/// A guest that waits for a line, and replies to it.
struct Subject<'a> {
    directory: &'a Path,
    line: &'a str,
    reply: &'a str,
}

/// What a guest took until its first reply.
#[derive(Default)]
struct Row {
    times: Vec<Duration>,
    faults: Vec<u64>,
    vcpus: Vec<u64>,
    read: Vec<u64>,
    kvm: Vec<u64>,
}

fn first_replies(bytes: u64, rounds: usize, linux: bool) {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let swept = u32::try_from((bytes / 4).min(1 << 30)).unwrap() + executable::SWEPT_FROM;
    let subject = if linux {
        let initrd = guest::probing(directory, SCRIPT);
        let mut service = boot(
            directory,
            bytes,
            &json!({
                "kernel_image_path": guest::tuned_kernel().join("vmlinux"), "initrd_path": initrd,
                "boot_args": "console=ttyS0 quiet reboot=k panic=-1",
            }),
        );
        service.live().expect("READY");
        save(service, directory);
        Subject {
            directory,
            line: "ls -l /bin >/dev/null; echo REPLY",
            reply: "REPLY",
        }
    } else {
        let kernel = directory.join("kernel");
        fs::write(&kernel, executable::sweeping_kernel(swept)).unwrap();
        let mut service = boot(directory, bytes, &json!({ "kernel_image_path": kernel }));
        assert_eq!(service.live().count(), 1);
        save(service, directory);
        Subject {
            directory,
            line: "",
            reply: "=2",
        }
    };
    let mut rows: [Row; 4] = Default::default();
    for _ in 0..rounds {
        for (index, row) in rows.iter_mut().enumerate() {
            let (with_list, cold) = (index % 2 == 1, index >= 2);
            subject.measure(row, with_list, cold);
        }
    }
    let names = [
        "without a list",
        "with it",
        "without, cold",
        "with it, cold",
    ];
    for (name, row) in names.iter().zip(rows) {
        row.print(&format!("{} MiB, {name}", bytes >> 20));
    }
}

impl Subject<'_> {
    fn beside_memory(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("memory{kind}"))
    }

    fn measure(&self, row: &mut Row, with_list: bool, cold: bool) {
        if !with_list {
            // There is none at first.
            let _ = fs::remove_file(self.beside_memory(".pages"));
        }
        assert_eq!(self.beside_memory(".pages").exists(), with_list);
        if cold {
            working_set::forget(&self.beside_memory("")).unwrap();
        }
        let start = Instant::now();
        let mut child = restoring(self.directory)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all(format!("{}\n", self.line).as_bytes())
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let found = lines.find(|line| line.as_ref().unwrap().contains(self.reply));
        row.times.push(start.elapsed());
        assert!(found.is_some());
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
        let noted = fs::read(self.beside_memory(".restored")).unwrap();
        let noted: Value = serde_json::from_slice(&noted).unwrap();
        let reply = &noted["reply"];
        assert!(reply.is_object(), "{noted}, and {:?}", row.times.last());
        let count =
            |faults: &Value| faults["minor"].as_u64().unwrap() + faults["major"].as_u64().unwrap();
        row.faults.push(count(&reply["taken"]["faults"]));
        row.vcpus.push(count(&reply["vcpus"]["threads"]));
        row.read
            .push(reply["taken"]["faults"]["major"].as_u64().unwrap());
        row.kvm.push(reply["vcpus"]["kvm"].as_u64().unwrap_or(0));
    }
}

impl Row {
    fn print(mut self, name: &str) {
        self.times.sort();
        let middle = |numbers: &mut Vec<u64>| {
            numbers.sort_unstable();
            numbers[(numbers.len() - 1) / 2]
        };
        let time = self.times[(self.times.len() - 1) / 2].as_secs_f64() * 1e3;
        println!(
            "{name:36} {time:9.2} {:8} {:8} {:8} {:8}",
            middle(&mut self.faults),
            middle(&mut self.vcpus),
            middle(&mut self.read),
            middle(&mut self.kvm)
        );
    }
}
