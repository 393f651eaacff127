//! How often the guest can have the same said: each line in the source that its devices log from is limited by
//! itself, as a guest can do what is worth a warning again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::Record;

/// Lines that may come at once.
const BURST: u32 = 10;
/// How long it takes until as many may come again.
const PERIOD: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(PERIOD.as_millis() as u64 / BURST as u64);
/// What a guest reaches.
const OF_GUESTS: [&str; 2] = ["devices", "vmm"];

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is logged, after so many that were not.
    Log(u64),
    /// It is left out.
    LeaveOut,
}

/// One place in the source.
#[derive(Default)]
struct Limit {
    /// When as many lines as have come may have come, one at a time; in the past if there is room.
    full_until: Option<Instant>,
    left_out: u64,
}

impl Limit {
    fn ask(&mut self, now: Instant) -> Verdict {
        let start = self.full_until.map_or(now, |until| until.max(now));
        if start - now > PERIOD - INTERVAL {
            self.left_out += 1;
            return Verdict::LeaveOut;
        }
        self.full_until = Some(start + INTERVAL);
        Verdict::Log(std::mem::take(&mut self.left_out))
    }
}

/// All places that have logged.
#[derive(Default)]
pub(crate) struct Limits(BTreeMap<(&'static str, u32), Limit>);

impl Limits {
    /// None as yet.
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Counts a line, and says what becomes of it.
    pub(crate) fn ask(&mut self, record: &Record<'_>, now: Instant) -> Verdict {
        let module = record.module_path().unwrap_or_default();
        let name = module.split("::").next().unwrap_or_default();
        match (record.file_static(), record.line()) {
            (Some(file), Some(line)) if OF_GUESTS.contains(&name) => {
                self.0.entry((file, line)).or_default().ask(now)
            }
            _ => Verdict::Log(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(limits: &mut Limits, module: &str, line: u32, now: Instant) -> Verdict {
        let record = Record::builder()
            .module_path(Some(module))
            .file_static(Some("file.rs"))
            .line(Some(line))
            .build();
        limits.ask(&record, now)
    }

    #[test]
    fn a_place_is_heard_ten_times_and_then_twice_a_second() {
        let mut limits = Limits::new();
        let start = Instant::now();
        for _ in 0..10 {
            let verdict = ask(&mut limits, "devices::virtio::queue", 7, start);
            assert_eq!(verdict, Verdict::Log(0));
        }
        for _ in 0..1000 {
            let verdict = ask(&mut limits, "devices::virtio::queue", 7, start);
            assert_eq!(verdict, Verdict::LeaveOut);
        }
        // Others are not held back by it, and what no guest can cause by nothing.
        assert_eq!(ask(&mut limits, "devices", 8, start), Verdict::Log(0));
        for _ in 0..1000 {
            let verdict = ask(&mut limits, "mote_cli::service", 7, start);
            assert_eq!(verdict, Verdict::Log(0));
        }
        let later = start + INTERVAL;
        assert_eq!(ask(&mut limits, "devices", 7, later), Verdict::Log(1000));
        assert_eq!(ask(&mut limits, "devices", 7, later), Verdict::LeaveOut);
        // After a while there is as much room as in the beginning, and no more.
        let later = start + PERIOD * 100;
        assert_eq!(ask(&mut limits, "devices", 7, later), Verdict::Log(1));
        for _ in 0..9 {
            assert_eq!(ask(&mut limits, "devices", 7, later), Verdict::Log(0));
        }
        assert_eq!(ask(&mut limits, "devices", 7, later), Verdict::LeaveOut);
    }
}
