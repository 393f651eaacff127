//! The command line of mote, as a library: the `mote` binary is [`main`], and tests run guests as it does
//! and drive them meanwhile.
//!
//! Reading order: this file (subcommands, the error chain), `args` (flags), `run` (a guest in the
//! foreground), `guest` (which kernel, initrd and command line), `devices` with `options`,
//! `config_file`, `console` with `terminal` and `keys`, `signals`, `logger`, `process`, `footprint`,
//! `status` (exit codes), `doctor`.

mod args;
mod config_file;
mod console;
pub mod devices;
mod doctor;
mod footprint;
mod guest;
mod keys;
mod logger;
mod message;
mod options;
mod process;
pub mod quantity;
mod run;
mod signals;
pub mod status;
mod terminal;

use std::ffi::OsString;
use std::time::Instant;

use clap::Parser;
use vmm::Vm;

use args::{Cli, Command};
use message::say;
use status::Status;

/// Does what the command line says. `meet` gets a machine when it has been built, before it starts.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    started: Instant,
    meet: impl FnOnce(&mut Vm),
) -> Status {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => execute(cli, started, meet),
        Err(error) => report_usage(&error),
    }
}

fn execute(cli: Cli, started: Instant, meet: impl FnOnce(&mut Vm)) -> Status {
    match cli.command {
        Command::Run(args) => match run::run(&args, started, meet) {
            Ok((status, remains)) => {
                remains.leave_to_reaper();
                status
            }
            Err(error) => fail(&error),
        },
        Command::Doctor(args) => doctor::doctor(&args),
    }
}

/// Prints an error with its causes in one line.
fn fail(error: &dyn std::error::Error) -> Status {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    say(&line);
    Status::MoteError
}

/// Help and version are no errors; everything else that clap says is one, with docker's status.
fn report_usage(error: &clap::Error) -> Status {
    // Nowhere left to report a failing stdout to.
    let _ = error.print();
    if error.use_stderr() {
        Status::MoteError
    } else {
        Status::Success
    }
}
