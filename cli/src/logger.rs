//! What devices log, among what mote says.

use log::{LevelFilter, Log, Metadata, Record};

use crate::message::say;

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            say(record.args());
        }
    }

    fn flush(&self) {}
}

/// From now on warnings are said; with each `-v` more.
pub(crate) fn start(verbose: u8) {
    static LOGGER: Logger = Logger;
    // Fails only the second time.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
}
