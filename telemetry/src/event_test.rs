use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde_json::{Value, json};

use super::*;

/// One of each, with all that there can be in it.
fn all() -> Vec<Event> {
    let disk = DeviceId::Disk("rootfs".into());
    let full = io::Error::from(io::ErrorKind::StorageFull);
    vec![
        Event::State {
            state: State::Running,
        },
        Event::Boot {
            milestone: Milestone::Mark,
            since_start_us: 3,
            since_first_run_us: Some(2),
            value: Some(123),
        },
        Event::End {
            reason: End::Crash,
            by: Some("signal 15".into()),
            vcpu: Some(1),
            report: Some("KVM internal error".into()),
        },
        Event::from(&DeviceEvent::Failed {
            id: &disk,
            what: "write",
            error: &full,
        }),
        Event::from(&DeviceEvent::Plugged(&disk)),
        Event::from(&DeviceEvent::Gone(&disk)),
        Event::MetricsTrouble {
            error: "no space".into(),
        },
        Event::LogTrouble { missed: 4 },
        Event::Snapshot {
            differential: true,
            pause_us: 5,
            memory_bytes: 4096,
        },
    ]
}

fn line(event: &Event) -> Value {
    let time = UNIX_EPOCH + Duration::from_micros(1_795_564_799_123_456);
    let line = event.line(time);
    assert!(!line.contains('\n'), "{line}");
    serde_json::from_str(&line).unwrap()
}

/// The names in backquotes in a table's cell.
fn names(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_documentation_has_all_events_and_their_fields() {
    let text = include_str!("../../docs/metrics-and-events.md");
    let (_, table) = text.split_once("| event | fields |").unwrap();
    let documented: BTreeMap<String, BTreeSet<String>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let event = names(cells.next().unwrap()).into_iter().next().unwrap();
            (event, names(cells.next().unwrap()))
        })
        .collect();
    let written: BTreeMap<String, BTreeSet<String>> = all()
        .iter()
        .map(|event| {
            let line = line(event);
            let fields = line.as_object().unwrap().keys().cloned();
            let fields = fields.filter(|field| !["time", "event"].contains(&field.as_str()));
            (line["event"].as_str().unwrap().to_owned(), fields.collect())
        })
        .collect();
    assert_eq!(documented, written);
}

#[test]
fn lines_say_what_and_when() {
    let events = all();
    assert_eq!(
        line(&events[0]),
        json!({"time": "2026-11-24T23:59:59.123456Z", "event": "state", "state": "Running"})
    );
    let error = line(&events[3]);
    assert_eq!(error["device"], "drive");
    assert_eq!(error["id"], "rootfs");
    assert_eq!(error["operation"], "write");
    // What is not known is not there.
    let reason = StopReason::Requested(StopRequest::Quit);
    let end = line(&(&reason).into());
    assert_eq!(end["reason"], "stopped");
    assert_eq!(end["by"], "request");
    assert!(end.get("vcpu").is_none());
    let end = line(&(&StopReason::TripleFault { cpu: 2 }).into());
    assert_eq!(
        (&end["reason"], &end["vcpu"]),
        (&json!("triple_fault"), &json!(2))
    );
    let gone = line(&Event::from(&DeviceEvent::Gone(&DeviceId::Balloon)));
    assert!(gone.get("id").is_none());
}

#[test]
fn times_are_as_the_calendar_has_them() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000Z"),
        (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
    ] {
        assert_eq!(rfc3339(Duration::from_secs(seconds)), expected);
    }
}
