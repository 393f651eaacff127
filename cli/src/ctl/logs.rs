//! `mote logs`: a monitor's log, or what its guest has printed on its console.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::server::CONSOLE_PROTOCOL;
use serde_json::{Value, json};

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error, host};
use crate::status::Status;

/// How often a file is looked at that grows.
const INTERVAL: Duration = Duration::from_millis(200);
const CHUNK: usize = 16 << 10;

/// `mote logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of a guest, or how it begins
    id: String,

    /// Go on with what comes, until the guest ends
    #[arg(long, short)]
    follow: bool,

    /// What the guest has printed on its console, even if there is a log file
    #[arg(long)]
    console: bool,

    /// Print JSON for scripts, an object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn logs(args: &Args) -> Result<Status, Error> {
    let guest = Guest::find(&args.id)?;
    let log = if args.console { None } else { log_of(&guest) };
    let printed = match &log {
        Some(path) => from_file(&guest, path, args)?,
        None => from_console(&guest, args)?,
    };
    // A reader that went away has seen enough.
    drop(printed);
    Ok(Status::Success)
}

/// The log's file, if there is one: as it was given on the command line, or through the API.
fn log_of(guest: &Guest) -> Option<PathBuf> {
    if let Some(path) = &guest.0.log {
        return Some(path.clone());
    }
    let config = guest.get("/vm/config", ANSWER_LIMIT).ok()?;
    let path = config.pointer("/logger/log_path").and_then(Value::as_str)?;
    // Of the monitor's working directory, if it is relative.
    Some(Path::new(&format!("/proc/{}/cwd", guest.0.pid)).join(path))
}

fn from_file(guest: &Guest, path: &Path, args: &Args) -> Result<io::Result<()>, Error> {
    let name = || format!("the log {path:?}");
    let metadata = std::fs::metadata(path).map_err(host("open", name()))?;
    if !metadata.is_file() {
        return Err(Error::Usage(format!(
            "The log {path:?} of guest '{}' is no regular file: read it where it goes to, or see --console",
            guest.id()
        )));
    }
    let mut file = File::open(path).map_err(host("open", name()))?;
    let mut printer = Printer::new("log", args.json);
    let process = if args.follow { guest.process()? } else { None };
    loop {
        // Looked at first: what it wrote before its end is in the file then.
        let has_ended = process
            .as_ref()
            .is_none_or(|process| process.wait(INTERVAL));
        if let Err(error) = copy(&mut file, &mut printer) {
            return Ok(Err(error));
        }
        if has_ended {
            return Ok(printer.end());
        }
    }
}

fn from_console(guest: &Guest, args: &Args) -> Result<io::Result<()>, Error> {
    let console = guest.console(CONSOLE_PROTOCOL)?;
    let mut printer = Printer::new("console", args.json);
    let all = Cursor::new(console.early).chain(console.stream);
    let printed = if args.follow {
        copy(all, &mut printer)
    } else {
        copy(all.take(console.backlog), &mut printer)
    };
    Ok(printed.and_then(|()| printer.end()))
}

fn copy(mut from: impl Read, printer: &mut Printer) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => printer.put(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The monitor has ended.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Prints bytes as they are, or lines as JSON.
struct Printer {
    source: &'static str,
    json: bool,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

impl Printer {
    fn new(source: &'static str, json: bool) -> Self {
        Self {
            source,
            json,
            line: Vec::new(),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if !self.json {
            stdout.write_all(bytes)?;
            return stdout.flush();
        }
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            stdout.write_all(self.object(&line).as_bytes())?;
        }
        stdout.flush()
    }

    fn end(self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(self.object(&self.line).as_bytes())?;
        stdout.flush()
    }

    fn object(&self, line: &[u8]) -> String {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\r', '\n']);
        format!("{}\n", json!({ "source": self.source, "line": text }))
    }
}
