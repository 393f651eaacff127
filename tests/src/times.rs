//! Tables of how long something took, in milliseconds: a row a measurement.

use std::time::Duration;

/// What a column has: its name, and which percentile it is.
type Column = (&'static str, usize);

/// A table.
pub struct Table(&'static [Column]);

/// What there is to a handful of measurements.
pub const FEW: Table = Table(&[("minimum", 0), ("median", 50), ("p90", 90)]);
/// What there is to hundreds.
pub const MANY: Table = Table(&[
    ("minimum", 0),
    ("median", 50),
    ("p90", 90),
    ("p99", 99),
    ("maximum", 100),
]);

impl Table {
    /// Prints the line above its rows: names, and how many there were of `what`.
    pub fn head(&self, count: usize, what: &str) {
        let names: Vec<String> = (self.0.iter())
            .map(|(name, _)| format!("{name:>8}"))
            .collect();
        println!(
            "{:24} {}   milliseconds, {count} {what}",
            "",
            names.join(" ")
        );
    }

    /// Prints a row.
    pub fn row(&self, name: &str, mut times: Vec<Duration>) {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let cells: Vec<String> = (self.0.iter())
            .map(|&(_, percent)| format!("{:8.3}", at(percent)))
            .collect();
        println!("{name:24} {}", cells.join(" "));
    }
}
