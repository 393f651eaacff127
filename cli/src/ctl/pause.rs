//! `mote pause` and `mote resume`.

use serde_json::json;

use super::guest::Guest;
use super::{EFFECT_LIMIT, Error, each};
use crate::status::Status;

/// `mote pause` and `mote resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of guests, or how they begin
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    /// Print JSON for scripts, a line a guest
    #[arg(long)]
    json: bool,
}

pub(super) fn pause(args: &Args) -> Status {
    each(&args.ids, args.json, "paused", |guest| {
        change(guest, "Paused")
    })
}

pub(super) fn resume(args: &Args) -> Status {
    each(&args.ids, args.json, "resumed", |guest| {
        change(guest, "Resumed")
    })
}

pub(super) fn change(guest: &Guest, state: &str) -> Result<(), Error> {
    let body = json!({ "state": state });
    guest.request("PATCH", "/vm", Some(&body), EFFECT_LIMIT)?;
    Ok(())
}
