//! `mote fork`: copies of a guest, or of one that was written to files.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use api::types::{Fork, ForkedGuest, MAX_COPIES, NetworkOverride, Validate, VsockOverride};
use serde_json::Value;

use super::guest::Guest;
use super::{Error, host, print};
use crate::copies::Copies;
use crate::service::args::{parse_id, parse_override};
use crate::status::Status;

/// How long all copies may take.
const LIMIT: Duration = Duration::from_secs(600);

/// `mote fork`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a guest, or how it begins
    #[arg(value_name = "ID", required_unless_present = "from")]
    parent: Option<String>,

    /// Directory of a snapshot: copies of the guest that it is of
    #[arg(long, value_name = "DIR", conflicts_with = "parent")]
    from: Option<PathBuf>,

    /// How many copies, 1 to 1000
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_COPIES)))]
    count: u32,

    /// Name of the copy; several have -1, -2 and so on behind [default: the guest's, and something
    /// random]
    #[arg(long, value_name = "NAME", value_parser = parse_id)]
    id: Option<String>,

    /// Tap of the host for a network card, with {} for the copy's number; may be given several times
    #[arg(long, value_name = "CARD=TAP[,vhost=on|off]", value_parser = parse_override)]
    net: Vec<NetworkOverride>,

    /// Unix socket for the connections between guest and host, with {} for the copy's number
    /// [default: the guest's, with - and the copy's name behind]
    #[arg(long, value_name = "PATH")]
    vsock: Option<String>,

    /// Leave the copies paused
    #[arg(long)]
    paused: bool,

    /// Print JSON for scripts: names, processes and sockets
    #[arg(long)]
    json: bool,

    /// What a monitor asks for: all that is above. It gives up by closing standard input.
    #[arg(long, hide = true, requires = "from")]
    request: Option<String>,
}

pub(super) fn fork(args: &Args) -> Result<Status, Error> {
    let order = order(args)?;
    let made = match (&args.parent, &args.from) {
        (Some(parent), _) => ask(&Guest::find(parent)?, &order)?,
        (None, Some(directory)) => {
            let directory = std::fs::canonicalize(directory)
                .map_err(host("use the directory", directory.display().to_string()))?;
            let copies = Arc::new(Copies::default());
            if args.request.is_some() {
                watch(&copies)?;
            }
            copies.start(&directory, &order).map_err(Error::Usage)?
        }
        (None, None) => return Err(Error::Usage("Name a guest or a directory".into())),
    };
    if args.json {
        let text = serde_json::to_string(&made).unwrap_or_default();
        print(&format!("{text}\n"));
    } else {
        let ids: String = made.iter().map(|guest| format!("{}\n", guest.id)).collect();
        print(&ids);
    }
    Ok(Status::Success)
}

fn order(args: &Args) -> Result<Fork, Error> {
    let order = match &args.request {
        Some(request) => serde_json::from_str(request)
            .map_err(|error| Error::Usage(format!("--request: {error}")))?,
        None => Fork {
            count: Some(args.count),
            ids: match &args.id {
                None => Vec::new(),
                Some(id) if args.count == 1 => vec![id.clone()],
                Some(id) => (1..=args.count).map(|n| format!("{id}-{n}")).collect(),
            },
            network_overrides: args.net.clone(),
            vsock_override: (args.vsock.clone()).map(|uds_path| VsockOverride { uds_path }),
            paused: args.paused,
        },
    };
    order
        .validate()
        .map_err(|fault| Error::Usage(fault.message))?;
    Ok(order)
}

/// Has the guest's monitor do it.
fn ask(guest: &Guest, order: &Fork) -> Result<Vec<ForkedGuest>, Error> {
    let nonsense = || Error::Nonsense {
        id: guest.id().into(),
        what: "/fork".into(),
    };
    let body: Value = serde_json::to_value(order).map_err(|_| nonsense())?;
    let answer = guest.request("PUT", "/fork", Some(&body), LIMIT)?;
    serde_json::from_slice(&answer.body).map_err(|_| nonsense())
}

/// Gives all up when standard input ends.
fn watch(copies: &Arc<Copies>) -> Result<(), Error> {
    let copies = Arc::clone(copies);
    let watch = move || {
        let mut stdin = io::stdin();
        // Nothing comes, until it ends or cannot be read: nobody is there then.
        while matches!(stdin.read(&mut [0]), Ok(1..)) {}
        copies.give_up();
    };
    let started = thread::Builder::new().name("leash".into()).spawn(watch);
    started.map_err(host("start", "a thread"))?;
    Ok(())
}
