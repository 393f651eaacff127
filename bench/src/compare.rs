//! Two measurements side by side: which differences between them are real, and which are noise.
//!
//! A difference of starts is real if all of this holds ([`Verdict`]):
//! - the Mann-Whitney U test finds it, at a p value below [`SIGNIFICANT`] after Holm's correction for the number of comparisons,
//! - the confidence interval of the ratio of medians does not hold 1,
//! - the medians are at least [`LEAST_EFFECT`] apart.
//!
//! A measurement of density has one sample of each figure: its differences are told, and not judged.

mod differences;
mod startup;

use std::mem;

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use crate::record::{Density, DensityRow, Estimate, Measured, Record, Runtime};
use crate::summary::{self, DensitySummary};

/// The version of the format of a comparison in JSON.
pub const FORMAT: &str = "mote-bench-comparison/1";
/// A corrected p value below this is a difference.
pub const SIGNIFICANT: f64 = 0.05;
/// What medians have to be apart, as a share of the first one's, for a difference to be called one. With enough runs far smaller
/// ones are found, such as between two builds of the same sources, and mean nothing to a reader.
pub const LEAST_EFFECT: f64 = 0.02;

/// Why two records cannot be compared.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Starts are no density.
    #[error("One is a measurement of start-up, the other one of density: they cannot be compared")]
    Kind,
    /// Times of an emulated host are others.
    #[error(
        "{which} was measured in an emulated host ({by}), the other one was not: they cannot be compared"
    )]
    Emulated {
        /// "A" or "B".
        which: &'static str,
        /// What shows it.
        by: String,
    },
}

/// A comparison, as `mote bench report A B --json` prints it.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Comparison {
    /// The format's version, "mote-bench-comparison/1".
    #[schemars(extend("const" = FORMAT))]
    pub format: &'static str,
    /// The first record.
    pub a: Side,
    /// The second one, which is judged against the first.
    pub b: Side,
    /// What else is different: hosts, settings, versions of runtimes.
    pub differences: Vec<Difference>,
    /// What a reader has to bear in mind.
    pub warnings: Vec<String>,
    /// Runtimes that are in both.
    pub rows: Vec<Row>,
    /// Runtimes that are only in the first.
    pub only_a: Vec<String>,
    /// Runtimes that are only in the second.
    pub only_b: Vec<String>,
}

/// Which record it is.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Side {
    /// When it began.
    pub began: String,
    /// Version of mote.
    pub mote: String,
    /// What shows that its host is emulated.
    pub emulated: Option<String>,
    /// It was ended by a signal.
    pub interrupted: bool,
}

/// Something that is not the same in both.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Difference {
    /// What.
    pub what: String,
    /// In the first.
    pub a: String,
    /// In the second.
    pub b: String,
}

/// One runtime.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What was compared.
    pub quantities: Vec<Quantity>,
    /// What could not be, and why; and runs that failed.
    pub notes: Vec<String>,
}

/// One figure of a runtime.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Quantity {
    /// "output", "exit", "gone", "cpu", "memory", …
    pub name: String,
    /// What it is counted in.
    pub unit: Unit,
    /// Median of the first, or its only value.
    pub a: f64,
    /// Of the second.
    pub b: f64,
    /// The ratio of the second to the first; none where there is only one value, or where the first one's is zero.
    pub ratio: Option<Estimate>,
    /// How likely they would be so different if nothing but chance were; not corrected. None where there is only one value.
    pub p: Option<f64>,
    /// Corrected for the number of comparisons.
    pub corrected_p: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Time: less is faster
    Milliseconds,
    /// Memory
    Bytes,
    /// How many
    Instances,
    /// How fast
    PerSecond,
}

/// What is to be thought of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Verdict {
    /// The second is less, by so many percent, and by this to that with 95 % confidence.
    Less {
        /// Of the medians.
        percent: f64,
        /// At least.
        low: f64,
        /// At most.
        high: f64,
    },
    /// The second is more.
    More {
        /// Of the medians.
        percent: f64,
        /// At least.
        low: f64,
        /// At most.
        high: f64,
    },
    /// There is no difference that is more than noise.
    Noise,
    /// There is one, and it is smaller than [`LEAST_EFFECT`].
    Small,
    /// With so few runs and so many comparisons, nothing could be found.
    TooFew,
    /// There is one value of each.
    NotTested,
}

