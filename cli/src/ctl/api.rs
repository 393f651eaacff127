//! `mote api`: a request of a guest's API, as curl would make it.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::{self, Answer};
use serde_json::{Value, json};

use super::guest::Guest;
use super::{Error, events, host, print};
use crate::message::say;
use crate::status::Status;

/// What curl makes of an answer that is an error, if it is told to look (`-f`).
const REFUSED: Status = Status::Other(22);

/// `mote api`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXIT STATUS
  0    the answer's status was 2xx
  22   it was another one
  125  there was no answer")]
pub(crate) struct Args {
    /// Name of a guest, or how it begins
    #[arg(long, required_unless_present = "socket")]
    id: Option<String>,

    /// The socket of an API, instead of a name
    #[arg(long, value_name = "PATH", conflicts_with = "id")]
    socket: Option<PathBuf>,

    /// Print JSON for scripts: status, headers and body of the answer
    #[arg(long)]
    json: bool,

    /// How long the answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,

    /// GET, PUT, PATCH or DELETE
    method: String,

    /// Such as /machine-config
    path: String,

    /// The body: JSON, @FILE, or - for standard input
    #[arg(value_name = "JSON|@FILE|-")]
    body: Option<String>,
}

pub(super) fn api(args: &Args) -> Result<Status, Error> {
    let (id, socket) = match (&args.socket, &args.id) {
        (Some(socket), _) => (socket.display().to_string(), socket.clone()),
        (None, id) => {
            let guest = Guest::find(id.as_deref().unwrap_or_default())?;
            (guest.id().to_owned(), guest.socket()?.to_owned())
        }
    };
    let body = args.body.as_deref().map(read_body).transpose()?;
    let method = args.method.to_ascii_uppercase();
    let limit = Duration::from_secs(args.timeout.into());
    let talk = |source| Error::Talk {
        id: id.clone(),
        source,
    };
    if (method.as_str(), args.path.as_str()) == ("GET", "/events") {
        // It has no end.
        return match client::stream(&socket, &args.path, limit) {
            Ok(lines) => {
                events::follow(lines, true).map_err(talk)?;
                Ok(Status::Success)
            }
            Err(client::Error::Refused(answer)) => Ok(show(&answer, args.json)),
            Err(error) => Err(talk(error)),
        };
    }
    let answer = client::request(&socket, &method, &args.path, body.as_deref(), limit);
    Ok(show(&answer.map_err(talk)?, args.json))
}

fn read_body(body: &str) -> Result<Vec<u8>, Error> {
    if body == "-" {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(host("read", "standard input"))?;
        return Ok(bytes);
    }
    match body.strip_prefix('@') {
        Some(path) => fs::read(Path::new(path)).map_err(host("read", format!("{path:?}"))),
        None => Ok(body.into()),
    }
}

/// Prints an answer.
fn show(answer: &Answer, as_json: bool) -> Status {
    let body = String::from_utf8_lossy(&answer.body);
    if as_json {
        let headers = answer.headers.iter();
        let all = json!({
            "status": answer.status,
            "headers": headers.map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
            "body": match serde_json::from_slice(&answer.body) {
                Ok(body) => body,
                Err(_) if body.is_empty() => Value::Null,
                Err(_) => Value::String(body.into_owned()),
            },
        });
        print(&format!("{all}\n"));
    } else if !body.is_empty() {
        let end = if body.ends_with('\n') { "" } else { "\n" };
        print(&format!("{body}{end}"));
    }
    if answer.is_success() {
        Status::Success
    } else {
        say(&format!("status {}", answer.status));
        REFUSED
    }
}
