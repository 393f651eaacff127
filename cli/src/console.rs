//! The guest's console: which device it is, and what is at its other end.

use std::io::{self, stdin, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::types::Serial;
use devices::console_io::{FileOutput, Input, InputFilter, Output, Pty};
use devices::rate_limiter::RateLimit;
use thiserror::Error;
use vmm::Console;

use crate::devices::net::rate;
use crate::keys::{Keys, Targets, Transparent};
use crate::message::say;
use crate::options::OptionList;
use crate::quantity::parse_size;
use crate::terminal::{self, RawTerminal, is_foreground_terminal, is_terminal};

/// How many old files are kept unless `keep=` says it.
const DEFAULT_KEEP: u32 = 1;

/// Why there is no console.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Standard input or output.
    #[error("Cannot use the terminal, or standard output, as the console")]
    Stdio(#[source] io::Error),
    /// `file=`.
    #[error("Cannot write the console's output to {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// `serial_out_path`, in the words of the API.
    #[error("Cannot open serial_out_path for the guest's output: {error} {path}")]
    SerialOut {
        /// The file.
        path: String,
        /// What the host said. Clients find it before the path.
        error: io::Error,
    },
    /// `pty`.
    #[error("Cannot make a pseudo-terminal for the console")]
    Pty(#[source] io::Error),
}

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleKind {
    /// virtio console hvc0.
    Virtio,
    /// Serial port ttyS0.
    Serial,
    /// None.
    Off,
}

/// What is at the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConsoleEnd {
    /// Standard input and output.
    #[default]
    Stdio,
    /// A file, and nothing to read.
    File(FileOutput),
    /// Whoever opens the pseudo-terminal.
    Pty,
}

/// `--console`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConsoleOption {
    /// None: mote chooses.
    pub kind: Option<ConsoleKind>,
    /// Its other end.
    pub end: ConsoleEnd,
    /// How much the guest may put out.
    pub limit: RateLimit,
    /// Whether it has a thread of its own.
    pub iothread: bool,
}

impl ConsoleOption {
    /// `[virtio|serial|off][,pty|,file=PATH[,max-size=SIZE[,keep=N]]][,rate=BYTES][,iops=N][,iothread=on]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut options = OptionList::new("--console", text);
        let pty = options.take_flag("pty");
        let path = options.take("file")?.map(PathBuf::from);
        let max_size = options.parse_with("max-size", parse_size)?;
        let keep = options.parse("keep")?;
        let limit = rate(&mut options)?;
        let iothread = options.take_switch("iothread")?.unwrap_or(false);
        let kind = match options.take_first().as_deref() {
            None => None,
            Some("virtio") => Some(ConsoleKind::Virtio),
            Some("serial") => Some(ConsoleKind::Serial),
            Some("off") => Some(ConsoleKind::Off),
            Some(other) => {
                return Err(options.error(format_args!(
                    "'{other}' is no console: there are virtio, serial, off, with pty or file=PATH"
                )));
            }
        };
        if kind == Some(ConsoleKind::Off) && (pty || path.is_some()) {
            return Err(options.error("off has no output for a file or a pty"));
        }
        if path.is_none() && max_size.is_some() {
            return Err(options.error("max-size is for file=PATH"));
        }
        if max_size == Some(0) {
            return Err(options.error("max-size=0: nothing fits into that"));
        }
        if max_size.is_none() && keep.is_some() {
            return Err(options.error("keep is for file=PATH,max-size=SIZE"));
        }
        let end = match (pty, path) {
            (true, Some(_)) => {
                return Err(options.error("write pty or file=PATH, not both"));
            }
            (true, None) => ConsoleEnd::Pty,
            (false, None) => ConsoleEnd::Stdio,
            (false, Some(path)) => ConsoleEnd::File(FileOutput {
                path,
                max_size: max_size.unwrap_or(0),
                keep: keep.unwrap_or(DEFAULT_KEEP),
            }),
        };
        if limit != RateLimit::default() && kind != Some(ConsoleKind::Virtio) {
            return Err(options.error("rate and iops are for virtio"));
        }
        if iothread && kind == Some(ConsoleKind::Off) {
            return Err(options.error("off has nothing for a thread to do"));
        }
        options.finish()?;
        Ok(Self {
            kind,
            end,
            limit,
            iothread,
        })
    }

    /// Whether a person is at it, or is to be.
    pub(crate) fn is_interactive(&self) -> bool {
        match self.end {
            ConsoleEnd::Stdio => is_foreground_terminal(),
            ConsoleEnd::Pty => true,
            ConsoleEnd::File(_) => false,
        }
    }
}

/// Opens the other end of a console that is configured as the API has it, on standard input and output if nothing
/// else is said; and the terminal, as [`open`] does.
pub(crate) fn open_serial(
    serial: Option<&Serial>,
    targets: Targets,
) -> Result<(Console, Option<RawTerminal>), Error> {
    let limit = serial.and_then(|serial| serial.rate_limiter);
    let path = serial.and_then(|serial| serial.serial_out_path.as_ref());
    let (mut console, terminal) = match path {
        Some(path) => {
            let output = Output::lossy(Path::new(path)).map_err(|error| Error::SerialOut {
                path: path.clone(),
                error,
            })?;
            (without_terminal(None, output), None)
        }
        None => open(&ConsoleOption::default(), targets)?,
    };
    console.rate_limit.bandwidth = limit.and_then(vmm::control::bucket);
    console.iothread = serial.is_some_and(|serial| serial.iothread);
    Ok((console, terminal))
}

