//! What a monitor counts, and how it tells: the metrics file in Firecracker's shape, the text of `GET /metrics`,
//! the events of `GET /events`.
//!
//! Reading order: this file (who counts and who asks), `tree` (the file's shape), `collect` (where each number
//! comes from), `writer` (the file), `requests` and `program` (what is counted here), `text` (the OpenMetrics
//! format), `scrape` (what is told in it), `event`.
//!
//! Devices and vCPUs count for themselves; here their numbers are read. Nothing on their way waits for that: the
//! file is written by the thread that carries the API's commands out.

mod collect;
mod event;
mod program;
mod requests;
mod scrape;
mod text;
mod tree;
mod writer;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::command::State;
use devices::lock;
use vmm::snapshot::save::Taken;
use vmm::{BootMark, Insight, StopReason, StopRequest};

pub use event::{Device, End, Event, Milestone, rfc3339};
pub use program::{Program, SignalCounts, Started};
pub use requests::{Requests, Submitted};

use program::{Process, cpu_time, micros};
use scrape::Sources;
use tree::Totals;
use writer::Writer;

/// How often the file is written while the guest runs.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// The byte by which guests of Firecracker say that they have booted.
const BOOTED: u8 = 123;
/// The terminal hung up.
const SIGHUP: i32 = 1;

/// Metrics are written somewhere already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadySet;

/// Where events go. It is called by any thread, and does not wait.
pub type Publish = Box<dyn Fn(&Event) + Send + Sync>;

/// The file, and what has been written to it.
#[derive(Default)]
struct Output {
    writer: Option<Writer>,
    /// What the line before was made of.
    before: Totals,
    /// Events have told that it cannot be written.
    in_trouble: bool,
}

/// The guest, as far as there is one.
struct Guest {
    state: State,
    insight: Option<Insight>,
    mark: Option<BootMark>,
    /// CPU time of this process when it was asked for.
    cpu_before: Duration,
    /// When the file is to be written the next time.
    due: Option<Instant>,
}

/// All that is counted. Any thread may count, and ask.
// Locks: `output` before `guest`; no other is taken under either, but those of devices' counters.
pub struct Metrics {
    // Runtime glue.
    program: Box<dyn Program>,
    publish: Publish,
    // Volatile state.
    process: Process,
    requests: Requests,
    output: Mutex<Output>,
    guest: Mutex<Guest>,
    /// Lost lines of the log that events have told of.
    told_lost: Mutex<u64>,
}

impl Metrics {
    /// Nothing as yet, of a process whose `main` began at `main`.
    pub fn new(main: Instant, program: Box<dyn Program>, publish: Publish) -> Self {
        Self {
            program,
            publish,
            process: Process::new(main),
            requests: Requests::default(),
            output: Mutex::default(),
            guest: Mutex::new(Guest {
                state: State::NotStarted,
                insight: None,
                mark: None,
                cpu_before: Duration::ZERO,
                due: None,
            }),
            told_lost: Mutex::new(0),
        }
    }

    /// Requests of the API.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The API is served from now on.
    pub fn ready(&self, started: Started) {
        self.process.set_ready(started);
    }

    /// Has metrics written to `sink`, which must not block, from now on.
    pub fn set_sink(&self, sink: File) -> Result<(), AlreadySet> {
        let mut output = lock(&self.output);
        if output.writer.is_some() {
            return Err(AlreadySet);
        }
        output.writer = Some(Writer::new(sink));
        Ok(())
    }

    /// Whether they are written somewhere.
    pub fn has_sink(&self) -> bool {
        lock(&self.output).writer.is_some()
    }

    // The guest's life.

    /// A guest is about to be started.
    pub fn starting(&self) {
        lock(&self.guest).cpu_before = cpu_time();
    }

    /// This is the guest, before it runs.
    pub fn meet(self: &Arc<Self>, insight: Insight) {
        // Not this, which has the listener.
        let metrics = Arc::downgrade(self);
        insight.controls().listen(Some(Arc::new(move |event| {
            if let Some(metrics) = metrics.upgrade() {
                (metrics.publish)(&event.into());
            }
        })));
        lock(&self.guest).insight = Some(insight);
    }

    /// The state is another one. The first line is written when the guest begins to run.
    pub fn state_changed(&self, state: State) {
        (self.publish)(&Event::State { state });
        let mut guest = lock(&self.guest);
        let has_begun = guest.state == State::NotStarted && state != State::NotStarted;
        guest.state = state;
        if !has_begun {
            return;
        }
        guest.due = Some(Instant::now() + INTERVAL);
        let since_start = guest.insight.as_ref().map(|insight| {
            let times = insight.boot_times();
            micros(times.asked.elapsed())
        });
        drop(guest);
        (self.publish)(&Event::Boot {
            milestone: Milestone::Started,
            since_start_us: since_start.unwrap_or(0),
            since_first_run_us: None,
            value: None,
        });
        self.write_or_tell();
    }

