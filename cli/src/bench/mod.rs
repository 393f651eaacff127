//! `mote bench`: virtual machines beside containers, measured on the host that it runs on. What is measured and how is in the crate `bench`; here are
//! flags, files and what is printed.

mod adapters;
mod density;
mod explain;
mod facts;
mod guests;
mod output;
mod report;
mod startup;
mod view;

use std::io;
use std::path::PathBuf;

use ::bench::{adapter, compare, document, page, plot, session};
use clap::Subcommand;
use thiserror::Error;

use crate::message::{chain, say};
use crate::signals::Signals;
use crate::status::Status;

/// `mote bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time how long a program takes to start in virtual machines and containers, in turn
    Startup(startup::Args),
    /// Hold instances of virtual machines and containers side by side: what each takes of memory, and how many start in a second
    Density(density::Args),
    /// Show a measurement that was kept with --json, or say what is different in a second one
    Report(report::Args),
    /// Set the starts of two configurations side by side, phase by phase
    Explain(explain::Args),
    /// List the runtimes that are known, or print how one is started
    Adapters(adapters::Args),
}

/// Why nothing was measured or shown.
#[derive(Debug, Error)]
enum Error {
    /// How a runtime is started.
    #[error(transparent)]
    Adapter(#[from] adapter::Error),
    /// The host.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// A record.
    #[error(transparent)]
    Document(#[from] document::Error),
    /// Two records that have nothing in common.
    #[error(transparent)]
    Compare(#[from] compare::Error),
    /// The page.
    #[error(transparent)]
    Page(#[from] page::PageError),
    /// The plots.
    #[error(transparent)]
    Plot(#[from] plot::PlotError),
    /// The guest kernel.
    #[error(transparent)]
    Kernel(#[from] image::kernel::Error),
    /// A file.
    #[error("Cannot {action} {}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something of this host.
    #[error("Cannot {what}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What was given is of no use.
    #[error("{0}")]
    Usage(String),
}

/// Catches what asks to end from now on.
fn catch_signals() -> Result<Signals, Error> {
    Signals::catch().map_err(|source| Error::Host {
        what: "catch signals",
        source,
    })
}

/// Does it.
pub(crate) fn execute(args: &Args) -> Status {
    let done = match &args.command {
        Command::Startup(args) => startup::startup(args),
        Command::Density(args) => density::density(args),
        Command::Report(args) => report::report(args),
        Command::Explain(args) => return explain::execute(args),
        Command::Adapters(args) => adapters::adapters(args),
    };
    done.unwrap_or_else(|error| {
        say(&chain(&error));
        Status::MoteError
    })
}
