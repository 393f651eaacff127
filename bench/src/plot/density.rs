//! What instances cost that run side by side.

use super::Plot;
use super::axis::{Axis, short};
use super::canvas::{Dashes, Drawn};
use super::font;
use super::ink::Ink;
use super::lane::number;
use super::sheet::{BELOW, MARGIN, Mark, SIZE, Sheet, THIN, Type, WIDTH, line};
use crate::record::{Density, DensityRow, Record};
use crate::summary;
use crate::table::figure::{MIB, three_digits};

/// How high the frame is at least.
const HEIGHT: f64 = 340.0;
/// Least distance of the labels beside it.
const LINE: f64 = 17.0;
/// Room that a name has at most.
const NAME: f64 = 190.0;

/// Points of a line: instances, and what there is of them.
type Points = Vec<(f64, f64)>;

/// One runtime's lines.
struct Series<'a> {
    row: &'a DensityRow,
    ink: Ink,
    dashes: Dashes,
    points: Points,
    /// The same by another count, drawn thin.
    other: Points,
    /// What the last point comes to.
    note: String,
}

/// Memory that instances take.
pub(super) fn memory(record: &Record, density: &Density) -> Drawn<Plot> {
    let about = "By how much the host's MemAvailable falls as instances that do nothing are added one by one. \
                 Beside each name what one adds, as the median slope.";
    let series = all(density, |row| {
        let first = row.points.first().map_or(0, |point| point.available);
        // Something else may have given memory back.
        let used = |available: u64| first.saturating_sub(available) as f64 / MIB;
        let points: Points = row
            .points
            .iter()
            .map(|point| (f64::from(point.count), used(point.available)))
            .collect();
        let shared = row
            .points
            .iter()
            .filter_map(|point| Some((f64::from(point.count), point.pss? as f64 / MIB)));
        // As in the table.
        let note = match summary::density(row).available_each {
            Some(each) => format!("{} MiB each", three_digits(each.max(0.0) / MIB)),
            None => "none ran".to_owned(),
        };
        (points, shared.collect(), note)
    });
    let mut sheet = Sheet::new(record, "memory", "Memory of instances side by side", about)?;
    sheet.legend(&[
        (Mark::Line(Ink::Text), "less MemAvailable"),
        (
            Mark::Thin(Ink::Text),
            "proportional set sizes of the processes (PSS)",
        ),
    ])?;
    let upright = Axis::from_zero(heights(&series));
    draw(record, sheet, &series, ("memory, MiB", upright))
}

/// How long each instance takes to start while the others run.
pub(super) fn latency(record: &Record, density: &Density) -> Drawn<Plot> {
    let about = "Time until the first byte of output of each instance, with the others already running. \
                 Beside each name the last one's.";
    let series = all(density, |row| {
        let starts = row
            .points
            .iter()
            .filter_map(|point| Some((f64::from(point.count), point.start?)));
        let points: Points = starts.collect();
        let note = points.last().map_or("none ran".to_owned(), |(_, last)| {
            format!("{} ms", three_digits(*last))
        });
        (points, Points::new(), note)
    });
    let sheet = Sheet::new(record, "latency", "Start of one more instance", about)?;
    let upright = Axis::holding(heights(&series));
    draw(record, sheet, &series, ("milliseconds", upright))
}

/// A series of each row.
fn all(density: &Density, of: impl Fn(&DensityRow) -> (Points, Points, String)) -> Vec<Series<'_>> {
    let mut seen = Vec::new();
    density
        .rows
        .iter()
        .map(|row| {
            let kind = row.runtime.kind;
            let (ink, dashes) = Ink::series(kind, number(&mut seen, kind));
            let (points, other, note) = of(row);
            Series {
                row,
                ink,
                dashes,
                points,
                other,
                note,
            }
        })
        .collect()
}

/// All points of all lines.
fn points<'a>(series: &'a [Series]) -> impl Iterator<Item = (f64, f64)> + Clone + 'a {
    let all = |one: &'a Series| one.points.iter().chain(&one.other);
    series.iter().flat_map(all).copied()
}

fn heights<'a>(series: &'a [Series]) -> impl Iterator<Item = f64> + Clone + 'a {
    points(series).map(|(_, height)| height)
}

