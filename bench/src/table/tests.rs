use std::collections::BTreeMap;

use unicode_width::UnicodeWidthStr;

use super::*;
use crate::compare::compare;
use crate::record::{Distribution, Estimate, Purpose, Run, Startup};
use crate::sample;

/// No line is wider than it may be, or can do anything to a terminal.
fn fits(text: &str) {
    for line in text.lines() {
        assert!(
            line.width() <= usize::from(WIDTH),
            "{}: {line}",
            line.width()
        );
        assert_eq!(line, line.trim_end());
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
}

fn golden(name: &str, text: &str) {
    fits(text);
    sample::golden(&format!("golden/{name}.txt"), text);
}

fn startup(record: &mut Record) -> &mut Startup {
    match &mut record.measured {
        Measured::Startup(startup) => startup,
        Measured::Density(_) => panic!("it is one of starts"),
    }
}

#[test]
fn starts() {
    golden("startup", &text(&sample::starts()));
}

#[test]
fn starts_in_an_emulated_host_that_were_interrupted() {
    let mut record = sample::starts();
    record.host.emulated = Some("the processor is QEMU's TCG".into());
    record.interrupted = true;
    record.missing.clear();
    let of = startup(&mut record);
    for row in &mut of.rows {
        row.runs.truncate(4);
    }
    of.rows[2].runs.clear();
    of.rows[3].runs.push(Run {
        purpose: Purpose::Warmup,
        failure: Some("no output within 30 s".into()),
        ..sample::run(1.0)
    });
    crate::summary::summarize(of);
    let text = text(&record);
    golden("startup-emulated", &text);
    // Above both tables.
    assert_eq!(text.matches("EMULATED HOST: the processor").count(), 2);
}

#[test]
fn starts_of_a_baseline_that_failed() {
    let mut record = sample::starts();
    let of = startup(&mut record);
    of.baseline = "firecracker".into();
    crate::summary::summarize(of);
    let text = text(&record);
    assert!(
        text.contains("No ratios: no run of the baseline, firecracker, counts"),
        "{text}"
    );
}

#[test]
fn many_kinds_of_failures_are_cut_short() {
    let mut record = sample::starts();
    let of = startup(&mut record);
    for (number, run) in of.rows[1].runs.iter_mut().enumerate() {
        run.failure = Some(format!("the output is '{number}'"));
    }
    crate::summary::summarize(of);
    let text = text(&record);
    assert!(
        text.contains("mote-template  15 ×  for other reasons"),
        "{text}"
    );
    let all: u32 = text
        .lines()
        .filter(|line| line.starts_with("  mote-template"))
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u32>()
                .unwrap()
        })
        .sum();
    assert_eq!(all, 20);
}

#[test]
fn density() {
    golden("density", &text(&sample::crowd()));
    let mut record = sample::crowd();
    record.host.emulated = Some("the processor is QEMU's TCG".into());
    record.interrupted = true;
    let text = text(&record);
    fits(&text);
    assert!(text.starts_with("EMULATED HOST: the processor is QEMU's TCG. Its times"));
    assert!(text.contains("\nINTERRUPTED: "));
}

#[test]
fn comparisons() {
    let a = sample::starts();
    let mut b = sample::starts();
    b.mote = "0.2.0".into();
    b.host.kernel = "Linux 6.13.0".into();
    let of = startup(&mut b);
    of.rows[1] = sample::row("mote-template", &sample::times(7.1, 20, 11));
    of.rows[2] = sample::row("mote", &sample::times(31.1, 20, 12));
    of.rows[2].runtime.version = Some("1.2.4".into());
    of.rows[4] = sample::row("runsc", &[1.0]);
    crate::summary::summarize(of);
    let found = compare(&a, &b).unwrap();
    golden("comparison", &comparison(&found, "a.json", "b.json"));
    startup(&mut b).rows.drain(..4);
    startup(&mut b).rows.truncate(1);
    let others = comparison(&compare(&a, &b).unwrap(), "a.json", "b.json");
    assert!(others.contains("\n\nNo runtime is in both\n"), "{others}");
    let found = compare(&sample::crowd(), &sample::crowd()).unwrap();
    golden(
        "comparison-density",
        &comparison(&found, "a.json", "b.json"),
    );
}

