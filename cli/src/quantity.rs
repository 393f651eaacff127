//! Sizes as docker takes them, and durations as docker and timeout(1) take them.

use std::time::Duration;

/// Bytes: a number, with an optional fraction, and a suffix k, m, g or t (powers of 1024), each
/// with an optional b or ib, in either case. Without a suffix it is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: write 512m, 1.5g or a number of bytes");
    let lower = text.trim().to_ascii_lowercase();
    let (number, suffix) = split_number(&lower).ok_or_else(wrong)?;
    let unit = suffix
        .strip_suffix("ib")
        .or_else(|| suffix.strip_suffix('b'))
        .unwrap_or(suffix);
    let shift = match unit {
        "" if suffix != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    scale(number, 1u64 << shift).ok_or_else(|| format!("'{text}' is more bytes than there can be"))
}

/// A duration: numbers with the units ms, s, m and h in a row, or one number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration: write 90, 1m30s, 500ms or 1.5h");
    let mut rest = text.trim();
    let mut nanos = 0u64;
    let mut first = true;
    while first || !rest.is_empty() {
        let (number, tail) = split_number(rest).ok_or_else(wrong)?;
        let unit_end = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_nanos = match unit {
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" if first && tail.is_empty() => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let part =
            scale(number, unit_nanos).ok_or_else(|| format!("'{text}' is too long a time"))?;
        nanos = nanos
            .checked_add(part)
            .ok_or_else(|| format!("'{text}' is too long a time"))?;
        rest = tail;
        first = false;
    }
    if nanos == 0 {
        return Err("a time of 0 leaves the guest no time at all".into());
    }
    Ok(Duration::from_nanos(nanos))
}

/// Splits digits, with at most one point among them, from what follows.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let valid = number.bytes().any(|byte| byte.is_ascii_digit())
        && number.bytes().filter(|byte| *byte == b'.').count() <= 1;
    valid.then_some((number, rest))
}

/// `number * unit`, exact for whole numbers and rounded down for fractions.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = if whole.is_empty() {
        0
    } else {
        whole.parse::<u64>().ok()?
    };
    let mut total = u128::from(whole) * u128::from(unit);
    let mut divisor = 1u128;
    // Digits beyond these are below a byte or a nanosecond.
    for digit in fraction.bytes().take(18) {
        divisor *= 10;
        total += u128::from(digit - b'0') * u128::from(unit) / divisor;
    }
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_takes_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("4b", 4),
            ("512k", 512 << 10),
            ("128m", 128 << 20),
            ("128M", 128 << 20),
            ("1g", 1 << 30),
            ("1GB", 1 << 30),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            ("0.5k", 512),
            ("2t", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "m",
            "1x",
            "-1",
            "1..5g",
            "1 2",
            "1ib",
            "99999999999999999999",
            "20000000t",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("90", 90_000),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "0",
            "0s",
            "1d",
            "1m30",
            "-5s",
            "1e3",
            "99999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
