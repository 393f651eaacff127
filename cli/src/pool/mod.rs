//! `mote pool`: guests of a template that are ready before anyone asks for them.
//!
//! | process | |
//! | --- | --- |
//! | keeper (`mote pool keep`) | has so many guests get ready, and others in the place of those that are taken: `keeper` |
//! | guest (`mote pool guest`) | a machine that stands still, until it is asked for on the pool's socket: `guest` |
//! | `mote run --template` | asks there, if there is a pool: `client` |
//!
//! The guests share a socket, and the kernel gives each connection to one that waits: nobody is between `mote run` and
//! its guest. `wire` has what they say to each other.
//!
//! A pool has an entry of the run-time directory, whose name no guest can have: `pool.of.TEMPLATE`.

pub(crate) mod client;
mod guest;
mod keeper;
mod wire;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use clap::Subcommand;
use clap::builder::RangedU64ValueParser;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ctl::print;
use crate::message::{chain, say};
use crate::rundir::{self, RunDir};
use crate::status::Status;
use crate::template;
use crate::template::store::Store;

/// How many guests a pool has, unless it is said.
const COUNT: u32 = 4;
const MAX_COUNT: u64 = 1000;
/// How long a keeper may take for an answer: it waits for the ends of its guests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Name of a pool's entry, before that of its template.
const PREFIX: &str = "pool.of.";
/// In the entry: the socket that guests take connections from, the keeper's, and what both have to say.
const GUESTS: &str = "guests";
const CONTROL: &str = "control";
const LOG: &str = "log";

/// What a guest tells its keeper: it waits to be asked, somebody has, it is of no use any more.
const READY: u8 = b'r';
const TAKEN: u8 = b't';
const OUTDATED: u8 = b'o';
/// What the keeper is told to do, besides [`OUTDATED`]; it says how it is if it is told nothing.
const STOP: u8 = b's';

/// `mote pool`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What there is to pools.
#[derive(Debug, Subcommand)]
enum Command {
    /// Have guests of a template get ready, and keep so many: mote run --template takes one
    Start(StartArgs),
    /// List pools
    Ls(LsArgs),
    /// End pools; guests that have been taken go on
    Stop(NamesArgs),
    /// The process of a pool
    #[command(hide = true)]
    Keep(StartArgs),
    /// A guest of a pool
    #[command(hide = true)]
    Guest(GuestArgs),
}

/// `mote pool start`.
#[derive(Debug, clap::Args)]
struct StartArgs {
    /// Name of the template
    #[arg(value_name = "TEMPLATE")]
    name: String,

    /// How many guests wait
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = COUNT,
        value_parser = RangedU64ValueParser::<u32>::new().range(1..=MAX_COUNT))]
    count: u32,
}

/// `mote pool ls`.
#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

/// `mote pool stop`.
#[derive(Debug, clap::Args)]
struct NamesArgs {
    /// Names of templates
    #[arg(required = true, value_name = "TEMPLATE")]
    names: Vec<String>,
}

/// `mote pool guest`.
#[derive(Debug, clap::Args)]
struct GuestArgs {
    /// Name of the template
    #[arg(value_name = "TEMPLATE")]
    name: String,
}

