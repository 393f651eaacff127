//! What is known of this process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What only the program around knows.
pub trait Program: Send + Sync {
    /// Lines of the log that nobody will read.
    fn missed_log_lines(&self) -> u64;
    /// Lines of the log that were left out, as the guest had caused too many of their kind.
    fn limited_log_lines(&self) -> u64;
    /// Signals that have come.
    fn signals(&self) -> SignalCounts;
    /// What the guest's metadata service has done.
    fn metadata(&self) -> devices::mmds::Counters;
}

/// How often each signal has come, of those that nobody sends who means well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalCounts {
    /// SIGBUS.
    pub bus: u64,
    /// SIGSEGV.
    pub segv: u64,
    /// SIGXFSZ, which is survived.
    pub xfsz: u64,
    /// SIGXCPU.
    pub xcpu: u64,
    /// SIGPIPE, which is survived.
    pub pipe: u64,
    /// SIGILL.
    pub ill: u64,
}

/// What whoever started the process says of that, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Started {
    /// When it was asked for, by the monotonic clock.
    pub at_us: Option<u64>,
    /// CPU time of the process then.
    pub cpu_us: Option<u64>,
    /// CPU time that its parent used for it.
    pub parent_cpu_us: Option<u64>,
}

/// How long it took until the API was served, in microseconds; 0 where nobody said when it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) since_start_us: u64,
    pub(crate) cpu_us: u64,
    /// Since `main`.
    pub(crate) since_main: Option<Duration>,
}

impl Ready {
    fn new(started: Started, main: Instant, now_us: u64, cpu_now_us: u64) -> Self {
        let cpu = started
            .cpu_us
            .map(|cpu| cpu_now_us.saturating_sub(cpu) + started.parent_cpu_us.unwrap_or(0));
        Self {
            since_start_us: started.at_us.map_or(0, |at| now_us.saturating_sub(at)),
            cpu_us: cpu.unwrap_or(0),
            since_main: Some(main.elapsed()),
        }
    }
}

/// CPU time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// This process.
pub(crate) struct Process {
    /// When `main` began.
    pub(crate) main: Instant,
    ready: Mutex<Ready>,
    missed_lines: AtomicU64,
    failed_writes: AtomicU64,
    panics: AtomicU64,
    hung_up: AtomicBool,
}

impl Process {
    pub(crate) fn new(main: Instant) -> Self {
        Self {
            main,
            ready: Mutex::default(),
            missed_lines: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            hung_up: AtomicBool::new(false),
        }
    }

    /// The API is served from now on.
    pub(crate) fn set_ready(&self, started: Started) {
        let now = micros(read(ClockId::Monotonic));
        let ready = Ready::new(started, self.main, now, micros(cpu_time()));
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
    }

    pub(crate) fn ready(&self) -> Ready {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There was no room for a line of metrics.
    pub(crate) fn count_missed_line(&self) {
        self.missed_lines.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn missed_lines(&self) -> u64 {
        self.missed_lines.load(Ordering::Relaxed)
    }

    /// The host did not take a line of metrics.
    pub(crate) fn count_failed_write(&self) {
        self.failed_writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed_writes(&self) -> u64 {
        self.failed_writes.load(Ordering::Relaxed)
    }

    /// A thread has panicked.
    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// The terminal hung up.
    pub(crate) fn set_hung_up(&self) {
        self.hung_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn was_hung_up(&self) -> bool {
        self.hung_up.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_times_are_as_whoever_started_it_says() {
        let main = Instant::now();
        let started = Started {
            at_us: Some(1000),
            cpu_us: Some(30),
            parent_cpu_us: Some(7),
        };
        let ready = Ready::new(started, main, 1500, 100);
        assert_eq!((ready.since_start_us, ready.cpu_us), (500, 77));
        let ready = Ready::new(Started::default(), main, 1500, 100);
        assert_eq!((ready.since_start_us, ready.cpu_us), (0, 0));
        // A clock of the caller's that is ahead.
        let ready = Ready::new(started, main, 900, 10);
        assert_eq!((ready.since_start_us, ready.cpu_us), (0, 7));
    }
}
