//! Measurements that nobody made: what plots and pages are tested with. All figures are invented.

use std::collections::BTreeMap;

use bench::record::{
    Density, DensityPoint, DensityRow, Distribution, Estimate, FORMAT, Host, Kind, Measured,
    Milestones, Missing, Purpose, Rate, Record, Run, Runtime, Startup, StartupRow, Summary,
};

/// Names, kinds, milliseconds until the exit status, of CPU time, and MiB.
const ROWS: [(&str, Kind, f64, f64, f64); 16] = [
    ("process", Kind::Process, 0.9, 0.8, 0.4),
    ("crun", Kind::Container, 13.0, 8.0, 2.1),
    ("runc", Kind::Container, 44.0, 38.0, 14.0),
    ("podman", Kind::Container, 390.0, 250.0, 46.0),
    ("docker", Kind::Container, 520.0, 61.0, 39.0),
    ("ctr", Kind::Container, 210.0, 90.0, 35.0),
    ("mote-cold", Kind::Vm, 37.0, 34.0, 41.0),
    ("mote-restore", Kind::Vm, 8.4, 6.0, 17.0),
    ("mote-template", Kind::Vm, 11.2, 9.0, 19.0),
    ("mote-template-pool", Kind::Vm, 3.4, 1.9, 6.0),
    ("mote-fork", Kind::Vm, 6.3, 4.0, 8.0),
    ("firecracker", Kind::Vm, 95.0, 80.0, 58.0),
    ("firecracker-restore", Kind::Vm, 14.5, 11.0, 33.0),
    ("cloud-hypervisor", Kind::Vm, 130.0, 110.0, 71.0),
    ("cloud-hypervisor-restore", Kind::Vm, 61.0, 42.0, 69.0),
    ("qemu-microvm", Kind::Vm, 260.0, 215.0, 96.0),
];

/// Numbers from 0 to 1 that are the same each time.
pub(crate) struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        // Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About 1, skewed as times are: most are a little less, a few are much more.
    fn time(&mut self) -> f64 {
        let bell: f64 = (0..6).map(|_| self.roll()).sum::<f64>() / 6.0 - 0.5;
        let late = if self.roll() > 0.95 {
            0.5 * self.roll()
        } else {
            0.0
        };
        1.0 + 0.35 * bell + late
    }
}

pub(crate) fn runtime(name: &str, kind: Kind) -> Runtime {
    let uncounted = matches!(name, "docker" | "ctr").then(|| "its daemon and shim".to_owned());
    let command = format!("{name} run --memory 128m --id {{id}} /srv/bench/hello {{token}}");
    Runtime {
        name: name.to_owned(),
        about: format!("{name}, as its makers advise"),
        kind,
        version: (name != "process").then(|| format!("{name} 1.2.3")),
        command: command.split(' ').map(str::to_owned).collect(),
        requests: if name == "firecracker" {
            vec!["PUT /boot-source".into(), "PUT /actions".into()]
        } else {
            Vec::new()
        },
        uncounted,
    }
}

/// A run with this much time until its exit status.
pub(crate) fn run(purpose: Purpose, kind: Kind, exit: f64, cpu: f64, mib: f64) -> Run {
    let traced = purpose == Purpose::Traced;
    let share = |share: f64| Some(exit * share);
    Run {
        purpose,
        at: exit * 7.0,
        failure: None,
        milestones: Milestones {
            spawned: Some((exit * 0.08).min(0.6)),
            environment: share(0.3).filter(|_| traced && kind != Kind::Process),
            guest: share(0.38).filter(|_| traced && kind == Kind::Vm),
            init: share(0.71).filter(|_| traced && kind != Kind::Process),
            output: share(0.8),
            exit: Some(exit),
            gone: share(1.12),
        },
        cpu: Some(cpu),
        peak_memory: Some((mib * f64::from(1 << 20)) as u64),
    }
}

fn distribution(mut values: Vec<f64>) -> Option<Distribution> {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (!values.is_empty()).then(|| Distribution {
        count: values.len() as u32,
        min: at(0.0),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: at(1.0),
        mad: at(0.75) - at(0.5),
    })
}

/// Takes one milestone.
type Pick = fn(&Milestones) -> Option<f64>;

