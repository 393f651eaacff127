use super::*;
use crate::record::{Run, Startup, StartupRow};
use crate::sample::{self, times};

fn record(rows: Vec<StartupRow>) -> Record {
    sample::record(Measured::Startup(sample::startup(rows)))
}

fn startup(record: &mut Record) -> &mut Startup {
    match &mut record.measured {
        Measured::Startup(startup) => startup,
        Measured::Density(_) => panic!("it is one of starts"),
    }
}

fn verdict<'a>(found: &'a Comparison, row: &str, quantity: &str) -> &'a Quantity {
    let row = found.rows.iter().find(|found| found.name == row).unwrap();
    let mut quantities = row.quantities.iter();
    quantities.find(|found| found.name == quantity).unwrap()
}

#[test]
fn a_difference_is_found_and_noise_is_not() {
    let a = record(vec![
        sample::row("mote", &times(30.0, 60, 1)),
        sample::row("crun", &times(12.0, 60, 2)),
        sample::row("runc", &times(40.0, 60, 3)),
    ]);
    let b = record(vec![
        sample::row("mote", &times(24.0, 60, 4)),
        sample::row("crun", &times(12.0, 60, 5)),
        sample::row("runc", &times(60.0, 60, 6)),
    ]);
    let found = compare(&a, &b).unwrap();
    let Verdict::Less { percent, low, high } = verdict(&found, "mote", "exit").verdict else {
        panic!("{found:?}");
    };
    assert!(
        low < percent && percent < high && low < 20.0 && 20.0 < high,
        "{found:?}"
    );
    assert_eq!(verdict(&found, "crun", "exit").verdict, Verdict::Noise);
    let Verdict::More { percent, low, high } = verdict(&found, "runc", "gone").verdict else {
        panic!("{found:?}");
    };
    assert!(
        low < percent && percent < high && low < 50.0 && 50.0 < high,
        "{found:?}"
    );
    // The control groups' peaks are all the same.
    assert_eq!(verdict(&found, "mote", "memory").verdict, Verdict::Noise);
    assert!(found.differences.is_empty() && found.warnings.is_empty());
    for quantity in found.rows.iter().flat_map(|row| &row.quantities) {
        assert!(quantity.corrected_p.unwrap() >= quantity.p.unwrap());
    }
}

/// Of 40 sets of comparisons in which nothing is different, at most one of 20 may find something, as far as chance allows.
#[test]
fn without_a_difference_few_comparisons_find_one() {
    let mut wrong = 0;
    for set in 0..40 {
        let rows = |seed: u64| {
            let row = |name: &str, seed: u64| {
                let mut row = sample::row(name, &times(10.0, 10, seed));
                for (run, cpu) in row.runs.iter_mut().zip(times(5.0, 10, seed + 500)) {
                    run.cpu = Some(cpu);
                }
                row
            };
            record(vec![row("crun", seed), row("runc", seed + 1)])
        };
        let found = compare(&rows(1000 * set), &rows(1000 * set + 100)).unwrap();
        let mut quantities = found.rows.iter().flat_map(|row| &row.quantities);
        wrong += u32::from(quantities.any(|found| found.verdict != Verdict::Noise));
    }
    assert!(wrong <= 7, "{wrong}");
}

#[test]
fn small_differences_and_few_runs_are_no_finding() {
    // So narrow that the smallest difference is found.
    let narrow = |median: f64| -> Vec<f64> {
        let off = (0..60).map(|step| f64::from(step) * 1e-4);
        off.map(|off| median + off).collect()
    };
    let a = record(vec![sample::row("mote", &narrow(30.0))]);
    let b = record(vec![sample::row("mote", &narrow(30.3))]);
    let found = compare(&a, &b).unwrap();
    assert_eq!(verdict(&found, "mote", "exit").verdict, Verdict::Small);
    let a = record(vec![sample::row("mote", &[1.0, 1.1, 1.2])]);
    let b = record(vec![sample::row("mote", &[9.0, 9.1, 9.2])]);
    let found = compare(&a, &b).unwrap();
    assert_eq!(verdict(&found, "mote", "exit").verdict, Verdict::TooFew);
}

