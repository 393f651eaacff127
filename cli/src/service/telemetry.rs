//! Metrics and events of a monitor: what connects them to the log, the files and the API of this program.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ::telemetry::{AlreadySet, Event, Metrics, Program, SignalCounts, Started};
use devices::mmds::{self, Mmds};
use vmm::BootMark;

use super::args::{Name, VmmArgs};
use super::handler::Shared;
use crate::run::report_mark;
use crate::{disaster, logger};

/// What this program counts by itself.
struct Rest {
    mmds: Arc<Mmds>,
}

impl Program for Rest {
    fn missed_log_lines(&self) -> u64 {
        logger::missed()
    }

    fn limited_log_lines(&self) -> u64 {
        logger::left_out()
    }

    fn signals(&self) -> SignalCounts {
        disaster::counts()
    }

    fn metadata(&self) -> mmds::Counters {
        self.mmds.counters()
    }
}

/// Counts from now on, and tells those who listen to `shared`.
pub(super) fn start(shared: &Arc<Shared>, mmds: Arc<Mmds>, main: Instant) -> Arc<Metrics> {
    let shared = Arc::clone(shared);
    let publish = move |event: &Event| shared.publish(event);
    let metrics = Arc::new(Metrics::new(
        main,
        Box::new(Rest { mmds }),
        Box::new(publish),
    ));
    let before = std::panic::take_hook();
    let counted = Arc::clone(&metrics);
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        counted.panicked();
    }));
    metrics
}

/// Has metrics written to a file or FIFO.
pub(super) fn write_to(metrics: &Arc<Metrics>, path: impl AsRef<Path>) -> Result<(), String> {
    const AGAIN: &str = "Reinitialization of metrics not allowed.";
    if metrics.has_sink() {
        return Err(AGAIN.into());
    }
    let path = path.as_ref();
    let sink = logger::open_sink(path).map_err(|error| {
        format!(
            "Cannot open metrics_path for the metrics: {error} {}",
            path.display()
        )
    })?;
    metrics
        .set_sink(sink)
        .map_err(|AlreadySet| AGAIN.to_owned())?;
    let metrics = Arc::downgrade(metrics);
    let last_line = move |signal| {
        if let Some(metrics) = metrics.upgrade() {
            // What cannot be written is not.
            let _ = metrics.flush();
        }
        log::error!("Shutting down VM after intercepting signal {signal}.");
    };
    if let Err(error) = disaster::say_last(last_line).and_then(|()| disaster::count_survived()) {
        log::warn!("Metrics will have no last line if the monitor crashes: {error}");
    }
    Ok(())
}

/// What the flags say of the start of this process.
pub(super) fn started(args: &VmmArgs) -> Started {
    Started {
        at_us: args.start_time_us,
        cpu_us: args.start_time_cpu_us,
        parent_cpu_us: args.parent_cpu_time_us,
    }
}

/// The guest has marked a point of its boot.
pub(super) fn mark(metrics: &Metrics, mark: &BootMark, name: Name, main: Instant) {
    if let Some(line) = metrics.marked(mark) {
        log::info!("{line}");
    }
    if name == Name::Mote {
        report_mark(mark, main);
    }
}

/// What a thread that waits for something to do has got.
pub(super) enum Next<T> {
    /// This.
    Job(T),
    /// Nothing for as long as it wanted to wait.
    Nothing,
    /// There is nothing more.
    End,
}

/// The next of `jobs`, with metrics written meanwhile when they are due; waits for ever without `patience`.
pub(super) fn next<T>(
    jobs: &Receiver<T>,
    metrics: &Metrics,
    patience: Option<Duration>,
) -> Next<T> {
    loop {
        let due = metrics.due();
        let job = match due.into_iter().chain(patience).min() {
            Some(time) => jobs.recv_timeout(time),
            None => jobs.recv().map_err(RecvTimeoutError::from),
        };
        match job {
            Ok(job) => return Next::Job(job),
            Err(RecvTimeoutError::Disconnected) => return Next::End,
            Err(RecvTimeoutError::Timeout) => metrics.tick(),
        }
        if patience.is_some() {
            return Next::Nothing;
        }
    }
}
