//! `mote stop`: the power button, and what comes after it.

use std::time::Duration;

use rustix::process::Signal;

use super::guest::{Guest, Process};
use super::{ANSWER_LIMIT, Error, each, pause};
use crate::status::Status;

/// How long a monitor may take to end once it is told to: it waits for readers of the console.
const END_LIMIT: Duration = Duration::from_secs(10);

/// `mote stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of guests, or how they begin
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    /// How long a guest may take to power off after its button was pressed; then it is ended
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    time: u32,

    /// Print JSON for scripts, a line a guest
    #[arg(long)]
    json: bool,
}

pub(super) fn stop(args: &Args) -> Status {
    let time = Duration::from_secs(args.time.into());
    each(&args.ids, args.json, "stopped", |guest| end(guest, time))
}

fn end(guest: &Guest, time: Duration) -> Result<(), Error> {
    let Some(process) = guest.process()? else {
        return Ok(());
    };
    if guest.0.socket.is_none() {
        // What its monitor does then is the same.
        process.signal(Signal::TERM);
    } else {
        match ask(guest, &process, time) {
            // It may end while it is asked.
            Err(_) if process.wait(Duration::ZERO) => return Ok(()),
            result => result?,
        }
    }
    if process.wait(END_LIMIT) {
        return Ok(());
    }
    Err(Error::GoesOn {
        id: guest.id().into(),
        limit: END_LIMIT,
        hint: "`mote kill` ends it in any case",
    })
}

/// Returns when it has ended, or was told to.
fn ask(guest: &Guest, process: &Process, time: Duration) -> Result<(), Error> {
    let state = guest.state(ANSWER_LIMIT)?;
    if state == "Paused" {
        // It cannot hear of its button otherwise.
        pause::change(guest, "Resumed")?;
    }
    if state != "Not started" {
        guest.act("PowerButton")?;
        if process.wait(time) {
            return Ok(());
        }
    }
    guest.act("Stop")
}
