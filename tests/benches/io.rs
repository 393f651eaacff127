//! What disks and networks carry, and what a monitor pays for it.
//!
//! ```text
//! cargo bench -p tests --bench io -- disk|net [--rounds N] [--scale N] [--peer NAME=PATH] [--only TEXT]
//!     [--job TEXT]
//! ```
//! All subjects run the same kernel, initial RAM disk and load, one after the other, so many rounds of
//! all of them; the table has medians. Linux guests have to be able to boot here, and `net` takes root.
//!
//! - `disk`: 1 MiB blocks one after the other and 4 KiB blocks anywhere, read and written, one at a time
//!   (pread, pwrite) and 32 at a time (io_uring), with O_DIRECT in the guest, on one file of the host,
//!   which its page cache holds. The host itself does the same on that file, without O_DIRECT.
//! - `net`: one TCP connection: the guest sends, receives, and exchanges single bytes.
//!
//! A peer is a program that takes Firecracker's configuration file. `--scale` multiplies the amount of
//! work; `--only` keeps subjects with this in their name, `--job` jobs.
//!
//! Columns: bytes or operations a second as the guest sees them. "io" is CPU time of all of the
//! monitor's threads but those of vCPUs, an operation (a MiB for streams and large blocks); "vcpu" that of
//! vCPU threads outside of the guest, by the scheduler's tick; "all" everything, the guest included.
//! "exits" and "user" are exits of the guest's CPUs, and those of them that went to user space, a MiB.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::env;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_probe::load::{DiskLoad, Outcome, serve_streams};
use serde_json::json;
use tests::live::Live;
use tests::measure::{Guest, Monitor, Subject, Usage, median, show_kvm_counters};
use tests::network::{in_namespace, tap};
use tests::{disk, guest};
use vmm_sys_util::tempdir::TempDir;

const MIB: f64 = (1 << 20) as f64;
const FILE_SIZE: u64 = 256 << 20;
/// The guest's kernel sets its address.
const STATIC: &str = "ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off";

/// What is asked for on the command line.
struct Settings {
    rounds: usize,
    scale: u64,
    only: Option<String>,
    job: Option<String>,
    peers: Vec<(String, PathBuf)>,
}

impl Settings {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only))
    }
}

/// A piece of work.
struct Job {
    name: &'static str,
    /// The probe's arguments.
    arguments: String,
    /// What costs are told for.
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Operation,
    Mebibyte,
}

/// What came of it, in the order of the columns.
type Row = [f64; 6];

fn main() {
    let mut settings = Settings {
        rounds: 3,
        scale: 1,
        only: None,
        job: None,
        peers: Vec::new(),
    };
    let mut benches = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap();
        match argument.as_str() {
            "--rounds" => settings.rounds = value().parse().unwrap(),
            "--scale" => settings.scale = value().parse().unwrap(),
            "--only" => settings.only = Some(value()),
            "--job" => settings.job = Some(value()),
            "--peer" => {
                let peer = value();
                let (name, path) = peer.split_once('=').unwrap();
                settings.peers.push((name.to_owned(), path.into()));
            }
            "--bench" => {}
            bench => benches.push(bench.to_owned()),
        }
    }
    show_kvm_counters();
    for bench in benches {
        match bench.as_str() {
            "disk" => disks(&settings),
            "net" => in_namespace(|| networks(&settings)),
            other => panic!("there is no bench {other:?}"),
        }
    }
}

