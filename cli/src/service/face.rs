//! What carries commands out needs kernels, the terminal, the log and the metrics of this program.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use api::command::State;
use api::types::{Logger, Metrics, Serial};
use image::cache::Cache;
use vmm::Console;
use vmm::control::{Copies, Face};
use vmm::snapshot::save::Taken;

use super::fork;
use super::handler::{Shared, Submitter};
use super::telemetry::write_to;
use crate::console;
use crate::keys::Targets;
use crate::logger;
use crate::message::chain;
use crate::terminal::RawTerminal;

/// The terminal, in raw mode as soon as a guest uses it.
#[derive(Clone, Default)]
pub(super) struct Terminal(Arc<Mutex<Option<RawTerminal>>>);

impl Terminal {
    fn keep(&self, terminal: Option<RawTerminal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = terminal;
    }

    /// As it was before.
    pub(super) fn restore(&self) {
        self.keep(None);
    }
}

/// This program.
pub(super) struct Program {
    terminal: Terminal,
    shared: Arc<Shared>,
    metrics: Arc<telemetry::Metrics>,
}

impl Program {
    pub(super) fn new(terminal: Terminal, submitter: &Submitter) -> Self {
        Self {
            terminal,
            shared: submitter.shared(),
            metrics: submitter.metrics(),
        }
    }
}

impl Face for Program {
    fn kernel(&mut self, path: &Path) -> Result<File, String> {
        let kernel =
            image::kernel::open(path, &Cache::from_env()).map_err(|error| chain(&error))?;
        if let Some(why) = &kernel.fallback {
            log::warn!("The kernel unpacks itself in the guest: {why}");
        }
        Ok(kernel.file)
    }

    fn console(&mut self, serial: Option<&Serial>) -> Result<Option<Console>, String> {
        // Without targets there are no keys of mote's own: all that is typed is the guest's.
        let opened = console::open_serial(serial, Targets::default());
        let (console, terminal) = opened.map_err(|error| chain(&error))?;
        self.terminal.keep(terminal);
        Ok(Some(match self.shared.console() {
            Some(attachments) => attachments.beside(console),
            None => console,
        }))
    }

    fn set_logger(&mut self, logger: &Logger) -> Result<(), String> {
        logger::change(logger).map_err(|error| chain(&error))
    }

    fn set_metrics(&mut self, metrics: &Metrics) -> Result<(), String> {
        write_to(&self.metrics, &metrics.metrics_path)
    }

    fn flush_metrics(&mut self) -> Result<(), String> {
        let flushed = self.metrics.flush();
        flushed.map_err(|error| format!("Metrics cannot be written: {error}"))
    }

    fn metrics(&mut self) -> String {
        self.metrics.scrape()
    }

    fn state_changed(&mut self, state: State) {
        self.shared.set_state(state);
        self.metrics.state_changed(state);
    }

    fn snapshot_taken(&mut self, taken: &Taken) {
        if let Some(why) = &taken.untracked {
            log::warn!(
                "Writes to guest memory are not tracked (track_dirty_pages), for which the host has to have Linux 6.7: {why}"
            );
        }
        log::info!(
            "A snapshot was written: the guest stood still for {} us, {} bytes of memory.",
            taken.pause.as_micros(),
            taken.memory
        );
        self.metrics.snapshot_taken(taken);
    }

    fn copies(&mut self) -> Result<Copies, String> {
        fork::copies(self.shared.id())
    }
}
