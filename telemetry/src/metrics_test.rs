use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::command::Command;
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::text::tests::openmetrics::parse;

struct Quiet;

impl Program for Quiet {
    fn missed_log_lines(&self) -> u64 {
        2
    }

    fn limited_log_lines(&self) -> u64 {
        5
    }

    fn signals(&self) -> SignalCounts {
        SignalCounts {
            pipe: 3,
            xfsz: 4,
            ..SignalCounts::default()
        }
    }

    fn metadata(&self) -> devices::mmds::Counters {
        devices::mmds::Counters::default()
    }
}

type Heard = Arc<Mutex<Vec<Event>>>;

fn metrics() -> (Arc<Metrics>, Heard) {
    let heard = Heard::default();
    let told = Arc::clone(&heard);
    let publish = move |event: &Event| lock(&told).push(event.clone());
    let metrics = Metrics::new(Instant::now(), Box::new(Quiet), Box::new(publish));
    (Arc::new(metrics), heard)
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .unwrap()
}

fn fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn ask(metrics: &Metrics, times: usize) {
    for _ in 0..times {
        let submitted = metrics.requests().submitted(&Command::GetInstance);
        metrics.requests().done(submitted, Instant::now(), true);
    }
}

#[test]
fn lines_have_what_has_come_since_the_one_before() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("metrics");
    let (metrics, heard) = metrics();
    // There is nowhere to write to.
    metrics.flush().unwrap();
    metrics.set_sink(open(&path)).unwrap();
    assert_eq!(metrics.set_sink(open(&path)), Err(AlreadySet));
    ask(&metrics, 3);
    assert_eq!(metrics.due(), None);
    metrics.state_changed(State::Running);
    assert!(metrics.due().is_some());
    ask(&metrics, 2);
    metrics.requests().refused("PUT", "/drives/a");
    metrics.requests().deprecated();
    metrics.flush().unwrap();
    // Not due yet.
    metrics.tick();
    metrics.panicked();
    metrics.ended(&StopReason::Requested(StopRequest::Signal(SIGHUP)));
    assert_eq!(metrics.due(), None);
    let lines = lines(&fs::read_to_string(&path).unwrap());
    let asked: Vec<_> = lines
        .iter()
        .map(|line| {
            line["get_api_requests"]["instance_info_count"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(asked, [3, 2, 0, 0]);
    assert_eq!(lines[0]["logger"]["missed_log_count"], 2);
    assert_eq!(lines[1]["logger"]["missed_log_count"], 0);
    assert_eq!(lines[0]["logger"]["rate_limited_log_count"], 5);
    assert_eq!(lines[1]["logger"]["rate_limited_log_count"], 0);
    // The one is counted from line to line, the other from the beginning.
    for (line, pipe, xfsz) in [(0, 3, 4), (1, 0, 4)] {
        assert_eq!(lines[line]["signals"]["sigpipe"], pipe);
        assert_eq!(lines[line]["signals"]["sigxfsz"], xfsz);
    }
    assert_eq!(lines[1]["put_api_requests"]["drive_fails"], 1);
    assert_eq!(lines[1]["deprecated_api"]["deprecated_http_api_calls"], 1);
    assert_eq!(lines[2]["vmm"]["panic_count"], 1);
    assert_eq!(lines[3]["signals"]["sighup"], 1);
    let heard = lock(&heard);
    assert!(matches!(heard[0], Event::State { .. }));
    assert!(matches!(heard[1], Event::Boot { .. }));
    assert!(matches!(heard[2], Event::End { .. }));
    assert_eq!(heard.len(), 3);
}

/// Whoever reads may come when it likes. What there is no room for comes with the next line.
#[test]
fn a_fifo_without_a_reader_is_not_waited_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("fifo");
    fifo(&path);
    let (metrics, heard) = metrics();
    metrics.set_sink(open(&path)).unwrap();
    let mut written = 0;
    let error = loop {
        ask(&metrics, 1);
        match metrics.flush() {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(written > 1);
    ask(&metrics, 1);
    assert!(metrics.flush().is_err());
    let trouble = |heard: &Heard| {
        let heard = lock(heard);
        let events = heard.iter();
        events
            .filter(|event| matches!(event, Event::MetricsTrouble { .. }))
            .count()
    };
    // It is said once, not each time.
    assert_eq!(trouble(&heard), 1);

    let mut reader = open(&path);
    let mut text = String::new();
    let mut read = |text: &mut String| {
        let error = reader.read_to_string(text).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    };
    read(&mut text);
    metrics.flush().unwrap();
    read(&mut text);
    // No line is cut, and nothing is lost.
    let lines = lines(&text);
    assert_eq!(lines.len(), written + 1);
    let asked = lines.iter().map(|line| {
        line["get_api_requests"]["instance_info_count"]
            .as_u64()
            .unwrap()
    });
    assert_eq!(asked.sum::<u64>(), written as u64 + 2);
    assert_eq!(lines[written]["logger"]["missed_metrics_count"], 2);
}

#[test]
fn a_host_that_takes_nothing_is_told_of_once() {
    let (metrics, heard) = metrics();
    // It is open for reading only: each write fails.
    metrics.set_sink(File::open("/dev/null").unwrap()).unwrap();
    for _ in 0..3 {
        assert!(metrics.flush().is_err());
    }
    assert_eq!(metrics.process.failed_writes(), 3);
    assert_eq!(lock(&heard).len(), 1);
}

#[test]
fn the_text_is_valid_without_a_guest() {
    let (metrics, heard) = metrics();
    ask(&metrics, 2);
    metrics.requests().refused("PUT", "/nothing");
    metrics.ready(Started::default());
    let samples = parse(&metrics.scrape()).unwrap();
    assert_eq!(samples["mote_api_requests_total"][0].1, 2.0);
    assert!(samples.contains_key("mote_build_info"));
    let states = &samples["mote_state"];
    let is_set = |(labels, value): &&(std::collections::BTreeMap<String, String>, f64)| {
        *value == 1.0 && labels["mote_state"] == "Not started"
    };
    assert_eq!(states.iter().filter(is_set).count(), 1);
    assert_eq!(samples["mote_boot_phase_microseconds"][0].0["phase"], "api");
    let resident = &samples["mote_memory_bytes"][0];
    assert!(resident.0["kind"] == "resident" && resident.1 > 0.0);
    // The log had lost lines before.
    assert_eq!(*lock(&heard), [Event::LogTrouble { missed: 2 }]);
    metrics.scrape();
    assert_eq!(lock(&heard).len(), 1);
}

#[test]
fn the_line_that_scripts_look_for() {
    assert_eq!(
        boot_time(Duration::from_micros(123_456), Duration::from_micros(7_890)),
        "Guest-boot-time = 123456 us 123 ms,   7890 CPU us 7 CPU ms"
    );
}
