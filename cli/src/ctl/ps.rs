//! `mote ps`: which guests there are.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::guest::Guest;
use super::{Error, print};
use crate::message::chain;
use crate::rundir::Kind;
use crate::status::Status;

/// How long a monitor may take: one that hangs is not to keep the table from being printed.
const LIMIT: Duration = Duration::from_secs(2);
/// Monitors that are asked at the same time.
const SIDE_BY_SIDE: usize = 16;

/// `mote ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print names only
    #[arg(long, short)]
    quiet: bool,

    /// Print JSON for scripts
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// One guest.
#[derive(Serialize)]
struct Line {
    id: String,
    /// None if it does not say.
    state: Option<String>,
    pid: u32,
    uptime_seconds: u64,
    vcpu_count: Option<u64>,
    mem_size_mib: Option<u64>,
    kind: Kind,
    socket: Option<std::path::PathBuf>,
    /// Why it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn ps(args: &Args) -> Result<Status, Error> {
    let guests = Guest::all()?;
    if args.quiet {
        let ids = guests.iter().map(|guest| format!("{}\n", guest.id()));
        print(&ids.collect::<String>());
        return Ok(Status::Success);
    }
    let lines: Vec<Line> = (guests.chunks(SIDE_BY_SIDE)).flat_map(look_at).collect();
    if args.json {
        let json = serde_json::to_string_pretty(&lines).unwrap_or_default();
        print(&format!("{json}\n"));
    } else {
        print(&table(&lines));
    }
    Ok(Status::Success)
}

fn look_at(guests: &[Guest]) -> Vec<Line> {
    thread::scope(|scope| {
        let looks: Vec<_> = (guests.iter())
            .map(|guest| scope.spawn(|| line(guest)))
            .collect();
        let joined = looks.into_iter().filter_map(|look| look.join().ok());
        joined.collect()
    })
}

fn line(guest: &Guest) -> Line {
    let info = &guest.0;
    let mut line = Line {
        id: info.id.clone(),
        state: None,
        pid: info.pid,
        uptime_seconds: guest.uptime().as_secs(),
        vcpu_count: None,
        mem_size_mib: None,
        kind: info.kind,
        socket: info.socket.clone(),
        error: None,
    };
    let ask = || {
        let state = guest.state(LIMIT)?;
        let machine = guest.get("/machine-config", LIMIT)?;
        Ok::<_, Error>((state, machine))
    };
    match ask() {
        Ok((state, machine)) => {
            line.state = Some(state);
            line.vcpu_count = machine["vcpu_count"].as_u64();
            line.mem_size_mib = machine["mem_size_mib"].as_u64();
        }
        Err(error) => line.error = Some(chain(&error)),
    }
    line
}

fn table(lines: &[Line]) -> String {
    let header = ["ID", "STATE", "PID", "UPTIME", "CPUS", "MEMORY", "KIND"];
    let mut rows = vec![header.map(String::from)];
    for line in lines {
        let number = |number: Option<u64>, unit: &str| {
            number.map_or_else(|| "-".into(), |number| format!("{number}{unit}"))
        };
        let state = match (&line.state, &line.socket) {
            (Some(state), _) => state,
            (None, Some(_)) => "No answer",
            (None, None) => "No API",
        };
        rows.push([
            line.id.clone(),
            state.into(),
            line.pid.to_string(),
            uptime(line.uptime_seconds),
            number(line.vcpu_count, ""),
            number(line.mem_size_mib, " MiB"),
            match line.kind {
                Kind::Run => "run".into(),
                Kind::Vmm => "vmm".into(),
            },
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The two largest units of it.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |id: &str, state: Option<&str>| Line {
            id: id.into(),
            state: state.map(str::to_owned),
            pid: 42,
            uptime_seconds: 61,
            vcpu_count: state.map(|_| 2),
            mem_size_mib: state.map(|_| 128),
            kind: Kind::Run,
            socket: None,
            error: None,
        };
        let text = table(&[line("a", Some("Running")), line("a-longer-name", None)]);
        assert_eq!(
            text,
            "ID             STATE    PID  UPTIME  CPUS  MEMORY   KIND\n\
             a              Running  42   1m1s    2     128 MiB  run\n\
             a-longer-name  No API   42   1m1s    -     -        run\n"
        );
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3599, "59m59s"),
            (3661, "1h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(uptime(seconds), text);
        }
    }
}
