//! `mote events`: what happens to a guest.

use api::client;
use serde_json::Value;

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error};
use crate::status::Status;

/// `mote events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a guest, or how it begins
    id: String,

    /// Print JSON for scripts, a line an event
    #[arg(long)]
    json: bool,
}

pub(super) fn events(args: &Args) -> Result<Status, Error> {
    let guest = Guest::find(&args.id)?;
    let lines = client::stream(guest.socket()?, "/events", ANSWER_LIMIT)
        .map_err(|error| guest.talk(error))?;
    follow(lines, args.json).map_err(|error| guest.talk(error))?;
    Ok(Status::Success)
}

/// Prints lines until there are no more, or nobody reads them.
pub(super) fn follow(lines: client::Lines, json: bool) -> Result<(), client::Error> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    for line in lines {
        let line = line?;
        let text = if json { line } else { readable(&line) };
        if writeln!(stdout, "{text}")
            .and_then(|()| stdout.flush())
            .is_err()
        {
            break;
        }
    }
    Ok(())
}

/// The event first, then what else is said of it. What is no such line stays as it is.
fn readable(line: &str) -> String {
    let Ok(Value::Object(mut event)) = serde_json::from_str(line) else {
        return line.to_owned();
    };
    let plain = |value: &Value| match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => {
            text.clone()
        }
        value => value.to_string(),
    };
    let mut words = Vec::new();
    words.extend(event.remove("event").as_ref().map(plain));
    words.extend(
        event
            .iter()
            .map(|(name, value)| format!("{name}={}", plain(value))),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_readable() {
        for (line, text) in [
            (
                r#"{"event":"state","state":"Running"}"#,
                "state state=Running",
            ),
            (
                r#"{"code":7,"event":"crash","reason":"triple fault"}"#,
                r#"crash code=7 reason="triple fault""#,
            ),
            ("no json", "no json"),
        ] {
            assert_eq!(readable(line), text);
        }
    }
}
