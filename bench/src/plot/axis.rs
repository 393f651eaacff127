//! Scales, and how values are written.

use std::ops::Range;

use plotters::coord::combinators::IntoLogRange;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::LogCoord;

/// From so many times the smallest value on, the largest one needs a logarithmic scale for both to be seen.
const LOG_FROM: f64 = 20.0;

/// Values along one side of a frame.
pub(super) enum Axis {
    /// Equal distances are equal differences
    Linear(RangedCoordf64),
    /// Equal distances are equal ratios
    Log(LogCoord<f64>),
}

impl Axis {
    /// From one value to another.
    pub(super) fn linear(from: f64, to: f64) -> Self {
        // A scale has to have some length.
        let to = if to > from { to } else { from + 1.0 };
        Self::Linear((from..to).into())
    }

    /// From nothing to a little more than the largest of these.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>) -> Self {
        Self::linear(0.0, values.into_iter().fold(0.0, f64::max) * 1.04)
    }

    /// Room for all of these, which are never negative: logarithmic where they are far apart.
    pub(super) fn holding(values: impl IntoIterator<Item = f64> + Clone) -> Self {
        let most = values.clone().into_iter().fold(0.0, f64::max);
        let least = values
            .clone()
            .into_iter()
            .filter(|value| *value > 0.0)
            .fold(f64::INFINITY, f64::min);
        if most / least < LOG_FROM || !least.is_finite() {
            return Self::from_zero(values);
        }
        let room = (most / least).powf(0.025);
        Self::Log((least / room..most * room).log_scale().into())
    }

    /// What to write beside a unit.
    pub(super) fn note(&self) -> &'static str {
        match self {
            Self::Linear(_) => "",
            Self::Log(_) => ", logarithmic scale",
        }
    }

    /// Values at which lines lead the eye: at most so many.
    fn ticks(&self, most: usize) -> Vec<f64> {
        let Range { start, end } = self.range();
        match self {
            Self::Linear(scale) => scale.key_points(most),
            Self::Log(_) => {
                let decades = start.log10().floor() as i32..=end.log10().ceil() as i32;
                let steps: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
                let ticks = |steps: &[f64]| -> Vec<f64> {
                    let within = |value: &f64| (start..=end).contains(value);
                    decades
                        .clone()
                        .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
                        .filter(within)
                        .collect()
                };
                let fitting = steps.iter().map(|steps| ticks(steps));
                let mut ticks = Vec::new();
                for candidate in fitting {
                    ticks = candidate;
                    if ticks.len() <= most {
                        break;
                    }
                }
                ticks
            }
        }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        match self {
            Self::Linear(scale) => scale.map(value, limit),
            // Nothing, and less, has no logarithm.
            Self::Log(scale) => scale.map(&value.max(scale.range().start), limit),
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.max_num_points() {
            0 => Vec::new(),
            most => self.ticks(most),
        }
    }

    fn range(&self) -> Range<f64> {
        match self {
            Self::Linear(scale) => scale.range(),
            Self::Log(scale) => scale.range(),
        }
    }
}

/// A tick's value, as short as it is exact.
pub(super) fn short(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_fit_their_values() {
        let log = Axis::holding([0.1, 3000.0]);
        assert!(matches!(log, Axis::Log(_)));
        assert_eq!(log.ticks(6), [0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(
            Axis::holding([1.0, 30.0]).ticks(9),
            [1.0, 2.0, 5.0, 10.0, 20.0]
        );
        assert!(matches!(Axis::holding([1.0, 19.0]), Axis::Linear(_)));
        for few in [vec![], vec![0.0], vec![0.0, 0.0], vec![5.0], vec![5.0, 5.0]] {
            let axis = Axis::holding(few.clone());
            let Range { start, end } = axis.range();
            assert!(start == 0.0 && end > 0.0 && end.is_finite(), "{few:?}");
            assert!(!axis.ticks(8).is_empty(), "{few:?}");
        }
    }

    #[test]
    fn values_are_mapped_into_the_frame() {
        let axis = Axis::holding([1.0, 100.0]);
        assert_eq!(axis.map(&0.0, (0, 1000)), 0);
        assert!((490..=510).contains(&axis.map(&10.0, (0, 1000))));
        assert_eq!(Axis::linear(0.0, 4.0).map(&1.0, (1000, 0)), 750);
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!([0.1 + 0.2, 1000.0, 0.0].map(short), ["0.3", "1000", "0"]);
    }
}
