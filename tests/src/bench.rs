//! `mote bench`, with temporary files of its own, so that everything it leaves behind is seen.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bench::document;
use bench::record::{Measured, Purpose, Record, Run, StartupRow};
use serde_json::Value;

use crate::ctl::Host;
use crate::monitor::{Ended, Running};

/// What the record has to be.
const SCHEMA: &str = include_str!("../../docs/bench-record.schema.json");

/// A place to measure at.
#[derive(Default)]
pub struct Bench {
    /// Its files.
    pub host: Host,
}

impl Bench {
    /// An adapter as a file.
    pub fn adapter(&self, name: &str, text: &str) -> String {
        let text = format!("name = \"{name}\"\nabout = \"made by a test\"\n{text}");
        self.host.write(&format!("{name}.toml"), text)
    }

    /// One that runs a shell script as a process.
    pub fn script(&self, name: &str, script: &str) -> String {
        self.adapter(
            name,
            &format!("kind = \"process\"\nrun = [\"sh\", \"-c\", '''{script}''']\n"),
        )
    }

    /// Where the record is.
    pub fn json(&self) -> PathBuf {
        self.host.path().join("record.json")
    }

    fn temporary(&self) -> PathBuf {
        self.host.path().join("tmp")
    }

    /// A command line of `mote bench`, whose record is kept.
    pub fn command(&self, arguments: &[&str]) -> Command {
        fs::create_dir_all(self.temporary()).unwrap();
        let mut command = self.host.command(&["bench"]);
        command.args(arguments).arg("--json").arg(self.json());
        command.env("TMPDIR", self.temporary()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end; nothing of it is left.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> (Ended, Record) {
        let ended = Running::start(self.command(arguments)).wait();
        self.expect_nothing_left();
        (ended, self.record())
    }

    /// The record that was written, which suits its schema.
    #[track_caller]
    pub fn record(&self) -> Record {
        let text = fs::read(self.json()).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> = validator
            .iter_errors(&value)
            .map(|fault| fault.to_string())
            .collect();
        assert_eq!(faults, [""; 0]);
        document::read(&self.json()).unwrap()
    }

    /// Nothing that a measurement has made is there: files, mounts, processes, control groups.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let files: Vec<_> = fs::read_dir(self.temporary())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(files.is_empty(), "{files:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let temporary = self.temporary();
        assert!(!mounts.contains(temporary.to_str().unwrap()), "{mounts}");
        let processes = self.processes();
        assert!(processes.is_empty(), "{processes:?}");
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Another case may be measuring: its process is there.
                let number = name
                    .strip_prefix("mote-bench-")
                    .map(|number| number.parse::<u32>().unwrap());
                let is_used = |number: u32| fs::metadata(format!("/proc/{number}")).is_ok();
                assert!(number.is_none_or(is_used), "{name}");
            }
        }
    }

    /// Command lines of the processes that know of these temporary files.
    pub fn processes(&self) -> Vec<String> {
        let temporary = self.temporary().to_str().unwrap().to_owned();
        let entries = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|entry| entry.path());
        let knows = |path: &PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&temporary)
        };
        let lines = entries
            .filter(knows)
            .map(|path| fs::read(path.join("cmdline")).unwrap_or_default());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .collect()
    }
}

/// The words of a command line, and more of them behind.
pub fn words<'a>(line: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    line.split(' ').chain(more.iter().copied()).collect()
}

/// The row of this name.
#[track_caller]
pub fn row<'r>(record: &'r Record, name: &str) -> &'r StartupRow {
    let Measured::Startup(startup) = &record.measured else {
        panic!("no starts");
    };
    let mut rows = startup.rows.iter();
    rows.find(|row| row.runtime.name == name)
        .unwrap_or_else(|| panic!("no row {name}"))
}

/// Why the runs of a row failed, each once.
pub fn failures(row: &StartupRow) -> Vec<&str> {
    let mut all: Vec<&str> = row
        .runs
        .iter()
        .filter_map(|run| run.failure.as_deref())
        .collect();
    all.dedup();
    all
}

/// The runs of a row that have this purpose.
pub fn runs(row: &StartupRow, purpose: Purpose) -> Vec<&Run> {
    row.runs
        .iter()
        .filter(|run| run.purpose == purpose)
        .collect()
}
