//! `mote bench density`.

use std::os::fd::AsFd;
use std::time::Duration;

use ::bench::density::{Plan, measure};
use ::bench::record::Measured;
use ::bench::session::Session;

use super::adapters::Choice;
use super::guests::Guests;
use super::output::{Made, Output};
use super::view::Instances;
use super::{Error, catch_signals};
use crate::quantity::parse_duration;
use crate::status::Status;

/// `mote bench density`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Instances are added one by one, each of which prints a word of its own and then does nothing; all are removed again, by Ctrl-C too.
It ends before the limit when a tenth of the host's memory is left.")]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,

    /// The most instances of a runtime at once
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Starts side by side, by which starts a second are measured
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,

    /// How many of them there are in all; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    starts: u32,

    /// Between a start and a look at memory
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse_duration)]
    settle: Duration,

    #[command(flatten)]
    guests: Guests,

    #[command(flatten)]
    output: Output,
}

pub(super) fn density(args: &Args) -> Result<Status, Error> {
    let adapters = args.choice.adapters()?;
    let settings = args.guests.settings()?;
    let signals = catch_signals()?;
    let made = Made::now();
    let plan = Plan {
        limit: args.limit,
        concurrency: args.concurrency,
        starts: args.starts,
        settle: args.settle,
    };
    let session = Session::begin(settings, signals.as_fd())?;
    let cgroup = session.cgroup();
    let names: Vec<String> = adapters
        .iter()
        .map(|adapter| adapter.name.clone())
        .collect();
    let view = Instances::new(&names, args.limit, args.starts);
    let measured = measure(&session, adapters, &plan, &view);
    drop((view, session));
    let density = Measured::Density(measured.density);
    let record = made.record(cgroup, measured.interrupted, measured.missing, density);
    args.output.write(&record)?;
    Ok(signals.first().map_or(Status::Success, Status::Signal))
}
