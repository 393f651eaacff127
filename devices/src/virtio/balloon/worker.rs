//! The running half of the balloon.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::Shared;
use super::stats::{BalloonStats, ENTRY_LEN, MAX_ENTRIES};
use crate::backend::guest_ram::{PAGE_SIZE, discard};
use crate::lock;
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::queue::{self, Queue};

/// Bytes of a page's number.
const PFN_LEN: usize = 4;
/// Page numbers that are read of one request; Linux sends 256. What is more stays with the guest.
pub(super) const MAX_PFNS: usize = 4096;
/// Pages of requests after which other subscribers of the loop have their turn.
const PFNS_PER_TURN: usize = 4 * MAX_PFNS;
/// Bytes of free memory after which they have, too: the host frees about that much in a few
/// milliseconds.
const BYTES_PER_TURN: u64 = 256 << 20;

// Which descriptor an event is for.
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const STATS: u32 = 2;
const REPORTING: u32 = 3;
const HINTING: u32 = 4;
const TIMER: u32 = 5;

/// The queues, as far as the driver has them.
pub(super) struct Queues {
    pub(super) inflate: Option<Queue>,
    pub(super) deflate: Option<Queue>,
    pub(super) stats: Option<Queue>,
    pub(super) hinting: Option<Queue>,
    pub(super) reporting: Option<Queue>,
    /// Without a feature that belongs to them.
    pub(super) unused: Vec<Queue>,
}

/// The worker.
pub(super) struct Worker {
    // Runtime glue.
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    // Volatile state.
    queues: Queues,
    /// The request by which the driver wants to be asked for statistics. There is no other after it
    /// until it is returned.
    held: Option<Chain>,
    /// The driver broke the rules.
    broken: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, memory: Arc<GuestMemoryMmap>, queues: Queues) -> Self {
        Self {
            shared,
            memory,
            queues,
            held: None,
            broken: false,
        }
    }

    /// Its queues, with nothing in flight.
    pub(super) fn into_queues(self) -> Vec<Queue> {
        let Queues {
            inflate,
            deflate,
            mut stats,
            hinting,
            reporting,
            unused,
        } = self.queues;
        if let (Some(_), Some(queue)) = (&self.held, &mut stats) {
            // It was the last one. Whoever goes on with the queue finds it again.
            queue.undo_pop();
        }
        let all = [inflate, deflate, stats, hinting, reporting];
        all.into_iter().flatten().chain(unused).collect()
    }

    fn serve(&mut self, event: u32) -> Result<(), (u32, queue::Error)> {
        let (shared, memory) = (&self.shared, &self.memory);
        let counters = &shared.counters;
        let result = match event {
            INFLATE => serve_queue(&mut self.queues.inflate, PFNS_PER_TURN as u64, |chain| {
                let ranges = page_ranges(&chain.readable, memory);
                let bytes = ranges.iter().map(|range| range.end - range.start).sum();
                add(&counters.inflated, bytes);
                add(&counters.inflations, 1);
                give_up(shared, memory, &ranges);
                // What a page costs if none is next to another.
                1 + u64::from(chain.readable.len()) / PFN_LEN as u64
            }),
            DEFLATE => serve_queue(&mut self.queues.deflate, PFNS_PER_TURN as u64, |chain| {
                let ranges = page_ranges(&chain.readable, memory);
                let bytes = ranges.iter().map(|range| range.end - range.start).sum();
                add(&counters.deflated, bytes);
                add(&counters.deflations, 1);
                1 + u64::from(chain.readable.len()) / PFN_LEN as u64
            }),
            REPORTING => serve_queue(&mut self.queues.reporting, BYTES_PER_TURN, |chain| {
                add(&counters.reported, chain.writable.len().into());
                add(&counters.reports, 1);
                give_up(shared, memory, &ranges_of(&chain.writable));
                u64::from(chain.writable.len()).max(PAGE_SIZE)
            }),
            HINTING => serve_queue(&mut self.queues.hinting, BYTES_PER_TURN, |chain| {
                hear_hint(shared, memory, chain);
                u64::from(chain.writable.len()).max(PAGE_SIZE)
            }),
            STATS => self.serve_stats(),
            TIMER => self.ask_for_stats(),
            _ => Ok(()),
        };
        result.map_err(|error| (event, error))
    }

    /// Takes the statistics that the driver sends.
    fn serve_stats(&mut self) -> Result<(), queue::Error> {
        let Some(queue) = &mut self.queues.stats else {
            return Ok(());
        };
        if self.held.is_some() {
            return Ok(());
        }
        if let Some(chain) = queue.pop()? {
            let mut bytes = [0; MAX_ENTRIES * ENTRY_LEN];
            let len = bytes.len().min(chain.readable.len() as usize);
            let is_read = chain
                .readable
                .read(&self.memory, 0, &mut bytes[..len])
                .is_ok();
            if is_read && len >= ENTRY_LEN {
                add(&self.shared.counters.statistics, 1);
                *lock(&self.shared.stats) = BalloonStats::parse(&bytes[..len], Instant::now());
            }
            self.held = Some(chain);
        }
        // With the event index a driver kicks only for what it was asked to kick for.
        if queue.enable_kicks()? && self.held.is_none() {
            queue.kick_myself();
        }
        Ok(())
    }

    /// Returns the driver's request: it sends new statistics with the next.
    fn ask_for_stats(&mut self) -> Result<(), queue::Error> {
        if let (Some(queue), Some(chain)) = (&mut self.queues.stats, self.held.take()) {
            queue.complete(chain.head(), 0)?;
            queue.notify()?;
            // One that came too early waits there.
            return self.serve_stats();
        }
        Ok(())
    }

    /// The queue of an event.
    fn queue(&self, event: u32) -> Option<&Queue> {
        let Queues {
            inflate,
            deflate,
            stats,
            hinting,
            reporting,
            unused: _,
        } = &self.queues;
        match event {
            INFLATE => inflate.as_ref(),
            DEFLATE => deflate.as_ref(),
            STATS | TIMER => stats.as_ref(),
            REPORTING => reporting.as_ref(),
            HINTING => hinting.as_ref(),
            _ => None,
        }
    }
}

