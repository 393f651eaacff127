//! Which runtimes are measured: those that mote has an adapter for, and those that the user has.

use std::path::Path;

use ::bench::adapter::{Adapter, BUILT_IN, built_in, source};

use super::Error;
use crate::ctl::print;
use crate::status::Status;

/// `mote bench adapters`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the adapter of this runtime: a file to begin one's own with
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Which runtimes to take.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Runtimes, by the names of `mote bench adapters` or by files [default: all of those that are installed]
    #[arg(value_name = "NAME|FILE.toml")]
    runtimes: Vec<String>,

    /// Leave this one out; may be given several times
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
}

impl Choice {
    /// The adapters, in the order in which they take turns.
    pub(super) fn adapters(&self) -> Result<Vec<Adapter>, Error> {
        let all = BUILT_IN
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let names = if self.runtimes.is_empty() {
            &all
        } else {
            &self.runtimes
        };
        for name in &self.skip {
            if built_in(name).is_none() && !names.contains(name) {
                return Err(unknown(name));
            }
        }
        let mut adapters: Vec<Adapter> = Vec::new();
        for name in names.iter().filter(|name| !self.skip.contains(name)) {
            let adapter = if is_file(name) {
                Adapter::read(Path::new(name))?
            } else {
                built_in(name).ok_or_else(|| unknown(name))?
            };
            if adapters.iter().any(|other| other.name == adapter.name) {
                let name = adapter.name;
                return Err(Error::Usage(format!(
                    "There are two adapters of the name '{name}': give one another name"
                )));
            }
            adapters.push(adapter);
        }
        if adapters.is_empty() {
            return Err(Error::Usage("No runtime is left to be measured".into()));
        }
        Ok(adapters)
    }
}

fn is_file(name: &str) -> bool {
    name.contains('/') || name.ends_with(".toml")
}

fn unknown(name: &str) -> Error {
    let known: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    Error::Usage(format!(
        "There is no runtime '{name}' (there are: {}; a file is named by a path, or ends with .toml)",
        known.join(", ")
    ))
}

pub(super) fn adapters(args: &Args) -> Result<Status, Error> {
    match &args.name {
        Some(name) => print(source(name).ok_or_else(|| unknown(name))?),
        None => {
            for (name, _) in BUILT_IN {
                let about = built_in(name).map(|adapter| adapter.about);
                print(&format!("{name:<26} {}\n", about.unwrap_or_default()));
            }
        }
    }
    Ok(Status::Success)
}
