//! The `mote` binary: subcommands, the error chain, exit codes.
//!
//! Reading order: `main`, `args` (flags), `run` (a guest in the foreground), `guest` (which kernel,
//! initrd and command line), `devices` with `options`, `config_file`, `console` with `terminal` and
//! `keys`, `signals`, `logger`, `process`, `footprint`, `status` (exit codes), `doctor`.

mod args;
mod config_file;
mod console;
mod devices;
mod doctor;
mod footprint;
mod guest;
mod keys;
mod logger;
mod message;
mod options;
mod process;
mod quantity;
mod run;
mod signals;
mod status;
mod terminal;

use std::time::Instant;

use clap::Parser;

use args::{Cli, Command};
use message::say;
use status::Status;

fn main() {
    let started = Instant::now();
    let status = match Cli::try_parse() {
        Ok(cli) => execute(cli, started),
        Err(error) => report_usage(&error),
    };
    status::exit(status)
}

fn execute(cli: Cli, started: Instant) -> Status {
    match cli.command {
        Command::Run(args) => match run::run(&args, started) {
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