/// Serves requests until they have cost `budget`, so that other workers have their turn; `request`
/// serves one and says what it cost.
fn serve_queue(
    queue: &mut Option<Queue>,
    budget: u64,
    mut request: impl FnMut(&Chain) -> u64,
) -> Result<(), queue::Error> {
    let Some(queue) = queue else {
        return Ok(());
    };
    queue.disable_kicks()?;
    let mut cost = 0u64;
    while cost < budget {
        let Some(chain) = queue.pop()? else {
            break;
        };
        cost = cost.saturating_add(request(&chain));
        queue.complete(chain.head(), 0)?;
    }
    if queue.enable_kicks()? {
        queue.kick_myself();
    }
    queue.notify()
}

/// The pages whose numbers are in `buffers`, as few ranges of addresses, in order.
fn page_ranges(buffers: &Buffers, memory: &GuestMemoryMmap) -> Vec<Range<u64>> {
    let count = MAX_PFNS.min(buffers.len() as usize / PFN_LEN);
    let mut bytes = vec![0; count * PFN_LEN];
    if buffers.read(memory, 0, &mut bytes).is_err() {
        return Vec::new();
    }
    let (numbers, _) = bytes.as_chunks::<PFN_LEN>();
    coalesce(
        numbers
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect(),
    )
}

/// Pages by their numbers, in any order, as ranges that neither touch nor overlap.
pub(super) fn coalesce(mut pfns: Vec<u32>) -> Vec<Range<u64>> {
    pfns.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for pfn in pfns {
        let start = u64::from(pfn) * PAGE_SIZE;
        match ranges.last_mut() {
            Some(last) if last.end >= start => last.end = start + PAGE_SIZE,
            _ => ranges.push(start..start + PAGE_SIZE),
        }
    }
    ranges
}

/// A request on the queue of hints: a command, or free memory.
fn hear_hint(shared: &Shared, memory: &GuestMemoryMmap, chain: &Chain) {
    let mut command = [0; 4];
    if chain.readable.read(memory, 0, &mut command).is_ok() {
        let has_changed = lock(&shared.hinting).hear(u32::from_le_bytes(command));
        if has_changed {
            shared.announce();
        }
    }
    if chain.writable.is_empty() || !lock(&shared.hinting).is_in_round() {
        return;
    }
    add(&shared.counters.hinted, chain.writable.len().into());
    add(&shared.counters.hints, 1);
    give_up(shared, memory, &ranges_of(&chain.writable));
}

/// Where buffers are.
fn ranges_of(buffers: &Buffers) -> Vec<Range<u64>> {
    let segments = buffers.segments().iter();
    segments
        .map(|segment| segment.gpa.0..segment.gpa.0 + u64::from(segment.len))
        .collect()
}

/// Gives memory back to the host.
fn give_up(shared: &Shared, memory: &GuestMemoryMmap, ranges: &[Range<u64>]) {
    let mut all = true;
    for range in ranges {
        let len = range.end - range.start;
        let discarded = discard(memory, GuestAddress(range.start), len).unwrap_or(0);
        add(&shared.counters.discarded, discarded);
        all &= discarded == len;
    }
    if !all {
        add(&shared.counters.failed, 1);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, _: &mut EventOps) {
        let event = event.data();
        // Empties it; fails if it is empty.
        if event == TIMER {
            let _ = rustix::io::read(&self.shared.timer, &mut [0; 8]);
        } else if let Some(queue) = self.queue(event) {
            let _ = queue.kick().read();
        }
        if self.broken {
            return;
        }
        if let Err((event, error)) = self.serve(event) {
            if let Some(queue) = self.queue(event) {
                queue.fail(&error);
            }
            self.broken = true;
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = |events| {
            // Fails only for a descriptor that is already there.
            let _ = ops.add(events);
        };
        for event in [INFLATE, DEFLATE, STATS, REPORTING, HINTING] {
            if let Some(queue) = self.queue(event) {
                watch(Events::with_data(&**queue.kick(), event, EventSet::IN));
                // A driver that was there before does not kick for what it has asked already.
                queue.kick_myself();
            }
        }
        let timer = self.shared.timer.as_raw_fd();
        watch(Events::with_data_raw(timer, TIMER, EventSet::IN));
    }
}
