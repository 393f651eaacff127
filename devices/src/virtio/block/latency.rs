//! How long requests take: fixed buckets, one writer, readers at any time.
//!
//! The clock is read once for all that is taken from a queue in one turn, and once for all that has ended by
//! then: a request's time is from when the worker took its turn to when the driver can see the answer. What
//! waits for the rate limit is still in the ring, and not counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, in order; one more bucket has no bound.
pub const BOUNDS_US: [u64; BUCKETS - 1] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 5_000_000,
];
/// Number of buckets.
pub const BUCKETS: usize = 18;

/// Latencies of one kind of request since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many took no longer than the bound of the same index, and longer than the one before.
    pub buckets: [u64; BUCKETS],
    /// All of them, in nanoseconds.
    pub sum_ns: u64,
    /// The shortest, in nanoseconds; 0 if there was none.
    pub min_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
}

impl Latency {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Latencies of what a disk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLatencies {
    /// Reads.
    pub reads: Latency,
    /// Writes.
    pub writes: Latency,
    /// Flushes that the driver asked for.
    pub flushes: Latency,
}

/// The same, as it happens. Only the worker writes, of which there is one at a time, so that no locked
/// instruction is needed; a reader may see a request in one of the numbers and not yet in another.
#[derive(Default)]
pub(super) struct Recorder {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

fn change(number: &AtomicU64, change: impl FnOnce(u64) -> u64) {
    number.store(change(number.load(Ordering::Relaxed)), Ordering::Relaxed);
}

impl Recorder {
    /// A request took so long. Only for the worker.
    pub(super) fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1000 < nanos);
        let is_first = self.max_ns.load(Ordering::Relaxed) == 0;
        // No request takes no time, and 0 says that there was none.
        let nanos = nanos.max(1);
        change(&self.buckets[bucket], |count| count.wrapping_add(1));
        change(&self.sum_ns, |sum| sum.wrapping_add(nanos));
        change(
            &self.min_ns,
            |min| {
                if is_first { nanos } else { min.min(nanos) }
            },
        );
        change(&self.max_ns, |max| max.max(nanos));
    }

    fn get(&self) -> Latency {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Latency {
            buckets: std::array::from_fn(|index| get(&self.buckets[index])),
            sum_ns: get(&self.sum_ns),
            min_ns: get(&self.min_ns),
            max_ns: get(&self.max_ns),
        }
    }
}

/// A recorder for each kind.
#[derive(Default)]
pub(super) struct Recorders {
    pub(super) reads: Recorder,
    pub(super) writes: Recorder,
    pub(super) flushes: Recorder,
}

impl Recorders {
    pub(super) fn get(&self) -> BlockLatencies {
        BlockLatencies {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_in_the_bucket_whose_bound_they_do_not_exceed() {
        let recorder = Recorder::default();
        for micros in [0, 10, 11, 5_000_000, 5_000_001, u64::MAX / 1_000_000] {
            recorder.record(Duration::from_micros(micros));
        }
        let latency = recorder.get();
        let mut expected = [0; BUCKETS];
        expected[0] = 2;
        expected[1] = 1;
        expected[BUCKETS - 2] = 1;
        expected[BUCKETS - 1] = 2;
        assert_eq!(latency.buckets, expected);
        assert_eq!(latency.count(), 6);
        assert_eq!(latency.min_ns, 1);
        assert_eq!(latency.max_ns, u64::MAX / 1_000_000 * 1000);
        assert!(BOUNDS_US.is_sorted());
    }
}