#[test]
fn what_else_differs_is_named() {
    let rows = || {
        vec![
            sample::row("process", &times(1.0, 40, 1)),
            sample::row("crun", &times(10.0, 40, 2)),
        ]
    };
    let a = record(rows());
    let mut b = record(rows());
    b.host.cpus = 2;
    b.host.governor = None;
    let of = startup(&mut b);
    of.memory = 1;
    of.rows[1].runtime.command.push("--fast".into());
    of.rows[0] = sample::row("process", &times(2.0, 40, 3));
    of.rows.push(sample::row("youki", &[1.0]));
    let found = compare(&a, &b).unwrap();
    let what: Vec<_> = found
        .differences
        .iter()
        .map(|found| &found.what[..])
        .collect();
    assert_eq!(
        what,
        ["CPUs", "governor", "memory of guests", "command of crun"]
    );
    let governor = &found.differences[1];
    assert_eq!((&governor.a[..], &governor.b[..]), ("performance", "none"));
    assert_eq!(found.only_b, ["youki"]);
    assert!(found.only_a.is_empty());
    assert_eq!(found.warnings.len(), 2, "{:?}", found.warnings);
    assert!(found.warnings[0].contains("hosts are not the same"));
    assert!(found.warnings[1].starts_with("process differs"));
}

#[test]
fn rows_in_which_nothing_counts_say_so() {
    let rows = || {
        vec![
            sample::row("crun", &times(10.0, 40, 2)),
            sample::row("runc", &[]),
        ]
    };
    let mut a = record(rows());
    let mut b = record(rows());
    for run in &mut startup(&mut a).rows[0].runs {
        run.failure = Some("it hangs".into());
    }
    startup(&mut b).rows[0].runs[0].failure = Some("it hangs".into());
    let found = compare(&a, &b).unwrap();
    assert_eq!(found.rows[0].quantities, []);
    assert_eq!(
        found.rows[0].notes,
        ["40 of 40 runs failed in A", "1 of 40 runs failed in B"]
    );
    assert_eq!(
        found.rows[1].notes,
        ["there are no runs in A", "there are no runs in B"]
    );
    let mut a = record(rows());
    startup(&mut a).rows[0].runs[7] = Run {
        cpu: None,
        ..sample::run(1.0)
    };
    let found = compare(&a, &record(rows())).unwrap();
    assert_eq!(found.rows[0].notes, ["cpu is known only in B"]);
    assert_eq!(found.rows[0].quantities.len(), 4);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (a, mut b) = (sample::starts(), sample::starts());
    assert_eq!(compare(&a, &sample::crowd()), Err(Error::Kind));
    b.host.emulated = Some("QEMU".into());
    let by = || "QEMU".to_owned();
    let refused = |which| Err(Error::Emulated { which, by: by() });
    assert_eq!(compare(&a, &b), refused("B"));
    assert_eq!(compare(&b, &a), refused("A"));
    let found = compare(&b, &b).unwrap();
    assert_eq!(found.b.emulated, Some(by()));
}

#[test]
fn densities_are_told_and_not_judged() {
    let a = sample::crowd();
    let mut b = sample::crowd();
    let Measured::Density(of) = &mut b.measured else {
        panic!("it is one of density");
    };
    of.rows[1] = sample::density_row("mote", 50, 40 << 20);
    of.rows[2].rate = None;
    of.rows.remove(0);
    let found = compare(&a, &b).unwrap();
    assert_eq!(found.only_a, ["process"]);
    let reached = verdict(&found, "mote", "reached");
    assert_eq!((reached.a, reached.b), (100.0, 50.0));
    assert_eq!(
        verdict(&found, "mote", "MemAvailable each").b,
        f64::from(40 << 20)
    );
    assert!(
        found.rows[1]
            .notes
            .contains(&"starts a second is known only in A".into())
    );
    let mut quantities = found.rows.iter().flat_map(|row| &row.quantities);
    assert!(quantities.all(|found| found.verdict == Verdict::NotTested && found.p.is_none()));
    assert_eq!(found.warnings.len(), 1);
}
