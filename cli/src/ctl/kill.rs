//! `mote kill`: the end, whatever guest and monitor think of it.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::guest::Guest;
use super::{Error, each};
use crate::status::Status;

/// How long a monitor has for its answer, and then for its end.
const LIMIT: Duration = Duration::from_secs(3);
/// How long the host's kernel has to take a process apart: it waits for all CPUs to close a VM, which may be busy.
const KERNEL_LIMIT: Duration = Duration::from_secs(15);

/// `mote kill`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of guests, or how they begin
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    /// Print JSON for scripts, a line a guest
    #[arg(long)]
    json: bool,
}

pub(super) fn kill(args: &Args) -> Status {
    each(&args.ids, args.json, "killed", end)
}

fn end(guest: &Guest) -> Result<(), Error> {
    let Some(process) = guest.process()? else {
        return Ok(());
    };
    let stop = json!({ "action_type": "Stop" });
    let is_told = guest.request("PUT", "/actions", Some(&stop), LIMIT).is_ok();
    if is_told && process.wait(LIMIT) {
        return Ok(());
    }
    process.signal(Signal::KILL);
    let has_ended = process.wait(KERNEL_LIMIT);
    // Nobody else removes what it has left.
    let _ = Guest::all();
    if has_ended {
        return Ok(());
    }
    Err(Error::GoesOn {
        id: guest.id().into(),
        limit: KERNEL_LIMIT,
        hint: "it was sent SIGKILL, and the host's kernel holds it",
    })
}
