//! The running half of the device: takes requests from all its queues, hands them to the disk a batch
//! at a time, and returns what has ended with one interrupt a queue.
//!
//! A turn on the event loop is bounded: by the size of the queue, and by bytes. A queue has at most as
//! many requests in flight as it has entries, whatever its driver makes available.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::control::{BlockCounters, Shared};
use super::feature;
use super::request::{Command, Limits, Range, Request, SERIAL_SIZE, Status};
use crate::backend::disk::{Buffer, Completion, Disk};
use crate::lock;
use crate::rate_limiter::RateLimiter;
use crate::virtio::Resources;
use crate::virtio::chain::slice_at;
use crate::virtio::queue::{self, Queue};

/// Bytes after which other workers of the loop have their turn.
const BYTES_PER_TURN: u64 = 16 << 20;
/// What a discard counts as: the host has to free extents, however long the range is.
const DISCARD_COST: u64 = 1 << 20;

// Which descriptor an event is for; below these, the kick of the queue with that number.
const COMPLETION: u32 = 0x100;
const TIMER: u32 = 0x101;
const WAKE: u32 = 0x102;

/// What a request in flight does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Not the driver's: it makes durable what the requests in [`Worker::syncing`] have written.
    Sync,
}

impl Doing {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush | Self::Sync => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
        }
    }
}

/// What its driver is told of a request.
#[derive(Clone, Copy, Debug, Default)]
struct Returned {
    head: u16,
    /// All that is writable.
    written: u32,
}

/// A request in flight.
struct InFlight {
    doing: Doing,
    /// Which of the worker's queues.
    queue: usize,
    returned: Returned,
    /// Bytes of data.
    bytes: u32,
    status: GuestAddress,
    /// When the turn began in which it was taken from its queue.
    started: Instant,
}

/// A queue at work.
struct Served {
    queue: Queue,
    in_flight: u16,
    /// There were so many that it was left alone: nobody kicks again.
    stalled: bool,
    /// Requests were returned that the driver was not told of.
    completed: bool,
    /// The driver broke the rules.
    broken: bool,
}

