//! Where a record goes, and how it is shown.

use std::fs;
use std::path::{Path, PathBuf};

use ::bench::record::Record;

use super::Error;
use crate::ctl::print;

/// Where the record goes.
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Write the record, with all raw samples, to FILE, or with - to standard output in place of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
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
        Ok(())
    }
}
