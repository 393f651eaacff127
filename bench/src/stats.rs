//! Statistics of a few dozen to a few thousand values, of which nothing is assumed but that they are independent. What each means
//! to a reader is in docs/bench-statistics.md.
//!
//! Values that are not finite are left out of all of it.

use fastrand::Rng;
use statrs::statistics::{Data, Max, Min, OrderStatistics};
use statrs::stats_tests::Alternative;
use statrs::stats_tests::mannwhitneyu::{MannWhitneyUMethod, mannwhitneyu};

use crate::record::{Distribution, Estimate};

/// How sure confidence intervals are.
pub const CONFIDENCE: f64 = 0.95;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 10_000;
/// Values from which on a bootstrap is used: the range of fewer holds the median less often than [`CONFIDENCE`], so that no
/// interval that is made of them can be as sure.
pub const BOOTSTRAP_FROM: usize = 6;
/// Two samples get the same interval each time.
const SEED: u64 = 0x6d6f_7465;
/// Sums and differences of values up to this are finite.
const LARGEST: f64 = 1e300;
/// Points that a slope is made of at most; of more, some are left out at even distances.
const SLOPE_POINTS: usize = 500;

/// The values that statistics can be made of.
fn usable(values: &[f64]) -> Vec<f64> {
    let finite = values.iter().filter(|value| value.is_finite());
    finite.map(|value| value.clamp(-LARGEST, LARGEST)).collect()
}

/// What the values look like; none if there are none. Percentiles are Hyndman and Fan's type 8: between two neighbours they are
/// interpolated so that, on average, as many of all further values are below as the percentile says, whatever the distribution.
#[must_use]
pub fn distribution(values: &[f64]) -> Option<Distribution> {
    let values = usable(values);
    let count = u32::try_from(values.len())
        .ok()
        .filter(|&count| count > 0)?;
    let mut data = Data::new(values.clone());
    let p50 = data.median();
    let distances = values.iter().map(|value| (value - p50).abs());
    Some(Distribution {
        count,
        min: data.min(),
        p50,
        p90: data.quantile(0.9),
        p99: data.quantile(0.99),
        max: data.max(),
        mad: Data::new(distances.collect::<Vec<_>>()).median(),
    })
}

/// The value below which this share of the values is, as in [`distribution`]; none of nothing.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let values = usable(values);
    (!values.is_empty()).then(|| Data::new(values).quantile(share))
}

/// The median; none of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let values = usable(values);
    (!values.is_empty()).then(|| Data::new(values).median())
}

/// The ratio of the median of `of` to that of `to`, with its confidence interval. None if one of them is empty, or if `to` is not
/// all above zero.
///
/// The interval is that of the bootstrap by percentiles: both are resampled [`RESAMPLES`] times, each on its own. The bias-corrected
/// and accelerated one would be more exact for smooth statistics, but takes its acceleration from a jackknife, which is wrong for
/// medians. With fewer than [`BOOTSTRAP_FROM`] values on a side the interval is the widest that the values allow, and
/// `confidence` is what it is then.
#[must_use]
pub fn ratio_of_medians(of: &[f64], to: &[f64]) -> Option<Estimate> {
    ratio_by(of, to, RESAMPLES)
}

fn ratio_by(of: &[f64], to: &[f64], resamples: usize) -> Option<Estimate> {
    let [mut of, mut to] = [usable(of), usable(to)];
    of.sort_unstable_by(f64::total_cmp);
    to.sort_unstable_by(f64::total_cmp);
    let value = median(&of)? / median(&to)?;
    if *to.first()? <= 0.0 {
        return None;
    }
    let (low, high, confidence) = if of.len().min(to.len()) < BOOTSTRAP_FROM {
        let low = of.first()? / to.last()?;
        let high = of.last()? / to.first()?;
        (low, high, range_confidence(&of) * range_confidence(&to))
    } else {
        let mut rng = Rng::with_seed(SEED);
        let (mut of, mut to) = (Resampled::new(&of), Resampled::new(&to));
        let ratios = (0..resamples).map(|_| of.median(&mut rng) / to.median(&mut rng));
        let mut ratios = Data::new(ratios.collect::<Vec<_>>());
        let tail = (1.0 - CONFIDENCE) / 2.0;
        (
            ratios.quantile(tail),
            ratios.quantile(1.0 - tail),
            CONFIDENCE,
        )
    };
    let finite = [value, low, high].iter().all(|value| value.is_finite());
    finite.then_some(Estimate {
        value,
        low: low.min(value),
        high: high.max(value),
        confidence,
    })
}

