//! How a runtime is started: a file of TOML, one a runtime. Those that mote has are in `bench/adapters`; users name files of their own. The
//! schema is docs/bench-adapter.schema.json, the description docs/bench-adapters.md.

mod builtin;
mod places;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::Kind;

pub use builtin::{BUILT_IN, built_in, source};
pub use places::{Places, UnknownPlace};

/// How a runtime is started. In `run`, `version`, `needs_files`, `input`, `files`, `env` and `requests` a `${name}` is replaced by what it stands for; scripts have
/// the same names as variables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Name of the row: letters, digits, `-`, `_` and `.`, at most 32.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// What it makes.
    pub kind: Kind,
    /// Programs that have to be there, by name or path; without one of them the runtime is missing.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Files that have to be there, such as a device.
    #[serde(default)]
    pub needs_files: Vec<String>,
    /// It has to be root who runs it.
    #[serde(default)]
    pub needs_root: bool,
    /// Prints the version; the first line of its output that has a digit is taken.
    #[serde(default)]
    pub version: Vec<String>,
    /// Variables of all that is run here.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Script of `sh -eu` that is run once, before all; processes that it leaves are ended after the last run.
    #[serde(default)]
    pub prepare: Option<String>,
    /// Script that is run before each start, and not timed.
    #[serde(default)]
    pub before: Option<String>,
    /// Files to be written before each start, by their path in its directory.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The command that is timed: a program and its arguments.
    pub run: Vec<String>,
    /// What it gets as standard input, which stays open: at most 4096 bytes.
    #[serde(default)]
    pub input: Option<String>,
    /// Its standard input and output are a terminal's.
    #[serde(default)]
    pub terminal: bool,
    /// What is asked of its API, one after the other, as soon as its socket is there.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// The status that it has to exit with: that of the program, unless it does not pass that on.
    #[serde(default = "program_status")]
    pub status: u8,
    /// It prints lines of its own on standard output, which are not looked at.
    #[serde(default)]
    pub noisy: bool,
    /// Script that is run after a start that was cut off or has failed, to remove what is left; it may fail.
    #[serde(default)]
    pub clean: Option<String>,
    /// Script that is run once, at the end, whatever has happened.
    #[serde(default)]
    pub finish: Option<String>,
    /// What CPU time and memory leave out, such as a daemon.
    #[serde(default)]
    pub uncounted: Option<String>,
}

/// A request to an HTTP API on a Unix socket; any status below 300 is right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The socket.
    pub socket: String,
    /// Such as `PUT`.
    pub method: String,
    /// Such as `/vm.resume`.
    pub path: String,
    /// The body, JSON.
    #[serde(default)]
    pub body: Option<String>,
}

/// What the program of a start exits with.
pub const PROGRAM_STATUS: u8 = 7;

/// A pipe has room for it, whoever reads it.
const LONGEST_INPUT: usize = 4096;

fn program_status() -> u8 {
    PROGRAM_STATUS
}

/// Why a file is no adapter.
#[derive(Debug, Error)]
pub enum Error {
    /// The file.
    #[error("Cannot read the adapter {}", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its text.
    #[error("Cannot use the adapter {name}: line {line}: {what}")]
    Parse {
        /// Its path, or name.
        name: String,
        /// Where, from 1 on.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// What it says.
    #[error("Cannot use the adapter {name}: {field} {what}")]
    Field {
        /// Its path, or name.
        name: String,
        /// Which of its fields.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Adapter {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Takes the text of a file apart; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let adapter: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            Error::Parse {
                name: origin.into(),
                line: before.unwrap_or_default().matches('\n').count() + 1,
                what: error.message().replace('\n', " "),
            }
        })?;
        adapter.check(origin)?;
        Ok(adapter)
    }

    /// Whether a name of a place is used anywhere in it.
    pub fn mentions(&self, name: &str) -> bool {
        let scripts = [&self.prepare, &self.before, &self.clean, &self.finish];
        let has = |text: &str| {
            text.contains(&format!("${{{name}}}")) || text.contains(&format!("${name}"))
        };
        self.texts().any(|(_, text)| has(text))
            || scripts.into_iter().flatten().any(|text| has(text))
    }

    /// What has places in it, and in which field.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let requests = self.requests.iter().flat_map(|request| {
            let texts = [&request.socket, &request.path].into_iter();
            texts
                .chain(request.body.as_ref())
                .map(|text| ("requests", text))
        });
        (self.run.iter().map(|text| ("run", text)))
            .chain(self.version.iter().map(|text| ("version", text)))
            .chain(self.needs_files.iter().map(|text| ("needs_files", text)))
            .chain(self.env.values().map(|text| ("env", text)))
            .chain(self.files.values().map(|text| ("files", text)))
            .chain(self.input.iter().map(|text| ("input", text)))
            .chain(requests)
    }

    fn check(&self, origin: &str) -> Result<(), Error> {
        let wrong = |field: &str, what: String| Error::Field {
            name: origin.into(),
            field: field.into(),
            what,
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let length = self.name.len();
        if !(1..=32).contains(&length)
            || !self.name.bytes().all(is_name)
            || self.name.starts_with('.')
        {
            return Err(wrong(
                "name",
                "is 1 to 32 of letters, digits, - _ . and does not begin with a dot".into(),
            ));
        }
        if self.run.first().is_none_or(String::is_empty) {
            return Err(wrong("run", "names no program".into()));
        }
        for path in self.files.keys() {
            let path = Path::new(path);
            let stays = |part| matches!(part, std::path::Component::Normal(_));
            if path.as_os_str().is_empty() || !path.components().all(stays) {
                return Err(wrong(
                    "files",
                    format!("{path:?} leaves the directory of the start"),
                ));
            }
        }
        if self
            .input
            .as_ref()
            .is_some_and(|input| input.len() > LONGEST_INPUT)
        {
            return Err(wrong(
                "input",
                format!("is longer than {LONGEST_INPUT} bytes"),
            ));
        }
        // What is unknown is found before anything runs.
        for (field, text) in self.texts() {
            Places::check(text).map_err(|unknown| wrong(field, unknown.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