#[test]
fn nothing_is_too_wide() {
    let long = "a-very-long-name-of-a-runtime-".repeat(5);
    let wide = "クラン".repeat(20);
    let wild = "\u{1b}[2J\u{202e}\u{7}\r\nx\ty".repeat(9);
    let spaced = "many short words ".repeat(9);
    for text_of in [&long, &wide, &wild, &spaced] {
        for value in [0.0, 123_456.789, -1.7e308] {
            extreme(text_of, value);
        }
    }
}

/// Tables of records with nothing but this text and this figure.
fn extreme(words: &str, value: f64) {
    let words = || words.to_owned();
    let distribution = Distribution {
        count: u32::MAX,
        min: value,
        p50: value,
        p90: value,
        p99: value,
        max: value,
        mad: value,
    };
    let estimate = Estimate {
        value,
        low: value,
        high: value,
        confidence: 0.25,
    };
    let mut record = sample::starts();
    record.host.emulated = Some(words());
    record.host.cpu = words();
    record.host.kernel = words();
    record.host.governor = Some(words());
    record.missing[0].name = words();
    record.missing[0].why = words();
    let of = startup(&mut record);
    (of.runs, of.warmups, of.memory) = (u32::MAX, u32::MAX, u64::MAX);
    of.baseline = words();
    for row in &mut of.rows {
        row.runtime.name = words();
        row.runtime.version = Some(words());
        row.runtime.uncounted = Some(words());
        row.runs.truncate(5);
        row.runs[0].failure = Some(words());
        row.runs[2].milestones.exit = Some(value);
        let summary = &mut row.summary;
        (summary.counted, summary.failed) = (u32::MAX, u32::MAX);
        summary.failures = BTreeMap::from([(words(), u32::MAX), (words() + "x", u32::MAX)]);
        summary.cpu = Some(distribution);
        summary.peak_memory = Some(distribution);
        for name in ["output", "exit", "gone"] {
            summary.milestones.insert(name.into(), distribution);
            summary.ratios.insert(name.into(), estimate);
        }
    }
    of.rows[0].runtime.name = "other".into();
    fits(&text(&record));
    let mut other = record.clone();
    other.host.cpus = u32::MAX;
    startup(&mut other).rows[0].runs[1].milestones.exit = None;
    let found = compare(&record, &other).unwrap();
    fits(&comparison(&found, &words(), &words()));

    let mut record = sample::crowd();
    record.host.emulated = Some(words());
    if let Measured::Density(of) = &mut record.measured {
        (of.limit, of.concurrency, of.memory) = (u32::MAX, u32::MAX, u64::MAX);
        for row in &mut of.rows {
            row.runtime.name = words();
            row.runtime.uncounted = Some(words());
            row.ended = Some(words());
            for point in &mut row.points {
                point.available = u64::MAX - u64::from(point.count);
                point.start = Some(value);
                point.count = u32::MAX - point.count;
            }
            if let Some(rate) = &mut row.rate {
                rate.seconds = value;
                rate.failures.insert(words(), u32::MAX);
            }
        }
    }
    fits(&text(&record));
    let found = compare(&record, &record).unwrap();
    fits(&comparison(&found, &words(), &words()));
}

#[test]
fn a_version_is_the_word_that_looks_like_one() {
    for (said, expected) in [
        ("crun version 1.8.1", "1.8.1"),
        (
            "Docker version 20.10.24+dfsg1, build 297e128",
            "20.10.24+dfsg1",
        ),
        ("Firecracker v1.17.0-dev", "v1.17.0-dev"),
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20",
            "1.6.20~ds1",
        ),
        ("release 7", "release 7"),
    ] {
        assert_eq!(super::startup::version(said), expected);
    }
}