/// Makes the summary that the runs have to have.
pub(crate) fn summed_up(row: &mut StartupRow, baseline: f64) {
    let samples = || row.runs.iter().filter(|run| run.purpose == Purpose::Sample);
    let good = || samples().filter(|run| run.failure.is_none());
    let mut failures = BTreeMap::new();
    for why in samples().filter_map(|run| run.failure.clone()) {
        *failures.entry(why).or_insert(0) += 1;
    }
    let mut milestones = BTreeMap::new();
    let of: [(&str, Pick); 4] = [
        ("spawned", |all| all.spawned),
        ("output", |all| all.output),
        ("exit", |all| all.exit),
        ("gone", |all| all.gone),
    ];
    for (name, of) in of {
        let values = good().filter_map(|run| of(&run.milestones)).collect();
        milestones.extend(distribution(values).map(|found| (name.to_owned(), found)));
    }
    let mut ratios = BTreeMap::new();
    if let Some(exit) = milestones
        .get("exit")
        .filter(|_| row.runtime.name != "crun")
    {
        let value = exit.p50 / baseline;
        let estimate = Estimate {
            value,
            low: value * 0.97,
            high: value * 1.04,
            confidence: 0.95,
        };
        ratios.insert("exit".to_owned(), estimate);
    }
    row.summary = Summary {
        counted: good().count() as u32,
        failed: failures.values().sum(),
        failures,
        milestones,
        cpu: distribution(good().filter_map(|run| run.cpu).collect()),
        peak_memory: distribution(
            good()
                .filter_map(|run| Some(run.peak_memory? as f64))
                .collect(),
        ),
        ratios,
    };
}

pub(crate) fn record(measured: Measured) -> Record {
    Record {
        format: FORMAT.to_owned(),
        began: "2026-11-30T12:00:00Z".to_owned(),
        mote: "0.1.0".to_owned(),
        command: ["mote", "bench", "startup", "--runs", "50"]
            .map(str::to_owned)
            .into(),
        host: Host {
            cpu: "Invented CPU @ 3.0 GHz".to_owned(),
            cpus: 4,
            memory: 12 << 30,
            kernel: "Linux 6.12.0".to_owned(),
            kvm: Some("KVM, hardware".to_owned()),
            governor: Some("performance".to_owned()),
            cgroup: Some(2),
            emulated: Some("the CPU says that it is QEMU's".to_owned()),
        },
        interrupted: false,
        missing: [
            ("youki", "no `youki` in PATH"),
            ("runsc", "no `runsc` in PATH"),
        ]
        .map(|(name, why)| Missing {
            name: name.into(),
            why: why.into(),
        })
        .into(),
        measured,
    }
}

/// Starts of all rows: some runs of some fail, those of ctr all.
pub(crate) fn startup(runs: u32) -> Record {
    starts_of(&ROWS, runs)
}

fn starts_of(rows: &[(&str, Kind, f64, f64, f64)], runs: u32) -> Record {
    let mut dice = Dice(1);
    let rows = rows.iter().map(|&(name, kind, exit, cpu, mib)| {
        let mut made = Vec::new();
        for (purpose, count) in [
            (Purpose::Warmup, 2),
            (Purpose::Sample, runs),
            (Purpose::Traced, 5),
        ] {
            for number in 0..count {
                let slow = if purpose == Purpose::Traced { 1.3 } else { 1.0 };
                let (cpu, mib) = (cpu * dice.time(), mib * (0.99 + 0.02 * dice.roll()));
                let mut run = run(purpose, kind, exit * slow * dice.time(), cpu, mib);
                let failed = match name {
                    "ctr" => true,
                    "podman" => number % 20 == 7,
                    "qemu-microvm" => number % 10 == 3,
                    _ => false,
                };
                if failed && purpose == Purpose::Sample {
                    let why = if name == "ctr" {
                        "status 1 instead of 0"
                    } else {
                        "output is not right: \"\""
                    };
                    run.failure = Some(why.to_owned());
                    run.milestones.output = None;
                }
                made.push(run);
            }
        }
        let mut row = StartupRow {
            runtime: runtime(name, kind),
            runs: made,
            summary: Summary::default(),
        };
        summed_up(&mut row, 13.0);
        row
    });
    record(Measured::Startup(Startup {
        runs,
        warmups: 2,
        memory: 128 << 20,
        baseline: "crun".to_owned(),
        rows: rows.collect(),
    }))
}

/// Instances side by side: names, kinds, MiB each, milliseconds each, starts a second.
const CROWDS: [(&str, Kind, f64, f64, f64); 6] = [
    ("process", Kind::Process, 0.3, 1.1, 870.0),
    ("crun", Kind::Container, 0.9, 14.0, 61.0),
    ("runc", Kind::Container, 1.4, 45.0, 22.0),
    ("mote-fork", Kind::Vm, 1.5, 7.2, 130.0),
    ("mote-cold", Kind::Vm, 36.0, 39.0, 26.0),
    ("firecracker-restore", Kind::Vm, 12.0, 16.0, 58.0),
];

/// Up to 100 instances of some runtimes; one is measured at fewer, one has no rate.
pub(crate) fn density() -> Record {
    let mut dice = Dice(2);
    let rows = CROWDS.map(|(name, kind, mib, start, rate)| {
        let total = 8_u64 << 30;
        let most = if name == "mote-cold" { 60 } else { 100 };
        let points = (0..=most).map(|count| {
            let used = f64::from(count) * mib * f64::from(1 << 20) + 2e6 * dice.roll();
            DensityPoint {
                count,
                available: total - used as u64,
                pss: (name != "process").then_some((used * 0.8) as u64),
                start: (count > 0).then(|| start * dice.time() * (1.0 + f64::from(count) / 200.0)),
            }
        });
        DensityRow {
            runtime: runtime(name, kind),
            points: points.collect(),
            ended: (most < 100).then(|| "no memory is left".to_owned()),
            rate: (name != "runc").then(|| Rate {
                started: 200,
                failures: [("it hangs".to_owned(), 3)]
                    .into_iter()
                    .filter(|_| name == "mote-fork")
                    .collect(),
                seconds: 200.0 / rate,
            }),
        }
    });
    record(Measured::Density(Density {
        limit: 100,
        concurrency: 8,
        memory: 128 << 20,
        rows: rows.into(),
    }))
}

