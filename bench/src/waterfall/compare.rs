//! Two configurations side by side: how long each phase takes in either, and which differences are more than the spread.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{WIDTH, paragraph};
use super::{Part, Waterfall};
use crate::stats::distribution;

/// The version of the format that this program writes.
pub const FORMAT: &str = "mote-explained/1";
/// What is less than a table shows is no difference, in milliseconds.
const LEAST: f64 = 0.001;
/// Runs of each side from which on their spread says something.
const ENOUGH: usize = 3;

/// Two configurations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The format's version, "mote-explained/1".
    pub format: String,
    /// What shows that the host of one of them is emulated; none if nothing does.
    pub emulated: Option<String>,
    /// The first one.
    pub a: Side,
    /// The other one.
    pub b: Side,
    /// The phases that either has, in their order.
    pub phases: Vec<Row>,
    /// The parts.
    pub parts: Vec<Row>,
    /// The whole.
    pub total: Row,
}

/// One configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Its flags, or its file.
    pub name: String,
    /// How often it was started.
    pub runs: u32,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The phase's id; "total", or the name of a part.
    pub id: String,
    /// What it is.
    pub name: String,
    /// In the first configuration; none if it has none.
    pub a: Option<Times>,
    /// In the other one.
    pub b: Option<Times>,
    /// How much longer the median is in the other one, in milliseconds; none if one has none.
    pub difference: Option<f64>,
    /// Whether that is more than the spread: each run of the one took longer than each of the other, and a microsecond at least.
    /// None if it is not known.
    pub real: Option<bool>,
}

/// How long something took in some runs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// In how many runs.
    pub runs: u32,
}

impl Times {
    fn of(values: &[f64]) -> Option<Self> {
        let found = distribution(values)?;
        Some(Self {
            median: found.p50,
            min: found.min,
            max: found.max,
            runs: found.count,
        })
    }
}

impl Comparison {
    /// Of the runs of two configurations with these names.
    pub fn new(names: [&str; 2], a: &[Waterfall], b: &[Waterfall]) -> Self {
        let side = |name: &str, runs: &[Waterfall]| Side {
            name: name.to_owned(),
            runs: u32::try_from(runs.len()).unwrap_or(u32::MAX),
        };
        let emulated = a.iter().chain(b).find_map(|run| run.emulated.clone());
        let phases = order(a, b).into_iter().filter_map(|(id, name)| {
            let times = |runs: &[Waterfall]| {
                let all: Vec<f64> = runs
                    .iter()
                    .filter_map(|run| run.phase(&id).map(|phase| phase.ms))
                    .collect();
                // What only some runs have is in the next phase in the others.
                (all.len() * 2 > runs.len())
                    .then(|| Times::of(&all))
                    .flatten()
            };
            let row = Row::new(&id, &name, times(a), times(b));
            (row.a.is_some() || row.b.is_some()).then_some(row)
        });
        let whole = |runs: &[Waterfall], of: &dyn Fn(&Waterfall) -> f64| {
            let all: Vec<f64> = runs.iter().map(of).collect();
            Times::of(&all)
        };
        let parts = Part::ALL.into_iter().filter_map(|part| {
            let of = |run: &Waterfall| run.part(part);
            let row = Row::new(part.name(), part.name(), whole(a, &of), whole(b, &of));
            let is_there = |times: Option<Times>| times.is_some_and(|times| times.max > 0.0);
            (is_there(row.a) || is_there(row.b)).then_some(row)
        });
        let of = |run: &Waterfall| run.total;
        Self {
            format: FORMAT.to_owned(),
            emulated,
            phases: phases.collect(),
            parts: parts.collect(),
            total: Row::new("total", "all", whole(a, &of), whole(b, &of)),
            a: side(names[0], a),
            b: side(names[1], b),
        }
    }

    /// A table for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(why) = &self.emulated {
            let line = format!("EMULATED HOST ({why}): not the times of hardware");
            paragraph(&mut text, &line, "");
        }
        for (letter, side) in [("A", &self.a), ("B", &self.b)] {
            let line = format!("{letter}: {} ({} runs)", side.name, side.runs);
            paragraph(&mut text, &line, "   ");
        }
        let _ = writeln!(
            text,
            "\n{:<46} {:>11} {:>11} {:>11}  more than the",
            "phase", "A, ms", "B, ms", "B - A, ms"
        );
        let _ = writeln!(
            text,
            "{:<46} {:>11} {:>11} {:>11}  spread",
            "", "median", "median", ""
        );
        for row in &self.phases {
            row.write(&mut text);
        }
        text.push_str(&"-".repeat(WIDTH));
        text.push('\n');
        for row in self.parts.iter().chain([&self.total]) {
            row.write(&mut text);
        }
        text
    }
}

impl Row {
    fn new(id: &str, name: &str, a: Option<Times>, b: Option<Times>) -> Self {
        let both = a.zip(b);
        let real = both.and_then(|(a, b)| {
            let enough = a.runs.min(b.runs) as usize >= ENOUGH;
            let differs = (b.median - a.median).abs() >= LEAST;
            enough.then_some(differs && (a.max < b.min || b.max < a.min))
        });
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            a,
            b,
            difference: both.map(|(a, b)| b.median - a.median),
            real,
        }
    }

    fn write(&self, text: &mut String) {
        let ms =
            |times: Option<Times>| times.map_or("-".to_owned(), |it| format!("{:.3}", it.median));
        let difference = self
            .difference
            .map_or("-".to_owned(), |difference| format!("{difference:+.3}"));
        let real = match self.real {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        let name: String = self.name.chars().take(46).collect();
        let line = format!(
            "{name:<46} {:>11} {:>11} {difference:>11}  {real}",
            ms(self.a),
            ms(self.b)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// Ids and names of all phases: in the order that the first run has them, with what it lacks behind what that comes after elsewhere.
fn order(a: &[Waterfall], b: &[Waterfall]) -> Vec<(String, String)> {
    let mut order: Vec<(String, String)> = Vec::new();
    for run in a.iter().chain(b) {
        let mut place = 0;
        for phase in &run.phases {
            match order.iter().position(|(id, _)| *id == phase.id) {
                Some(index) => place = index + 1,
                None => {
                    order.insert(place, (phase.id.clone(), phase.name.clone()));
                    place += 1;
                }
            }
        }
    }
    order
}
