//! The table of a comparison.

use comfy_table::{ColumnConstraint, Width};

use super::figure::{NONE, number, or_none, ratio, size, three_digits};
use super::{emulated, finished, left, list, paragraph, plain, right};
use crate::compare::{Comparison, LEAST_EFFECT, Quantity, SIGNIFICANT, Side, Unit, Verdict};

/// Columns of a name; longer ones take several lines.
const NAME: u16 = 20;
/// Columns of a verdict.
const VERDICT: u16 = 30;

/// A comparison as text; the names are what the two are called, such as their files.
#[must_use]
pub fn comparison(comparison: &Comparison, a: &str, b: &str) -> String {
    let mut text = emulated(comparison.a.emulated.as_deref());
    for (letter, name, side) in [("A", a, &comparison.a), ("B", b, &comparison.b)] {
        text += &paragraph(&describe(letter, name, side));
    }
    let warnings = comparison.warnings.iter();
    text += &list(
        "Warnings:",
        warnings.map(|warning| vec![warning.clone()]).collect(),
    );
    let differences = comparison.differences.iter();
    text += &list(
        "Not the same (A, B):",
        differences
            .map(|found| vec![found.what.clone(), found.a.clone(), found.b.clone()])
            .collect(),
    );
    text.push('\n');
    text += &if comparison.rows.is_empty() {
        paragraph("No runtime is in both")
    } else {
        figures(comparison)
    };
    let notes = comparison.rows.iter().flat_map(|row| {
        let notes = row.notes.iter();
        notes.map(|note| vec![row.name.clone(), note.clone()])
    });
    text += &list("Notes:", notes.collect());
    for (heading, names) in [
        ("Only in A:", &comparison.only_a),
        ("Only in B:", &comparison.only_b),
    ] {
        text += &list(
            heading,
            names.iter().map(|name| vec![name.clone()]).collect(),
        );
    }
    if is_tested(comparison) {
        text.push('\n');
        text += &paragraph(&format!(
            "Medians; B/A is the ratio of them with the interval that holds it with 95 % confidence. p: Mann-Whitney U, \
             corrected for all comparisons (Holm). Real is what has p < {SIGNIFICANT}, an interval without 1, and \
             {:.0} % or more between the medians",
            LEAST_EFFECT * 100.0
        ));
    }
    text
}

fn describe(letter: &str, name: &str, side: &Side) -> String {
    let interrupted = if side.interrupted {
        ", INTERRUPTED"
    } else {
        ""
    };
    let Side { began, mote, .. } = side;
    format!("{letter}: {name}, of {began}, mote {mote}{interrupted}")
}

fn is_tested(comparison: &Comparison) -> bool {
    let mut quantities = comparison.rows.iter().flat_map(|row| &row.quantities);
    quantities.any(|quantity| quantity.verdict != Verdict::NotTested)
}

fn figures(comparison: &Comparison) -> String {
    let mut table = plain(vec![
        left("RUNTIME"),
        left("FIGURE"),
        right("A"),
        right("B"),
        right("B/A"),
        right("p"),
        left("VERDICT ON B"),
    ]);
    for row in &comparison.rows {
        if row.quantities.is_empty() {
            let mut cells = vec![left(&row.name)];
            cells.extend(std::iter::repeat_n(right(NONE), 5));
            cells.push(left("see below"));
            table.add_row(cells);
        }
        for (index, quantity) in row.quantities.iter().enumerate() {
            let name = if index == 0 { row.name.as_str() } else { "" };
            table.add_row(vec![
                left(name),
                left(&quantity.name),
                right(&figure(quantity.unit, quantity.a)),
                right(&figure(quantity.unit, quantity.b)),
                right(&relation(quantity)),
                right(&or_none(quantity.corrected_p, p)),
                left(&verdict(quantity)),
            ]);
        }
    }
    for (index, width) in [(0, NAME), (6, VERDICT)] {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
        }
    }
    finished(table)
}

fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Milliseconds => number(value) + " ms",
        Unit::Bytes => size(value),
        Unit::Instances => three_digits_or_whole(value),
        Unit::PerSecond => number(value) + "/s",
    }
}

fn three_digits_or_whole(value: f64) -> String {
    if value.abs() < 999_999.5 {
        format!("{value:.0}")
    } else {
        three_digits(value)
    }
}

/// The ratio: with an interval, or of two values.
fn relation(quantity: &Quantity) -> String {
    let plain = (quantity.verdict == Verdict::NotTested && quantity.a > 0.0)
        .then(|| three_digits(quantity.b / quantity.a));
    or_none(quantity.ratio.as_ref().map(ratio).or(plain), |text| text)
}

fn p(value: f64) -> String {
    if value < 0.001 {
        "<0.001".into()
    } else {
        format!("{value:.3}")
    }
}

fn verdict(quantity: &Quantity) -> String {
    let is_time = quantity.unit == Unit::Milliseconds && quantity.name != "cpu";
    let by = |word: &str, percent: f64, low: f64, high: f64| {
        let [percent, low, high] = [percent, low, high].map(percentage);
        format!("{word} by {percent} % ({low} to {high})")
    };
    match quantity.verdict {
        Verdict::Less { percent, low, high } => {
            by(if is_time { "faster" } else { "less" }, percent, low, high)
        }
        Verdict::More { percent, low, high } => {
            by(if is_time { "slower" } else { "more" }, percent, low, high)
        }
        Verdict::Noise => "no difference beyond noise".into(),
        Verdict::Small => format!("less than {:.0} % apart", LEAST_EFFECT * 100.0),
        Verdict::TooFew => "too few runs to tell".into(),
        Verdict::NotTested => "one sample each".into(),
    }
}

/// Percent, with a digit after the point where it says something.
fn percentage(value: f64) -> String {
    match value.abs() {
        size if size < 9.95 => format!("{value:.1}"),
        size if size < 99_999.5 => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    }
}
