//! The command line of mote, as a library: the `mote` binary is [`main`], and tests run guests as it does
//! and drive them meanwhile.
//!
//! Reading order: this file (subcommands, the error chain), `args` (flags), `run` (a guest in the
//! foreground), `guest` (which kernel, initrd and command line), `devices` with `options`,
//! `config_file`, `console` with `terminal` and `keys`, `signals`, `logger`, `process`, `footprint`,
//! `explain` (where the time of a start goes), `status` (exit codes), `copies` (guests that nobody waits for), `template` and `pool` (guests that have been booted before), `service` (`mote vmm`: a guest that is told what to do through the API), `rundir` (where running
//! guests are found), `ctl` (commands that talk to them), `bench` (measurements), `doctor`.

mod args;
mod bench;
mod config_file;
mod console;
mod copies;
mod ctl;
pub mod devices;
mod disaster;
mod doctor;
mod explain;
mod footprint;
mod guest;
mod keys;
mod log_limit;
mod logger;
mod message;
mod options;
mod pool;
mod process;
pub mod quantity;
mod run;
mod rundir;
mod service;
mod signals;
pub mod status;
mod template;
mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use clap::Parser;
use vmm::Vm;

use args::{Cli, Command, RunCommand};
use message::{chain, say};
use service::args::{FirecrackerCli, Name, VmmArgs};
use status::Status;

/// Does what the command line says. `meet` gets a machine when it has been built, before it starts.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    started: Instant,
    meet: impl FnOnce(&mut Vm),
) -> Status {
    let line: Vec<OsString> = arguments.into_iter().collect();
    if line.first().is_some_and(is_firecracker) {
        return firecracker(&line, started);
    }
    match Cli::parse_line(&line) {
        Ok(cli) => execute(cli, &line, started, meet),
        Err(error) => report_usage(&error, Status::MoteError),
    }
}

/// Whether the binary was called by this name, with or without a path.
fn is_firecracker(name: &OsString) -> bool {
    Path::new(name)
        .file_name()
        .is_some_and(|name| name == "firecracker")
}

fn firecracker(line: &[OsString], started: Instant) -> Status {
    match FirecrackerCli::try_parse_from(line) {
        Ok(FirecrackerCli { version: true, .. }) => {
            // Clients take the second word of the first line.
            println!("Firecracker v{}\n", api::types::FIRECRACKER_VERSION);
            Status::Success
        }
        Ok(FirecrackerCli { vmm, .. }) => serve(&vmm, Name::Firecracker, started),
        Err(error) => report_usage(&error, Name::Firecracker.bad_arguments()),
    }
}

fn serve(args: &VmmArgs, name: Name, started: Instant) -> Status {
    if let Err((status, why)) = args.check(name) {
        say(&why);
        return status;
    }
    match service::vmm(args, name, started) {
        Ok((status, remains)) => {
            if let Some(remains) = remains {
                remains.leave_to_reaper();
            }
            status
        }
        Err(error) => {
            // Whoever reads only the log hears it too.
            if !logger::is_said() {
                log::error!("{}", chain(&error));
            }
            say(&chain(&error));
            name.error()
        }
    }
}

/// `mote run`.
fn run_guest(command: RunCommand, started: Instant, meet: impl FnOnce(&mut Vm)) -> Status {
    let mut args = command.run;
    let report = match command.report {
        Some(fd) => match explain::begin(fd, started, &mut args) {
            Ok(report) => Some(report),
            Err(why) => {
                say(&why);
                return Status::MoteError;
            }
        },
        None => None,
    };
    let ended = match &args.template {
        Some(name) => template::run::run(&args, name, started),
        None => run::run(&args, started, meet).map(|(status, remains)| (status, Some(remains))),
    };
    let (status, remains) = match ended {
        Ok(ended) => ended,
        Err(error) => (fail(&error), None),
    };
    if let Some(report) = report {
        report.write();
    }
    if let Some(remains) = remains {
        remains.leave_to_reaper();
    }
    status
}

fn execute(cli: Cli, line: &[OsString], started: Instant, meet: impl FnOnce(&mut Vm)) -> Status {
    match cli.command {
        Command::Run(command) => match &command.explain {
            Some(form) => explain::watch::run(line, form),
            None => run_guest(*command, started, meet),
        },
        Command::Template(args) => template::execute(&args),
        Command::Pool(args) => pool::execute(&args),
        Command::Vmm(args) => serve(&args, Name::Mote, started),
        Command::Restore(args) => match args.vmm() {
            Ok(args) => serve(&args, Name::Mote, started),
            Err(why) => {
                say(&why);
                Status::MoteError
            }
        },
        Command::Bench(args) => bench::execute(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Ctl(command) => ctl::execute(&command),
    }
}

/// Prints an error with its causes in one line.
fn fail(error: &dyn std::error::Error) -> Status {
    say(&chain(error));
    Status::MoteError
}

/// Help and version are no errors; everything else that clap says is one, with docker's status.
fn report_usage(error: &clap::Error, status: Status) -> Status {
    // Nowhere left to report a failing stdout to.
    let _ = error.print();
    if error.use_stderr() {
        status
    } else {
        Status::Success
    }
}
