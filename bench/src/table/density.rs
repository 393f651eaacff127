//! The table of instances that run side by side.

use comfy_table::{ColumnConstraint, Width};

use super::figure::{count, number, or_none, size};
use super::{finished, left, list, paragraph, plain, right};
use crate::record::Density;
use crate::summary::{bytes, density};

/// Columns of a name; longer ones take several lines.
const NAME: u16 = 26;

pub(super) fn text(measured: &Density, interrupted: bool, label: &str) -> String {
    let mut text = label.to_owned();
    text += &paragraph(&format!(
        "Density: up to {} at once; started {} at a time where they are counted; guests of {}",
        count(measured.limit, "instance"),
        measured.concurrency,
        size(bytes(measured.memory))
    ));
    if interrupted {
        text += &paragraph("INTERRUPTED: there are fewer instances than were asked for");
    }
    text.push('\n');
    text += &figures(measured);
    text.push('\n');
    text += &paragraph(
        "memory: what each instance adds, as the median slope between any two counts (Theil and Sen), of the host's \
         MemAvailable and of the proportional set sizes of all its processes; start: until its first byte of output, \
         once each",
    );
    let ended = measured.rows.iter().filter_map(|row| {
        let why = row.ended.clone()?;
        Some(vec![row.runtime.name.clone(), why])
    });
    text += &list("Ended before the limit:", ended.collect());
    let failures = measured.rows.iter().flat_map(|row| {
        let failures = row.rate.iter().flat_map(|rate| &rate.failures);
        failures
            .map(|(why, times)| vec![row.runtime.name.clone(), format!("{times} ×"), why.clone()])
    });
    text += &list("Failed when started side by side:", failures.collect());
    let uncounted = measured.rows.iter().filter_map(|row| {
        let what = row.runtime.uncounted.clone()?;
        Some(vec![row.runtime.name.clone(), what])
    });
    text += &list("Not in PSS:", uncounted.collect());
    text
}

fn figures(measured: &Density) -> String {
    let mut table = plain(vec![
        left("RUNTIME"),
        right("REACHED\n"),
        right("MEMORY EACH\nMemAvailable"),
        right("\nPSS"),
        right("START, ms\nfirst"),
        right("\nlast"),
        right("STARTS\na second"),
    ]);
    for row in &measured.rows {
        let found = density(row);
        table.add_row(vec![
            left(&row.runtime.name),
            right(&format!("{}/{}", found.reached, measured.limit)),
            right(&or_none(found.available_each, size)),
            right(&or_none(found.pss_each, size)),
            right(&or_none(found.first_start, number)),
            right(&or_none(found.last_start, number)),
            right(&or_none(found.starts_per_second, number)),
        ]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(NAME)));
    }
    finished(table)
}
