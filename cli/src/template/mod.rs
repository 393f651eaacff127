//! Templates: guests that have been booted to where they wait for a job, kept as snapshots by name. `mote run
//! --template NAME` goes on from there.
//!
//! Reading order: `store` (where they are, and what is known of each), `create` (from flags to a snapshot), `run` (from
//! a snapshot to a guest), this file (the commands that list, show and remove them).

pub(crate) mod create;
pub(crate) mod run;
pub(crate) mod store;

use std::io;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use thiserror::Error;

use crate::ctl::print;
use crate::message::{chain, say};
use crate::pool;
use crate::status::Status;
use store::{Store, Template};

/// `mote template`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What there is to templates.
#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest to where it waits for a command, and keep it
    Create(Box<create::Args>),
    /// List templates
    Ls(LsArgs),
    /// Show all that is known of templates, as JSON
    Inspect(NamesArgs),
    /// Remove templates; guests that run go on
    Rm(NamesArgs),
}

/// `mote template ls`.
#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

/// Some templates.
#[derive(Debug, clap::Args)]
struct NamesArgs {
    /// Names of templates
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Why a template cannot be made or used.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// There is no place for them.
    #[error("There is no place for templates: set HOME, or XDG_DATA_HOME, to an absolute path")]
    NoStore,
    /// No name for a folder.
    #[error("'{name}' is no name for a template: it is 1 to 64 of A-Z a-z 0-9 - _ .")]
    Name {
        /// What was given.
        name: String,
    },
    /// There is none of this name.
    #[error("There is no template '{name}': make it by mote template create {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// There is one of this name.
    #[error(
        "There is a template '{name}' already: give --replace to have another one in its place"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// A file of the store.
    #[error("Cannot {action} {path:?}, of the templates")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What is written down of it means nothing.
    #[error(
        "What is known of the template '{name}' cannot be read: remove it by mote template rm {name}"
    )]
    Manifest {
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// All guests would write to it.
    #[error("Guests of a template share {path:?}, so that none may write to it: give it ro{or}")]
    Shared {
        /// The file.
        path: PathBuf,
        /// What else could be done.
        or: &'static str,
    },
    /// A flag that makes no sense here.
    #[error("{0}")]
    Flag(String),
    /// It did not get there.
    #[error("The guest ended before it waited for a command: {why}")]
    Ended {
        /// How.
        why: String,
    },
    /// It took too long.
    #[error(
        "The guest has not come to where it waits for a command within {seconds} s: give it more by --timeout"
    )]
    Slow {
        /// How long it had.
        seconds: u64,
    },
    /// It cannot be made again.
    #[error("The template '{name}' cannot be made again")]
    Again {
        /// Its name.
        name: String,
    },
    /// A command with a zero in it, or one that is too long.
    #[error("The command cannot be given to the guest: {0}")]
    Job(String),
}

/// Does it.
pub(crate) fn execute(args: &Args) -> Status {
    let done = match &args.command {
        Command::Create(args) => return create::execute(args),
        Command::Ls(args) => ls(args),
        Command::Inspect(args) => return each(&args.names, inspect),
        Command::Rm(args) => return each(&args.names, remove),
    };
    done.map_or_else(
        |error| {
            say(&chain(&error));
            Status::MoteError
        },
        |()| Status::Success,
    )
}

fn each(names: &[String], what: impl Fn(&Store, &str) -> Result<(), Error>) -> Status {
    let mut status = Status::Success;
    for name in names {
        let done = Store::from_env().and_then(|store| what(&store, name));
        if let Err(error) = done {
            say(&chain(&error));
            status = Status::MoteError;
        }
    }
    status
}

fn ls(args: &LsArgs) -> Result<(), Error> {
    let templates = Store::from_env()?.list()?;
    if args.json {
        for template in &templates {
            print(&format!("{}\n", describe(template)));
        }
        return Ok(());
    }
    let mut text = format!(
        "{:<24} {:<20} {:>10}  STATE\n",
        "NAME", "CREATED", "ON DISK"
    );
    for template in &templates {
        let state = template
            .outdated()
            .map_or_else(|| "ready".to_owned(), |why| why.to_string());
        text.push_str(&format!(
            "{:<24} {:<20} {:>10}  {state}\n",
            template.name(),
            template.created(),
            format!(
                "{:.1} MiB",
                template.bytes_on_disk() as f64 / f64::from(1 << 20)
            ),
        ));
    }
    print(&text);
    Ok(())
}

fn describe(template: &Template) -> serde_json::Value {
    json!({
        "name": template.name(),
        "directory": template.directory(),
        "bytes_on_disk": template.bytes_on_disk(),
        "outdated": template.outdated().map(|why| why.to_string()),
        "manifest": template.manifest,
    })
}

fn inspect(store: &Store, name: &str) -> Result<(), Error> {
    print(&format!("{:#}\n", describe(&store.find(name)?)));
    Ok(())
}

fn remove(store: &Store, name: &str) -> Result<(), Error> {
    store.remove(name)?;
    pool::end(name);
    print(&format!("{name}\n"));
    Ok(())
}