/// The worker.
pub(super) struct Worker {
    // Fixed configuration.
    serial: [u8; SERIAL_SIZE],
    /// VIRTIO_BLK_F_FLUSH was negotiated.
    flushes: bool,
    // Runtime glue.
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    // Volatile state.
    disk: Disk,
    limiter: RateLimiter,
    queues: Vec<Served>,
    /// By the number that the disk knows them by.
    requests: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// Requests that have written, and are to be durable before they are returned.
    unsynced: Vec<u32>,
    /// Those that are being made durable.
    syncing: Vec<u32>,
    /// Since the last time that they were added to the shared ones.
    counters: BlockCounters,
    /// When it last began to take requests, or to return some.
    now: Instant,
    /// Buffer.
    completions: Vec<Completion>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Disk,
        limiter: RateLimiter,
        resources: Resources,
    ) -> Self {
        let flushes = resources.has_feature(feature::FLUSH);
        let queues = resources.queues.into_iter().flatten().map(|queue| Served {
            queue,
            in_flight: 0,
            stalled: false,
            completed: false,
            broken: false,
        });
        Self {
            serial: shared.config.serial_bytes(),
            flushes,
            memory: resources.memory,
            disk,
            limiter,
            queues: queues.collect(),
            requests: Vec::new(),
            free: Vec::new(),
            unsynced: Vec::new(),
            syncing: Vec::new(),
            counters: BlockCounters::default(),
            now: Instant::now(),
            completions: Vec::new(),
            shared,
        }
    }

    /// Ends all requests, and gives back what the worker was made of. It is on no event loop.
    pub(super) fn stop(mut self) -> (Disk, RateLimiter, Vec<Queue>) {
        self.finish_all();
        self.tell();
        let queues = self.queues.into_iter().map(|served| served.queue);
        (self.disk, self.limiter, queues.collect())
    }

    /// Whether what is written has to be durable before its request is returned (section 5.2.6.2).
    fn is_write_through(&self) -> bool {
        let flushes = self.flushes && self.shared.writeback.load(Ordering::Acquire);
        self.disk.is_durable() && !flushes
    }

    /// Takes requests from a queue.
    fn serve(&mut self, index: usize, ops: &mut EventOps) {
        // A blocked limiter's timer comes for all queues.
        if self.limiter.is_blocked() || self.queues.get(index).is_none_or(|served| served.broken) {
            return;
        }
        if let Err(error) = self.take_requests(index, ops) {
            self.fail(index, &error);
        }
    }

    fn fail(&mut self, index: usize, error: &queue::Error) {
        if let Some(served) = self.queues.get_mut(index)
            && !served.broken
        {
            served.queue.fail(error);
            served.broken = true;
        }
    }

    fn take_requests(&mut self, index: usize, ops: &mut EventOps) -> Result<(), queue::Error> {
        let limits = Limits {
            size: self.disk.info().size(),
            read_only: self.disk.info().is_read_only(),
        };
        let mut left = BYTES_PER_TURN;
        let mut is_first = true;
        self.queues[index].queue.disable_kicks()?;
        for _ in 0..self.queues[index].queue.size() {
            let served = &mut self.queues[index];
            if served.in_flight >= served.queue.size() {
                served.stalled = true;
                return Ok(());
            }
            let Some(chain) = served.queue.pop()? else {
                break;
            };
            if std::mem::take(&mut is_first) {
                self.now = Instant::now();
            }
            let returned = Returned {
                head: chain.head(),
                written: chain.writable.len(),
            };
            let Some(request) = Request::parse(chain, &self.memory, limits) else {
                self.counters.bad_requests += 1;
                served.queue.complete(returned.head, 0)?;
                served.completed = true;
                continue;
            };
            let bytes = match request.command {
                Ok(Command::Read { .. } | Command::Write { .. }) => request.data.len().into(),
                _ => 0,
            };
            if !self.limiter.take(1, bytes) {
                served.queue.undo_pop();
                self.counters.throttled += 1;
                self.limiter.watch(TIMER, ops);
                return Ok(());
            }
            left = left.saturating_sub(cost(&request));
            self.start(index, returned, request)?;
            if left == 0 {
                break;
            }
        }
        if is_first {
            self.counters.empty_kicks += 1;
        }
        let queue = &mut self.queues[index].queue;
        if queue.enable_kicks()? {
            queue.kick_myself();
        }
        Ok(())
    }

    /// Hands a request to the disk, or answers it.
    fn start(
        &mut self,
        index: usize,
        returned: Returned,
        request: Request,
    ) -> Result<(), queue::Error> {
        let Request {
            command,
            data,
            status,
        } = request;
        let started = self.now;
        let in_flight = |doing| InFlight {
            doing,
            queue: index,
            returned,
            bytes: data.len(),
            status,
            started,
        };
        match command {
            Ok(Command::Read { offset }) => {
                let Some(buffer) = Buffer::new(&self.memory, &data) else {
                    return self.answer(index, returned, status, Status::IoError);
                };
                let id = self.add(in_flight(Doing::Read));
                self.disk.read(id, offset, buffer);
            }
            Ok(Command::Write { offset }) => {
                let Some(buffer) = Buffer::new(&self.memory, &data) else {
                    return self.answer(index, returned, status, Status::IoError);
                };
                let id = self.add(in_flight(Doing::Write));
                self.disk.write(id, offset, buffer);
            }
            Ok(Command::Flush) => {
                let id = self.add(in_flight(Doing::Flush));
                self.disk.flush(id, &Buffer::empty(&self.memory));
            }
            Ok(Command::Discard(ranges)) => {
                let id = self.add(in_flight(Doing::Discard));
                let discard = |range: &Range| self.disk.discard(range.offset, range.len);
                let result = ranges.iter().try_for_each(discard);
                self.completions.push((id, result));
            }
            Ok(Command::WriteZeroes(ranges)) => {
                let id = self.add(in_flight(Doing::WriteZeroes));
                let result = ranges.iter().try_for_each(|range| {
                    self.disk.write_zeroes(range.offset, range.len, range.unmap)
                });
                self.completions.push((id, result));
            }
            Ok(Command::GetId) => {
                let len = self.serial.len().min(data.len() as usize);
                let result = match data.write(&self.memory, 0, &self.serial[..len]) {
                    Ok(()) => Status::Ok,
                    Err(_) => Status::IoError,
                };
                self.answer(index, returned, status, result)?;
            }
            Err(result) => self.answer(index, returned, status, result)?,
        }
        Ok(())
    }

    /// Answers a request that the disk never saw.
    fn answer(
        &mut self,
        index: usize,
        returned: Returned,
        status: GuestAddress,
        result: Status,
    ) -> Result<(), queue::Error> {
        if result != Status::Ok {
            self.counters.bad_requests += 1;
        }
        self.write_status(status, result);
        let served = &mut self.queues[index];
        served.completed = true;
        served.queue.complete(returned.head, returned.written)
    }

    fn write_status(&self, place: GuestAddress, status: Status) {
        // It was checked to be memory.
        if let Some(slice) = slice_at(&self.memory, place, 1) {
            let _ = slice.store(status as u8, 0, Ordering::Relaxed);
        }
    }

    /// Gives a request a number.
    fn add(&mut self, request: InFlight) -> u32 {
        if request.doing != Doing::Sync
            && let Some(served) = self.queues.get_mut(request.queue)
        {
            served.in_flight += 1;
        }
        if let Some(id) = self.free.pop() {
            self.requests[id as usize] = Some(request);
            return id;
        }
        self.requests.push(Some(request));
        // At most a queue full for each queue, and one.
        u32::try_from(self.requests.len() - 1).unwrap_or(u32::MAX)
    }

    /// Starts what was handed to the disk, and returns what has ended.
    fn finish(&mut self) {
        loop {
            self.disk.submit();
            self.disk.completions(&mut self.completions);
            if self.completions.is_empty() && (self.unsynced.is_empty() || !self.syncing.is_empty())
            {
                return;
            }
            self.note_completions();
        }
    }

    /// Waits for all that is in flight, and returns it.
    fn finish_all(&mut self) {
        loop {
            self.disk.submit();
            self.disk.drain();
            self.finish();
            if self.free.len() == self.requests.len() {
                return;
            }
        }
    }

    fn note_completions(&mut self) {
        self.now = Instant::now();
        let mut completions = std::mem::take(&mut self.completions);
        for (id, result) in completions.drain(..) {
            self.ended(id, &result);
        }
        self.completions = completions;
        if self.unsynced.is_empty() || !self.syncing.is_empty() {
            return;
        }
        // One sync for all that was written meanwhile.
        std::mem::swap(&mut self.syncing, &mut self.unsynced);
        let id = self.add(InFlight {
            doing: Doing::Sync,
            queue: 0,
            returned: Returned::default(),
            bytes: 0,
            status: GuestAddress(0),
            started: self.now,
        });
        self.disk.flush(id, &Buffer::empty(&self.memory));
    }

    /// The disk has done a request, or failed.
    fn ended(&mut self, id: u32, result: &io::Result<()>) {
        let Some(request) = self.requests.get(id as usize).and_then(Option::as_ref) else {
            return;
        };
        let doing = request.doing;
        if let Err(error) = result {
            self.shared.log_once(doing.name(), error);
        }
        let is_ok = result.is_ok();
        match doing {
            Doing::Sync => {
                self.requests[id as usize] = None;
                self.free.push(id);
                let mut syncing = std::mem::take(&mut self.syncing);
                for id in syncing.drain(..) {
                    self.give_back(id, is_ok);
                }
                self.syncing = syncing;
            }
            Doing::Write | Doing::Discard | Doing::WriteZeroes
                if is_ok && self.is_write_through() =>
            {
                self.unsynced.push(id);
            }
            _ => self.give_back(id, is_ok),
        }
    }

    /// Returns a request to its driver.
    fn give_back(&mut self, id: u32, is_ok: bool) {
        let Some(request) = self.requests.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(id);
        let counters = &mut self.counters;
        let latencies = &self.shared.latencies;
        let took = self.now.saturating_duration_since(request.started);
        let bytes = u64::from(request.bytes);
        match request.doing {
            _ if !is_ok => counters.host_errors += 1,
            Doing::Read => {
                counters.reads += 1;
                counters.read_bytes += bytes;
                latencies.reads.record(took);
            }
            Doing::Write => {
                counters.writes += 1;
                counters.write_bytes += bytes;
                latencies.writes.record(took);
            }
            Doing::Flush => {
                counters.flushes += 1;
                latencies.flushes.record(took);
            }
            Doing::Discard => counters.discards += 1,
            Doing::WriteZeroes => counters.write_zeroes += 1,
            Doing::Sync => {}
        }
        let status = if is_ok { Status::Ok } else { Status::IoError };
        self.write_status(request.status, status);
        let Some(served) = self.queues.get_mut(request.queue) else {
            return;
        };
        served.in_flight -= 1;
        served.completed = true;
        if served.broken {
            return;
        }
        let Returned { head, written } = request.returned;
        if let Err(error) = served.queue.complete(head, written) {
            self.fail(request.queue, &error);
        }
    }

    /// Tells the driver and the counters of what was returned.
    fn tell(&mut self) {
        for index in 0..self.queues.len() {
            let served = &mut self.queues[index];
            if served.stalled && served.in_flight < served.queue.size() {
                served.stalled = false;
                served.queue.kick_myself();
            }
            if std::mem::take(&mut served.completed)
                && !served.broken
                && let Err(error) = served.queue.notify()
            {
                self.fail(index, &error);
            }
        }
        if self.counters != BlockCounters::default() {
            lock(&self.shared.counters).add(&std::mem::take(&mut self.counters));
        }
    }

    /// Does what the monitor has asked for meanwhile.
    fn read_mail(&mut self, ops: &mut EventOps) {
        if !self.shared.has_mail.swap(false, Ordering::AcqRel) {
            return;
        }
        let rate = *lock(&self.shared.rate);
        if rate != self.limiter.limit()
            && let Err(error) = self.limiter.update(rate)
        {
            log::warn!("Disk '{}' keeps its limits: {error}", self.shared.config.id);
        }
        let replacement = lock(&self.shared.replacement).take();
        if let Some(disk) = replacement {
            self.finish_all();
            if let Some(event) = self.disk.event() {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(Events::with_data_raw(event, COMPLETION, EventSet::IN));
            }
            self.disk = disk;
            self.watch_disk(ops);
        }
    }

    fn watch_disk(&self, ops: &mut EventOps) {
        if let Some(event) = self.disk.event() {
            watch(event, COMPLETION, ops);
        }
    }
}