fn disks(settings: &Settings) {
    let directory = TempDir::new().unwrap();
    let file = disk::filled(directory.as_path(), "disk", FILE_SIZE, 1);
    let path = file.to_str().unwrap();
    let scale = settings.scale;
    let mut jobs = Vec::new();
    let mut loads = Vec::new();
    for (name, write, sequential, depth, operations) in [
        ("1 MiB read, depth 1", false, true, 1, 256),
        ("1 MiB read, depth 32", false, true, 32, 256),
        ("1 MiB write, depth 1", true, true, 1, 256),
        ("1 MiB write, depth 32", true, true, 32, 256),
        ("4 KiB read, depth 1", false, false, 1, 4000),
        ("4 KiB read, depth 32", false, false, 32, 8000),
        ("4 KiB write, depth 1", true, false, 1, 4000),
        ("4 KiB write, depth 32", true, false, 32, 8000),
    ] {
        let block: usize = if sequential { 1 << 20 } else { 4096 };
        let operations = operations * scale;
        let mut arguments = format!(
            "disk /dev/vda --direct --block {block} --depth {depth} --operations {operations}"
        );
        if write {
            arguments += " --write";
        }
        if sequential {
            arguments += " --sequential";
        }
        let unit = if sequential {
            Unit::Mebibyte
        } else {
            Unit::Operation
        };
        jobs.push(Job {
            name,
            arguments,
            unit,
        });
        loads.push(DiskLoad {
            path: file.clone(),
            write,
            sequential,
            direct: false,
            block,
            depth,
            operations,
        });
    }
    let mote = |name: &str, options: &str, more: &[&str]| {
        let disk = format!("{path}{options}");
        let mut all = vec!["--disk", &disk];
        all.extend(more);
        Subject::mote(name, &all)
    };
    let mut subjects = vec![
        mote("mote", "", &[]),
        mote("mote, sync", ",engine=sync", &[]),
        mote("mote, PCI", "", &["--pci"]),
    ];
    for (name, program) in &settings.peers {
        for engine in ["Async", "Sync"] {
            let drive = json!({
                "drive_id": "disk0", "path_on_host": path, "is_root_device": false,
                "is_read_only": false, "cache_type": "Writeback", "io_engine": engine,
            });
            let configuration = json!({ "drives": [drive] });
            subjects.push(Subject::peer(
                &format!("{name}, {engine}"),
                program,
                configuration,
            ));
        }
    }
    let host = |rows: &mut Rows| {
        for (job, load) in jobs.iter().zip(&loads) {
            let mut used = Usage::default();
            let pid = i32::try_from(std::process::id()).unwrap();
            let outcome = load.run(|| {
                used = Usage::of(pid);
                Ok(())
            });
            let used = Usage::of(pid).since(&used);
            rows.add(job, "host", row(job, &outcome.unwrap(), &used));
        }
    };
    measure(settings, &subjects, &jobs, "", host);
}

fn networks(settings: &Settings) {
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    serve_streams(TcpListener::bind("10.9.0.1:5000").unwrap());
    serve_streams(TcpListener::bind("127.0.0.1:5000").unwrap());
    let scale = settings.scale;
    let jobs = |address: &str| {
        let job = |name, mode, amount, unit| Job {
            name,
            arguments: format!("tcp {address}:5000 --mode {mode} --amount {amount}"),
            unit,
        };
        [
            job("guest sends", "send", scale * (128 << 20), Unit::Mebibyte),
            job(
                "guest receives",
                "receive",
                scale * (128 << 20),
                Unit::Mebibyte,
            ),
            job("round trip", "round-trip", scale * 3000, Unit::Operation),
        ]
    };
    let mut subjects = vec![
        Subject::mote("mote, tap", &["--net", "tap=tap0"]),
        Subject::mote("mote, tap, PCI", &["--net", "tap=tap0", "--pci"]),
    ];
    if Path::new("/dev/vhost-net").exists() {
        let vhost = &["--net", "tap=tap0,vhost=on"];
        subjects.push(Subject::mote("mote, vhost", vhost));
    }
    for (name, program) in &settings.peers {
        let interface = json!({
            "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01",
        });
        let configuration = json!({ "drives": [], "network-interfaces": [interface] });
        subjects.push(Subject::peer(name, program, configuration));
    }
    measure(settings, &subjects, &jobs("10.9.0.1"), STATIC, |_| {});
    let user = [Subject::mote("mote, user network", &["--net", "user"])];
    measure(settings, &user, &jobs("10.0.2.2"), "ip=dhcp", |_| {});
}