/// Opens the other end, and the terminal, which is in raw mode as long as it is kept.
pub(crate) fn open(
    option: &ConsoleOption,
    targets: Targets,
) -> Result<(Console, Option<RawTerminal>), Error> {
    let (mut console, terminal) = open_end(&option.end, targets)?;
    console.rate_limit = option.limit;
    console.iothread = option.iothread;
    Ok((console, terminal))
}

fn open_end(end: &ConsoleEnd, targets: Targets) -> Result<(Console, Option<RawTerminal>), Error> {
    match end {
        ConsoleEnd::Stdio => open_stdio(targets).map_err(Error::Stdio),
        ConsoleEnd::File(file) => {
            let output = Output::file(file.clone()).map_err(|source| Error::File {
                path: file.path.clone(),
                source,
            })?;
            Ok((without_terminal(None, output), None))
        }
        ConsoleEnd::Pty => {
            let (path, input, output) = open_pty().map_err(Error::Pty)?;
            say(&format!("console on {}", path.display()));
            Ok((without_terminal(Some(input), output), None))
        }
    }
}

fn open_pty() -> io::Result<(PathBuf, Input, Output)> {
    let pty = Pty::open()?;
    let input = Input::pty(&pty)?;
    let output = Output::pty(&pty)?;
    Ok((pty.path().to_owned(), input, output))
}

/// A console whose other end is no terminal of mote's.
fn without_terminal(input: Option<Input>, output: Output) -> Console {
    Console {
        input,
        output,
        filter: Box::new(Transparent),
        size: (0, 0),
        rate_limit: RateLimit::default(),
        iothread: false,
    }
}

/// One whose other end is there later ([`vmm::Vm::connect_console`]).
pub(crate) fn none() -> Console {
    without_terminal(None, Output::discard())
}

/// The console on standard input and output, which may be the terminal of another process that has it in raw mode.
pub(crate) fn on_streams(targets: Targets, interactive: bool) -> Result<Console, Error> {
    stdio(targets, interactive).map_err(Error::Stdio)
}

fn open_stdio(targets: Targets) -> io::Result<(Console, Option<RawTerminal>)> {
    let interactive = is_foreground_terminal();
    let terminal = if interactive {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    Ok((stdio(targets, interactive)?, terminal))
}

fn stdio(targets: Targets, interactive: bool) -> io::Result<Console> {
    let filter: Box<dyn InputFilter> = if interactive {
        Box::new(Keys::new(targets))
    } else {
        Box::new(Transparent)
    };
    // In the background of a terminal, reading it would stop the process. A closed standard input
    // cannot be duplicated: there is nothing to read then.
    let input = if is_terminal() && !interactive {
        None
    } else {
        stdin().as_fd().try_clone_to_owned().ok().map(Input::new)
    };
    let output = match stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Output::new(fd)?,
        Err(_) => Output::discard(),
    };
    Ok(Console {
        input,
        output,
        filter,
        size: terminal::size().unwrap_or_default(),
        rate_limit: RateLimit::default(),
        iothread: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_what_it_is_said_to_be() {
        let parse = |text| ConsoleOption::parse(text).unwrap();
        assert_eq!(parse("virtio").kind, Some(ConsoleKind::Virtio));
        assert_eq!(parse("off").kind, Some(ConsoleKind::Off));
        assert_eq!(parse("serial,pty").end, ConsoleEnd::Pty);
        assert_eq!(parse("pty").kind, None);
        assert_eq!(parse("virtio").limit, RateLimit::default());
        assert!(parse("virtio,rate=1k").limit.bandwidth.is_some());
        assert!(parse("virtio,pty,iops=9").limit.ops.is_some());
        assert!(parse("iothread=on").iothread && parse("serial,iothread=on").iothread);
        let file = |max_size, keep| {
            ConsoleEnd::File(FileOutput {
                path: "log".into(),
                max_size,
                keep,
            })
        };
        assert_eq!(parse("virtio,file=log").end, file(0, 1));
        assert_eq!(parse("file=log,max-size=1m,keep=3").end, file(1 << 20, 3));
    }

    #[test]
    fn contradictions_are_named() {
        for (text, what) in [
            ("pigeon", "'pigeon' is no console"),
            ("off,pty", "off has no output"),
            ("pty,file=log", "not both"),
            ("serial,max-size=1m", "max-size is for file=PATH"),
            ("file=log,keep=2", "keep is for"),
            ("file=log,max-size=0", "nothing fits"),
            ("serial,rate=1k", "for virtio"),
            ("off,iothread=on", "nothing for a thread"),
            ("pty,iops=5", "for virtio"),
            ("virtio,rate=much", "rate=much"),
            ("serial,colour=red", "unknown option 'colour'"),
        ] {
            let error = ConsoleOption::parse(text).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
