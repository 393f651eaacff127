//! `mote bench` with real runtimes, as Debian has them, beside mote's own guests.

use std::fs;

use bench::record::{Kind, Measured, Purpose};
use rustix::process::{Signal, kill_process};
use tests::bench::{Bench, failures, row, runs, words};
use tests::driven::until;
use tests::live::Live;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("every_runtime_is_measured", every_runtime),
    ("ctrl_c_leaves_no_container_and_no_guest", interrupted),
    ("containers_and_guests_stand_side_by_side", density),
];

const RUNTIMES: [&str; 12] = [
    "process",
    "crun",
    "runc",
    "runsc",
    "podman",
    "ctr",
    "mote",
    "mote-restore",
    "mote-template",
    "mote-pool",
    "mote-fork",
    "qemu-microvm",
];

fn every_runtime() {
    let bench = Bench::default();
    let line = "startup -n 1 --warmups 0 --traced 1 --baseline crun";
    let (ended, record) = bench.run(&words(line, &RUNTIMES));
    let text = ended.expect_status(0).text();
    assert!(record.missing.is_empty(), "{:?}", record.missing);
    assert_eq!(record.host.cgroup, Some(2));
    for name in RUNTIMES {
        let row = row(&record, name);
        assert_eq!(failures(row), [""; 0], "{name}");
        let [sample] = runs(row, Purpose::Sample)[..] else {
            panic!("{name}: {:?}", row.runs);
        };
        let it = sample.milestones;
        let seen: Vec<f64> = [it.spawned, it.output, it.exit, it.gone]
            .into_iter()
            .flatten()
            .collect();
        assert!(seen.len() == 4 && seen.is_sorted(), "{name}: {it:?}");
        assert!(
            sample.cpu.unwrap() > 0.0 && sample.peak_memory.unwrap() > 0,
            "{name}: {sample:?}"
        );
        assert_eq!(row.summary.counted, 1);
        assert!(
            text.lines()
                .any(|line| line.starts_with(&format!("{name} "))),
            "{text}"
        );

        let [traced] = runs(row, Purpose::Traced)[..] else {
            panic!("{name}: {:?}", row.runs);
        };
        let it = traced.milestones;
        assert!(it.init.unwrap() <= it.output.unwrap(), "{name}: {it:?}");
        // A pool has made the guest before.
        let expected = match row.runtime.kind {
            _ if name == "mote-pool" => [false, false],
            Kind::Process => [false, false],
            Kind::Container => [true, false],
            Kind::Vm => [true, true],
        };
        assert_eq!(
            [it.environment.is_some(), it.guest.is_some()],
            expected,
            "{name}: {it:?}"
        );
        let order: Vec<f64> = [it.environment, it.guest, it.init, it.output]
            .into_iter()
            .flatten()
            .collect();
        assert!(order.is_sorted(), "{name}: {it:?}");
        let is_versioned = row.runtime.version.is_some();
        assert_eq!(is_versioned, name != "process", "{name}");
    }
}

/// What runs: each with its arguments.
fn command_lines() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
}

fn namespaces() -> usize {
    fs::read_dir("/run/netns").map_or(0, |entries| entries.count())
}

fn interrupted() {
    for runtime in ["podman", "crun", "mote-pool", "mote", "ctr"] {
        let bench = Bench::default();
        let before = namespaces();
        let endless = "startup -n 1000 --warmups 0 --pause 1ms";
        let live = Live::start(bench.command(&words(endless, &[runtime])));
        // One that was started, not what prepares it: its name ends with a number.
        let name = format!("bench-{}-", live.pid().as_raw_nonzero());
        let is_start = |line: String| {
            let behind = line.split(&name).nth(1).map(str::to_owned);
            behind.is_some_and(|behind| behind.starts_with(|first: char| first.is_ascii_digit()))
        };
        until(runtime, || command_lines().any(is_start).then_some(()));
        kill_process(live.pid(), Signal::INT).unwrap();
        let ended = live.wait().expect_status(128 + 2);
        bench.expect_nothing_left();
        assert!(bench.record().interrupted, "{ended:?}");
        let engines = ["conmon", "containerd", "crun run"];
        let is_engine = |line: &String| engines.iter().any(|name| line.contains(name));
        let left: Vec<String> = command_lines().filter(is_engine).collect();
        assert!(left.is_empty(), "{runtime}: {left:?}");
        assert_eq!(namespaces(), before, "{runtime}");
    }
}

fn density() {
    let bench = Bench::default();
    let line = "density crun mote-template -n 3 --starts 4 --concurrency 2";
    let (ended, record) = bench.run(&words(line, &[]));
    ended.expect_status(0);
    let Measured::Density(density) = &record.measured else {
        panic!("{record:?}");
    };
    let each: Vec<u64> = (density.rows.iter())
        .map(|row| {
            assert_eq!(
                (row.ended.as_deref(), row.points.len()),
                (None, 4),
                "{row:?}"
            );
            let rate = row.rate.as_ref().unwrap();
            assert_eq!((rate.started, rate.failures.len()), (4, 0), "{row:?}");
            row.points[3].pss.unwrap() / 3
        })
        .collect();
    // The runtime waits beside its process; a guest, with a kernel of its own, shares what it has not written to.
    assert!(each[0] < 4 << 20, "{each:?}");
    assert!((100 << 10..30 << 20).contains(&each[1]), "{each:?}");
}
