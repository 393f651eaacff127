//! Measurements as text: at most [`WIDTH`] columns, whatever is in them, and without colours.

mod comparison;
mod density;
pub(crate) mod figure;
mod startup;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use crate::record::{Host, Measured, Record};
use figure::clean;

pub use comparison::comparison;

/// The widest that a line is.
pub const WIDTH: u16 = 100;

/// All that a record has to say, with a newline at the end. Summaries are taken as they are in it.
#[must_use]
pub fn text(record: &Record) -> String {
    let label = emulated(record.host.emulated.as_deref());
    let mut text = match &record.measured {
        Measured::Startup(startup) => startup::text(startup, record.interrupted, &label),
        Measured::Density(density) => density::text(density, record.interrupted, &label),
    };
    let missing = record.missing.iter();
    text += &list(
        "Missing on this host:",
        missing
            .map(|missing| vec![missing.name.clone(), missing.why.clone()])
            .collect(),
    );
    text += &host(&record.host);
    text
}

/// The line that is above each table of an emulated host.
fn emulated(by: Option<&str>) -> String {
    by.map_or_else(String::new, |by| {
        paragraph(&format!(
            "EMULATED HOST: {by}. Its times are not those of hardware."
        ))
    })
}

/// What it was measured on.
fn host(host: &Host) -> String {
    let kvm = host.kvm.as_deref().unwrap_or("no KVM");
    let governor = host.governor.as_ref().map_or_else(
        || "no frequency governor".into(),
        |governor| format!("governor {governor}"),
    );
    let cgroup = host.cgroup.map_or_else(
        || "no control groups".into(),
        |version| format!("cgroup v{version}"),
    );
    let cpus = figure::count(host.cpus, "CPU");
    let memory = figure::size(crate::summary::bytes(host.memory));
    let all = format!(
        "Host: {} ({cpus}), {memory}, {}, {kvm}, {governor}, {cgroup}",
        host.cpu, host.kernel
    );
    format!("\n{}", paragraph(&all))
}

/// A table without lines.
fn plain(header: Vec<Cell>) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// The table with two spaces between columns, and none around it.
fn finished(mut table: Table) -> String {
    let columns = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
    }
    table.trim_fmt() + "\n"
}

/// Text to the left.
fn left(text: &str) -> Cell {
    Cell::new(clean(text))
}

/// A figure. Its heading may have two lines.
fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Lines that are broken between words.
fn paragraph(text: &str) -> String {
    let mut table = plain(Vec::new());
    table.add_row(vec![left(text)]);
    finished(table)
}

/// Something below the figures: a heading, and rows of text in columns; nothing if there are no rows.
fn list(heading: &str, rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = plain(Vec::new());
    for row in rows {
        let mut cells: Vec<Cell> = row.iter().map(|text| left(text)).collect();
        if let Some(first) = row.first() {
            cells[0] = left(&format!("  {first}"));
        }
        table.add_row(cells);
    }
    format!("\n{}{}", paragraph(heading), finished(table))
}

#[cfg(test)]
mod tests;
