//! The figures of a page.

use maud::{Markup, html};

use crate::plot::EMULATED;
use crate::record::{
    Density, DensityRow, Distribution, Estimate, Kind, Measured, Record, Runtime, Startup,
    StartupRow,
};
use crate::summary::density;
use crate::table::figure::{MIB, NONE, or_none, three_digits};

/// The headline figures, and why what is not among them is not.
pub(super) fn figures(record: &Record) -> Markup {
    html! {
        @match &record.measured {
            Measured::Startup(startup) => (starts(record, startup)),
            Measured::Density(density) => (crowds(record, density)),
        }
    }
}

/// What the figures are, and again if they are not those of hardware: tables are copied without their page.
fn caption(record: &Record, about: &str) -> Markup {
    html! {
        p.caption {
            @if record.host.emulated.is_some() { strong { (EMULATED) ". " } }
            (about)
        }
    }
}

/// The first cell of a row.
fn who(runtime: &Runtime) -> Markup {
    let (class, kind) = match runtime.kind {
        Kind::Process => ("process", "process"),
        Kind::Container => ("container", "container"),
        Kind::Vm => ("vm", "VM"),
    };
    html! {
        th.name.kind.(class) scope="row" title=(runtime.about) {
            (runtime.name)
            small { (kind) @if let Some(version) = &runtime.version { " · " (version) } }
        }
    }
}

fn missing(record: &Record, columns: usize) -> Markup {
    html! {
        @for missing in &record.missing {
            tr {
                th.name.kind.quiet scope="row" { (missing.name) small { "missing" } }
                td.text.quiet colspan=(columns) { (missing.why) }
            }
        }
    }
}

/// A figure, or that it is not known.
fn cell(value: Option<f64>) -> Markup {
    html! { td { (or_none(value, three_digits)) } }
}

