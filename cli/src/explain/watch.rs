//! The process that watches another one run the guest, and tells where its time went.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write, stderr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ::bench::waterfall::build::{Report, Watched};
use ::bench::waterfall::{Origin, Waterfall};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, set_child_subreaper, wait,
};
use thiserror::Error;

use super::emulated::emulated;
use super::{Form, REPORT_FLAG, now};
use crate::message::{chain, say};
use crate::signals::Signals;
use crate::status::Status;

/// How long what is left of a guest is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than there is to know.
const MAX_REPORT: usize = 4 << 20;

/// Why a start cannot be explained.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The host.
    #[error("Cannot {what} for --explain")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file for it.
    #[error("Cannot write what --explain found to {path:?}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Host {
        what,
        source: error.into(),
    }
}

/// Has another process do what the command line says but for `--explain`, and tells where its time went. The status is that
/// one's.
pub(crate) fn run(line: &[OsString], form: &Form) -> Status {
    explained(line, form).unwrap_or_else(|error| {
        say(&chain(&error));
        Status::MoteError
    })
}

fn explained(line: &[OsString], form: &Form) -> Result<Status, Error> {
    // What can fail does so before there is a guest.
    let file = match form {
        Form::File(path) => Some(File::create(path).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?),
        Form::Text | Form::Json => None,
    };
    let (waterfall, _) = Watcher::start(line, Streams::Own)?.explain()?;
    tell(&waterfall, form, file)?;
    Ok(Status::Other(waterfall.status))
}

/// Where the standard streams of the other process lead.
pub(crate) enum Streams {
    /// Where those of this one do.
    Own,
    /// Nowhere; but what mote says goes to this file.
    Apart(File),
}

/// The words of the same line for the other process.
fn without_explain(line: &[OsString], fd: i32) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["run".into(), format!("{REPORT_FLAG}{fd}").into()];
    let mut is_command = false;
    for word in line.iter().skip(2) {
        is_command |= word == "--";
        let bytes = word.as_encoded_bytes();
        if !is_command && (bytes == b"--explain" || bytes.starts_with(b"--explain=")) {
            continue;
        }
        words.push(word.clone());
    }
    words
}

/// A process that is watched.
pub(crate) struct Watcher {
    child: Child,
    process: OwnedFd,
    signals: Signals,
    report: File,
    command: Vec<String>,
    began: u64,
}

impl Watcher {
    /// Starts it: what this command line says, but for `--explain`.
    pub(crate) fn start(line: &[OsString], streams: Streams) -> Result<Self, Error> {
        // What is left of the guest when its process has gone comes to this one, which sees it go.
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(host("wait for what is left of a guest"))?;
        let signals = Signals::catch().map_err(host("catch signals"))?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(host("make a pipe"))?;
        fcntl_setfd(&writer, FdFlags::empty()).map_err(host("pass on a pipe"))?;
        let program = env::current_exe().map_err(host("find mote itself"))?;
        let words = without_explain(line, writer.as_raw_fd());
        let mut command = Command::new(program);
        command.args(words);
        if let Some(name) = line.first() {
            command.arg0(name);
        }
        if let Streams::Apart(said) = streams {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(said);
        }
        let began = now();
        let child = command.spawn().map_err(host("start mote"))?;
        let process =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(host("watch mote"))?;
        Ok(Self {
            child,
            process,
            signals,
            report: File::from(reader),
            command: line
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            began,
        })
    }

    /// Passes on signals until it has ended and nothing is left of it. Where its time went, and the signal that this process
    /// got meanwhile.
    pub(crate) fn explain(self) -> Result<(Waterfall, Option<i32>), Error> {
        let Self {
            mut child,
            process,
            signals,
            mut report,
            command,
            began,
        } = self;
        let pid = Pid::from_child(&child);
        let mut bytes = Vec::new();
        let mut hears = true;
        let mut passed_on = None;
        let exited = loop {
            let mut fds = vec![
                PollFd::new(&process, PollFlags::IN),
                PollFd::new(&signals, PollFlags::IN),
            ];
            if hears {
                fds.push(PollFd::new(&report, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(host("watch mote")(errno)),
            }
            let at = now();
            let ready = |index: usize| {
                fds.get(index)
                    .is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty())
            };
            let (has_ended, has_signal, has_report) = (ready(0), ready(1), ready(2));
            if has_signal
                && let Some(number) = signals.first()
                && passed_on != Some(number)
            {
                passed_on = Some(number);
                if let Some(signal) = Signal::from_named_raw(number) {
                    // It may have ended.
                    let _ = kill_process(pid, signal);
                }
            }
            if has_report && !has_ended {
                hears = read_some(&mut report, &mut bytes);
            }
            if has_ended {
                break at;
            }
        };
        let status = child.wait().map_err(host("wait for mote"))?;
        let gone = wait_for_the_rest();
        while hears && read_some(&mut report, &mut bytes) {}
        // One that was killed has said nothing.
        let report: Report = serde_json::from_slice(&bytes).unwrap_or_default();
        let watched = Watched {
            command,
            began,
            exited,
            gone: match report.origin {
                // It is not this process's.
                Origin::Pool => None,
                _ => gone,
            },
            status: code(status),
            emulated: emulated().map(str::to_owned),
        };
        let waterfall = Waterfall::new(env!("CARGO_PKG_VERSION"), watched, report);
        Ok((waterfall, passed_on))
    }
}

/// Reads what has come; false at the end.
fn read_some(report: &mut File, bytes: &mut Vec<u8>) -> bool {
    let mut part = [0; 16 << 10];
    match report.read(&mut part) {
        Ok(0) => false,
        Ok(count) => {
            bytes.extend(&part[..count]);
            bytes.len() < MAX_REPORT
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}

/// Waits until no process is left of it: when was that?
fn wait_for_the_rest() -> Option<u64> {
    let (sender, gone) = mpsc::channel();
    thread::spawn(move || {
        // Until there is none any more.
        while let Ok(_) | Err(Errno::INTR) = wait(WaitOptions::empty()) {}
        let _ = sender.send(now());
    });
    gone.recv_timeout(PATIENCE).ok()
}

/// As a shell has it.
fn code(status: ExitStatus) -> i32 {
    let of_signal = || status.signal().map(|number| 128 + number);
    status.code().or_else(of_signal).unwrap_or(-1)
}

fn tell(waterfall: &Waterfall, form: &Form, file: Option<File>) -> Result<(), Error> {
    match (form, file) {
        (Form::File(path), Some(mut file)) => {
            let json = format!("{}\n", json(waterfall)?);
            file.write_all(json.as_bytes())
                .map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })
        }
        (Form::Json, _) => {
            let json = format!("{}\n", json(waterfall)?);
            // With standard error closed there is nobody to tell.
            let _ = stderr().write_all(json.as_bytes());
            Ok(())
        }
        (Form::Text | Form::File(_), _) => {
            say(&"explained:");
            let _ = stderr().write_all(waterfall.text().as_bytes());
            Ok(())
        }
    }
}

fn json(waterfall: &Waterfall) -> Result<String, Error> {
    serde_json::to_string(waterfall).map_err(host("write JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_left_out_and_the_command_is_not_touched() {
        let line = "mote run --explain --cpus 2 --explain=json:x -- sh --explain --explain=json";
        let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        assert_eq!(
            without_explain(&line, 7).join(&OsString::from(" ")),
            "run --explain-report=7 --cpus 2 -- sh --explain --explain=json"
        );
    }

    #[test]
    fn statuses_are_as_a_shell_has_them() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
