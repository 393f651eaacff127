//! The tables of starts: one of times, and one of resources and ratios.

use comfy_table::{ColumnConstraint, Table, Width};

use super::figure::{NONE, count, is_unsure, number, or_none, ratio, size};
use super::{finished, left, list, paragraph, plain, right};
use crate::record::{Purpose, Startup, StartupRow};
use crate::summary::bytes;

/// Columns of a name; longer ones take several lines.
const NAME: u16 = 26;
/// Columns of a version.
const VERSION: u16 = 18;
/// Kinds of failure of one row that are printed; a runtime can fail in another way each time.
const FAILURES: usize = 5;

pub(super) fn text(startup: &Startup, interrupted: bool, label: &str) -> String {
    let warmups = count(startup.warmups, "run");
    let mut text = label.to_owned();
    text += &paragraph(&format!(
        "Starts, in milliseconds: {} of each, in turn, after {warmups} to warm up; guests of {}",
        count(startup.runs, "run"),
        size(bytes(startup.memory))
    ));
    if interrupted {
        text += &paragraph("INTERRUPTED: there are fewer runs than were asked for");
    }
    text.push('\n');
    text += &times(startup);
    text += &list("Failed, and in no figure:", failures(startup));
    text.push('\n');
    text += label;
    text += &resources(startup);
    text.push('\n');
    text += &paragraph(
        "exit: the exit status arrived; output: its first byte did; gone: no process is left; spread: median \
         distance from the median; p50: the median; –: not seen in all runs that count. CPU: time of all processes; \
         memory: the most at a time; medians",
    );
    text += &paragraph(&baseline(startup));
    let uncounted = startup.rows.iter().filter_map(|row| {
        let what = row.runtime.uncounted.clone()?;
        Some(vec![row.runtime.name.clone(), what])
    });
    text += &list("Not in CPU and memory:", uncounted.collect());
    text
}

/// Runs that count, of those that would.
fn runs(row: &StartupRow) -> String {
    let summary = &row.summary;
    let all = u64::from(summary.counted) + u64::from(summary.failed);
    format!("{}/{all}", summary.counted)
}

fn narrow(table: &mut Table, constraints: &[(usize, u16)]) {
    for &(index, width) in constraints {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
        }
    }
}

fn times(startup: &Startup) -> String {
    let mut table = plain(vec![
        left("RUNTIME"),
        right("RUNS\nOK"),
        right("OUTPUT\np50"),
        right("EXIT\nmin"),
        right("\np50"),
        right("\np90"),
        right("\np99"),
        right("\nspread"),
        right("GONE\np50"),
    ]);
    for row in &startup.rows {
        let milestones = &row.summary.milestones;
        let output = milestones.get("output").map(|output| output.p50);
        let exit = milestones.get("exit");
        let gone = milestones.get("gone").map(|gone| gone.p50);
        let exit = [
            exit.map(|exit| exit.min),
            exit.map(|exit| exit.p50),
            exit.map(|exit| exit.p90),
            exit.map(|exit| exit.p99),
            exit.map(|exit| exit.mad),
        ];
        let mut cells = vec![left(&row.runtime.name), right(&runs(row))];
        let figures = [output].into_iter().chain(exit).chain([gone]);
        cells.extend(figures.map(|figure| right(&or_none(figure, number))));
        table.add_row(cells);
    }
    narrow(&mut table, &[(0, NAME)]);
    finished(table)
}

fn resources(startup: &Startup) -> String {
    let mut table = plain(vec![
        left("RUNTIME"),
        left("VERSION"),
        right("CPU\nms"),
        right("MEMORY\n"),
        right("OUTPUT, RATIO\nto baseline"),
        right("EXIT, RATIO\nto baseline"),
    ]);
    for row in &startup.rows {
        let summary = &row.summary;
        let times = |milestone: &str| {
            if row.runtime.name == startup.baseline && summary.milestones.contains_key(milestone) {
                "1".into()
            } else {
                or_none(summary.ratios.get(milestone), ratio)
            }
        };
        table.add_row(vec![
            left(&row.runtime.name),
            left((row.runtime.version.as_deref()).map_or(NONE, version)),
            right(&or_none(summary.cpu, |cpu| number(cpu.p50))),
            right(&or_none(summary.peak_memory, |memory| size(memory.p50))),
            right(&times("output")),
            right(&times("exit")),
        ]);
    }
    narrow(&mut table, &[(0, NAME), (1, VERSION)]);
    finished(table)
}

/// The word of what a program says of its version that looks like one; all of it if none does.
pub(super) fn version(said: &str) -> &str {
    let is_version = |word: &&str| {
        let number = word.strip_prefix('v').unwrap_or(word);
        number.starts_with(|first: char| first.is_ascii_digit()) && number.contains('.')
    };
    let word = said.split_whitespace().find(is_version);
    word.map_or(said, |word| word.trim_end_matches(','))
}

/// What ratios are to, and how sure.
fn baseline(startup: &Startup) -> String {
    let name = &startup.baseline;
    let row = startup.rows.iter().find(|row| row.runtime.name == *name);
    if row.is_none_or(|row| row.summary.counted == 0) {
        return format!("No ratios: no run of the baseline, {name}, counts");
    }
    let mut ratios = startup
        .rows
        .iter()
        .flat_map(|row| row.summary.ratios.values());
    let unsure = if ratios.any(is_unsure) {
        "; with a question mark less, as there are too few runs"
    } else {
        ""
    };
    format!(
        "Ratios of medians to those of the baseline, {name}, with the interval that holds it with 95 % confidence{unsure}"
    )
}

/// Name, how often, and why; warm-ups too, which are in no row's count.
fn failures(startup: &Startup) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for row in &startup.rows {
        let mut add = |times: u32, why: &str| {
            lines.push(vec![
                row.runtime.name.clone(),
                format!("{times} ×"),
                why.to_owned(),
            ]);
        };
        let mut failures: Vec<_> = row.summary.failures.iter().collect();
        failures.sort_by(|a, b| b.1.cmp(a.1));
        for (why, times) in failures.iter().take(FAILURES) {
            add(**times, why);
        }
        let others = failures.iter().skip(FAILURES).map(|(_, times)| **times);
        let others = others.fold(0, u32::saturating_add);
        if others > 0 {
            add(others, "for other reasons");
        }
        let warmups = row.runs.iter().filter(|run| run.purpose == Purpose::Warmup);
        let mut failed = warmups.filter_map(|run| run.failure.as_ref());
        if let Some(first) = failed.next() {
            let times =
                u32::try_from(failed.count()).map_or(u32::MAX, |more| more.saturating_add(1));
            add(times, &format!("while warming up, at first: {first}"));
        }
    }
    lines
}
