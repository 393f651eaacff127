use statrs::distribution::{
    Binomial, Cauchy, ContinuousCDF, DiscreteCDF, LogNormal, Normal, Pareto,
};

use super::*;

/// Values of a distribution.
fn draw(from: &impl ContinuousCDF<f64, f64>, count: usize, rng: &mut Rng) -> Vec<f64> {
    // Neither 0 nor 1: there a tail is infinite.
    let uniform = (0..count).map(|_| rng.f64().clamp(1e-12, 1.0 - 1e-12));
    uniform.map(|p| from.inverse_cdf(p)).collect()
}

/// How many of so many trials may succeed, at such a probability, in all but two of 100,000 tests.
fn expected(trials: u64, probability: f64) -> std::ops::RangeInclusive<u64> {
    let binomial = Binomial::new(probability, trials).unwrap();
    binomial.inverse_cdf(1e-5)..=binomial.inverse_cdf(1.0 - 1e-5)
}

/// How many of so many intervals hold the ratio that the distributions have.
fn coverage(
    of: &impl ContinuousCDF<f64, f64>,
    to: &impl ContinuousCDF<f64, f64>,
    runs: usize,
    trials: u64,
) -> u64 {
    let ratio = of.inverse_cdf(0.5) / to.inverse_cdf(0.5);
    let mut rng = Rng::with_seed(7);
    let held = (0..trials).filter(|_| {
        let (a, b) = (draw(of, runs, &mut rng), draw(to, runs, &mut rng));
        let estimate = ratio_by(&a, &b, 600).unwrap();
        (estimate.low..=estimate.high).contains(&ratio)
    });
    held.count() as u64
}

/// They hold it a little more often than they say: of 4000 of each kind, with 6 to 100 runs, 95.2 to 97.1 of 100 did.
fn covers(of: &impl ContinuousCDF<f64, f64>, to: &impl ContinuousCDF<f64, f64>) {
    const TRIALS: u64 = 400;
    for runs in [10, 40] {
        let held = coverage(of, to, runs, TRIALS);
        let least = *expected(TRIALS, 0.95).start();
        let most = *expected(TRIALS, 0.97).end();
        assert!((least..=most).contains(&held), "{held} with {runs} runs");
    }
}

#[test]
fn intervals_hold_the_ratio_of_normal_distributions() {
    covers(
        &Normal::new(30.0, 3.0).unwrap(),
        &Normal::new(10.0, 1.0).unwrap(),
    );
}

#[test]
fn intervals_hold_the_ratio_of_skewed_distributions() {
    covers(
        &LogNormal::new(2.0, 0.5).unwrap(),
        &LogNormal::new(1.0, 0.3).unwrap(),
    );
}

#[test]
fn intervals_hold_the_ratio_of_heavy_tails() {
    covers(
        &Pareto::new(5.0, 1.0).unwrap(),
        &Pareto::new(2.0, 1.5).unwrap(),
    );
}

#[test]
fn intervals_of_few_runs_are_as_sure_as_they_say() {
    let (of, to) = (
        LogNormal::new(2.0, 0.5).unwrap(),
        LogNormal::new(1.0, 0.3).unwrap(),
    );
    for runs in 1..BOOTSTRAP_FROM {
        let values = vec![1.0; runs];
        let said = ratio_of_medians(&values, &values).unwrap().confidence;
        assert!((said - (1.0 - 0.5_f64.powi(runs as i32 - 1)).powi(2)).abs() < 1e-12);
        let held = coverage(&of, &to, runs, 400);
        assert!(
            held >= *expected(400, said).start(),
            "{held} with {runs} runs"
        );
    }
}

#[test]
fn the_same_samples_have_the_same_interval() {
    let mut rng = Rng::with_seed(1);
    let normal = Normal::new(30.0, 3.0).unwrap();
    let (a, b) = (draw(&normal, 50, &mut rng), draw(&normal, 60, &mut rng));
    let first = ratio_of_medians(&a, &b).unwrap();
    assert_eq!(Some(first), ratio_of_medians(&a, &b));
    assert!(first.low < first.value && first.value < first.high);
    let exact = (first.confidence - CONFIDENCE).abs();
    assert!(exact < f64::EPSILON);
}

#[test]
fn percentiles_are_those_of_the_distribution() {
    let mut rng = Rng::with_seed(3);
    type Quantile = Box<dyn Fn(f64) -> f64>;
    let cases: [(&str, Quantile); 3] = [
        (
            "normal",
            Box::new(|p| Normal::new(30.0, 3.0).unwrap().inverse_cdf(p)),
        ),
        (
            "log-normal",
            Box::new(|p| LogNormal::new(2.0, 0.5).unwrap().inverse_cdf(p)),
        ),
        (
            "pareto",
            Box::new(|p| Pareto::new(5.0, 3.0).unwrap().inverse_cdf(p)),
        ),
    ];
    const COUNT: usize = 100_000;
    for (name, quantile) in cases {
        let values: Vec<f64> = (0..COUNT)
            .map(|_| quantile(rng.f64().min(1.0 - 1e-12)))
            .collect();
        let found = distribution(&values).unwrap();
        for (p, value) in [(0.5, found.p50), (0.9, found.p90), (0.99, found.p99)] {
            // Five standard deviations of the share that is below.
            let off = 5.0 * f64::sqrt(p * (1.0 - p) / COUNT as f64);
            let range = quantile(p - off)..=quantile((p + off).min(1.0));
            assert!(
                range.contains(&value),
                "{name}: {value} is not in {range:?}"
            );
        }
    }
    // Of a uniform one, half of the values are at most a quarter of the width away from the median.
    let values: Vec<f64> = (0..COUNT).map(|_| rng.f64()).collect();
    let found = distribution(&values).unwrap();
    assert!((found.mad - 0.25).abs() < 0.01);
    assert!(found.min < 0.001 && found.max > 0.999);
}

