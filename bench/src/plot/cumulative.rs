//! How many runs of each runtime were over by when.

use super::Plot;
use super::axis::Axis;
use super::canvas::Drawn;
use super::distribution::{Time, hover};
use super::font;
use super::ink::Ink;
use super::lane::{Lane, lanes};
use super::sheet::{BELOW, MARGIN, SIZE, Sheet, Type, WIDTH, line};
use crate::record::{Record, Startup};
use crate::table::figure::three_digits;

/// Distance of the names beside it.
const LINE: f64 = 20.0;
/// Room that a name has at most.
const NAME: f64 = 190.0;

/// The plot of the exit status.
pub(super) fn plot(record: &Record, startup: &Startup) -> Drawn<Plot> {
    let title = "Share of runs that are over";
    let about = "How many of 100 runs had given their exit status by when: the further left and the steeper, the better. \
                 Cool colours are containers, warm ones virtual machines.";
    let lanes = lanes(startup, |run| Time::Exit.of(run));
    let mut sheet = Sheet::new(record, "cumulative", title, about)?;
    sheet.top += 14.0;
    let note = |lane: &Lane| match lane.median() {
        Some(median) => three_digits(median),
        None => lane.failures().unwrap_or_else(|| "not seen".to_owned()),
    };
    let names = lanes.iter().map(|lane| font::width(lane.name(), SIZE));
    let names = names.fold(40.0, f64::max).min(NAME);
    let notes = lanes.iter().map(|lane| font::width(&note(lane), SIZE));
    let notes = notes.fold(font::width("median, ms", 11.0), f64::max);
    let right = WIDTH - MARGIN;
    let left = right - notes - 12.0 - names - 32.0;
    let heading = Type::new(11.0, Ink::Muted).left();
    sheet.text("median, ms", (right, sheet.top - 6.0), heading)?;
    let (top, bottom) = (
        sheet.top + 8.0,
        sheet.top + (lanes.len() as f64 * LINE + 8.0).max(330.0),
    );

    let axis = Axis::holding(lanes.iter().flat_map(|lane| &lane.values).copied());
    let what = format!("{}{}", Time::Exit.axis(), axis.note());
    let shares = Axis::linear(0.0, 100.0);
    let frame = sheet.frame((axis, shares), (MARGIN + 70.0, left - 20.0), (top, bottom));
    frame.below(&what)?;
    frame.beside("runs that are over, %", |share| format!("{share}"))?;
    for (place, lane) in lanes.iter().enumerate() {
        let (ink, dashes) = Ink::series(lane.kind(), lane.number);
        // A cross is no line of the series.
        let dashes = if lane.values.is_empty() { &[] } else { dashes };
        let y = top + 8.0 + place as f64 * LINE;
        sheet.canvas.open(lane.name(), &hover(lane), dashes);
        let swatch = line(ink, 2.4);
        if lane.values.is_empty() {
            sheet.cross((left + 10.0, y), Ink::Bad)?;
        } else {
            sheet.path(&[(left, y), (left + 22.0, y)], swatch)?;
            let mut points = Vec::new();
            let share = |count: usize| 100.0 * count as f64 / lane.values.len() as f64;
            for (before, &value) in lane.values.iter().enumerate() {
                points.extend([(value, share(before)), (value, share(before + 1))]);
            }
            frame.line(points, line(ink, 1.8))?;
        }
        let name = font::shortened(lane.name(), SIZE, NAME);
        sheet.text(&name, (left + 32.0, y), Type::new(SIZE, Ink::Text))?;
        let ink = if lane.values.is_empty() {
            Ink::Bad
        } else {
            Ink::Text
        };
        sheet.text(&note(lane), (right, y), Type::new(SIZE, ink).left())?;
        sheet.canvas.close();
    }
    sheet.top = bottom + BELOW;
    sheet.finish(record)
}
