//! Two measurements of starts.

use super::{
    Comparison, LEAST_EFFECT, Quantity, Row, SIGNIFICANT, Unit, Verdict, differences, name_others,
    only_in,
};
use crate::record::{Estimate, Kind, Startup, StartupRow};
use crate::stats::{self, holm, median, p_value, ratio_of_medians, smallest_p_value};
use crate::summary::{counted, cpu, failed, milestone, peak_memory};

/// Milestones that are compared.
const MILESTONES: [&str; 3] = ["output", "exit", "gone"];

/// A quantity before it can be judged: that takes the p values of all.
struct Tested {
    quantity: Quantity,
    /// The p value of samples of these sizes that do not overlap.
    smallest: f64,
}

pub(super) fn compare(comparison: &mut Comparison, a: &Startup, b: &Startup) {
    comparison
        .differences
        .extend(differences::of_startups(a, b));
    name_others(
        comparison,
        a.rows.iter().map(|row| &row.runtime),
        b.rows.iter().map(|row| &row.runtime),
    );
    let mut rows: Vec<(Row, Vec<Tested>)> = Vec::new();
    let mut floor = None;
    for row in &a.rows {
        let name = &row.runtime.name;
        let Some(other) = b.rows.iter().find(|other| other.runtime.name == *name) else {
            continue;
        };
        let versions = differences::of_runtimes(&row.runtime, &other.runtime);
        comparison.differences.extend(versions);
        if row.runtime.kind == Kind::Process {
            floor = Some(rows.len());
        }
        rows.push(compare_rows(row, other));
    }
    judge(&mut rows);
    for (mut row, tested) in rows {
        row.quantities = tested.into_iter().map(|tested| tested.quantity).collect();
        comparison.rows.push(row);
    }
    if let Some(row) = floor.map(|index| &comparison.rows[index])
        && (row.quantities.iter())
            .any(|found| matches!(found.verdict, Verdict::Less { .. } | Verdict::More { .. }))
    {
        comparison.warnings.push(format!(
            "{} differs, which is nothing but fork and exec: the host was not in the same state both times, and other \
             differences of this size may come of that",
            row.name
        ));
    }
}

fn compare_rows(a: &StartupRow, b: &StartupRow) -> (Row, Vec<Tested>) {
    let mut row = Row {
        name: a.runtime.name.clone(),
        quantities: Vec::new(),
        notes: Vec::new(),
    };
    let mut tested = Vec::new();
    for (which, runs) in [("A", a), ("B", b)] {
        let failed = failed(runs);
        if failed > 0 {
            let all = failed + counted(runs).count();
            row.notes
                .push(format!("{failed} of {all} runs failed in {which}"));
        }
        if runs.runs.is_empty() {
            row.notes.push(format!("there are no runs in {which}"));
        }
    }
    let milestones = MILESTONES.map(|name| {
        let times = [milestone(a, name), milestone(b, name)];
        (name, Unit::Milliseconds, times)
    });
    let resources = [
        ("cpu", Unit::Milliseconds, [cpu(a), cpu(b)]),
        ("memory", Unit::Bytes, [peak_memory(a), peak_memory(b)]),
    ];
    let any = |of: &StartupRow| counted(of).next().is_some();
    for (name, unit, values) in milestones.into_iter().chain(resources) {
        match values {
            [Some(in_a), Some(in_b)] => tested.extend(test(name, unit, &in_a, &in_b)),
            [None, None] => {}
            // That nothing counts has been said.
            [in_a, _] if any(a) && any(b) => row.notes.push(only_in(name, in_a.is_some())),
            _ => {}
        }
    }
    (row, tested)
}

fn test(name: &str, unit: Unit, a: &[f64], b: &[f64]) -> Option<Tested> {
    Some(Tested {
        quantity: Quantity {
            name: name.into(),
            unit,
            a: median(a)?,
            b: median(b)?,
            ratio: ratio_of_medians(b, a),
            p: Some(p_value(a, b)?),
            corrected_p: None,
            verdict: Verdict::NotTested,
        },
        smallest: smallest_p_value(a.len(), b.len()),
    })
}

/// Corrects the p values for how many they are, and fills in the verdicts.
fn judge(rows: &mut [(Row, Vec<Tested>)]) {
    let p_values: Vec<f64> = rows
        .iter()
        .flat_map(|(_, tested)| tested)
        .filter_map(|tested| tested.quantity.p)
        .collect();
    // With the smallest of all p values, Holm's correction is that of Bonferroni.
    let comparisons = u32::try_from(p_values.len()).map_or(f64::INFINITY, f64::from);
    let mut corrected = holm(&p_values).into_iter();
    for tested in rows.iter_mut().flat_map(|(_, tested)| tested) {
        let quantity = &mut tested.quantity;
        if quantity.p.is_none() {
            continue;
        }
        quantity.corrected_p = corrected.next();
        let findable = tested.smallest * comparisons < SIGNIFICANT;
        let found = quantity.corrected_p.is_some_and(|p| p < SIGNIFICANT);
        quantity.verdict = match &quantity.ratio {
            _ if !findable && !found => Verdict::TooFew,
            Some(ratio) if found => of_ratio(ratio),
            _ => Verdict::Noise,
        };
    }
}

/// Of a difference that the test has found.
fn of_ratio(ratio: &Estimate) -> Verdict {
    let percent = |of: f64| of * 100.0;
    let is_sure = ratio.confidence >= stats::CONFIDENCE;
    if !is_sure || (ratio.low..=ratio.high).contains(&1.0) {
        Verdict::Noise
    } else if (ratio.value - 1.0).abs() < LEAST_EFFECT {
        Verdict::Small
    } else if ratio.value < 1.0 {
        Verdict::Less {
            percent: percent(1.0 - ratio.value),
            low: percent(1.0 - ratio.high),
            high: percent(1.0 - ratio.low),
        }
    } else {
        Verdict::More {
            percent: percent(ratio.value - 1.0),
            low: percent(ratio.low - 1.0),
            high: percent(ratio.high - 1.0),
        }
    }
}
