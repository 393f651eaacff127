//! The client: commands that find guests through the run-time directory and talk to their monitors.
//!
//! Reading order: this file (which guest is meant, asking it), then the commands, one file each.

mod api;
mod attach;
mod completion;
mod events;
mod fork;
mod guest;
mod inspect;
mod kill;
mod logs;
mod pause;
mod ps;
mod snapshot;
mod stop;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ::api::client;
use clap::Subcommand;
use serde_json::json;
use thiserror::Error;

use crate::message::{chain, say};
use crate::rundir;
use crate::status::Status;
use guest::Guest;

/// How long a monitor may take for an answer that it has at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take for what needs its guest or its devices. It gives up itself before that.
const EFFECT_LIMIT: Duration = Duration::from_secs(15);

/// `mote ps` and so on.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the guests that run
    Ps(ps::Args),
    /// Show all that is known of guests, as JSON
    Inspect(inspect::Args),
    /// Have guests stand still
    Pause(pause::Args),
    /// Have paused guests go on
    Resume(pause::Args),
    /// Press guests' power buttons, and end those that do not end by themselves
    Stop(stop::Args),
    /// End guests at once
    Kill(kill::Args),
    /// Write a guest to files, from which `mote restore` has it go on
    Snapshot(snapshot::Args),
    /// Make copies of a guest, each of which goes on by itself
    Fork(fork::Args),
    /// Print a guest's log, or what it has printed last on its console
    Logs(logs::Args),
    /// Be at a guest's console
    Attach(attach::Args),
    /// Make a request of a guest's API
    Api(api::Args),
    /// Print what happens to a guest as it happens
    Events(events::Args),
    /// Print a script by which a shell completes mote's command lines
    Completion(completion::Args),
}

/// Does it.
pub(crate) fn execute(command: &Command) -> Status {
    let done = match command {
        Command::Ps(args) => ps::ps(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Pause(args) => return pause::pause(args),
        Command::Resume(args) => return pause::resume(args),
        Command::Stop(args) => return stop::stop(args),
        Command::Kill(args) => return kill::kill(args),
        Command::Snapshot(args) => snapshot::snapshot(args),
        Command::Fork(args) => fork::fork(args),
        Command::Logs(args) => logs::logs(args),
        Command::Attach(args) => attach::attach(args),
        Command::Api(args) => api::api(args),
        Command::Events(args) => events::events(args),
        Command::Completion(args) => completion::completion(args),
    };
    done.unwrap_or_else(|error| {
        say(&chain(&error));
        Status::MoteError
    })
}

/// Why a command did not do what it is for.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The run-time directory.
    #[error(transparent)]
    RunDir(#[from] rundir::Error),
    /// No guest has this name.
    #[error("There is no guest '{id}'{}", others(.there))]
    NoSuchGuest {
        /// What was asked for.
        id: String,
        /// Those that there are.
        there: Vec<String>,
    },
    /// It was there, and its monitor is not any more.
    #[error("The guest '{id}' is dead: its process was killed, and its entry is removed now")]
    Dead {
        /// Its name.
        id: String,
    },
    /// More than one name begins so.
    #[error("'{prefix}' may be any of {}", .ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Those whose names begin so.
        ids: Vec<String>,
    },
    /// Its monitor was started without one.
    #[error("The guest '{id}' has no API")]
    NoApi {
        /// Its name.
        id: String,
    },
    /// It was asked.
    #[error("Cannot talk to the guest '{id}'")]
    Talk {
        /// Its name, or its socket.
        id: String,
        /// What went wrong.
        #[source]
        source: client::Error,
    },
    /// It answered.
    #[error("The guest '{id}' refuses: {why}")]
    Refused {
        /// Its name.
        id: String,
        /// Its words.
        why: String,
    },
    /// What it answered is not what is answered there.
    #[error("The guest '{id}' answers what nobody understands to {what}")]
    Nonsense {
        /// Its name.
        id: String,
        /// What was asked.
        what: String,
    },
    /// It goes on.
    #[error("The guest '{id}' has not ended within {} s: {hint}", .limit.as_secs())]
    GoesOn {
        /// Its name.
        id: String,
        /// How long it had.
        limit: Duration,
        /// What to do about it.
        hint: &'static str,
    },
    /// Something of this host.
    #[error("Cannot {action} {what}")]
    Host {
        /// What was to be done.
        action: &'static str,
        /// With what.
        what: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What was given to a command is of no use.
    #[error("{0}")]
    Usage(String),
}

fn others(there: &[String]) -> String {
    if there.is_empty() {
        ", nor any other".into()
    } else {
        format!(": there are {}", there.join(", "))
    }
}

fn host(action: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Host {
        action,
        what,
        source,
    }
}

/// Prints on standard output. A reader that went away has seen enough.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Does the same to several guests side by side, and prints the name of each for which it succeeded: with `json` a line
/// with what has been `done`, or why not.
fn each(
    ids: &[String],
    json: bool,
    done: &str,
    act: impl Fn(&Guest) -> Result<(), Error> + Sync,
) -> Status {
    let attempt = |guest: Result<Guest, Error>| {
        let guest = guest?;
        act(&guest)?;
        Ok(guest.id().to_owned())
    };
    let results: Vec<Result<String, Error>> = thread::scope(|scope| {
        let guests = Guest::find_each(ids).into_iter();
        let attempts: Vec<_> = guests.map(|guest| scope.spawn(|| attempt(guest))).collect();
        let joined = attempts
            .into_iter()
            .filter_map(|attempt| attempt.join().ok());
        joined.collect()
    });
    let mut status = Status::Success;
    for (given, result) in ids.iter().zip(results) {
        match result {
            Ok(id) if json => print(&format!("{}\n", json!({ "id": id, "done": done }))),
            Ok(id) => print(&format!("{id}\n")),
            Err(error) => {
                let why = chain(&error);
                if json {
                    print(&format!("{}\n", json!({ "id": given, "error": why })));
                }
                say(&why);
                status = Status::MoteError;
            }
        }
    }
    status
}
