//! Records for tests. What is random in them is the same each time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fastrand::Rng;
use statrs::distribution::{ContinuousCDF, LogNormal};

use crate::record::{
    Density, DensityPoint, DensityRow, FORMAT, Host, Kind, Measured, Milestones, Missing, Purpose,
    Rate, Record, Run, Runtime, Startup, StartupRow, Summary,
};
use crate::summary::summarize;

const MIB: u64 = 1 << 20;

/// So many times around a median, with a tail to the right.
pub(crate) fn times(median: f64, count: usize, seed: u64) -> Vec<f64> {
    let mut rng = Rng::with_seed(seed);
    let spread = LogNormal::new(median.ln(), 0.05).expect("the median is above zero");
    let drawn = (0..count).map(|_| spread.inverse_cdf(rng.f64().clamp(1e-9, 1.0 - 1e-9)));
    drawn.collect()
}

/// A run that counts and exits after so many milliseconds.
pub(crate) fn run(exit: f64) -> Run {
    let at = |share: f64| Some(exit * share);
    Run {
        purpose: Purpose::Sample,
        at: 0.0,
        failure: None,
        milestones: Milestones {
            spawned: at(0.1),
            environment: at(0.4),
            guest: None,
            init: at(0.6),
            output: at(0.8),
            exit: at(1.0),
            gone: at(1.1),
        },
        cpu: at(0.5),
        peak_memory: Some(8 * MIB),
    }
}

pub(crate) fn runtime(name: &str) -> Runtime {
    let kind = match name {
        "process" => Kind::Process,
        name if name.starts_with("mote") || name == "firecracker" => Kind::Vm,
        _ => Kind::Container,
    };
    Runtime {
        name: name.into(),
        about: format!("{name}, as it is installed"),
        kind,
        version: (kind != Kind::Process).then(|| "1.2.3".into()),
        command: vec![name.into(), "run".into(), "{id}".into()],
        requests: Vec::new(),
        uncounted: None,
    }
}

/// A row with one run for each time.
pub(crate) fn row(name: &str, exits: &[f64]) -> StartupRow {
    StartupRow {
        runtime: runtime(name),
        runs: exits.iter().map(|&exit| run(exit)).collect(),
        summary: Summary::default(),
    }
}

/// Starts with the baseline "process", and summaries.
pub(crate) fn startup(rows: Vec<StartupRow>) -> Startup {
    let most = rows.iter().map(|row| row.runs.len()).max().unwrap_or(0);
    let mut startup = Startup {
        runs: u32::try_from(most).unwrap_or(u32::MAX),
        warmups: 3,
        memory: 128 * MIB,
        baseline: "process".into(),
        rows,
    };
    summarize(&mut startup);
    startup
}

/// A row of points: memory for each instance, in bytes, by MemAvailable; by PSS it is a tenth less.
pub(crate) fn density_row(name: &str, instances: u32, each: u64) -> DensityRow {
    let point = |count: u32| DensityPoint {
        count,
        available: (64 << 30) - u64::from(count) * each,
        pss: Some(u64::from(count) * each / 10 * 9),
        start: (count > 0).then(|| 10.0 + f64::from(count) / 10.0),
    };
    DensityRow {
        runtime: runtime(name),
        points: (0..=instances).map(point).collect(),
        ended: None,
        rate: Some(Rate {
            started: 200,
            failures: BTreeMap::new(),
            seconds: 2.5,
        }),
    }
}

pub(crate) fn density(rows: Vec<DensityRow>) -> Density {
    Density {
        limit: 100,
        concurrency: 8,
        memory: 128 * MIB,
        rows,
    }
}

/// A record of it, of a host that is not emulated.
pub(crate) fn record(measured: Measured) -> Record {
    Record {
        format: FORMAT.into(),
        began: "2026-11-30T12:00:00Z".into(),
        mote: "0.1.0".into(),
        command: vec!["mote".into(), "bench".into(), "startup".into()],
        host: Host {
            cpu: "A CPU of some kind".into(),
            cpus: 8,
            memory: 64 << 30,
            kernel: "Linux 6.12.0".into(),
            kvm: Some("KVM of the host".into()),
            governor: Some("performance".into()),
            cgroup: Some(2),
            emulated: None,
        },
        interrupted: false,
        missing: vec![Missing {
            name: "youki".into(),
            why: "there is no program 'youki'".into(),
        }],
        measured,
    }
}

/// Starts of a few runtimes, one of which fails now and then, and one always.
pub(crate) fn starts() -> Record {
    let mut rows = Vec::new();
    for (seed, (name, median)) in (0..).zip([
        ("process", 0.51),
        ("mote-template", 9.8),
        ("mote", 31.0),
        ("crun", 12.2),
        ("podman", 212.0),
        ("firecracker", 98.0),
    ]) {
        rows.push(row(name, &times(median, 20, seed)));
    }
    for run in &mut rows[3].runs[..2] {
        run.failure = Some("the exit status is 1, not 7".into());
    }
    for run in &mut rows[5].runs {
        run.failure = Some("the output is 'x', not 'mote bench'".into());
    }
    rows[4].runtime.uncounted = Some("the monitor of the container, conmon".into());
    record(Measured::Startup(startup(rows)))
}

/// Instances of a few runtimes, one of which does not get to the limit.
pub(crate) fn crowd() -> Record {
    let mut rows = vec![
        density_row("process", 100, 300 << 10),
        density_row("mote", 100, 20 * MIB),
        density_row("podman", 37, 11 * MIB),
        density_row("firecracker", 0, MIB),
    ];
    rows[2].ended = Some("start 38 failed: the exit status is 125".into());
    if let Some(rate) = &mut rows[2].rate {
        rate.failures.insert("the exit status is 125".into(), 5);
    }
    rows[3].points.clear();
    rows[3].ended = Some("start 1 failed: no output within 30 s".into());
    rows[3].rate = None;
    record(Measured::Density(density(rows)))
}

/// Compares a text with the one that is kept in a file, whose path is from the folder of this crate on. `UPDATE=1 cargo test -p bench`
/// writes it instead.
pub(crate) fn golden(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).expect("the sources can be written to");
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "{} is not up to date: UPDATE=1 cargo test -p bench. It would be:\n{text}",
        path.display()
    );
}
