//! All runs of each runtime as dots, and where most of them are.

use super::Plot;
use super::axis::Axis;
use super::canvas::Drawn;
use super::font;
use super::ink::Ink;
use super::lane::{Lane, lanes};
use super::sheet::{BELOW, MARGIN, Mark, SIZE, Sheet, THIN, Type, WIDTH, fill, line};
use crate::record::{Kind, Record, Run, Startup};
use crate::stats::quantile;
use crate::table::figure::three_digits;

/// How high a lane is.
const LANE: f64 = 32.0;
/// How far from the middle of its lane a dot may be.
const SPREAD: f64 = 10.0;

/// What there is a plot of.
#[derive(Clone, Copy)]
pub(super) enum Time {
    Output,
    Exit,
}

impl Time {
    pub(super) fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::Output => run.milestones.output,
            Self::Exit => run.milestones.exit,
        }
    }

    /// What the axis says.
    pub(super) fn axis(self) -> &'static str {
        match self {
            Self::Output => "milliseconds until the first byte of output",
            Self::Exit => "milliseconds until the exit status",
        }
    }
}

/// Those kinds that are among these, with their names and inks.
pub(super) fn kinds(present: &[Kind]) -> Vec<(Mark, &'static str)> {
    [
        (Kind::Process, "process"),
        (Kind::Container, "container"),
        (Kind::Vm, "virtual machine"),
    ]
    .into_iter()
    .filter(|(kind, _)| present.contains(kind))
    .map(|(kind, name)| (Mark::Area(Ink::of(kind)), name))
    .collect()
}

/// The plot of one time.
pub(super) fn plot(record: &Record, startup: &Startup, time: Time) -> Drawn<Plot> {
    let (name, title) = match time {
        Time::Output => ("output", "Start until the first byte of output"),
        Time::Exit => ("exit", "Start until the exit status"),
    };
    let about = format!(
        "Every run that counts is a dot. {} runs of each runtime in turn, after {} that are not counted. \
         The fastest median comes first.",
        startup.runs, startup.warmups
    );
    let lanes = lanes(startup, |run| time.of(run));
    let baseline = lanes
        .iter()
        .find(|lane| lane.name() == startup.baseline)
        .and_then(Lane::median);
    let mut sheet = Sheet::new(record, name, title, &about)?;
    let mut legend = kinds(&lanes.iter().map(Lane::kind).collect::<Vec<_>>());
    legend.extend([
        (Mark::Box(Ink::Muted), "middle half"),
        (Mark::Tick(Ink::Text), "median"),
    ]);
    if lanes.iter().any(|lane| lane.failed > 0) {
        legend.push((Mark::Cross(Ink::Bad), "failed, not counted"));
    }
    let compared = format!(
        "median of {}",
        font::shortened(&startup.baseline, SIZE, 180.0)
    );
    if baseline.is_some() {
        legend.push((Mark::Thin(Ink::Muted), &compared));
    }
    sheet.legend(&legend)?;
    sheet.top += 16.0;

    let notes = lanes.iter().filter_map(Lane::failures);
    let notes = notes
        .map(|note| font::width(&note, SIZE))
        .fold(0.0, f64::max);
    let right = WIDTH - MARGIN;
    let value = right - if notes > 0.0 { notes + 14.0 } else { 0.0 };
    let heading = Type::new(11.0, Ink::Muted).left();
    sheet.text("median, ms", (value, sheet.top - 9.0), heading)?;
    let bands = sheet.lanes(lanes.iter().map(Lane::name), LANE)?;
    let all = lanes.iter().flat_map(|lane| &lane.values);
    let failed = lanes.iter().flat_map(|lane| &lane.failed_at);
    let axis = Axis::holding(all.chain(failed).copied());
    let what = format!("{}{}", time.axis(), axis.note());
    let frame = sheet.lane_frame(axis, (bands.left + 4.0, value - 78.0), &bands);
    frame.below(&what)?;
    if let Some(median) = baseline {
        sheet.canvas.dashed(THIN);
        let ends = [bands.top, bands.bottom()].map(|y| (median, y));
        frame.line(ends.into(), line(Ink::Muted, 1.0))?;
        sheet.canvas.close();
    }
    for (place, lane) in lanes.iter().enumerate() {
        let middle = bands.middle(place);
        sheet.canvas.open(lane.name(), &hover(lane), &[]);
        let ink = Ink::of(lane.kind());
        for (place, &value) in lane.values.iter().enumerate() {
            let at = (value, middle + jitter(place) * SPREAD);
            frame.dot(at, 2.0, fill(ink, 0.55))?;
        }
        for (place, &value) in lane.failed_at.iter().enumerate() {
            let at = (frame.across(value), middle + jitter(place) * SPREAD);
            sheet.cross(at, Ink::Bad)?;
        }
        let quartiles = [0.25, 0.75].map(|share| quantile(&lane.values, share));
        if let ([Some(low), Some(high)], Some(median)) = (quartiles, lane.median()) {
            let corners = [(low, middle - 8.0), (high, middle + 8.0)];
            frame.rectangle(corners, fill(ink, 0.16))?;
            frame.rectangle(corners, line(ink, 1.2))?;
            let tick = vec![(median, middle - 11.0), (median, middle + 11.0)];
            frame.line(tick, line(Ink::Text, 2.4))?;
            let look = Type::new(13.0, Ink::Text).left().bold();
            sheet.text(&three_digits(median), (value, middle), look)?;
        } else {
            let look = Type::new(13.0, Ink::Muted).left();
            sheet.text("–", (value, middle), look)?;
        }
        if let Some(note) = lane.failures() {
            let look = Type::new(SIZE, Ink::Bad).left();
            sheet.text(&note, (right, middle), look)?;
        }
        sheet.canvas.close();
    }
    sheet.top = bands.bottom() + BELOW;
    sheet.finish(record)
}

/// From -1 to 1: dots that follow each other are far apart, and the same in every picture.
fn jitter(place: usize) -> f64 {
    // The golden ratio's multiples fill the room evenly.
    (place as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0
}

/// What is shown where the pointer rests on a lane.
pub(super) fn hover(lane: &Lane) -> String {
    let mut hover = lane.name().to_owned();
    if let Some(version) = &lane.row.runtime.version {
        hover += &format!(" ({version})");
    }
    let shares = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| quantile(&lane.values, share));
    if let [Some(least), Some(low), Some(median), Some(high), Some(most)] =
        shares.map(|value| value.map(three_digits))
    {
        hover += &format!(
            ": median {median} ms, middle half {low} to {high}, all {least} to {most}, {} runs",
            lane.values.len()
        );
    }
    if let Some(failures) = lane.failures() {
        hover += &format!("; {failures}");
    }
    hover
}