#[test]
fn percentiles_lie_between_neighbours() {
    // numpy.quantile(range(1, 11), [.5, .9, .99], method="median_unbiased")
    let values: Vec<f64> = (1..=10).map(f64::from).collect();
    let found = distribution(&values).unwrap();
    assert_eq!(found.count, 10);
    for (value, expected) in [
        (found.min, 1.0),
        (found.p50, 5.5),
        (found.p90, 9.633_333_333_333_333),
        (found.p99, 10.0),
        (found.max, 10.0),
        (found.mad, 2.5),
    ] {
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }
}

#[test]
fn equal_distributions_differ_as_seldom_as_they_should() {
    const TRIALS: u64 = 2000;
    let mut rng = Rng::with_seed(5);
    let cauchy = Cauchy::new(10.0, 1.0).unwrap();
    let found = (0..TRIALS).filter(|_| {
        let (a, b) = (draw(&cauchy, 30, &mut rng), draw(&cauchy, 25, &mut rng));
        p_value(&a, &b).unwrap() < 0.05
    });
    let found = found.count() as u64;
    assert!(expected(TRIALS, 0.05).contains(&found), "{found}");
}

#[test]
fn a_shift_is_found() {
    let mut rng = Rng::with_seed(5);
    let (slow, fast) = (
        Normal::new(11.0, 1.0).unwrap(),
        Normal::new(10.0, 1.0).unwrap(),
    );
    let found = (0..200).filter(|_| {
        let (a, b) = (draw(&slow, 50, &mut rng), draw(&fast, 50, &mut rng));
        p_value(&a, &b).unwrap() < 0.05
    });
    assert!(found.count() > 195);
}

#[test]
fn p_values_are_those_of_scipy() {
    // scipy.stats.mannwhitneyu(a, b, method="asymptotic")
    let p = p_value(&[1.0, 2.0, 3.0, 9.0], &[4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
    assert!((p - 0.270_344_140_654_780_1).abs() < 1e-6);
    let p = p_value(&[1.0, 2.0, 2.0, 3.0], &[2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    assert!((p - 0.079_856_193_773_516_44).abs() < 1e-6, "{p}");
    assert!((smallest_p_value(3, 3) - 0.080_855_598_370_052_24).abs() < 1e-6);
}

#[test]
fn many_comparisons_are_corrected_for() {
    // statsmodels.stats.multitest.multipletests(…, method="holm")
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (p, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        assert!((p - expected).abs() < 1e-12, "{adjusted:?}");
    }
    assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    assert!(holm(&[]).is_empty());
}

#[test]
fn slopes_do_not_follow_what_is_off() {
    let mut points: Vec<_> = (0..1300)
        .map(|x| (f64::from(x), 3.0 * f64::from(x)))
        .collect();
    points[26].1 = 1e9;
    points[1196].1 = -1e9;
    let found = slope(&points).unwrap();
    assert!((found - 3.0).abs() < 1e-9, "{found}");
    assert_eq!(slope(&[(0.0, 1.0), (2.0, 5.0)]), Some(2.0));
    for points in [&[][..], &[(1.0, 1.0)], &[(1.0, 1.0), (1.0, 2.0)]] {
        assert_eq!(slope(points), None);
    }
}

#[test]
fn odd_samples_have_finite_statistics_or_none() {
    let odd: [&[f64]; 10] = [
        &[],
        &[3.0],
        &[3.0, 4.0],
        &[0.0, 0.0],
        &[5.0; 30],
        &[0.0; 30],
        &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        &[f64::NAN, f64::INFINITY, 2.0],
        &[f64::MAX, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 1.0, 2.0],
        &[f64::MAX; 9],
    ];
    for a in odd {
        if let Some(found) = distribution(a) {
            let Distribution {
                count,
                min,
                p50,
                p90,
                p99,
                max,
                mad,
            } = found;
            let ordered = [min, p50, p90, p99, max];
            assert!(ordered.is_sorted() && count > 0, "{found:?}");
            assert!(
                ordered.iter().chain([&mad]).all(|value| value.is_finite()),
                "{found:?}"
            );
        } else {
            assert!(a.is_empty());
        }
        for b in odd {
            if let Some(ratio) = ratio_of_medians(a, b) {
                let Estimate {
                    value,
                    low,
                    high,
                    confidence,
                } = ratio;
                assert!(low <= value && value <= high, "{a:?} {b:?} {ratio:?}");
                assert!((0.0..=1.0).contains(&confidence));
            }
            let p = p_value(a, b);
            assert_eq!(p.is_none(), a.is_empty() || b.is_empty());
            assert!(
                p.is_none_or(|p| (0.0..=1.0).contains(&p)),
                "{a:?} {b:?} {p:?}"
            );
        }
    }
    // All values the same: the ratio is known, as far as the samples say, and there is no difference.
    let same = ratio_of_medians(&[5.0; 30], &[5.0; 30]).unwrap();
    assert_eq!((same.low, same.value, same.high), (1.0, 1.0, 1.0));
    assert_eq!(p_value(&[5.0; 30], &[5.0; 30]), Some(1.0));
    assert_eq!(ratio_of_medians(&[5.0], &[0.0]), None);
}
