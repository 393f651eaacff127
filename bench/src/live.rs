//! What is going on while a measurement runs, on standard error: a progress bar and a line for each runtime on a terminal, else a
//! line for every tenth of the runs.
//!
//! Nothing is drawn while a run is being measured, as that would take time from it: only by the calls, which are made between runs.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Instant;

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use unicode_width::UnicodeWidthStr;

use crate::record::{Purpose, Run};
use crate::stats::median;
use crate::table::figure::{clean, number};

/// Lines where there is no terminal.
const LINES: u64 = 10;
/// Columns of the longest name that others are aligned with.
const NAME: usize = 24;

/// The view. When it goes away it leaves a terminal as it was before it.
pub struct Live {
    rows: Vec<Row>,
    total: u64,
    done: u64,
    begun: Instant,
    view: View,
}

/// A line of a terminal that says what is being prepared, until it goes away. Elsewhere it says nothing.
pub struct Preparing(ProgressBar);

impl Default for Preparing {
    fn default() -> Self {
        Self(
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style("{wide_msg}")),
        )
    }
}

impl Preparing {
    /// It is this runtime now.
    pub fn now(&self, name: &str) {
        self.0.set_message(format!("preparing {}", clean(name)));
        self.0.force_draw();
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What has been seen of a runtime.
struct Row {
    name: String,
    /// Samples, warm-ups included, and how many of them failed.
    runs: u64,
    failed: u64,
    /// When those that count exited.
    exits: Vec<f64>,
}

enum View {
    /// Of a terminal.
    Bars {
        all: MultiProgress,
        /// A bar that is nothing but text, on an emulated host.
        label: Option<ProgressBar>,
        main: ProgressBar,
        rows: Vec<ProgressBar>,
    },
    /// Of a file or a pipe.
    Lines(Box<dyn Write + Send>),
}

impl Live {
    /// The view of a measurement of these runtimes, which makes so many runs in all, warm-ups included; `emulated` is what shows that
    /// the host is.
    #[must_use]
    pub fn new(names: &[String], total_runs: u64, emulated: Option<&str>) -> Self {
        let terminal = ProgressDrawTarget::stderr();
        if terminal.is_hidden() {
            Self::in_lines(names, total_runs, emulated, Box::new(io::stderr()))
        } else {
            Self::on_terminal(names, total_runs, emulated, terminal)
        }
    }

    fn start(names: &[String], total: u64, view: View) -> Self {
        let row = |name: &String| Row {
            name: clean(name),
            runs: 0,
            failed: 0,
            exits: Vec::new(),
        };
        Self {
            rows: names.iter().map(row).collect(),
            total,
            done: 0,
            begun: Instant::now(),
            view,
        }
    }

    fn in_lines(
        names: &[String],
        total: u64,
        emulated: Option<&str>,
        mut to: Box<dyn Write + Send>,
    ) -> Self {
        if let Some(by) = emulated {
            // With standard error closed there is nobody to tell.
            let _ = writeln!(to, "EMULATED HOST: {}", clean(by));
        }
        Self::start(names, total, View::Lines(to))
    }

    fn on_terminal(
        names: &[String],
        total: u64,
        emulated: Option<&str>,
        target: ProgressDrawTarget,
    ) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let label = emulated.map(|by| {
            let label = all.add(ProgressBar::new(1).with_style(style("{wide_msg}")));
            label.set_message(format!("EMULATED HOST: {}", clean(by)));
            label
        });
        let main = style("{wide_bar} {pos}/{len} runs, {elapsed} so far, {eta} to go\n{wide_msg}");
        let main = all.add(ProgressBar::new(total).with_style(main));
        let rows = names.iter().map(|_| {
            let row = ProgressBar::new(1).with_style(style("{wide_msg}"));
            all.add(row)
        });
        let rows = rows.collect();
        let view = View::Bars {
            all,
            label,
            main,
            rows,
        };
        let live = Self::start(names, total, view);
        (0..live.rows.len()).for_each(|row| live.draw_row(row));
        live
    }

    /// A run of the runtime at this place in the list begins.
    pub fn begins(&mut self, row: usize, purpose: Purpose) {
        let Some(of) = self.rows.get(row) else { return };
        if let View::Bars { main, .. } = &self.view {
            let purpose = match purpose {
                Purpose::Warmup => ", to warm up",
                Purpose::Sample => "",
                Purpose::Traced => ", traced",
            };
            main.set_message(format!("now: {}, round {}{purpose}", of.name, of.runs + 1));
            main.force_draw();
        }
    }

    /// The run has ended.
    pub fn ran(&mut self, row: usize, run: &Run) {
        self.done += 1;
        if let Some(of) = self.rows.get_mut(row) {
            of.runs += 1;
            if run.failure.is_some() {
                of.failed += 1;
            } else if run.purpose == Purpose::Sample {
                of.exits.extend(run.milestones.exit);
            }
        }
        self.draw_row(row);
        match &mut self.view {
            View::Bars { main, .. } => main.set_position(self.done),
            View::Lines(to) => {
                let tenths = |runs: u64| runs.saturating_mul(LINES) / self.total.max(1);
                if tenths(self.done) > tenths(self.done - 1) {
                    let failed = self.rows.iter().map(|row| row.failed).sum();
                    let time = HumanDuration(self.begun.elapsed());
                    let failed = failures(failed);
                    let _ = writeln!(to, "{} of {} runs{failed}, {time}", self.done, self.total);
                }
            }
        }
    }

    /// So many of the steps of a measurement have been made, the last one of them for the runtime at this place, which is `doing` something.
    pub fn reached(&mut self, row: usize, done: u64, doing: &str) {
        let Some(of) = self.rows.get_mut(row) else {
            return;
        };
        of.runs += 1;
        let name = of.name.clone();
        self.draw_row(row);
        let tenths = |done: u64| done.saturating_mul(LINES) / self.total.max(1);
        match &mut self.view {
            View::Bars { main, .. } => {
                main.set_message(format!("now: {name}, {}", clean(doing)));
                main.set_position(done);
            }
            View::Lines(to) => {
                if tenths(done) > tenths(self.done) {
                    let _ = writeln!(to, "{name}, {}", clean(doing));
                }
            }
        }
        self.done = done;
    }

    /// Says something in between, such as what could not be cleaned up.
    pub fn say(&mut self, text: &str) {
        // With standard error closed there is nobody to tell.
        let _ = match &mut self.view {
            View::Bars { all, .. } => all.println(clean(text)),
            View::Lines(to) => writeln!(to, "{}", clean(text)),
        };
    }

    /// Ends it.
    pub fn finish(self) {}

    fn draw_row(&self, index: usize) {
        if let View::Bars { rows, .. } = &self.view
            && let (Some(row), Some(bar)) = (self.rows.get(index), rows.get(index))
        {
            let widest = self.rows.iter().map(|row| row.name.width()).max();
            bar.set_message(row.line(widest.unwrap_or(0).min(NAME)));
            bar.tick();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let View::Bars {
            all,
            label,
            main,
            rows,
        } = &self.view
        {
            for bar in label.iter().chain([main]).chain(rows) {
                bar.finish_and_clear();
            }
            // A terminal that is gone needs no clearing.
            let _ = all.clear();
        }
    }
}

impl Row {
    fn line(&self, width: usize) -> String {
        let padding = width.saturating_sub(self.name.width());
        let Self { name, runs, .. } = self;
        let mut line = format!("{name}{:padding$}  {runs:>5} runs", "");
        if let Some(median) = median(&self.exits) {
            let _ = write!(line, "  exit p50 {:>8} ms", number(median));
        }
        line + &failures(self.failed)
    }
}

/// How many failed, if any.
fn failures(failed: u64) -> String {
    if failed == 0 {
        String::new()
    } else {
        format!(", {failed} FAILED")
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are those of this file, which are right; the default is no worse than nothing.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests;