/// Has every subject do all jobs, `rounds` times.
fn measure(
    settings: &Settings,
    subjects: &[Subject],
    jobs: &[Job],
    append: &str,
    mut before: impl FnMut(&mut Rows),
) {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let is_wanted = |job: &&Job| {
        let wanted = settings.job.as_ref();
        wanted.is_none_or(|text| job.name.contains(text.as_str()))
    };
    let jobs: Vec<&Job> = jobs.iter().filter(is_wanted).collect();
    let script: Vec<String> = jobs
        .iter()
        .map(|job| format!("must guest-probe load {} --wait", job.arguments))
        .collect();
    let initrd = guest::probing(directory, &script.join("\n"));
    let guest = Guest {
        initrd: &initrd,
        memory: 256,
        cpus: 1,
        append,
    };
    let mut rows = Rows::default();
    for _ in 0..settings.rounds {
        before(&mut rows);
        for subject in subjects {
            if !settings.wants(&subject.name) {
                continue;
            }
            let mut live = Live::start(subject.command(&guest, directory));
            let pid = live.pid().as_raw_nonzero().get();
            for job in &jobs {
                live.expect("READY");
                let used = Usage::of(pid);
                live.send("go");
                let line = live.expect("DONE");
                let used = Usage::of(pid).since(&used);
                rows.add(job, &subject.name, row(job, &outcome(&line), &used));
            }
            live.expect("FAILURES 0");
            match subject.monitor {
                // The host's kernel closes the disk of one that is killed when it gets round to it.
                Monitor::Mote => drop(live.wait_for_success()),
                // The guest's power button does not work there.
                Monitor::Peer(_) => drop(live.kill()),
            }
        }
    }
    rows.print();
}

fn outcome(line: &str) -> Outcome {
    let words = line.split_whitespace().skip_while(|word| *word != "DONE");
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    Outcome {
        operations: numbers[0],
        bytes: numbers[1],
        time: Duration::from_nanos(numbers[2]),
    }
}

fn row(job: &Job, outcome: &Outcome, used: &Usage) -> Row {
    let mebibytes = outcome.bytes as f64 / MIB;
    let units = match job.unit {
        Unit::Operation => outcome.operations as f64,
        Unit::Mebibyte => mebibytes,
    };
    let each = |time: Duration| time.as_secs_f64() * 1e6 / units;
    [
        units / outcome.time.as_secs_f64(),
        each(used.others()),
        each(used.vcpus.saturating_sub(used.guest)),
        each(used.all),
        used.exits as f64 / mebibytes,
        used.user_exits as f64 / mebibytes,
    ]
}

/// Results by job and subject, in the order in which they came first.
#[derive(Default)]
struct Rows {
    order: Vec<(String, String, Unit)>,
    rows: BTreeMap<(String, String), Vec<Row>>,
}

impl Rows {
    fn add(&mut self, job: &Job, subject: &str, row: Row) {
        let key = (job.name.to_owned(), subject.to_owned());
        if !self.rows.contains_key(&key) {
            self.order.push((key.0.clone(), key.1.clone(), job.unit));
        }
        let [rate, io, vcpu, all, exits, user] = row;
        eprintln!(
            "{}, {subject}: {rate:.0} a second, io {io:.2}, vcpu {vcpu:.2}, all {all:.2} µs, exits {exits:.2}, user {user:.3}",
            job.name
        );
        self.rows.entry(key).or_default().push(row);
    }

    fn print(&mut self) {
        println!("| | | a second | io, µs | vcpu, µs | all, µs | exits a MiB | user a MiB |");
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        let mut jobs: Vec<String> = Vec::new();
        for (job, _, _) in &self.order {
            if !jobs.contains(job) {
                jobs.push(job.clone());
            }
        }
        for job in jobs {
            for (_, subject, unit) in self.order.iter().filter(|(name, _, _)| *name == job) {
                let rows = &self.rows[&(job.clone(), subject.clone())];
                let of = |column: usize| median(rows.iter().map(|row| row[column]).collect());
                let what = match unit {
                    Unit::Operation => "",
                    Unit::Mebibyte => " MiB",
                };
                println!(
                    "| {job} | {subject} | {:.0}{what} | {:.2} | {:.2} | {:.2} | {:.2} | {:.3} |",
                    of(0),
                    of(1),
                    of(2),
                    of(3),
                    of(4),
                    of(5)
                );
            }
        }
    }
}
