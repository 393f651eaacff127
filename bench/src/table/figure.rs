//! Figures as text, none of them wider than its column, whatever its value.

use crate::record::Estimate;
use crate::stats::CONFIDENCE;

/// Bytes of a mebibyte.
pub(crate) const MIB: f64 = (1 << 20) as f64;
/// What stands for a figure that there is none of.
pub(crate) const NONE: &str = "–";

/// Milliseconds, or another number that may be large or small: at most 8 columns.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size < 99.995 => format!("{value:.2}"),
        size if size < 9999.95 => format!("{value:.1}"),
        size if size < 999_999.5 => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    }
}

/// A number with three digits that mean something, as far as it is below 1000: at most 8 columns.
pub(crate) fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        size if size < 999_999.5 => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    }
}

/// Bytes: at most 12 columns.
pub(crate) fn size(bytes: f64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    let mut units = UNITS.iter();
    let mut unit = UNITS[0];
    for next in units.by_ref() {
        unit = next;
        if value.abs() < 1023.5 || *next == UNITS[UNITS.len() - 1] {
            break;
        }
        value /= 1024.0;
    }
    if unit == UNITS[0] {
        format!("{value:.0} B")
    } else {
        format!("{} {unit}", three_digits(value))
    }
}

/// A ratio and its interval, with a question mark if it is less sure than intervals are elsewhere.
pub(crate) fn ratio(estimate: &Estimate) -> String {
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(three_digits);
    let unsure = if is_unsure(estimate) { "?" } else { "" };
    format!("{value} ({low}–{high}){unsure}")
}

/// Whether there were too few values for an interval that is as sure as others.
pub(crate) fn is_unsure(estimate: &Estimate) -> bool {
    estimate.confidence < CONFIDENCE - 1e-9
}

/// A figure, or what stands for none.
pub(crate) fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.into(), text)
}

/// "1 run", "2 runs".
pub(crate) fn count(count: u32, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Text of others on one line of a terminal, which it cannot make do anything: control characters, and those that turn the
/// direction of writing, are replaced.
pub(crate) fn clean(text: &str) -> String {
    let harmless = |character: char| match character {
        '\n' | '\t' => ' ',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        character if character.is_control() => '?',
        character => character,
    };
    text.trim_end().chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let values = [
            0.0,
            0.004,
            0.39,
            9.994,
            9.995,
            12.13,
            99.994,
            99.999,
            432.15,
            999.95,
            9999.94,
            9999.96,
            123_456.7,
            999_999.6,
            1e9,
            1.7e308,
            f64::INFINITY,
            f64::NAN,
        ];
        for value in values.into_iter().flat_map(|value| [value, -value]) {
            assert!(number(value).chars().count() <= 8, "{}", number(value));
            assert!(
                three_digits(value).chars().count() <= 8,
                "{}",
                three_digits(value)
            );
            assert!(size(value).chars().count() <= 12, "{}", size(value));
        }
        assert_eq!(number(3.274), "3.27");
        assert_eq!(number(43.314), "43.31");
        assert_eq!(number(1234.56), "1234.6");
        assert_eq!(number(99.999), "100.0");
        assert_eq!(number(1e6), "1.0e6");
        let digits = [0.0, 0.123, 9.994, 9.996, 99.94, 99.96, 1234.5].map(three_digits);
        assert_eq!(
            digits,
            ["0.00", "0.12", "9.99", "10.0", "99.9", "100", "1234"]
        );
        assert_eq!(three_digits(9.999), "10.0");
        assert_eq!(three_digits(99.99), "100");
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.00 KiB"),
            (1536.0, "1.50 KiB"),
            (1_048_000.0, "1023 KiB"),
            (1_048_570.0, "1.00 MiB"),
            (-2048.0, "-2.00 KiB"),
            (134_217_728.0, "128 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX as f64), "16.0 EiB");
    }

    #[test]
    fn text_of_others_stays_text() {
        assert_eq!(clean("a\u{1b}[31mb\u{202e}c\nd\u{7}\n"), "a?[31mb?c d?");
        assert_eq!(clean("クラン"), "クラン");
    }
}
