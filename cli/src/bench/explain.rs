//! `mote bench explain A B`: where the time of a start goes in two configurations.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::PathBuf;

use ::bench::waterfall::compare::Comparison;
use ::bench::waterfall::{FORMAT, Origin, Waterfall};
use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;

use crate::ctl::print;
use crate::explain::watch::{self, Streams, Watcher};
use crate::message::{chain, last_said, say};
use crate::status::Status;

/// `mote bench explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A and B are each the flags of a `mote run` in one word, such as '--memory 64m -- true', or a file that
`mote run --explain=json:FILE` has written (one that does not begin with a dash; it may have several
documents). Flags are split as a shell splits them, and nothing is expanded. The two take turns, after
one start each that does not count.")]
pub(crate) struct Args {
    /// The first configuration
    #[arg(allow_hyphen_values = true)]
    a: String,

    /// The other one
    #[arg(allow_hyphen_values = true)]
    b: String,

    /// How often each is started, and counts
    #[arg(short = 'n', long = "runs", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,

    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

/// Why two configurations cannot be set side by side.
#[derive(Debug, Error)]
enum Error {
    /// The flags are no words.
    #[error("'{flags}' cannot be split into words: a quote is open")]
    Words {
        /// What was given.
        flags: String,
    },
    /// It would be explained twice.
    #[error("'{flags}' is explained anyway: leave out --explain")]
    Explain {
        /// What was given.
        flags: String,
    },
    /// The file cannot be read.
    #[error("Cannot read {path:?}, which is to be what mote run --explain=json:FILE has written")]
    File {
        /// Which.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path:?} is not what mote run --explain=json:FILE has written")]
    Document {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It has nothing, or is of another version of mote.
    #[error("{path:?} has no document of format {FORMAT}")]
    Format {
        /// Which.
        path: PathBuf,
    },
    /// A guest could not be started.
    #[error("mote run {flags} ended with status {status}{why}")]
    Run {
        /// The flags.
        flags: String,
        /// The status.
        status: i32,
        /// What it said, behind a colon.
        why: String,
    },
    /// It could not be watched.
    #[error(transparent)]
    Watch(#[from] watch::Error),
    /// The host.
    #[error("Cannot keep what mote says")]
    Host(#[source] io::Error),
    /// It cannot be said.
    #[error("Cannot write JSON")]
    Json(#[source] serde_json::Error),
}

/// One configuration.
struct Side<'a> {
    name: &'a str,
    /// None: it is what a file has.
    line: Option<Vec<OsString>>,
    runs: Vec<Waterfall>,
}

impl<'a> Side<'a> {
    fn new(name: &'a str) -> Result<Self, Error> {
        let is_flags = name.is_empty() || name.starts_with('-');
        let (line, runs) = if is_flags {
            (Some(line(name)?), Vec::new())
        } else {
            (None, read(name.into())?)
        };
        Ok(Self { name, line, runs })
    }

    /// Starts it once, if it is to be started; a signal that this was ended by. The first start fills caches, and does not count.
    fn start(&mut self, is_first: bool) -> Result<Option<i32>, Error> {
        let Some(line) = &self.line else {
            return Ok(None);
        };
        let fd = memfd_create("mote-bench", MemfdFlags::CLOEXEC);
        let mut said = File::from(fd.map_err(|errno| Error::Host(errno.into()))?);
        let copy = said.try_clone().map_err(Error::Host)?;
        let watcher = Watcher::start(line, Streams::Apart(copy))?;
        let (waterfall, signal) = watcher.explain()?;
        if signal.is_some() {
            return Ok(signal);
        }
        let has_run = waterfall.origin == Origin::Pool || waterfall.phase("entry").is_some();
        if !has_run || waterfall.status == Status::MoteError.code() {
            let mut text = String::new();
            let read = said.rewind().and_then(|()| said.read_to_string(&mut text));
            read.map_err(Error::Host)?;
            // What clap says is no sentence of mote's.
            let why = last_said(&text).or(text.lines().next()).unwrap_or_default();
            return Err(Error::Run {
                flags: self.name.to_owned(),
                status: waterfall.status,
                why: if why.is_empty() {
                    String::new()
                } else {
                    format!(": {why}")
                },
            });
        }
        if !is_first {
            self.runs.push(waterfall);
        }
        Ok(None)
    }
}

/// A command line with these flags.
fn line(flags: &str) -> Result<Vec<OsString>, Error> {
    let flags = || flags.to_owned();
    let words = shlex::split(&flags()).ok_or_else(|| Error::Words { flags: flags() })?;
    let options = words.iter().take_while(|word| *word != "--");
    if options.clone().any(|word| word.starts_with("--explain")) {
        return Err(Error::Explain { flags: flags() });
    }
    let line = ["mote", "run"].into_iter().map(OsString::from);
    Ok(line.chain(words.into_iter().map(OsString::from)).collect())
}

/// The documents of a file.
fn read(path: PathBuf) -> Result<Vec<Waterfall>, Error> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::File { path, source }),
    };
    let documents = serde_json::Deserializer::from_str(&text).into_iter();
    let runs: Vec<Waterfall> = match documents.collect() {
        Ok(runs) => runs,
        Err(source) => return Err(Error::Document { path, source }),
    };
    if runs.is_empty() || runs.iter().any(|run| run.format != FORMAT) {
        return Err(Error::Format { path });
    }
    Ok(runs)
}

/// Does it.
pub(super) fn execute(args: &Args) -> Status {
    compare(args).unwrap_or_else(|error| {
        say(&chain(&error));
        Status::MoteError
    })
}

fn compare(args: &Args) -> Result<Status, Error> {
    let mut sides = [Side::new(&args.a)?, Side::new(&args.b)?];
    let mut signal = None;
    'runs: for run in 0..=args.runs {
        for side in &mut sides {
            signal = side.start(run == 0)?;
            if signal.is_some() {
                break 'runs;
            }
        }
    }
    let [a, b] = &sides;
    // What there is by then is shown.
    if !a.runs.is_empty() && !b.runs.is_empty() {
        let comparison = Comparison::new([a.name, b.name], &a.runs, &b.runs);
        if args.json {
            let json = serde_json::to_string(&comparison).map_err(Error::Json)?;
            print(&format!("{json}\n"));
        } else {
            print(&comparison.text());
        }
    }
    Ok(signal.map_or(Status::Success, Status::Signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_split_as_a_shell_does() {
        let words = |flags| line(flags).map(|line| line.join(&OsString::from("|")));
        assert_eq!(words("").unwrap(), "mote|run");
        assert_eq!(
            words("--append 'a b' -- sh -c \"x --explain\"").unwrap(),
            "mote|run|--append|a b|--|sh|-c|x --explain"
        );
        assert_eq!(words("-- --explain").unwrap(), "mote|run|--|--explain");
        for bad in ["--append 'a", "--explain=json -- true"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_told_from_flags() {
        assert!(matches!(Side::new("/no/such"), Err(Error::File { .. })));
        assert!(Side::new("-m 64m").unwrap().line.is_some());
        let folder = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = folder.as_path().join("file");
        fs::write(&path, "{}").unwrap();
        assert!(matches!(read(path.clone()), Err(Error::Document { .. })));
        fs::write(&path, "\n").unwrap();
        assert!(matches!(read(path), Err(Error::Format { .. })));
    }
}
