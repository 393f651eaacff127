//! What is a length for each runtime: CPU time, memory, starts a second.

use super::Plot;
use super::axis::Axis;
use super::canvas::Drawn;
use super::distribution::{Time, kinds};
use super::font;
use super::ink::Ink;
use super::lane::{Lane, lanes};
use super::sheet::{BELOW, MARGIN, Mark, SIZE, Sheet, Type, WIDTH, fill, line};
use crate::record::{Density, DensityRow, Record, Run, Startup};
use crate::stats::quantile;
use crate::summary;
use crate::table::figure::{MIB, three_digits};

/// How high a lane is.
const LANE: f64 = 26.0;

/// CPU time and memory of a start.
pub(super) fn resources(record: &Record, startup: &Startup) -> Drawn<Plot> {
    let about = "Medians of the runs that count, of all processes of the runtime together; the thin line is the middle half.";
    let order = lanes(startup, |run| Time::Exit.of(run));
    let mut sheet = Sheet::new(
        record,
        "resources",
        "CPU time and memory of one start",
        about,
    )?;
    let mut legend = kinds(&order.iter().map(Lane::kind).collect::<Vec<_>>());
    if order
        .iter()
        .any(|lane| lane.row.runtime.uncounted.is_some())
    {
        legend.push((
            Mark::Dagger(Ink::Text),
            "leaves out a part, such as a daemon",
        ));
    }
    sheet.legend(&legend)?;
    sheet.top += 4.0;
    let bands = sheet.lanes(order.iter().map(Lane::name), LANE)?;
    let right = WIDTH - MARGIN;
    let half = (right - bands.left - 24.0) / 2.0;
    let cpu: fn(&Run) -> Option<f64> = |run| run.cpu;
    let memory: fn(&Run) -> Option<f64> = |run| Some(run.peak_memory? as f64 / MIB);
    for (left, what, pick) in [
        (bands.left, "CPU time, milliseconds", cpu),
        (
            bands.left + half + 24.0,
            "most memory at a time, MiB",
            memory,
        ),
    ] {
        let values = lanes(startup, pick);
        let of = |lane: &Lane| {
            values
                .iter()
                .find(|other| std::ptr::eq(other.row, lane.row))
        };
        let quartile = |lane: &Lane| of(lane).and_then(|lane| quantile(&lane.values, 0.75));
        let axis = Axis::from_zero(order.iter().filter_map(quartile));
        let room = values
            .iter()
            .filter_map(Lane::median)
            .map(|median| font::width(&(three_digits(median) + " †"), SIZE));
        let room = room.fold(0.0, f64::max) + 8.0;
        let frame = sheet.lane_frame(axis, (left, left + half - room), &bands);
        frame.below(what)?;
        for (place, lane) in order.iter().enumerate() {
            let y = bands.middle(place);
            let found =
                of(lane).map(|lane| [0.25, 0.5, 0.75].map(|share| quantile(&lane.values, share)));
            let Some([Some(low), Some(median), Some(high)]) = found else {
                let why = lane.failures().filter(|_| lane.values.is_empty());
                let (why, ink) =
                    why.map_or(("not known".to_owned(), Ink::Muted), |why| (why, Ink::Bad));
                sheet
                    .canvas
                    .open(lane.name(), &format!("{}: {why}", lane.name()), &[]);
                sheet.text(&why, (left + 6.0, y), Type::new(SIZE, ink))?;
                sheet.canvas.close();
                continue;
            };
            let uncounted = lane.row.runtime.uncounted.as_ref();
            let left_out = uncounted.map_or(String::new(), |what| format!("; leaves out {what}"));
            let hover = format!(
                "{}: {} ({} to {}){left_out}",
                lane.name(),
                three_digits(median),
                three_digits(low),
                three_digits(high)
            );
            sheet.canvas.open(lane.name(), &hover, &[]);
            let ink = Ink::of(lane.kind());
            frame.rectangle([(0.0, y - 7.0), (median, y + 7.0)], fill(ink, 1.0))?;
            frame.line(vec![(low, y), (high, y)], line(Ink::Text, 1.4))?;
            let at = (frame.across(median.max(high)) + 6.0, y);
            let text = three_digits(median) + if uncounted.is_some() { " †" } else { "" };
            sheet.text(&text, at, Type::new(SIZE, Ink::Text))?;
            sheet.canvas.close();
        }
    }
    sheet.top = bands.bottom() + BELOW;
    sheet.finish(record)
}

/// How fast instances start side by side.
pub(super) fn rates(record: &Record, density: &Density) -> Drawn<Plot> {
    let about = format!(
        "Starts whose output was right, a second, with {} being started at a time.",
        density.concurrency
    );
    let mut rows: Vec<_> = density.rows.iter().collect();
    let speed = |row: &DensityRow| summary::density(row).starts_per_second;
    rows.sort_by(|one, other| {
        speed(other)
            .unwrap_or(-1.0)
            .total_cmp(&speed(one).unwrap_or(-1.0))
    });
    let mut sheet = Sheet::new(record, "rate", "Starts a second", &about)?;
    sheet.legend(&kinds(
        &rows.iter().map(|row| row.runtime.kind).collect::<Vec<_>>(),
    ))?;
    sheet.top += 4.0;
    let bands = sheet.lanes(rows.iter().map(|row| row.runtime.name.as_str()), LANE)?;
    let label = |row: &DensityRow| {
        let failed: u32 = row
            .rate
            .iter()
            .flat_map(|rate| rate.failures.values())
            .sum();
        let failed = (failed > 0).then(|| format!("{failed} failed"));
        (speed(row).map(three_digits), failed)
    };
    let room = rows.iter().map(|row| {
        let (rate, failed) = label(row);
        font::width(
            &format!(
                "{} {}",
                rate.unwrap_or_default(),
                failed.unwrap_or_default()
            ),
            SIZE,
        )
    });
    let room = room.fold(0.0, f64::max) + 20.0;
    let axis = Axis::from_zero(rows.iter().filter_map(|row| speed(row)));
    let frame = sheet.lane_frame(axis, (bands.left, WIDTH - MARGIN - room), &bands);
    frame.below("starts a second")?;
    for (place, row) in rows.iter().enumerate() {
        let y = bands.middle(place);
        let name = &row.runtime.name;
        let (rate, failed) = label(row);
        let known = rate.clone().unwrap_or_else(|| "not measured".to_owned());
        sheet.canvas.open(
            name,
            &format!("{name}: {known} {}", failed.clone().unwrap_or_default()),
            &[],
        );
        let value = speed(row).unwrap_or(0.0);
        let mut x = frame.across(value) + 6.0;
        if rate.is_some() {
            let style = fill(Ink::of(row.runtime.kind), 1.0);
            frame.rectangle([(0.0, y - 7.0), (value, y + 7.0)], style)?;
        }
        let ink = if rate.is_some() {
            Ink::Text
        } else {
            Ink::Muted
        };
        sheet.text(&known, (x, y), Type::new(SIZE, ink))?;
        x += font::width(&known, SIZE) + 6.0;
        if let Some(failed) = failed {
            sheet.text(&failed, (x, y), Type::new(SIZE, Ink::Bad))?;
        }
        sheet.canvas.close();
    }
    sheet.top = bands.bottom() + BELOW;
    sheet.finish(record)
}