/// Compares two measurements of one kind. What is judged is the second.
///
/// # Errors
///
/// They are of different kinds, or only one host was emulated.
pub fn compare(a: &Record, b: &Record) -> Result<Comparison, Error> {
    if mem::discriminant(&a.measured) != mem::discriminant(&b.measured) {
        return Err(Error::Kind);
    }
    for (which, this, other) in [("A", a, b), ("B", b, a)] {
        if let (Some(by), None) = (&this.host.emulated, &other.host.emulated) {
            let by = by.clone();
            return Err(Error::Emulated { which, by });
        }
    }
    let mut comparison = Comparison {
        format: FORMAT,
        a: side(a),
        b: side(b),
        differences: differences::of_hosts(&a.host, &b.host),
        warnings: Vec::new(),
        rows: Vec::new(),
        only_a: Vec::new(),
        only_b: Vec::new(),
    };
    match (&a.measured, &b.measured) {
        (Measured::Startup(a), Measured::Startup(b)) => startup::compare(&mut comparison, a, b),
        (Measured::Density(a), Measured::Density(b)) => densities(&mut comparison, a, b),
        _ => return Err(Error::Kind),
    }
    if !differences::of_hosts(&a.host, &b.host).is_empty() {
        let warning = "The hosts are not the same: a difference may be theirs";
        comparison.warnings.insert(0, warning.into());
    }
    Ok(comparison)
}

fn side(record: &Record) -> Side {
    Side {
        began: record.began.clone(),
        mote: record.mote.clone(),
        emulated: record.host.emulated.clone(),
        interrupted: record.interrupted,
    }
}

/// Says which runtimes are in one of them only.
fn name_others<'a>(
    comparison: &mut Comparison,
    a: impl Iterator<Item = &'a Runtime>,
    b: impl Iterator<Item = &'a Runtime>,
) {
    let names = |runtime: &Runtime| runtime.name.clone();
    let (a, b): (Vec<String>, Vec<String>) = (a.map(names).collect(), b.map(names).collect());
    let only = |these: &[String], those: &[String]| {
        let these = these.iter().filter(|name| !those.contains(name));
        these.cloned().collect()
    };
    comparison.only_a = only(&a, &b);
    comparison.only_b = only(&b, &a);
}

fn densities(comparison: &mut Comparison, a: &Density, b: &Density) {
    comparison
        .differences
        .extend(differences::of_densities(a, b));
    name_others(
        comparison,
        a.rows.iter().map(|row| &row.runtime),
        b.rows.iter().map(|row| &row.runtime),
    );
    comparison
        .warnings
        .push("There is one sample of each figure of density: what is noise cannot be told".into());
    for row in &a.rows {
        let name = &row.runtime.name;
        if let Some(other) = b.rows.iter().find(|other| other.runtime.name == *name) {
            let versions = differences::of_runtimes(&row.runtime, &other.runtime);
            comparison.differences.extend(versions);
            comparison.rows.push(density_row(row, other));
        }
    }
}

fn density_row(a: &DensityRow, b: &DensityRow) -> Row {
    let (in_a, in_b) = (summary::density(a), summary::density(b));
    let mut row = Row {
        name: a.runtime.name.clone(),
        quantities: Vec::new(),
        notes: Vec::new(),
    };
    type Get = fn(&DensitySummary) -> Option<f64>;
    let quantities: [(&str, Unit, Get); 6] = [
        ("reached", Unit::Instances, |of| Some(f64::from(of.reached))),
        ("MemAvailable each", Unit::Bytes, |of| of.available_each),
        ("PSS each", Unit::Bytes, |of| of.pss_each),
        ("first start", Unit::Milliseconds, |of| of.first_start),
        ("last start", Unit::Milliseconds, |of| of.last_start),
        ("starts a second", Unit::PerSecond, |of| {
            of.starts_per_second
        }),
    ];
    for (name, unit, get) in quantities {
        match (get(&in_a), get(&in_b)) {
            (Some(a), Some(b)) => row.quantities.push(Quantity {
                name: name.into(),
                unit,
                a,
                b,
                ratio: None,
                p: None,
                corrected_p: None,
                verdict: Verdict::NotTested,
            }),
            (None, None) => {}
            (a, _) => row.notes.push(only_in(name, a.is_some())),
        }
    }
    for (which, row_of) in [("A", a), ("B", b)] {
        let ended = row_of.ended.iter();
        row.notes
            .extend(ended.map(|why| format!("{which} ended before the limit: {why}")));
    }
    row
}

/// A figure that there is in one record.
fn only_in(name: &str, in_a: bool) -> String {
    let which = if in_a { "A" } else { "B" };
    format!("{name} is known only in {which}")
}

#[cfg(test)]
mod tests;
