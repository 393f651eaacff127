//! What one runtime's runs come to, as plots show it.

use crate::record::{Kind, Purpose, Run, Startup, StartupRow};
use crate::stats;
use crate::summary::{self, MILESTONES, samples, times};

/// One runtime's values of one kind.
pub(super) struct Lane<'a> {
    pub(super) row: &'a StartupRow,
    /// Which row it is among those of its kind.
    pub(super) number: usize,
    /// Those of runs that count, the smallest first.
    pub(super) values: Vec<f64>,
    /// Those of runs that failed, and got so far.
    pub(super) failed_at: Vec<f64>,
    /// How many runs failed.
    pub(super) failed: usize,
    /// How many would count.
    pub(super) runs: usize,
}

impl Lane<'_> {
    pub(super) fn name(&self) -> &str {
        &self.row.runtime.name
    }

    pub(super) fn kind(&self) -> Kind {
        self.row.runtime.kind
    }

    pub(super) fn median(&self) -> Option<f64> {
        stats::median(&self.values)
    }

    /// How many runs failed, in words; none if none did.
    pub(super) fn failures(&self) -> Option<String> {
        match (self.failed, self.runs) {
            (0, 0) => Some("no runs".to_owned()),
            (0, _) => None,
            (1, 1) => Some("the only run failed".to_owned()),
            (failed, runs) if failed == runs => Some(format!("all {failed} runs failed")),
            (failed, runs) => Some(format!("{failed} of {runs} failed")),
        }
    }
}

/// Which row this one is among those of its kind, of which `seen` has the kinds before it.
pub(super) fn number(seen: &mut Vec<Kind>, kind: Kind) -> usize {
    let number = seen.iter().filter(|other| **other == kind).count();
    seen.push(kind);
    number
}

/// The lanes of all rows, of what `pick` takes from a run: those with the smallest median first, those with none last.
pub(super) fn lanes(startup: &Startup, pick: impl Fn(&Run) -> Option<f64>) -> Vec<Lane<'_>> {
    let mut seen = Vec::new();
    let mut lanes: Vec<Lane> = startup
        .rows
        .iter()
        .map(|row| {
            let kind = row.runtime.kind;
            let number = number(&mut seen, kind);
            let values = |failed: bool| {
                let runs = samples(row).filter(move |run| run.failure.is_some() == failed);
                sorted(runs.filter_map(&pick))
            };
            Lane {
                row,
                number,
                values: values(false),
                failed_at: values(true),
                failed: summary::failed(row),
                runs: samples(row).count(),
            }
        })
        .collect();
    lanes.sort_by(|one, other| {
        let rank = |lane: &Lane| lane.median().unwrap_or(f64::INFINITY);
        rank(one).total_cmp(&rank(other))
    });
    lanes
}

/// The values that are numbers, the smallest first.
fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// One part of a start, that ends with a milestone.
pub(super) struct Part {
    /// Which milestone, from 0 on in the order of [`MILESTONES`].
    pub(super) number: usize,
    /// From when on, in milliseconds.
    pub(super) from: f64,
    /// Until when.
    pub(super) to: f64,
    /// When it ends was seen in traced runs only.
    pub(super) traced: bool,
}

/// The parts of the run that counts and takes the median time until its exit status. What only traced runs show is put where it is in them, between the milestones
/// that both have: tracing takes time of its own.
pub(super) fn parts(row: &StartupRow) -> Vec<Part> {
    let good = |purpose: Purpose| {
        let wanted = move |run: &&Run| run.purpose == purpose && run.failure.is_none();
        row.runs.iter().filter(wanted)
    };
    let last = |run: &Run| run.milestones.exit.or(run.milestones.output);
    let mut runs: Vec<(f64, &Run)> = good(Purpose::Sample)
        .filter_map(|run| Some((last(run)?, run)))
        .collect();
    runs.sort_by(|one, other| one.0.total_cmp(&other.0));
    let Some((_, run)) = runs.get(runs.len().saturating_sub(1) / 2) else {
        return Vec::new();
    };
    let seen = times(&run.milestones);
    let traced: [Option<f64>; MILESTONES.len()] = std::array::from_fn(|number| {
        let seen = good(Purpose::Traced).filter_map(|run| times(&run.milestones)[number]);
        stats::median(&sorted(seen))
    });
    let mut parts: Vec<Part> = Vec::new();
    for number in 0..MILESTONES.len() {
        let from = parts.last().map_or(0.0, |part| part.to);
        let placed = || placed(&seen, &traced, number);
        let Some(to) = seen[number].or_else(placed) else {
            continue;
        };
        parts.push(Part {
            number,
            from,
            // A runtime may give its output before what is taken to come first is over.
            to: to.max(from),
            traced: seen[number].is_none(),
        });
    }
    parts
}

/// Where a milestone that only traced runs have is in a run: as far along between its neighbours.
fn placed(seen: &[Option<f64>], traced: &[Option<f64>], number: usize) -> Option<f64> {
    let at = traced[number]?;
    let both = |number: usize| Some((seen[number]?, traced[number]?));
    let (before, traced_before) = (0..number).rev().find_map(both).unwrap_or_default();
    let (after, traced_after) = (number + 1..seen.len()).find_map(both)?;
    let length = traced_after - traced_before;
    let share = if length > 0.0 {
        ((at - traced_before) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    Some(before + (after - before) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traced_milestones_are_put_between_those_that_both_have() {
        let (mut seen, mut traced) = ([None; 7], [None; 7]);
        (seen[0], seen[4]) = (Some(1.0), Some(11.0));
        (traced[0], traced[1], traced[4]) = (Some(2.0), Some(7.0), Some(22.0));
        assert_eq!(placed(&seen, &traced, 1), Some(3.5));
        assert_eq!(placed(&seen, &traced, 2), None);
        // Nothing comes after it that both have.
        traced[6] = Some(30.0);
        assert_eq!(placed(&seen, &traced, 6), None);
        traced[1] = Some(40.0);
        assert_eq!(placed(&seen, &traced, 1), Some(11.0));
    }
}
