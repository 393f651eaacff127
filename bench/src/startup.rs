//! Starts of several runtimes in turn: A B C A B C …, so that what changes on the host meanwhile meets all of them alike.

use std::thread;
use std::time::{Duration, Instant};

use crate::adapter::Adapter;
use crate::record::{
    Kind, Milestones, Missing, Purpose, Run, Runtime, Startup, StartupRow, Summary,
};
use crate::run::ms;
use crate::session::{Absent, Prepared, Session};
use crate::summary::counted;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Runs of each runtime that count.
    pub runs: u32,
    /// Runs of each before them.
    pub warmups: u32,
    /// Runs of each at the end, with the kernel's trace points.
    pub traced: u32,
    /// Between two starts: what the one before has left to the kernel is done by then.
    pub pause: Duration,
    /// Name of the row that the others are compared with; none: the first container that can be started, or the first row.
    pub baseline: Option<String>,
}

/// Who wants to know how far it is.
pub trait Progress {
    /// An adapter is prepared.
    fn prepares(&mut self, name: &str);
    /// All have been prepared that can be: there will be so many starts of these rows.
    fn begins(&mut self, rows: &[String], starts: u64);
    /// A row is started.
    fn starts(&mut self, row: usize, purpose: Purpose);
    /// It has ended.
    fn ran(&mut self, row: usize, run: &Run);
}

/// What has been measured.
#[derive(Debug)]
pub struct Measured {
    /// The starts; the rows' summaries are not made yet.
    pub startup: Startup,
    /// What is not there.
    pub missing: Vec<Missing>,
    /// It was cut off.
    pub interrupted: bool,
}

/// A row, and what it is started by; none if that could not be prepared.
struct Turn<'s, 'a> {
    prepared: Option<Prepared<'s, 'a>>,
    row: StartupRow,
}

/// Measures. What was measured until then is returned when it is cut off.
pub fn measure(
    session: &Session,
    adapters: Vec<Adapter>,
    plan: &Plan,
    progress: &mut dyn Progress,
) -> Measured {
    let began = Instant::now();
    let mut missing = Vec::new();
    let mut turns = Vec::new();
    let mut interrupted = false;
    for adapter in adapters {
        progress.prepares(&adapter.name);
        match session.prepare(adapter) {
            Ok(prepared) => {
                let row = row(prepared.runtime().clone());
                turns.push(Turn {
                    prepared: Some(prepared),
                    row,
                });
            }
            Err(Absent::Missing(what)) => missing.push(what),
            Err(Absent::Failed(runtime, why)) => {
                let mut row = row(*runtime);
                row.runs.push(failed(ms(began.elapsed()), why));
                turns.push(Turn {
                    prepared: None,
                    row,
                });
            }
            Err(Absent::Stopped) => {
                interrupted = true;
                break;
            }
        }
    }
    let names: Vec<String> = turns
        .iter()
        .map(|turn| turn.row.runtime.name.clone())
        .collect();
    let ready = turns.iter().filter(|turn| turn.prepared.is_some()).count();
    let rounds = plan.warmups + plan.runs + plan.traced;
    progress.begins(&names, u64::from(rounds) * ready as u64);
    let purpose = |round: u32| match round {
        round if round < plan.warmups => Purpose::Warmup,
        round if round < plan.warmups + plan.runs => Purpose::Sample,
        _ => Purpose::Traced,
    };
    'rounds: for round in 0..rounds {
        for (index, turn) in turns.iter_mut().enumerate() {
            let Some(prepared) = &turn.prepared else {
                continue;
            };
            if interrupted || session.is_stopped() {
                interrupted = true;
                break 'rounds;
            }
            let purpose = purpose(round);
            progress.starts(index, purpose);
            thread::sleep(plan.pause);
            let Some(run) = prepared.run(purpose, ms(began.elapsed())) else {
                interrupted = true;
                break 'rounds;
            };
            progress.ran(index, &run);
            turn.row.runs.push(run);
        }
    }
    let rows: Vec<StartupRow> = turns.into_iter().map(|turn| turn.row).collect();
    Measured {
        startup: Startup {
            runs: plan.runs,
            warmups: plan.warmups,
            memory: session.settings().memory,
            baseline: baseline(plan, &rows),
            rows,
        },
        missing,
        interrupted,
    }
}

fn baseline(plan: &Plan, rows: &[StartupRow]) -> String {
    let named = plan
        .baseline
        .as_ref()
        .filter(|name| rows.iter().any(|row| row.runtime.name == **name));
    let counts = |row: &&StartupRow| counted(row).next().is_some();
    let is_container = |row: &&StartupRow| row.runtime.kind == Kind::Container;
    let container = || rows.iter().filter(counts).find(is_container);
    let any = || rows.iter().find(counts).or(rows.first());
    let chosen = || {
        let row = container().or_else(any)?;
        Some(row.runtime.name.clone())
    };
    named.cloned().or_else(chosen).unwrap_or_default()
}

fn row(runtime: Runtime) -> StartupRow {
    StartupRow {
        runtime,
        runs: Vec::new(),
        summary: Summary::default(),
    }
}

fn failed(at: f64, why: String) -> Run {
    Run {
        purpose: Purpose::Sample,
        at,
        failure: Some(why),
        milestones: Milestones::default(),
        cpu: None,
        peak_memory: None,
    }
}
