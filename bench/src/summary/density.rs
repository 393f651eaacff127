//! What the points of a density row come to.

use serde::Serialize;

use crate::record::{DensityPoint, DensityRow};
use crate::stats::slope;
use crate::summary::bytes;

/// What one runtime's instances took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DensitySummary {
    /// Instances that ran at once.
    pub reached: u32,
    /// Memory that each took of the host's MemAvailable, in bytes: the median slope between any two points. None of fewer than two.
    pub available_each: Option<f64>,
    /// The same of all proportional set sizes together.
    pub pss_each: Option<f64>,
    /// How long the first one took to start, in milliseconds.
    pub first_start: Option<f64>,
    /// How long the last one took.
    pub last_start: Option<f64>,
    /// Starts a second, side by side.
    pub starts_per_second: Option<f64>,
}

/// Sums up a row.
#[must_use]
pub fn density(row: &DensityRow) -> DensitySummary {
    let at = |value: fn(&DensityPoint) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = row.points.iter();
        points
            .filter_map(|point| Some((f64::from(point.count), value(point)?)))
            .collect()
    };
    let mut starts = row.points.iter().filter_map(|point| point.start);
    let first_start = starts.next();
    DensitySummary {
        reached: row
            .points
            .iter()
            .map(|point| point.count)
            .max()
            .unwrap_or(0),
        // What is available gets less.
        available_each: slope(&at(|point| Some(-bytes(point.available)))),
        pss_each: slope(&at(|point| point.pss.map(bytes))),
        first_start,
        last_start: starts.next_back().or(first_start),
        starts_per_second: row
            .rate
            .as_ref()
            .filter(|rate| rate.seconds > 0.0)
            .map(|rate| f64::from(rate.started) / rate.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn points_come_to_what_each_takes() {
        let mut row = sample::density_row("mote", 50, 10_000);
        // Something else took memory for a while.
        for point in &mut row.points[20..24] {
            point.available -= 1 << 30;
        }
        let found = density(&row);
        assert_eq!(found.reached, 50);
        assert!((found.available_each.unwrap() - 10_000.0).abs() < 1e-6);
        assert!((found.pss_each.unwrap() - 9000.0).abs() < 1e-6);
        assert_eq!(
            (found.first_start, found.last_start),
            (Some(10.1), Some(15.0))
        );
        assert_eq!(found.starts_per_second, Some(80.0));
    }

    #[test]
    fn nothing_comes_of_no_points() {
        let mut row = sample::density_row("mote", 0, 1);
        row.rate.as_mut().unwrap().seconds = 0.0;
        for points in [1, 0] {
            row.points.truncate(points);
            let expected = DensitySummary {
                reached: 0,
                available_each: None,
                pss_each: None,
                first_start: None,
                last_start: None,
                starts_per_second: None,
            };
            assert_eq!(density(&row), expected);
        }
    }
}
