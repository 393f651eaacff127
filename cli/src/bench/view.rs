//! What is shown while it is measured.

use std::sync::Mutex;

use ::bench::live::{Live, Preparing};
use ::bench::record::{Purpose, Run};
use ::bench::{density, startup};

use super::facts::emulator;

/// Of starts.
#[derive(Default)]
pub(super) struct Starts {
    preparing: Option<Preparing>,
    live: Option<Live>,
}

impl startup::Progress for Starts {
    fn prepares(&mut self, name: &str) {
        self.preparing.get_or_insert_default().now(name);
    }

    fn begins(&mut self, rows: &[String], starts: u64) {
        self.preparing = None;
        self.live = Some(Live::new(rows, starts, emulator()));
    }

    fn starts(&mut self, row: usize, purpose: Purpose) {
        if let Some(live) = &mut self.live {
            live.begins(row, purpose);
        }
    }

    fn ran(&mut self, row: usize, run: &Run) {
        if let Some(live) = &mut self.live {
            live.ran(row, run);
        }
    }
}

/// Of instances.
pub(super) struct Instances {
    live: Mutex<Live>,
    limit: u64,
    starts: u64,
}

impl Instances {
    /// Of so many instances of each of these runtimes at once, and so many starts side by side.
    pub(super) fn new(names: &[String], limit: u32, starts: u32) -> Self {
        let (limit, starts) = (u64::from(limit), u64::from(starts));
        let total = names.len() as u64 * (limit + starts);
        Self {
            live: Mutex::new(Live::new(names, total, emulator())),
            limit,
            starts,
        }
    }

    fn reached(&self, row: usize, in_row: u64, doing: &str) {
        // Whoever held it has only drawn.
        let mut live = self
            .live
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        live.reached(row, row as u64 * (self.limit + self.starts) + in_row, doing);
    }
}

impl density::Progress for Instances {
    fn prepares(&self, row: usize) {
        self.reached(row, 0, "preparing");
    }

    fn holds(&self, row: usize, count: u32) {
        let doing = format!("{count} of {} instances", self.limit);
        self.reached(row, u64::from(count), &doing);
    }

    fn started(&self, row: usize, count: u32) {
        let doing = format!("{count} of {} starts side by side", self.starts);
        self.reached(row, self.limit + u64::from(count), &doing);
    }
}
