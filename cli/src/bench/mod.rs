//! `mote bench`: what is measured of starts.

mod explain;

use clap::Subcommand;

use crate::status::Status;

/// `mote bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
enum Command {
    /// Set the starts of two configurations side by side, phase by phase
    Explain(explain::Args),
}

/// Does it.
pub(crate) fn execute(args: &Args) -> Status {
    match &args.command {
        Command::Explain(args) => explain::execute(args),
    }
}