/// The lines, and beside where each ends its name.
fn draw(
    record: &Record,
    mut sheet: Sheet,
    series: &[Series],
    (what, upright): (&str, Axis),
) -> Drawn<Plot> {
    sheet.top += 6.0;
    let name = |one: &Series| font::shortened(&one.row.runtime.name, SIZE, NAME);
    let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(40.0, f64::max);
    let names = widest(&mut series.iter().map(|one| font::width(&name(one), SIZE)));
    let notes = widest(&mut series.iter().map(|one| font::width(&one.note, SIZE)));
    let labels = names + 12.0 + notes;
    let height = HEIGHT.max(series.len() as f64 * LINE + 10.0);
    let (top, bottom) = (sheet.top, sheet.top + height);
    let right = WIDTH - MARGIN - labels - 40.0;
    let what = format!("{what}{}", upright.note());
    let most = points(series)
        .map(|(instances, _)| instances)
        .fold(1.0, f64::max);
    let frame = sheet.frame(
        (Axis::linear(0.0, most), upright),
        (MARGIN + 74.0, right),
        (top, bottom),
    );
    frame.below("instances that run")?;
    frame.beside(&what, short)?;
    let ends: Vec<f64> = series
        .iter()
        .map(|one| one.points.last().map_or(bottom, |point| frame.up(point.1)))
        .collect();
    let places = spread(&ends, LINE, (top + 4.0, bottom - 4.0));
    for ((one, end), place) in series.iter().zip(&ends).zip(places) {
        let runtime = &one.row.runtime.name;
        let ended = one
            .row
            .ended
            .as_ref()
            .map_or(String::new(), |why| format!("; {why}"));
        let hover = format!("{runtime}: {}{ended}", one.note);
        sheet.canvas.open(runtime, &hover, one.dashes);
        if one.points.len() > 1 {
            frame.line(one.points.clone(), line(one.ink, 2.2))?;
        }
        if one.other.len() > 1 {
            sheet.canvas.dashed(THIN);
            frame.line(one.other.clone(), line(one.ink, 1.1))?;
            sheet.canvas.close();
        }
        sheet.canvas.close();
        if let Some(&last) = one.points.last() {
            frame.dot(last, 3.0, super::sheet::fill(one.ink, 1.0))?;
            let from = frame.across(last.0);
            // From where the line ends to its name.
            let bends = [
                (from + 5.0, *end),
                (right + 10.0, *end),
                (right + 26.0, place),
                (right + 32.0, place),
            ];
            sheet.canvas.dashed(&[1.0, 2.0]);
            sheet.path(&bends, line(one.ink, 1.0))?;
            sheet.canvas.close();
        }
        sheet.text(
            &name(one),
            (right + 38.0, place),
            Type::new(SIZE, Ink::Text),
        )?;
        let ink = if one.points.is_empty() {
            Ink::Bad
        } else {
            Ink::Text
        };
        sheet.text(
            &one.note,
            (WIDTH - MARGIN, place),
            Type::new(SIZE, ink).left(),
        )?;
    }
    sheet.top = bottom + BELOW;
    sheet.finish(record)
}

/// Where labels go that would best be at `wanted`, so that they are at least `distance` apart and within the limits, if these have room for all.
fn spread(wanted: &[f64], distance: f64, (top, bottom): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|one, other| wanted[*one].total_cmp(&wanted[*other]));
    let mut places = wanted.to_vec();
    let mut free = top;
    for &label in &order {
        places[label] = places[label].max(free);
        free = places[label] + distance;
    }
    let mut free = bottom;
    for &label in order.iter().rev() {
        places[label] = places[label].min(free);
        free = places[label] - distance;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kept_apart() {
        assert_eq!(spread(&[50.0, 10.0], 10.0, (0.0, 100.0)), [50.0, 10.0]);
        assert_eq!(
            spread(&[50.0, 50.0, 50.0], 10.0, (0.0, 100.0)),
            [50.0, 60.0, 70.0]
        );
        assert_eq!(
            spread(&[99.0, 100.0, 0.0], 10.0, (0.0, 100.0)),
            [90.0, 100.0, 0.0]
        );
        assert!(spread(&[], 10.0, (0.0, 100.0)).is_empty());
    }
}