/// Why there is no pool, or why a guest of it did not do its job.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The template.
    #[error(transparent)]
    Template(#[from] template::Error),
    /// The run-time directory.
    #[error(transparent)]
    RunDir(rundir::Error),
    /// There is one.
    #[error("There is a pool of '{name}' already: end it by mote pool stop {name}")]
    Exists {
        /// Its template.
        name: String,
    },
    /// There is none.
    #[error("There is no pool of '{name}': start it by mote pool start {name}")]
    Missing {
        /// Its template.
        name: String,
    },
    /// A guest has not come to where it waits.
    #[error("No guest of '{name}' gets ready: {why}")]
    NotReady {
        /// The template.
        name: String,
        /// What it said.
        why: String,
    },
    /// Its keeper has ended before it had said anything.
    #[error("The pool of '{name}' has ended")]
    Ended {
        /// The template.
        name: String,
    },
    /// A guest was taken, and its process has gone.
    #[error("The guest's monitor was killed")]
    GuestGone,
    /// A guest was taken, and cannot be waited for.
    #[error("Cannot wait for the guest's monitor")]
    Wait {
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host refused something.
    #[error("Cannot {what}, for a pool")]
    Host {
        /// What.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// What a keeper says of its pool.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    template: String,
    /// The keeper's process.
    pid: u32,
    /// Guests that wait, those that are getting there, and how many there are to be.
    ready: usize,
    starting: usize,
    count: u32,
    /// How many were taken so far.
    taken: u64,
    /// Why the last one that did not get ready did not.
    failure: Option<String>,
}

/// Does it.
pub(crate) fn execute(args: &Args) -> Status {
    let done = match &args.command {
        Command::Start(args) => return start(args).unwrap_or_else(|error| failed(&error)),
        Command::Ls(args) => ls(args),
        Command::Stop(args) => return stop(&args.names),
        Command::Keep(args) => keeper::keep(&args.name, args.count),
        Command::Guest(args) => return guest::execute(args),
    };
    done.map_or_else(|error| failed(&error), |()| Status::Success)
}

fn failed(error: &Error) -> Status {
    say(&chain(error));
    Status::MoteError
}

/// Where guests of a template are asked for, if it has a pool.
fn socket_of(run_dir: &RunDir, name: &str) -> PathBuf {
    entry_of(run_dir, name).join(GUESTS)
}

fn entry_of(run_dir: &RunDir, name: &str) -> PathBuf {
    run_dir.folder().join(format!("{PREFIX}{name}"))
}

/// Starts the keeper, and waits until all its guests are ready.
fn start(args: &StartArgs) -> Result<Status, Error> {
    let name = &args.name;
    let template = Store::from_env()?.find(name)?;
    if let Some(why) = template.outdated() {
        say(&format!("template {name} is made again: {why}"));
        template::create::rebuild(name)?;
    }
    let mut keeper = Process::new("/proc/self/exe")
        .arg0("mote")
        .args(["pool", "keep", name, "-n", &args.count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(host("start a process"))?;
    let mut said = Vec::new();
    if let Some(stdout) = keeper.stdout.take() {
        let _ = BufReader::new(stdout).read_until(b'\n', &mut said);
    }
    if said.is_empty() {
        let ended = keeper.wait().map_err(host("wait for a process"))?;
        return match ended.code() {
            // It has said why.
            Some(_) => Ok(Status::MoteError),
            None => Err(Error::Ended { name: name.clone() }),
        };
    }
    print(&format!("{name}\n"));
    Ok(Status::Success)
}

/// Asks a keeper, which answers nothing to some orders; until it has ended, in any case.
fn ask(folder: &Path, order: &[u8]) -> io::Result<String> {
    let mut stream = UnixStream::connect(folder.join(CONTROL))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(order)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ls(args: &LsArgs) -> Result<(), Error> {
    let Some(run_dir) = RunDir::find().map_err(Error::RunDir)? else {
        return Ok(());
    };
    // Which also removes what killed ones have left.
    run_dir.list().map_err(Error::RunDir)?;
    let folders = fs::read_dir(run_dir.folder()).map_err(host("read the run-time directory"))?;
    let mut pools: Vec<Described> = folders
        .flatten()
        .filter(|folder| {
            folder
                .file_name()
                .as_encoded_bytes()
                .starts_with(PREFIX.as_bytes())
        })
        .filter_map(|folder| serde_json::from_str(&ask(&folder.path(), b"").ok()?).ok())
        .collect();
    pools.sort_by(|one, other| one.template.cmp(&other.template));
    if args.json {
        for pool in &pools {
            print(&format!("{}\n", serde_json::json!(pool)));
        }
        return Ok(());
    }
    let mut text = format!(
        "{:<24} {:>9} {:>8} {:>8}\n",
        "TEMPLATE", "READY", "TAKEN", "PID"
    );
    for pool in &pools {
        let ready = format!("{}/{}", pool.ready, pool.count);
        text.push_str(&format!(
            "{:<24} {ready:>9} {:>8} {:>8}\n",
            pool.template, pool.taken, pool.pid
        ));
        if let Some(failure) = &pool.failure {
            text.push_str(&format!("  {failure}\n"));
        }
    }
    print(&text);
    Ok(())
}

fn stop(names: &[String]) -> Status {
    let mut status = Status::Success;
    for name in names {
        match tell(name, STOP) {
            Ok(()) => print(&format!("{name}\n")),
            Err(error) => status = failed(&error),
        }
    }
    status
}

/// A template has been made again: its pool's guests, if it has a pool, are not of it any more.
pub(crate) fn renew(name: &str) {
    // Without this the first one that is asked for finds out.
    let _ = tell(name, OUTDATED);
}

/// A template has been removed, and its pool goes.
pub(crate) fn end(name: &str) {
    let _ = tell(name, STOP);
}

/// Tells a keeper, and waits until it has done that.
fn tell(name: &str, order: u8) -> Result<(), Error> {
    let missing = || Error::Missing { name: name.into() };
    let run_dir = RunDir::find().map_err(Error::RunDir)?;
    let folder = entry_of(&run_dir.ok_or_else(missing)?, name);
    match ask(&folder, &[order]) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(host("wait for its keeper")(error))
        }
        Err(_) => Err(missing()),
    }
}