    /// A snapshot has been written.
    pub fn snapshot_taken(&self, taken: &Taken) {
        (self.publish)(&Event::Snapshot {
            differential: taken.is_differential,
            pause_us: micros(taken.pause),
            memory_bytes: taken.memory,
        });
    }

    /// The guest has set a mark; returns what is to be logged of it, if it is the one that guests of Firecracker
    /// set.
    pub fn marked(&self, mark: &BootMark) -> Option<String> {
        let mut guest = lock(&self.guest);
        guest.mark.get_or_insert(*mark);
        let asked = guest.insight.as_ref().map(|it| it.boot_times().asked);
        let since_start = asked.map_or(Duration::ZERO, |asked| {
            mark.at.saturating_duration_since(asked)
        });
        let cpu = cpu_time().saturating_sub(guest.cpu_before);
        drop(guest);
        (self.publish)(&Event::Boot {
            milestone: Milestone::Mark,
            since_start_us: micros(since_start),
            since_first_run_us: Some(micros(mark.since_first_run)),
            value: Some(mark.value),
        });
        (mark.value == BOOTED).then(|| boot_time(since_start, cpu))
    }

    /// The guest has ended, and its devices are still there: the last line.
    pub fn ended(&self, reason: &StopReason) {
        if let StopReason::Requested(StopRequest::Signal(SIGHUP)) = reason {
            self.process.set_hung_up();
        }
        let insight = lock(&self.guest).insight.clone();
        if let Some(insight) = &insight {
            // Devices that go with their machine are no news.
            insight.controls().listen(None);
        }
        (self.publish)(&reason.into());
        self.write_or_tell();
        let mut guest = lock(&self.guest);
        guest.insight = None;
        guest.due = None;
    }

    /// A thread has panicked: a line without the devices, as this may be a thread that has one of them locked.
    pub fn panicked(&self) {
        self.process.count_panic();
        let Ok(mut output) = self.output.try_lock() else {
            return;
        };
        let totals = collect::totals(None, &self.requests, &self.process, &*self.program);
        let _ = output.write(totals);
    }

    // Writing.

    /// How long it is until [`Metrics::tick`] is to be called; None: not yet, or no more.
    pub fn due(&self) -> Option<Duration> {
        let due = lock(&self.guest).due?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Writes what is due.
    pub fn tick(&self) {
        let now = Instant::now();
        let mut guest = lock(&self.guest);
        match guest.due {
            // One that was late does not bring two.
            Some(due) if due <= now => guest.due = Some((due + INTERVAL).max(now)),
            _ => return,
        }
        drop(guest);
        self.check_log();
        self.write_or_tell();
    }

    /// Writes a line now; does nothing if there is nowhere to.
    pub fn flush(&self) -> Result<(), io::Error> {
        let mut output = lock(&self.output);
        if output.writer.is_none() {
            return Ok(());
        }
        let insight = lock(&self.guest).insight.clone();
        let totals = collect::totals(
            insight.as_ref(),
            &self.requests,
            &self.process,
            &*self.program,
        );
        let written = output.write(totals);
        let trouble = match &written {
            Ok(()) => {
                output.in_trouble = false;
                None
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.process.count_missed_line();
                } else {
                    self.process.count_failed_write();
                }
                let is_news = !std::mem::replace(&mut output.in_trouble, true);
                is_news.then(|| error.to_string())
            }
        };
        drop(output);
        if let Some(error) = trouble {
            log::warn!("Metrics cannot be written: {error}");
            (self.publish)(&Event::MetricsTrouble { error });
        }
        written
    }

    fn write_or_tell(&self) {
        // Who listens to events, or reads the log, was told.
        let _ = self.flush();
    }

    fn check_log(&self) {
        let missed = self.program.missed_log_lines();
        let before = std::mem::replace(&mut *lock(&self.told_lost), missed);
        if missed > before {
            (self.publish)(&Event::LogTrouble { missed });
        }
    }

    /// The text of `GET /metrics`.
    pub fn scrape(&self) -> String {
        self.check_log();
        let guest = lock(&self.guest);
        let (insight, state, mark) = (guest.insight.clone(), guest.state, guest.mark);
        drop(guest);
        scrape::scrape(&Sources {
            process: &self.process,
            program: &*self.program,
            requests: &self.requests,
            insight: insight.as_ref(),
            state,
            mark,
        })
    }
}

impl Output {
    fn write(&mut self, totals: Totals) -> io::Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        writer.make_room()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(0);
        let mut line = serde_json::to_vec(&totals.since(&self.before, now))?;
        line.push(b'\n');
        writer.write(&line)?;
        // Of a line that was lost, the next one tells as well.
        self.before = totals;
        Ok(())
    }
}

/// The line that programs look for which measure boots of Firecracker.
fn boot_time(wall: Duration, cpu: Duration) -> String {
    format!(
        "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms",
        wall.as_micros(),
        wall.as_millis(),
        cpu.as_micros(),
        cpu.as_millis()
    )
}

#[cfg(test)]
#[path = "metrics_test.rs"]
mod tests;
