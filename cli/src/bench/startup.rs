//! `mote bench startup`.

use std::os::fd::AsFd;
use std::time::Duration;

use ::bench::record::Measured;
use ::bench::session::Session;
use ::bench::startup::{Plan, measure};
use ::bench::summary::summarize;

use super::adapters::Choice;
use super::guests::Guests;
use super::output::{Made, Output};
use super::view::Starts;
use super::{Error, catch_signals};
use crate::quantity::parse_duration;
use crate::status::Status;

/// `mote bench startup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A B C A B C …: each start prints a word of its own and exits with a status of its own, or does not count.
What is killed by Ctrl-C is removed, and what was measured until then is printed.")]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,

    /// Starts of each runtime that count
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,

    /// Starts of each before them, which fill caches
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warmups: u32,

    /// Starts of each after them in which the first instruction shows itself and, as root, the kernel's trace points are on: for the
    /// waterfalls
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    traced: u32,

    /// Between two starts
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse_duration)]
    pause: Duration,

    /// The row that the others are compared with [default: the first container]
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,

    #[command(flatten)]
    guests: Guests,

    #[command(flatten)]
    output: Output,
}

pub(super) fn startup(args: &Args) -> Result<Status, Error> {
    let adapters = args.choice.adapters()?;
    if let Some(name) = &args.baseline
        && !adapters.iter().any(|adapter| adapter.name == *name)
    {
        return Err(Error::Usage(format!(
            "--baseline {name} is none of the runtimes that are measured"
        )));
    }
    let settings = args.guests.settings()?;
    let signals = catch_signals()?;
    let made = Made::now();
    let plan = Plan {
        runs: args.runs,
        warmups: args.warmups,
        traced: args.traced,
        pause: args.pause,
        baseline: args.baseline.clone(),
    };
    let session = Session::begin(settings, signals.as_fd())?;
    let cgroup = session.cgroup();
    let mut view = Starts::default();
    let mut measured = measure(&session, adapters, &plan, &mut view);
    drop((view, session));
    summarize(&mut measured.startup);
    let startup = Measured::Startup(measured.startup);
    let record = made.record(cgroup, measured.interrupted, measured.missing, startup);
    args.output.write(&record)?;
    Ok(signals.first().map_or(Status::Success, Status::Signal))
}