/// How often the range of so many values holds the median: unless all are on one side of it.
fn range_confidence(values: &[f64]) -> f64 {
    let missed: f64 = values.iter().skip(1).map(|_| 0.5).product();
    1.0 - missed
}

/// A sample that is drawn from, with replacement.
struct Resampled<'a> {
    sorted: &'a [f64],
    /// How often each value was drawn.
    drawn: Vec<usize>,
}

impl<'a> Resampled<'a> {
    fn new(sorted: &'a [f64]) -> Self {
        Self {
            sorted,
            drawn: vec![0; sorted.len()],
        }
    }

    /// The median of one resample. As the values are sorted, to count is enough.
    fn median(&mut self, rng: &mut Rng) -> f64 {
        let count = self.sorted.len();
        self.drawn.fill(0);
        for _ in 0..count {
            self.drawn[rng.usize(..count)] += 1;
        }
        let mut seen = 0;
        let mut lower = None;
        for (&value, drawn) in self.sorted.iter().zip(&self.drawn) {
            seen += drawn;
            if lower.is_none() && seen > (count - 1) / 2 {
                lower = Some(value);
            }
            if let Some(lower) = lower
                && seen > count / 2
            {
                return f64::midpoint(lower, value);
            }
        }
        // All have been seen by now.
        f64::NAN
    }
}

/// How likely two samples would be as different as these, or more so, if both came of one distribution: the Mann-Whitney U test,
/// two-sided, by the normal approximation with corrections for continuity and ties. None if one of them is empty.
///
/// The exact variant of statrs 0.19 is not used: with a first sample that is not the longer one it answers 1 whatever the values.
#[must_use]
pub fn p_value(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (usable(a), usable(b));
    let method = MannWhitneyUMethod::AsymptoticInclContinuityCorrection;
    let (_, p) = mannwhitneyu(&a, &b, method, Alternative::TwoSided).ok()?;
    // There is none if all values are the same.
    Some(if p.is_nan() { 1.0 } else { p })
}

/// The smallest that [`p_value`] can be with so many values: it is that of samples which do not overlap.
#[must_use]
pub fn smallest_p_value(a: usize, b: usize) -> f64 {
    let ranks = |range: std::ops::Range<usize>| -> Vec<f64> {
        let ranks = range.filter_map(|rank| u32::try_from(rank).ok());
        ranks.map(f64::from).collect()
    };
    p_value(&ranks(0..a), &ranks(a..a + b)).unwrap_or(1.0)
}

/// Makes p values of several comparisons such that one below 0.05 is wrong in at most one of 20 whole sets of them: Holm's
/// correction, which holds however the comparisons hang together.
#[must_use]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut so_far = 0.0_f64;
    let left = (1..=p_values.len()).rev();
    for (index, left) in order.into_iter().zip(left) {
        let left = u32::try_from(left).map_or(f64::INFINITY, f64::from);
        so_far = so_far.max(p_values[index] * left).min(1.0);
        adjusted[index] = so_far;
    }
    adjusted
}

/// By how much y grows for each 1 of x: the median of the slopes between any two points (Theil and Sen), which a few points that
/// are off do not change. None if x is the same in all.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let step = points.len().div_ceil(SLOPE_POINTS).max(1);
    let points: Vec<_> = points.iter().step_by(step).collect();
    let mut slopes = Vec::new();
    for (index, (x1, y1)) in points.iter().enumerate() {
        let later = points[index + 1..].iter().filter(|(x2, _)| x1 != x2);
        slopes.extend(later.map(|(x2, y2)| (y2 - y1) / (x2 - x1)));
    }
    median(&slopes)
}

#[cfg(test)]
mod tests;
