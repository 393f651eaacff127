//! What the runs of a measurement come to: the `summary` of each row.
//!
//! - Only runs whose purpose is [`Purpose::Sample`] are looked at. Those with a failure are counted as failed, by what the failure says,
//!   word for word; all others count.
//! - A milestone is in the summary only if it was seen in all runs that count. One that was seen in some would be the distribution of
//!   those that could be watched, which are seldom the slow ones.
//! - The same holds for CPU time and memory.
//! - Ratios are those of medians to the baseline's ([`ratio_of_medians`]). If nothing counts of the baseline, there are none.

mod density;

use std::collections::BTreeMap;

use crate::record::{Milestones, Purpose, Run, Startup, StartupRow, Summary};
use crate::stats::{distribution, ratio_of_medians};

pub use density::{DensitySummary, density};

/// Names of the milestones, in the order in which they are reached.
pub const MILESTONES: [&str; 7] = [
    "spawned",
    "environment",
    "guest",
    "init",
    "output",
    "exit",
    "gone",
];

/// When each of [`MILESTONES`] was reached.
#[must_use]
pub fn times(milestones: &Milestones) -> [Option<f64>; MILESTONES.len()] {
    let Milestones {
        spawned,
        environment,
        guest,
        init,
        output,
        exit,
        gone,
    } = *milestones;
    [spawned, environment, guest, init, output, exit, gone]
}

/// The runs that count.
pub fn counted(row: &StartupRow) -> impl Iterator<Item = &Run> {
    samples(row).filter(|run| run.failure.is_none())
}

/// How many would count if they had not failed.
#[must_use]
pub fn failed(row: &StartupRow) -> usize {
    samples(row).filter(|run| run.failure.is_some()).count()
}

/// Those that would if nothing had failed.
pub(crate) fn samples(row: &StartupRow) -> impl Iterator<Item = &Run> {
    row.runs.iter().filter(|run| run.purpose == Purpose::Sample)
}

/// A value of each run that counts; none if one has none.
fn values(row: &StartupRow, value: impl Fn(&Run) -> Option<f64>) -> Option<Vec<f64>> {
    let values: Option<Vec<f64>> = counted(row).map(value).collect();
    values.filter(|values| !values.is_empty())
}

/// When a milestone was reached in each run that counts; none if it was not seen in all.
#[must_use]
pub fn milestone(row: &StartupRow, name: &str) -> Option<Vec<f64>> {
    let number = MILESTONES.iter().position(|known| *known == name)?;
    values(row, |run| times(&run.milestones)[number])
}

/// CPU time of each run that counts, in milliseconds; none if it is not known of all.
#[must_use]
pub fn cpu(row: &StartupRow) -> Option<Vec<f64>> {
    values(row, |run| run.cpu)
}

/// The most memory of each run that counts, in bytes; none if it is not known of all.
#[must_use]
pub fn peak_memory(row: &StartupRow) -> Option<Vec<f64>> {
    values(row, |run| run.peak_memory.map(bytes))
}

/// Bytes as a number to reckon with: exact up to 8 PiB.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "what is lost is below a byte in 8 PiB"
)]
pub fn bytes(bytes: u64) -> f64 {
    bytes as f64
}

/// Fills the summaries of all rows from their runs, whatever was in them.
pub fn summarize(startup: &mut Startup) {
    let baseline = startup.baseline.clone();
    let row = startup.rows.iter().find(|row| row.runtime.name == baseline);
    let compared: BTreeMap<&str, Vec<f64>> = row.map(milestones).unwrap_or_default();
    for row in &mut startup.rows {
        let compared = (row.runtime.name != baseline).then_some(&compared);
        row.summary = summary(row, compared);
    }
}

/// All milestones that were seen in all runs that count.
fn milestones(row: &StartupRow) -> BTreeMap<&'static str, Vec<f64>> {
    let seen = MILESTONES
        .into_iter()
        .filter_map(|name| Some((name, milestone(row, name)?)));
    seen.collect()
}