/// What a request may take of a turn, in bytes.
fn cost(request: &Request) -> u64 {
    match &request.command {
        Ok(Command::Read { .. } | Command::Write { .. }) => request.data.len().into(),
        Ok(Command::WriteZeroes(ranges)) => ranges.iter().map(|range| range.len).sum(),
        Ok(Command::Discard(_)) => DISCARD_COST,
        _ => 0,
    }
}

fn watch(fd: RawFd, data: u32, ops: &mut EventOps) {
    // Fails only for a descriptor that is already there.
    let _ = ops.add(Events::with_data_raw(fd, data, EventSet::IN));
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        self.read_mail(ops);
        match event.data() {
            COMPLETION => self.disk.clear_event(),
            TIMER => {
                self.counters.limit_timers += 1;
                self.limiter.on_timer();
                for index in 0..self.queues.len() {
                    self.serve(index, ops);
                }
            }
            WAKE => {
                // Empties it; fails if it is empty.
                let _ = self.shared.wake.read();
            }
            kick => {
                self.counters.kicks += 1;
                let index = kick as usize;
                if let Some(served) = self.queues.get(index) {
                    // Empties it; fails if it is empty.
                    let _ = served.queue.kick().read();
                }
                self.serve(index, ops);
            }
        }
        self.finish();
        self.tell();
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (data, served) in (0..).zip(&self.queues) {
            // Fails only for a descriptor that is already there.
            let _ = ops.add(Events::with_data(
                &**served.queue.kick(),
                data,
                EventSet::IN,
            ));
        }
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::with_data(&self.shared.wake, WAKE, EventSet::IN));
        self.watch_disk(ops);
        self.limiter.watch(TIMER, ops);
        // What was asked for while there was no worker.
        self.read_mail(ops);
    }
}
