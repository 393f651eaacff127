//! Where a record goes, and how it is shown.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, io};

use ::bench::page::page;
use ::bench::record::{FORMAT, Measured, Missing, Record};
use ::bench::{plot, table};
use clap::ValueEnum;

use super::Error;
use super::facts::facts;
use crate::ctl::print;

/// Where the record goes.
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Write the record, with all raw samples, to FILE, or with - to standard output in place of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,

    #[command(flatten)]
    pictures: Pictures,
}

/// What is made of a record for people.
#[derive(Debug, clap::Args)]
pub(super) struct Pictures {
    /// Write a page with tables and plots to FILE: one file, which needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write each plot to a file in DIR
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,

    /// The same as PNG
    #[arg(long, value_name = "DIR")]
    png: Option<PathBuf>,

    /// Colours of the PNGs
    #[arg(long, value_enum, default_value_t = Theme::Light, requires = "png")]
    theme: Theme,
}

/// `--theme`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Theme {
    /// On white
    Light,
    /// On black
    Dark,
}

impl Pictures {
    /// Writes those that were asked for.
    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        if let Some(path) = &self.html {
            write(path, page(record)?)?;
        }
        for directory in [&self.svg, &self.png].into_iter().flatten() {
            fs::create_dir_all(directory).map_err(file("make", directory))?;
        }
        if let Some(directory) = &self.svg {
            plot::write_svgs(record, directory)?;
        }
        if let Some(directory) = &self.png {
            let theme = match self.theme {
                Theme::Light => plot::Theme::Light,
                Theme::Dark => plot::Theme::Dark,
            };
            plot::write_pngs(record, directory, theme)?;
        }
        Ok(())
    }
}

fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path: path.clone(),
        source,
    }
}

fn write(path: &Path, text: String) -> Result<(), Error> {
    fs::write(path, text).map_err(file("write", path))
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
        // Strings and numbers: nothing in it can fail to serialize.
        let json = || serde_json::to_string_pretty(record).unwrap_or_default() + "\n";
        let is_stdout = self.json.as_deref() == Some(Path::new("-"));
        if is_stdout {
            print(&json());
        } else {
            // What was measured is seen, whatever becomes of the files.
            print(&table::text(record));
        }
        if let Some(path) = self.json.as_ref().filter(|_| !is_stdout) {
            write(path, json())?;
        }
        self.pictures.write(record)
    }
}