/// Names as a file of a user may have them.
const NAMES: [&str; 5] = [
    "<script>window.owned = true</script>",
    "\"><img src=x onerror='window.owned = true'>",
    "]]></svg></title></script><!-- & &amp; {id} ' \u{1b}[31m \u{0}",
    "a-name-of-a-runtime-that-is-so-long-that-nothing-has-room-for-it-and-that-nobody-should-ever-give-to-anything-at-all-in-earnest",
    "名前 ünïcode \u{202e}desrever",
];

/// The startup of a record.
pub(crate) fn starts(record: &mut Record) -> &mut Startup {
    match &mut record.measured {
        Measured::Startup(startup) => startup,
        Measured::Density(_) => panic!("no startup"),
    }
}

/// A record with these changes to each row.
fn changed(runs: u32, change: impl Fn(&mut StartupRow)) -> Record {
    let mut record = startup(runs);
    for row in &mut starts(&mut record).rows {
        change(row);
        summed_up(row, 13.0);
    }
    record
}

/// What plots and pages have to bear, by name.
pub(crate) fn edge_cases() -> Vec<(&'static str, Record)> {
    let rename = |runtime: &mut Runtime, number: usize| {
        let name = NAMES[number % NAMES.len()];
        runtime.name = format!("{name}{}", if number < NAMES.len() { "" } else { "2" });
        runtime.about = name.to_owned();
        runtime.version = Some(name.to_owned());
        runtime.command.push(name.to_owned());
        runtime.uncounted = Some(name.to_owned());
    };
    let mut hostile = startup(4);
    hostile.host.cpu = NAMES[0].to_owned();
    hostile.missing[0].why = NAMES[1].to_owned();
    let measured = starts(&mut hostile);
    measured.baseline = NAMES[0].to_owned();
    measured.rows.truncate(10);
    for (number, row) in measured.rows.iter_mut().enumerate() {
        rename(&mut row.runtime, number);
        row.runs[3].failure = Some(NAMES[number % NAMES.len()].to_owned());
        summed_up(row, 13.0);
    }
    let mut hostile_crowd = density();
    if let Measured::Density(measured) = &mut hostile_crowd.measured {
        for (number, row) in measured.rows.iter_mut().enumerate() {
            rename(&mut row.runtime, number);
            row.ended = Some(NAMES[0].to_owned());
        }
    }
    // As far apart as times are, with names that are long, and nothing in the way that says so.
    let names: Vec<String> = (0..20)
        .map(|number| format!("virtual-machine-{number}"))
        .collect();
    let apart: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let time = 0.1 * 30_000_f64.powf(number as f64 / 19.0);
            let kind = if number % 3 == 0 {
                Kind::Container
            } else {
                Kind::Vm
            };
            (name.as_str(), kind, time, time * 0.8, 0.1 + time)
        })
        .collect();
    let mut apart = starts_of(&apart, 12);
    apart.host.emulated = None;
    apart.host.governor = None;
    apart.interrupted = true;
    let mut nothing = startup(1);
    starts(&mut nothing).rows.clear();
    let mut no_crowd = density();
    if let Measured::Density(measured) = &mut no_crowd.measured {
        for row in &mut measured.rows {
            row.points.truncate(1);
            row.rate = None;
        }
        measured.rows[0].points.clear();
    }
    vec![
        ("hostile", hostile),
        ("hostile density", hostile_crowd),
        ("far apart", apart),
        ("one run", startup(1)),
        ("no runs", changed(0, |row| row.runs.clear())),
        ("no rows", nothing),
        (
            "all failed",
            changed(5, |row| {
                for run in &mut row.runs {
                    run.failure = Some("status 1 instead of 0".to_owned());
                }
            }),
        ),
        (
            "all equal",
            changed(5, |row| {
                for run in &mut row.runs {
                    *run = self::run(run.purpose, row.runtime.kind, 10.0, 5.0, 3.0);
                }
            }),
        ),
        (
            "nothing seen",
            changed(5, |row| {
                for run in &mut row.runs {
                    run.milestones = Milestones::default();
                    (run.cpu, run.peak_memory) = (None, None);
                }
            }),
        ),
        (
            "no time at all",
            changed(3, |row| {
                for run in &mut row.runs {
                    *run = self::run(run.purpose, row.runtime.kind, 0.0, 0.0, 0.0);
                }
            }),
        ),
        ("no instances", no_crowd),
    ]
}
