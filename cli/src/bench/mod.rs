//! `mote bench`: what the `bench` crate measures, and what is made of it.

mod report;

use clap::Subcommand;

use crate::status::Status;

/// `mote bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What there is to measurements.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show a measurement that was kept with --json, or say what is different in a second one
    Report(report::Args),
}

/// Does what the command line says.
pub(crate) fn execute(args: &Args) -> Status {
    match &args.command {
        Command::Report(args) => report::report(args),
    }
}
