//! `mote inspect`: all that is known of a guest.

use std::fs;

use serde_json::{Map, Value, json};

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error, print};
use crate::message::{chain, say};
use crate::status::Status;

/// `mote inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of guests, or how they begin
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    /// Print each guest on one line
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(args: &Args) -> Result<Status, Error> {
    let mut status = Status::Success;
    for id in &args.ids {
        let guest = Guest::find(id)?;
        let (all, unknown) = look_at(&guest)?;
        if let Some(error) = unknown {
            let id = guest.id();
            let why = chain(&error);
            say(&format!(
                "{why}: this is what the run-time directory says of '{id}'"
            ));
            status = Status::MoteError;
        }
        let text = if args.json {
            all.to_string()
        } else {
            serde_json::to_string_pretty(&all).unwrap_or_default()
        };
        print(&format!("{text}\n"));
    }
    Ok(status)
}

/// With what its monitor did not say.
fn look_at(guest: &Guest) -> Result<(Value, Option<Error>), Error> {
    let info = &guest.0;
    let mut all = json!({
        "id": info.id,
        "kind": info.kind,
        "pid": info.pid,
        "started_ms": info.started_ms,
        "uptime_seconds": guest.uptime().as_secs(),
        "socket": info.socket,
        "log": info.log,
        "command": info.command,
        "memory": memory(info.pid),
    });
    if info.socket.is_some() {
        for (name, path) in [
            ("instance", "/"),
            ("version", "/version"),
            ("config", "/vm/config"),
        ] {
            match guest.get(path, ANSWER_LIMIT) {
                Ok(value) => all[name] = value,
                Err(error @ Error::Talk { .. }) => {
                    all["error"] = json!(chain(&error));
                    return Ok((all, Some(error)));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok((all, None))
}

/// What the process has of the host's memory, the guest's included: all (`rss`), and with what it shares with others
/// divided by their number (`pss`). Null if the host does not say.
fn memory(pid: u32) -> Value {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
        return Value::Null;
    };
    let mut memory = Map::new();
    for (field, name) in [("Rss:", "rss_bytes"), ("Pss:", "pss_bytes")] {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        memory.insert(name.into(), json!(kib.map(|kib| kib << 10)));
    }
    memory.into()
}
