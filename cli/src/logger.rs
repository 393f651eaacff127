//! The log: what devices and the API have to say. `mote run` says it among its own messages; a monitor that serves
//! the API writes Firecracker's lines, to standard output, a file or a FIFO, and never waits for a reader.
#![expect(unsafe_code, reason = "local time is the C library's")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::types::{LogLevel, Logger as Change};
use log::{Level, LevelFilter, Log, Metadata, Record};
use thiserror::Error;

use crate::log_limit::{Limits, Verdict};
use crate::message::say;

/// Why there is no log.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The file cannot be opened.
    #[error("Cannot open the log {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// How the log of a monitor begins.
pub(crate) struct LogSettings {
    /// The instance's name.
    pub id: String,
    /// Where it goes.
    pub path: Option<PathBuf>,
    /// Without a path: to standard output instead of standard error.
    pub to_stdout: bool,
    /// What is logged.
    pub level: LogLevel,
    /// Lines have their level in them.
    pub show_level: bool,
    /// Lines have the place in the source in them.
    pub show_origin: bool,
    /// The only modules that are logged: the start of their paths.
    pub module: Option<String>,
}

enum Target {
    /// Among mote's messages.
    Messages,
    Stdout,
    File(File),
}

struct State {
    id: String,
    target: Target,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    limits: Limits,
}

struct Logger(Mutex<State>);

static LOGGER: Logger = Logger(Mutex::new(State {
    id: String::new(),
    target: Target::Messages,
    show_level: false,
    show_origin: false,
    module: None,
    limits: Limits::new(),
}));

/// Lines that there was no room for.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Lines that were left out, as there were too many of their kind.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

impl Logger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut state = self.lock();
        let is_named = |module: &String| {
            record
                .module_path()
                .is_some_and(|path| path.starts_with(module.as_str()))
        };
        if !state.module.as_ref().is_none_or(is_named) {
            return;
        }
        match state.limits.ask(record, Instant::now()) {
            Verdict::LeaveOut => {
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Verdict::Log(0) => {}
            Verdict::Log(left_out) => {
                state.write(
                    record,
                    &format_args!("{left_out} lines like the next one were left out."),
                );
            }
        }
        state.write(record, record.args());
    }

    fn flush(&self) {}
}

impl State {
    /// Writes a line of where a record comes from.
    fn write(&self, record: &Record, text: &fmt::Arguments) {
        let written = match &self.target {
            Target::Messages => {
                say(text);
                return;
            }
            Target::Stdout => io::stdout().write_all(self.line(record, text).as_bytes()),
            Target::File(file) => {
                let mut file = file;
                file.write_all(self.line(record, text).as_bytes())
            }
        };
        if written.is_err() {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `TIME [ID:THREAD:LEVEL:FILE:LINE] TEXT`.
    fn line(&self, record: &Record, text: &fmt::Arguments) -> String {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("-");
        let mut place = format!("{}:{thread}", self.id);
        if self.show_level {
            place.push(':');
            place.push_str(level_name(record.level()));
        }
        if self.show_origin {
            let (file, line) = (record.file().unwrap_or("-"), record.line().unwrap_or(0));
            place.push_str(&format!(":{file}:{line}"));
        }
        format!("{} [{place}] {text}\n", local_time())
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

/// `2026-11-24T23:59:59.123456789`, in the host's time zone.
fn local_time() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(0);
    // SAFETY: both pointers are to this function's own; all zeroes is a `tm`.
    let time = unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut time);
        time
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}",
        time.tm_year + 1900,
        time.tm_mon + 1,
        time.tm_mday,
        time.tm_hour,
        time.tm_min,
        time.tm_sec,
        now.subsec_nanos()
    )
}

/// From now on warnings of the guest of this name are said; with each `-v` more.
pub(crate) fn start(verbose: u8, id: &str) {
    LOGGER.lock().id = id.to_owned();
    install(LevelFilter::Off);
    set_verbose(verbose);
}

/// What is logged with so many `-v`.
pub(crate) fn set_verbose(verbose: u8) {
    log::set_max_level(match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
}

/// Begins the log of a monitor.
pub(crate) fn serve(settings: &LogSettings) -> Result<(), Error> {
    let target = match &settings.path {
        Some(path) => Target::File(open(path)?),
        None if settings.to_stdout => Target::Stdout,
        None => Target::Messages,
    };
    *LOGGER.lock() = State {
        id: settings.id.clone(),
        target,
        show_level: settings.show_level,
        show_origin: settings.show_origin,
        module: settings.module.clone(),
        limits: Limits::new(),
    };
    install(filter(settings.level));
    Ok(())
}

/// What `PUT /logger` says. If it fails, nothing changes.
pub(crate) fn change(change: &Change) -> Result<(), Error> {
    let Change {
        log_path,
        level,
        show_level,
        show_log_origin,
        module,
    } = change;
    let file = match log_path {
        Some(path) => Some(open(Path::new(path))?),
        None => None,
    };
    let mut state = LOGGER.lock();
    if let Some(file) = file {
        state.target = Target::File(file);
    }
    state.show_level = show_level.unwrap_or(state.show_level);
    state.show_origin = show_log_origin.unwrap_or(state.show_origin);
    if let Some(module) = module {
        state.module = Some(module.clone());
    }
    drop(state);
    log::set_max_level(filter(level.unwrap_or_default()));
    Ok(())
}

/// Whether the log is among mote's messages.
pub(crate) fn is_said() -> bool {
    matches!(LOGGER.lock().target, Target::Messages)
}

/// How many lines nobody will read.
pub(crate) fn missed() -> u64 {
    MISSED.load(Ordering::Relaxed)
}

/// How many lines were left out, as a guest had caused too many of their kind.
pub(crate) fn left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

fn install(level: LevelFilter) {
    // Fails only the second time.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

/// A file, to whose end lines go, or a FIFO, whether someone reads it or not. Neither is waited for.
pub(crate) fn open_sink(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    // A FIFO that nobody reads as yet can be opened only for both.
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        options.read(true);
    }
    options.custom_flags(libc::O_NONBLOCK).open(path)
}

fn open(path: &Path) -> Result<File, Error> {
    open_sink(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })
}