fn starts(record: &Record, startup: &Startup) -> Markup {
    let exit = |row: &StartupRow| row.summary.milestones.get("exit").map(|all| all.p50);
    let mut rows: Vec<_> = startup.rows.iter().collect();
    rows.sort_by(|one, other| {
        let rank = |row: &StartupRow| exit(row).unwrap_or(f64::INFINITY);
        rank(one).total_cmp(&rank(other))
    });
    let about = format!(
        "Times in milliseconds, memory in MiB. {} runs of each in turn after {} that are not counted; guests have {} MiB. The fastest comes first.",
        startup.runs,
        startup.warmups,
        startup.memory >> 20
    );
    html! {
        (caption(record, &about))
        div.wide {
            table {
                thead {
                    tr {
                        th.name { "Runtime" }
                        th title="Runs whose output, status and end are right" { "Counted" } th { "Failed" }
                        th title="Median until the first byte of output" { "Output p50" }
                        th { "Exit p50" } th { "p90" } th { "p99" }
                        th title="Median until no process is left" { "Gone p50" }
                        th title="Median of user and system time" { "CPU" }
                        th title="Median of the most memory at a time" { "Memory" }
                        th title={ "Median exit time divided by that of " (startup.baseline) } {
                            "Exit ÷ " span.baseline { (startup.baseline) }
                        }
                    }
                }
                tbody {
                    @for row in &rows { (start(row, startup)) }
                    (missing(record, 10))
                }
            }
        }
        @if rows.iter().any(|row| !row.summary.failures.is_empty()) {
            h3 { "Failures" }
            div.wide {
                table.narrow {
                    thead { tr { th.name { "Runtime" } th { "Runs" } th.name { "Why" } } }
                    tbody {
                        @for row in &rows {
                            @for (why, count) in &row.summary.failures {
                                tr { th.name scope="row" { (row.runtime.name) } td.bad { (count) } td.text { (why) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn start(row: &StartupRow, startup: &Startup) -> Markup {
    let summary = &row.summary;
    let of = |name: &str, pick: fn(&Distribution) -> f64| summary.milestones.get(name).map(pick);
    let marked = row.runtime.uncounted.as_deref();
    let resource = |all: &Option<Distribution>, unit: f64| {
        let value = or_none(*all, |all| three_digits(all.p50 / unit));
        html! {
            td title=[marked.map(|what| format!("leaves out {what}"))] {
                (value) @if marked.is_some() && all.is_some() { " †" }
            }
        }
    };
    html! {
        tr {
            (who(&row.runtime))
            td { (summary.counted) }
            td.bad[summary.failed > 0] { (summary.failed) }
            (cell(of("output", |all| all.p50)))
            (cell(of("exit", |all| all.p50)))
            (cell(of("exit", |all| all.p90)))
            (cell(of("exit", |all| all.p99)))
            (cell(of("gone", |all| all.p50)))
            (resource(&summary.cpu, 1.0))
            (resource(&summary.peak_memory, MIB))
            (ratio(summary.ratios.get("exit"), row.runtime.name == startup.baseline))
        }
    }
}

fn ratio(ratio: Option<&Estimate>, baseline: bool) -> Markup {
    html! {
        @match ratio {
            Some(ratio) => td title={ "interval of " (three_digits(100.0 * ratio.confidence)) " % confidence" } {
                (three_digits(ratio.value)) " " small { "(" (three_digits(ratio.low)) "–" (three_digits(ratio.high)) ")" }
            },
            None if baseline => td.quiet { "baseline" },
            None => td { (NONE) },
        }
    }
}

fn crowds(record: &Record, density: &Density) -> Markup {
    let about = format!(
        "Memory in MiB that one instance adds, times in milliseconds. At most {} instances at once; guests have {} MiB.",
        density.limit,
        density.memory >> 20
    );
    html! {
        (caption(record, &about))
        div.wide {
            table {
                thead {
                    tr {
                        th.name { "Runtime" }
                        th { "Instances" }
                        th title="By how much MemAvailable falls for each instance: the median slope" { "MemAvailable" }
                        th title="Proportional set sizes of all processes, for each instance: the median slope" { "PSS" }
                        th { "First start" } th { "Last start" }
                        th title={ "With " (density.concurrency) " being started at a time" } { "Starts a second" }
                        th { "Failed" }
                        th.name { "Ended by" }
                    }
                }
                tbody {
                    @for row in &density.rows { (crowd(row, density.limit)) }
                    (missing(record, 8))
                }
            }
        }
        @if density.rows.iter().any(|row| row.rate.iter().any(|rate| !rate.failures.is_empty())) {
            h3 { "Failures of starts side by side" }
            div.wide {
                table.narrow {
                    thead { tr { th.name { "Runtime" } th { "Starts" } th.name { "Why" } } }
                    tbody {
                        @for row in &density.rows {
                            @for (why, count) in row.rate.iter().flat_map(|rate| &rate.failures) {
                                tr { th.name scope="row" { (row.runtime.name) } td.bad { (count) } td.text { (why) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn crowd(row: &DensityRow, limit: u32) -> Markup {
    let found = density(row);
    let mib = |bytes: Option<f64>| bytes.map(|bytes| bytes / MIB);
    let ended = if found.reached < limit {
        NONE
    } else {
        "the limit"
    };
    let rate = row.rate.as_ref();
    let failed: Option<u32> = rate.map(|rate| rate.failures.values().sum());
    html! {
        tr {
            (who(&row.runtime))
            td { (found.reached) }
            (cell(mib(found.available_each)))
            (cell(mib(found.pss_each)))
            (cell(found.first_start))
            (cell(found.last_start))
            (cell(found.starts_per_second))
            td.bad[failed.is_some_and(|failed| failed > 0)] { (or_none(failed, |failed| failed.to_string())) }
            td.text { (row.ended.as_deref().unwrap_or(ended)) }
        }
    }
}

/// Words as a shell takes them.
pub(super) fn quoted(words: &[String]) -> String {
    let plain = |word: &str| {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./{}-".contains(&byte);
        !word.is_empty() && word.bytes().all(safe)
    };
    let quoted: Vec<_> = words
        .iter()
        .map(|word| match plain(word) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    /// The table for terminals has the same ones: what one point that is off says is in neither.
    #[test]
    fn memory_of_instances_is_a_slope() {
        let mut row = sample::density_row("mote", 10, 3 << 20);
        row.points[10].available -= 1 << 30;
        let text = crowd(&row, 10).into_string();
        assert!(text.contains("<td>3.00</td><td>2.70</td>"), "{text}");
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        let words = ["sh", "-c", "echo it's {token}", "", "--id={id}", "$HOME"].map(str::to_owned);
        let expected = r"sh -c 'echo it'\''s {token}' '' --id={id} '$HOME'";
        assert_eq!(quoted(&words), expected);
    }
}
