//! Where a record goes, and how it is shown.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use ::bench::record::{FORMAT, Measured, Missing, Record};
use ::bench::table;

use super::Error;
use super::facts::facts;
use crate::ctl::print;

/// Where the record goes.
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Write the record, with all raw samples, to FILE, or with - to standard output in place of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

/// When a measurement began.
pub(super) struct Made(Duration);

impl Made {
    /// Now.
    pub(super) fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// The whole record of it.
    pub(super) fn record(
        &self,
        cgroup: Option<u32>,
        interrupted: bool,
        missing: Vec<Missing>,
        measured: Measured,
    ) -> Record {
        Record {
            format: FORMAT.into(),
            began: telemetry::rfc3339(self.0),
            mote: env!("CARGO_PKG_VERSION").into(),
            command: env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            host: facts(cgroup),
            interrupted,
            missing,
            measured,
        }
    }
}

impl Output {
    /// Writes and shows it.
    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        if let Some(path) = &self.json {
            // Strings and numbers: nothing in it can fail to serialize.
            let text = serde_json::to_string_pretty(record).unwrap_or_default() + "\n";
            if path == Path::new("-") {
                print(&text);
                return Ok(());
            }
            fs::write(path, text).map_err(|source| Error::File {
                action: "write",
                path: path.clone(),
                source,
            })?;
        }
        print(&table::text(record));
        Ok(())
    }
}
