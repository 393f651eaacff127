//! Where the time of one start of each runtime goes.

use super::Plot;
use super::axis::Axis;
use super::canvas::Drawn;
use super::distribution::Time;
use super::font;
use super::ink::Ink;
use super::lane::{Lane, lanes, parts};
use super::sheet::{BELOW, MARGIN, Mark, SIZE, Sheet, Type, WIDTH, fill};
use crate::record::{Record, Startup};
use crate::summary::MILESTONES;
use crate::table::figure::three_digits;

/// How high a lane is.
const LANE: f64 = 30.0;

/// What happens in the part that ends with each milestone.
const PARTS: [&str; 7] = [
    "until the runtime's program runs",
    "until its environment is there",
    "until the guest is entered",
    "until the first process in there",
    "until the first byte of output",
    "until the exit status",
    "until nothing is left",
];

/// The plot: in milliseconds, and as shares of each start.
pub(super) fn plot(record: &Record, startup: &Startup) -> Drawn<Plot> {
    let about = "The run of each runtime that took the median time until its exit status, in its parts. \
                 On the left all on one scale; on the right each as long as the others, with the milliseconds of its parts.";
    let lanes = lanes(startup, |run| Time::Exit.of(run));
    let falls: Vec<_> = lanes.iter().map(|lane| parts(lane.row)).collect();
    let mut sheet = Sheet::new(
        record,
        "waterfall",
        "Where the time of one start goes",
        about,
    )?;
    let shown = |number: usize| falls.iter().flatten().any(|part| part.number == number);
    let mut legend: Vec<_> = (0..MILESTONES.len())
        .filter(|number| shown(*number))
        .map(|number| (Mark::Area(Ink::Phase(number as u8)), PARTS[number]))
        .collect();
    if falls.iter().flatten().any(|part| part.traced) {
        let traced = "from traced runs, scaled to this one";
        legend.push((Mark::Diamond(Ink::Text), traced));
    }
    sheet.legend(&legend)?;
    sheet.top += 16.0;
    let top = sheet.top;
    let bands = sheet.lanes(lanes.iter().map(Lane::name), LANE)?;
    let totals = falls
        .iter()
        .map(|parts| parts.last().map_or(0.0, |part| part.to));
    let axis = Axis::from_zero(totals.clone());
    let labels = totals.map(|total| font::width(&three_digits(total), SIZE));
    let labels = labels.fold(font::width("0.00", SIZE), f64::max) + 10.0;
    let right = WIDTH - MARGIN;
    let middle = bands.left + (right - bands.left) * 0.5;
    let frame = sheet.lane_frame(axis, (bands.left, middle - labels), &bands);
    frame.below("milliseconds")?;
    let shares = sheet.lane_frame(Axis::linear(0.0, 100.0), (middle + 16.0, right), &bands);
    shares.below("% of the start; numbers are milliseconds")?;
    let heading = Type::new(11.0, Ink::Muted);
    sheet.text("to one scale", (bands.left, top - 8.0), heading)?;
    sheet.text("share of each", (middle + 16.0, top - 8.0), heading)?;

    for (place, (lane, parts)) in lanes.iter().zip(&falls).enumerate() {
        let y = bands.middle(place);
        sheet
            .canvas
            .open(lane.name(), &hover(lane.name(), parts), &[]);
        let Some(total) = parts
            .last()
            .map(|part| part.to)
            .filter(|total| *total > 0.0)
        else {
            let why = lane.failures().unwrap_or_else(|| "not seen".to_owned());
            sheet.text(&why, (bands.left + 6.0, y), Type::new(SIZE, Ink::Bad))?;
            sheet.canvas.close();
            continue;
        };
        for part in parts {
            let style = fill(Ink::Phase(part.number as u8), 1.0);
            frame.rectangle([(part.from, y - 8.0), (part.to, y + 8.0)], style)?;
            let share = |time: f64| shares.across(100.0 * time / total);
            let (from, to) = (share(part.from), share(part.to));
            // A gap of the paper's colour between parts.
            let end = if part.to < total {
                (to - 1.0).max(from)
            } else {
                to
            };
            sheet.rectangle((from, y - 10.0), (end, y + 10.0), style)?;
            let text = three_digits(part.to - part.from);
            if font::width(&text, 11.0) + 8.0 < to - from {
                let look = Type::new(11.0, Ink::OnPhase).centred();
                sheet.text(&text, ((from + end) / 2.0, y), look)?;
            }
        }
        for part in parts.iter().filter(|part| part.traced) {
            let at = shares.across(100.0 * part.to / total);
            sheet.diamond((at, y + 11.0), Ink::Text)?;
        }
        let at = (frame.across(total) + 6.0, y);
        sheet.text(&three_digits(total), at, Type::new(SIZE, Ink::Text).bold())?;
        sheet.canvas.close();
    }
    sheet.top = bands.bottom() + BELOW;
    sheet.finish(record)
}

/// What is shown where the pointer rests on a lane.
fn hover(name: &str, parts: &[super::lane::Part]) -> String {
    parts.iter().fold(name.to_owned(), |hover, part| {
        let traced = if part.traced { " (traced)" } else { "" };
        let length = three_digits(part.to - part.from);
        format!(
            "{hover}\n{}: {length} ms, at {}{traced}",
            MILESTONES[part.number],
            three_digits(part.to)
        )
    })
}
