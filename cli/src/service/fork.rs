//! Copies of the guest of this monitor. A process of their own starts them (`mote fork --from`): they are not this one's
//! children, and stay when it ends.

use std::io::{PipeReader, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use api::types::{Fork, ForkedGuest};
use vmm::control::Copies;

use crate::copies::names;
use crate::message::{chain, last_said};
use crate::rundir::{Entry, RunDir};

/// What copies of the guest `id` come from: a folder of the run-time directory, which goes with this process if nothing
/// else removes it.
pub(super) fn copies(id: &str) -> Result<Copies, String> {
    let entry = RunDir::make().and_then(|directory| directory.set_aside());
    let entry = entry.map_err(|error| chain(&error))?;
    let (reader, leash) = pipe().map_err(|error| format!("no pipe: {error}"))?;
    let id = id.to_owned();
    Ok(Copies {
        directory: entry.folder().to_owned(),
        start: Box::new(move |fork| start(&entry, reader, &id, fork)),
        leash: Box::new(leash),
    })
}

/// Has them started. Who does it gives up when the other end of `leash` is closed, or this process dies.
fn start(
    entry: &Entry,
    leash: PipeReader,
    id: &str,
    fork: &Fork,
) -> Result<Vec<ForkedGuest>, String> {
    let fork = Fork {
        ids: names(fork, id),
        ..fork.clone()
    };
    let request = serde_json::to_string(&fork).map_err(|error| error.to_string())?;
    let ended = Command::new("/proc/self/exe")
        .arg0("mote")
        .args(["fork", "--json", "--request", &request, "--from"])
        .arg(entry.folder())
        .stdin(leash)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("no process that starts copies: {error}"))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let why = last_said(&said).map_or_else(
            || format!("what starts copies ended: {}", ended.status),
            str::to_owned,
        );
        return Err(why);
    }
    serde_json::from_slice(&ended.stdout)
        .map_err(|error| format!("what starts copies says what nobody understands: {error}"))
}
