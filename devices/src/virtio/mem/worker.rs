//! The running half: serves requests one after the other, in the order of the ring.
//!
//! A request takes as long as the host needs for its memory, and there is nobody else on this event loop.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::blocks::Blocks;
use super::control::{self, Shared};
use super::request::{BlockState, Place, RESPONSE_LEN, Request, Response};
use crate::backend::guest_ram::discard;
use crate::lock;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{self, Queue};

const KICK: u32 = 0;

/// The worker.
pub(super) struct Worker {
    // Runtime glue.
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    // Volatile state.
    queue: Queue,
    /// The driver broke the rules.
    broken: bool,
    /// The host has refused memory, and the log knows.
    logged: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, memory: Arc<GuestMemoryMmap>, queue: Queue) -> Self {
        Self {
            shared,
            memory,
            queue,
            broken: false,
            logged: false,
        }
    }

    /// Its queue, with nothing in flight.
    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    /// Serves one request: the next one's turn comes after those who want to stop this worker.
    fn serve(&mut self) -> Result<(), queue::Error> {
        self.queue.disable_kicks()?;
        if let Some(chain) = self.queue.pop()? {
            let written = self.answer(&chain);
            self.queue.complete(chain.head(), written)?;
            self.queue.kick_myself();
        } else if self.queue.enable_kicks()? {
            self.queue.kick_myself();
        }
        self.queue.notify()
    }

    /// Does what is asked; says how many bytes the answer has.
    fn answer(&mut self, chain: &Chain) -> u32 {
        // Without room for the answer nothing is done: the driver could not know.
        let has_room = chain.writable.len() as usize >= RESPONSE_LEN;
        let request = Request::read(chain, &self.memory).filter(|_| has_room);
        let response = match request {
            None | Some(Request::Unknown) => {
                lock(&self.shared.counters).bad_requests += 1;
                Response::Error
            }
            Some(request) => self.execute(request),
        };
        let bytes = response.to_bytes();
        match chain.writable.write(&self.memory, 0, &bytes) {
            Ok(()) => bytes.len() as u32,
            Err(_) => 0,
        }
    }

    fn execute(&mut self, request: Request) -> Response {
        let start = Instant::now();
        let shared = Arc::clone(&self.shared);
        let Some(place) = shared.place.get() else {
            return Response::Busy;
        };
        let plugged_before = lock(&shared.sizes).plugged;
        let response = {
            let mut blocks = lock(&shared.blocks);
            match request {
                Request::Plug(wanted) => self.plug(place, &mut blocks, wanted),
                Request::Unplug(wanted) => self.unplug(place, &mut blocks, wanted),
                Request::UnplugAll => self.unplug_all(place, &mut blocks),
                Request::State(wanted) => self.state(place, &blocks, wanted),
                Request::Unknown => Response::Error,
            }
        };
        let bytes = lock(&shared.sizes).plugged.abs_diff(plugged_before);
        let mut counters = lock(&shared.counters);
        let operation = match request {
            Request::Plug(_) => &mut counters.plug,
            Request::Unplug(_) => &mut counters.unplug,
            Request::UnplugAll => &mut counters.unplug_all,
            Request::State(_) | Request::Unknown => &mut counters.state,
        };
        operation.add(response.is_good().then_some(bytes), start.elapsed());
        response
    }

    fn find(&self, place: &control::Place, blocks: &Blocks, wanted: Place) -> Option<Range<usize>> {
        let usable = lock(&self.shared.sizes).usable;
        blocks.find(wanted, place.start, usable)
    }

    fn bytes(&self, range: &Range<usize>) -> u64 {
        range.len() as u64 * self.shared.config.block()
    }

    fn plug(&mut self, place: &control::Place, blocks: &mut Blocks, wanted: Place) -> Response {
        let Some(range) = self.find(place, blocks, wanted) else {
            return Response::Error;
        };
        if blocks.state(range.clone()) != BlockState::Unplugged {
            return Response::Error;
        }
        let bytes = self.bytes(&range);
        let sizes = *lock(&self.shared.sizes);
        if sizes.plugged + bytes > sizes.requested {
            return Response::Nack;
        }
        let new: Vec<_> = blocks
            .slots(&range)
            .filter(|slot| !blocks.is_slot_used(*slot))
            .collect();
        for (index, slot) in new.iter().enumerate() {
            if let Err(error) = place.slots.insert(*slot) {
                self.log_once("give the guest more memory", &error);
                for slot in &new[..index] {
                    self.remove(place, *slot);
                }
                return Response::Busy;
            }
        }
        blocks.set(range, true);
        // Nobody else changes it.
        lock(&self.shared.sizes).plugged += bytes;
        Response::Ack
    }

    fn unplug(&mut self, place: &control::Place, blocks: &mut Blocks, wanted: Place) -> Response {
        let Some(range) = self.find(place, blocks, wanted) else {
            return Response::Error;
        };
        if blocks.state(range.clone()) != BlockState::Plugged {
            return Response::Error;
        }
        let bytes = self.bytes(&range);
        blocks.set(range.clone(), false);
        for slot in blocks.slots(&range) {
            if !blocks.is_slot_used(slot) {
                self.remove(place, slot);
            }
        }
        self.discard(wanted.gpa, bytes);
        let mut sizes = lock(&self.shared.sizes);
        sizes.plugged = sizes.plugged.saturating_sub(bytes);
        Response::Ack
    }

    fn unplug_all(&mut self, place: &control::Place, blocks: &mut Blocks) -> Response {
        for slot in blocks.all_slots() {
            if blocks.is_slot_used(slot) {
                self.remove(place, slot);
                blocks.clear_slot(slot);
            }
        }
        // With it goes what other devices have written where nothing was plugged.
        self.discard(place.start, self.shared.config.total());
        let mut sizes = lock(&self.shared.sizes);
        sizes.plugged = 0;
        // As much as a driver needs that starts again, and is told of by no interrupt.
        sizes.usable = self.shared.usable_for(sizes.requested);
        Response::Ack
    }

    fn state(&self, place: &control::Place, blocks: &Blocks, wanted: Place) -> Response {
        match self.find(place, blocks, wanted) {
            Some(range) => Response::State(blocks.state(range)),
            None => Response::Error,
        }
    }

    fn remove(&mut self, place: &control::Place, slot: usize) {
        if let Err(error) = place.slots.remove(slot) {
            self.log_once("take memory away from the guest", &error);
        }
    }

    fn discard(&mut self, gpa: u64, bytes: u64) {
        match discard(&self.memory, GuestAddress(gpa), bytes) {
            Ok(done) if done == bytes => {}
            result => {
                lock(&self.shared.counters).discard_errors += 1;
                if let Err(error) = result {
                    self.log_once("free memory that the guest has given back", &error);
                }
            }
        }
    }

    fn log_once(&mut self, what: &str, error: &std::io::Error) {
        if !std::mem::replace(&mut self.logged, true) {
            log::warn!("The host cannot {what}: {error}");
        }
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Empties it; fails if it is empty.
        let _ = self.queue.kick().read();
        if self.broken {
            return;
        }
        lock(&self.shared.counters).queue_events += 1;
        if let Err(error) = self.serve() {
            self.queue.fail(&error);
            self.broken = true;
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::with_data(&**self.queue.kick(), KICK, EventSet::IN));
        // A driver that was there before does not kick for what it has asked already.
        self.queue.kick_myself();
    }
}
