//! A strict reader of OpenMetrics text, version 1.0: it takes nothing that a scraper could take offence at.

use std::collections::{BTreeMap, BTreeSet};

/// Labels and value of each sample, by its whole name.
pub type Samples = BTreeMap<String, Vec<(BTreeMap<String, String>, f64)>>;

struct Family {
    name: String,
    kind: String,
    unit: bool,
    help: bool,
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads a whole text, or says what is wrong with it.
pub fn parse(text: &str) -> Result<Samples, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or("it does not end in # EOF")?;
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut current: Option<Family> = None;
    for line in body.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        if let Some(rest) = line.strip_prefix("# ") {
            let (keyword, rest) = rest.split_once(' ').ok_or(line)?;
            let (name, rest) = rest.split_once(' ').ok_or(line)?;
            match (keyword, &mut current) {
                ("TYPE", _) => {
                    let kinds = ["counter", "gauge", "histogram", "info", "stateset"];
                    if !kinds.contains(&rest) {
                        return wrong("an unknown type");
                    }
                    if !is_name(name) || !families.insert(name.to_owned()) {
                        return wrong("a bad name, or a family that comes again");
                    }
                    current = Some(Family {
                        name: name.to_owned(),
                        kind: rest.to_owned(),
                        unit: false,
                        help: false,
                    });
                }
                ("UNIT", Some(family)) if family.name == name && !family.unit => {
                    if !name.ends_with(&format!("_{rest}"))
                        || ["info", "stateset"].contains(&family.kind.as_str())
                    {
                        return wrong("a unit that the name does not end in");
                    }
                    family.unit = true;
                }
                ("HELP", Some(family)) if family.name == name && !family.help => {
                    if rest.is_empty() {
                        return wrong("no help");
                    }
                    family.help = true;
                }
                _ => return wrong("metadata out of place"),
            }
            continue;
        }
        let Some(family) = &current else {
            return wrong("a sample of no family");
        };
        let (name, labels, value) = sample(line).ok_or_else(|| format!("no sample: {line}"))?;
        check(family, &name, &labels, value).map_err(|why| format!("{why}: {line}"))?;
        if !seen.insert((name.clone(), labels.clone())) {
            return wrong("a sample that comes again");
        }
        samples.entry(name).or_default().push((labels, value));
    }
    histograms(&samples)?;
    Ok(samples)
}

fn check(
    family: &Family,
    name: &str,
    labels: &BTreeMap<String, String>,
    value: f64,
) -> Result<(), &'static str> {
    let suffix = name
        .strip_prefix(&family.name)
        .ok_or("a sample of another family")?;
    let fits = match family.kind.as_str() {
        "counter" => suffix == "_total" && value >= 0.0,
        "gauge" => suffix.is_empty(),
        "info" => suffix == "_info" && value == 1.0 && !labels.is_empty(),
        "stateset" => {
            suffix.is_empty() && [0.0, 1.0].contains(&value) && labels.contains_key(&family.name)
        }
        _ => {
            ["_bucket", "_count", "_sum"].contains(&suffix)
                && (suffix == "_bucket") == labels.contains_key("le")
        }
    };
    if fits && !value.is_nan() {
        Ok(())
    } else {
        Err("a sample that does not fit its type")
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        _ => return None,
                    }),
                    (_, c) => value.push(c),
                }
            };
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?;
    let is_number = value
        .chars()
        .all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    (is_name(name) && is_number).then_some(())?;
    Some((name.to_owned(), labels, value.parse().ok()?))
}

/// Buckets grow, end in +Inf, and that one is the count.
fn histograms(samples: &Samples) -> Result<(), String> {
    for (name, buckets) in samples {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let mut each: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
        for (labels, value) in buckets {
            let mut labels = labels.clone();
            let bound = match labels.remove("le").as_deref() {
                Some("+Inf") => f64::INFINITY,
                Some(bound) => bound.parse().map_err(|_| format!("{family}: le={bound}"))?,
                None => return Err(format!("{family} has a bucket without a bound")),
            };
            each.entry(labels).or_default().push((bound, *value));
        }
        for (labels, buckets) in each {
            let rises = buckets
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            let of = |suffix: &str| {
                let found = samples.get(&format!("{family}{suffix}"));
                let mut found = found.into_iter().flatten();
                found
                    .find(|(those, _)| *those == labels)
                    .map(|(_, value)| *value)
            };
            let last = buckets.last().copied();
            if !rises
                || last != of("_count").map(|count| (f64::INFINITY, count))
                || of("_sum").is_none()
            {
                return Err(format!("{family} is no histogram: {labels:?} {buckets:?}"));
            }
        }
    }
    Ok(())
}
