//! The running half: one sync of the file for all flushes that wait, and one at a time.
//!
//! Requests that come while the file is being made durable stay in the ring: what was written before them
//! may not be part of that.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestMemoryMmap;

use super::control::Shared;
use crate::backend::disk::mapped::Syncer;
use crate::lock;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{self, Queue};

/// The one type of request: a flush.
const FLUSH: u32 = 0;
/// Bytes of a request, and of its answer.
const WORD: u32 = 4;
/// Answers: Linux makes EIO of all but the first.
const OK: u32 = 0;
const FAILED: u32 = u32::MAX;

// Which descriptor an event is for.
const KICK: u32 = 0;
const LIMIT: u32 = 1;
const SYNCED: u32 = 2;
const CHANGED: u32 = 3;

/// The worker.
pub(super) struct Worker {
    // Runtime glue.
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    // Volatile state.
    queue: Queue,
    syncer: Syncer,
    /// Readable when the file may have been cut. None where the host has no such thing: then whoever
    /// touches what is lost notices.
    watch: Option<OwnedFd>,
    /// Flushes that wait for the sync that runs.
    flushes: Vec<Chain>,
    /// The driver broke the rules.
    broken: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, memory: Arc<GuestMemoryMmap>, queue: Queue) -> Self {
        Self {
            syncer: shared.file.syncer(&memory),
            watch: shared.file.watch().ok(),
            shared,
            memory,
            queue,
            flushes: Vec::new(),
            broken: false,
        }
    }

    /// Ends what is in flight, and gives the queue back. The worker is on no event loop.
    pub(super) fn stop(mut self) -> Queue {
        if !self.flushes.is_empty() {
            self.syncer.wait();
            if let Err(error) = self.finish() {
                self.queue.fail(&error);
            }
        }
        self.queue
    }

    /// Takes what is in the ring, unless a sync runs or the limit says no.
    fn serve(&mut self, ops: &mut EventOps) -> Result<(), queue::Error> {
        if !self.flushes.is_empty() {
            return Ok(());
        }
        self.queue.disable_kicks()?;
        if !self.queue.has_next() {
            if self.queue.enable_kicks()? {
                self.queue.kick_myself();
            }
            return self.queue.notify();
        }
        if !self.may_sync(ops) {
            // They stay in the ring until the timer says so, and no kick is needed.
            return self.queue.notify();
        }
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop()? else {
                break;
            };
            if is_flush(&chain, &self.memory) {
                self.flushes.push(chain);
            } else {
                lock(&self.shared.counters).bad_requests += 1;
                self.give_back(&chain, FAILED)?;
            }
        }
        if self.flushes.is_empty() {
            let len = self.shared.file.file_len();
            lock(&self.shared.limiter).give_back(1, len);
            self.queue.kick_myself();
        } else {
            self.syncer.start();
            self.finish()?;
        }
        self.queue.notify()
    }

    fn may_sync(&self, ops: &mut EventOps) -> bool {
        let mut limiter = lock(&self.shared.limiter);
        if limiter.is_blocked() {
            return false;
        }
        if limiter.take(1, self.shared.file.file_len()) {
            return true;
        }
        limiter.watch(LIMIT, ops);
        lock(&self.shared.counters).throttled += 1;
        false
    }

    /// Returns the flushes, if their sync has ended.
    fn finish(&mut self) -> Result<(), queue::Error> {
        if self.flushes.is_empty() {
            return Ok(());
        }
        let Some(result) = self.syncer.take_result() else {
            return Ok(());
        };
        let result = result.and_then(|()| self.shared.file.check_whole());
        if let Err(error) = &result {
            self.shared.log_once(error);
        }
        let is_good = result.is_ok();
        let flushes = std::mem::take(&mut self.flushes);
        {
            let mut counters = lock(&self.shared.counters);
            let count = flushes.len() as u64;
            counters.syncs += 1;
            if is_good {
                counters.flushes += count;
            } else {
                counters.host_errors += count;
            }
        }
        let answer = if is_good { OK } else { FAILED };
        for chain in flushes {
            self.give_back(&chain, answer)?;
        }
        // For those that came meanwhile.
        self.queue.kick_myself();
        self.queue.notify()
    }

    fn give_back(&mut self, chain: &Chain, answer: u32) -> Result<(), queue::Error> {
        let result = chain.writable.write(&self.memory, 0, &answer.to_le_bytes());
        let written = if result.is_ok() { WORD } else { 0 };
        self.queue.complete(chain.head(), written)
    }
}

/// Whether it is a request to flush, with room for the answer.
fn is_flush(chain: &Chain, memory: &GuestMemoryMmap) -> bool {
    let mut kind = [0; WORD as usize];
    chain.readable.read(memory, 0, &mut kind).is_ok()
        && u32::from_le_bytes(kind) == FLUSH
        && chain.writable.len() >= WORD
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        match event.data() {
            LIMIT => {
                lock(&self.shared.limiter).on_timer();
                lock(&self.shared.counters).limit_events += 1;
            }
            SYNCED => self.syncer.clear_event(),
            CHANGED => {
                if let Some(watch) = &self.watch {
                    self.shared.file.look_again(watch);
                }
            }
            _ => {
                // Empties it; fails if it is empty.
                let _ = self.queue.kick().read();
                lock(&self.shared.counters).queue_events += 1;
            }
        }
        if self.broken {
            return;
        }
        if let Err(error) = self.finish().and_then(|()| self.serve(ops)) {
            self.queue.fail(&error);
            self.broken = true;
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::with_data(&**self.queue.kick(), KICK, EventSet::IN));
        if let Some(event) = self.syncer.event() {
            let _ = ops.add(Events::with_data_raw(event, SYNCED, EventSet::IN));
        }
        if let Some(watch) = &self.watch {
            let _ = ops.add(Events::with_data(watch, CHANGED, EventSet::IN));
            // Before anyone has watched.
            self.shared.file.look_again(watch);
        }
        lock(&self.shared.limiter).watch(LIMIT, ops);
        // A driver that was there before does not kick for what it has asked already.
        self.queue.kick_myself();
    }
}
