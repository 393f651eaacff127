//! `mote bench report`: records that were kept, as tables and beside each other.

use std::fs;

use bench::record::{
    FORMAT, Host as BenchHost, Kind, Measured, Milestones, Purpose, Record, Run, Runtime, Startup,
    StartupRow, Summary,
};
use serde_json::json;
use tests::ctl::Host;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("one_record_is_a_table", one),
    ("a_record_is_a_page_and_plots", pictures),
    ("two_records_are_compared", two),
    ("what_is_no_record_is_told", wrong),
];

fn row(name: &str, kind: Kind, exit: f64) -> StartupRow {
    let run = |number: u32| {
        // Around it, and not the same twice.
        let at = exit * (1.0 + f64::from(number) / 1000.0);
        Run {
            purpose: Purpose::Sample,
            at: 0.0,
            failure: (number == 0).then(|| "the output is wrong".into()),
            milestones: Milestones {
                output: Some(at * 0.9),
                exit: Some(at),
                ..Milestones::default()
            },
            cpu: Some(at / 2.0),
            peak_memory: Some(1 << 20),
        }
    };
    StartupRow {
        runtime: Runtime {
            name: name.into(),
            about: String::new(),
            kind,
            version: None,
            command: vec![name.into()],
            requests: Vec::new(),
            uncounted: None,
        },
        runs: (0..30).map(run).collect(),
        summary: Summary::default(),
    }
}

/// A record in which a start takes so long.
fn record(exit: f64) -> Record {
    Record {
        format: FORMAT.into(),
        began: "2026-11-30T12:00:00Z".into(),
        mote: "0.1.0".into(),
        command: vec!["mote".into()],
        host: BenchHost {
            cpu: "some CPU".into(),
            cpus: 2,
            memory: 1 << 30,
            kernel: "Linux".into(),
            kvm: None,
            governor: None,
            cgroup: None,
            emulated: None,
        },
        interrupted: false,
        missing: Vec::new(),
        measured: Measured::Startup(Startup {
            runs: 30,
            warmups: 0,
            memory: 128 << 20,
            baseline: "process".into(),
            rows: vec![
                row("process", Kind::Process, 1.0),
                row("mote", Kind::Vm, exit),
            ],
        }),
    }
}

fn write(host: &Host, name: &str, record: &Record) -> String {
    host.write(name, serde_json::to_vec(record).unwrap())
}

fn one() {
    let host = Host::new();
    let mut record = record(20.0);
    record.host.emulated = Some("a test says so".into());
    let path = write(&host, "a.json", &record);
    let text = host.ask(&["bench", "report", &path]);
    assert!(text.starts_with("EMULATED HOST: a test says so."), "{text}");
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
    // Summaries are made of the runs, whatever the file says; here it says nothing.
    let words: Vec<_> = line("mote ").split_whitespace().collect();
    assert_eq!(words[..5], ["mote", "29/30", "18.27", "20.02", "20.30"]);
    assert!(
        line("  mote").ends_with("1 ×  the output is wrong"),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}

fn pictures() {
    let host = Host::new();
    let path = write(&host, "a.json", &record(20.0));
    let to = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let (page, svg, png) = (to("a.html"), to("deep/svg"), to("png"));
    let arguments = [
        "--html", &page, "--svg", &svg, "--png", &png, "--theme", "dark",
    ];
    host.ask(&[&["bench", "report", &path], &arguments[..]].concat());
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("some CPU"),
        "{page}"
    );
    for (folder, begins) in [(&svg, &b"<svg"[..]), (&png, b"\x89PNG\r\n")] {
        let files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert_eq!(files.len(), 5, "{files:?}");
        for file in files {
            assert!(fs::read(&file).unwrap().starts_with(begins), "{file:?}");
        }
    }
    host.mote(&["bench", "report", &path, "--html", "/no/such/a.html"])
        .expect_error(125, &["Cannot write /no/such/a.html"]);
}

fn two() {
    let host = Host::new();
    let a = write(&host, "a.json", &record(20.0));
    let b = write(&host, "b.json", &record(15.0));
    let text = host.ask(&["bench", "report", &a, &b]);
    assert_eq!(text.matches("faster by 25 % (").count(), 2, "{text}");
    assert_eq!(text.matches("less by 25 % (").count(), 1, "{text}");
    assert_eq!(
        text.matches("no difference beyond noise").count(),
        5,
        "{text}"
    );
    let found = host.ask_json(&["bench", "report", &a, &b, "--json"]);
    assert_eq!(found["rows"][1]["name"], "mote");
    let exit = &found["rows"][1]["quantities"][1];
    assert_eq!(
        (&exit["name"], &exit["verdict"]["is"]),
        (&json!("exit"), &json!("less"))
    );
    host.mote(&["bench", "report", &a, "--json"])
        .expect_status(125);
}

fn wrong() {
    let host = Host::new();
    let good = write(&host, "good.json", &record(20.0));
    let mut emulated = record(20.0);
    emulated.host.emulated = Some("a test says so".into());
    let emulated = write(&host, "emulated.json", &emulated);
    let newer = host.write("newer.json", json!({"format": "mote-bench/2"}).to_string());
    let half = host.write(
        "half.json",
        json!({"format": FORMAT, "began": 7}).to_string(),
    );
    let other = host.write("other.json", "{}");
    let cut = &fs::read(&good).unwrap()[..100];
    let cut = host.write("cut.json", cut);
    for (path, parts) in [
        ("/no/such.json", &["/no/such.json", "No such file"][..]),
        (&cut, &["cut.json", "is not JSON"]),
        (&newer, &["'mote-bench/2'", "reads 'mote-bench/1'"]),
        (&half, &["at 'began'", "invalid type"]),
        (&other, &["other.json", "is no record"]),
    ] {
        host.mote(&["bench", "report", path])
            .expect_error(125, parts);
        host.mote(&["bench", "report", &good, path])
            .expect_error(125, parts);
    }
    host.mote(&["bench", "report", &good, &emulated])
        .expect_error(
            125,
            &["B was measured in an emulated host (a test says so)"],
        );
    host.mote(&["bench"]).expect_status(125);
}