/// Of one row; `compared` has the milestones of the baseline, if the row is another one.
fn summary(row: &StartupRow, compared: Option<&BTreeMap<&str, Vec<f64>>>) -> Summary {
    let mut failures = BTreeMap::new();
    for why in samples(row).filter_map(|run| run.failure.as_ref()) {
        *failures.entry(why.clone()).or_default() += 1;
    }
    let milestones = milestones(row);
    let ratio = |(name, values): (&&str, &Vec<f64>)| {
        let ratio = ratio_of_medians(values, compared?.get(name)?)?;
        Some(((*name).to_owned(), ratio))
    };
    let figures =
        |(name, values): (&&str, &Vec<f64>)| Some(((*name).to_owned(), distribution(values)?));
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Summary {
        counted: number(counted(row).count()),
        failed: failures.values().sum(),
        failures,
        ratios: milestones.iter().filter_map(ratio).collect(),
        milestones: milestones.iter().filter_map(figures).collect(),
        cpu: cpu(row).as_deref().and_then(distribution),
        peak_memory: peak_memory(row).as_deref().and_then(distribution),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn only_samples_that_did_not_fail_count() {
        let mut row = sample::row("crun", &[10.0, 20.0, 30.0]);
        for (purpose, failure) in [
            (Purpose::Warmup, None),
            (Purpose::Warmup, Some("the output is wrong")),
            (Purpose::Traced, None),
            (Purpose::Traced, Some("the output is wrong")),
            (Purpose::Sample, Some("the output is wrong")),
            (Purpose::Sample, Some("it hangs")),
            (Purpose::Sample, Some("the output is wrong")),
        ] {
            row.runs.push(Run {
                purpose,
                failure: failure.map(Into::into),
                ..sample::run(1000.0)
            });
        }
        let mut startup = sample::startup(vec![row]);
        summarize(&mut startup);
        let found = &startup.rows[0].summary;
        assert_eq!((found.counted, found.failed), (3, 3));
        let failures: Vec<_> = found.failures.iter().collect();
        let expected = [("it hangs", 1), ("the output is wrong", 2)];
        assert!(
            failures
                .into_iter()
                .map(|(why, count)| (why.as_str(), *count))
                .eq(expected)
        );
        let exit = found.milestones["exit"];
        assert_eq!(
            (exit.count, exit.min, exit.p50, exit.max),
            (3, 10.0, 20.0, 30.0)
        );
        assert_eq!(found.cpu.unwrap().count, 3);
        assert_eq!(found.peak_memory.unwrap().count, 3);
    }

    #[test]
    fn what_was_not_seen_in_all_runs_is_left_out() {
        let mut startup = sample::startup(vec![sample::row("crun", &[10.0; 8])]);
        let runs = &mut startup.rows[0].runs;
        runs[3].milestones.init = None;
        runs[4].cpu = None;
        runs[5].peak_memory = None;
        summarize(&mut startup);
        let found = &startup.rows[0].summary;
        assert_eq!(found.counted, 8);
        let names: Vec<_> = found.milestones.keys().collect();
        assert_eq!(names, ["environment", "exit", "gone", "output", "spawned"]);
        assert_eq!((found.cpu, found.peak_memory), (None, None));
    }

    #[test]
    fn ratios_are_to_the_baseline() {
        let mut startup = sample::startup(vec![
            sample::row("process", &[2.0; 10]),
            sample::row("crun", &[10.0; 10]),
        ]);
        startup.rows[0].runs[0].milestones.environment = None;
        summarize(&mut startup);
        assert!(startup.rows[0].summary.ratios.is_empty());
        let ratios = &startup.rows[1].summary.ratios;
        let names: Vec<_> = ratios.keys().collect();
        assert_eq!(names, ["exit", "gone", "init", "output", "spawned"]);
        assert!(
            ratios
                .values()
                .all(|ratio| (ratio.value - 5.0).abs() < 1e-9)
        );
    }

    #[test]
    fn nothing_is_compared_with_a_baseline_that_failed_or_is_not_there() {
        let mut startup = sample::startup(vec![
            sample::row("process", &[2.0; 10]),
            sample::row("crun", &[10.0; 10]),
        ]);
        for run in &mut startup.rows[0].runs {
            run.failure = Some("it hangs".into());
        }
        summarize(&mut startup);
        let failed = &startup.rows[0].summary;
        assert_eq!((failed.counted, failed.failed), (0, 10));
        assert!(failed.milestones.is_empty() && failed.cpu.is_none());
        assert!(startup.rows[1].summary.ratios.is_empty());
        assert_eq!(startup.rows[1].summary.counted, 10);
        startup.baseline = "other".into();
        summarize(&mut startup);
        assert!(startup.rows[1].summary.ratios.is_empty());
    }
}
