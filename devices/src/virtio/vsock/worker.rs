//! The running half: moves packets between the queues and the muxer.

use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use smallvec::SmallVec;

use super::connection::{Got, SLICES_MAX, Slices, add_slices};
use super::muxer::{Muxer, Work};
use super::packet::{HEADER_SIZE, Header};
use super::watch::Id;
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::queue::{self, Queue};

/// Bytes moved each way, with their headers, after which other workers of the event loop have their
/// turn.
const TURN_BYTES: u32 = 1 << 20;
/// Bytes that a connection sends to the guest before the next has its turn.
const DATA_MAX: u32 = 64 << 10;
/// Buffers of the guest that are filled by one read of a stream.
const BATCH_MAX: usize = SLICES_MAX / 2;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (section 5.10.6.7), as the event queue carries it.
const EVENT_TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

// Which descriptor an event is for.
const RX: u32 = 0;
const TX: u32 = 1;
const EVENT: u32 = 2;
const HOST: u32 = 3;

/// The queues, each if the driver has set it up.
pub(super) struct Queues {
    pub(super) rx: Option<Queue>,
    pub(super) tx: Option<Queue>,
    pub(super) event: Option<Queue>,
}

impl Queues {
    fn iter(&self) -> impl Iterator<Item = (u32, &Queue)> {
        let Self { rx, tx, event } = self;
        let all = [(RX, rx), (TX, tx), (EVENT, event)];
        all.into_iter()
            .filter_map(|(number, queue)| Some((number, queue.as_ref()?)))
    }

    pub(super) fn into_vec(self) -> Vec<Queue> {
        let Self { rx, tx, event } = self;
        [rx, tx, event].into_iter().flatten().collect()
    }
}

/// A buffer of the guest for one packet: where its header goes, and how much data fits behind that.
struct Slot {
    chain: Chain,
    room: u32,
}

/// The worker.
pub(super) struct Worker {
    // Volatile state.
    pub(super) queues: Queues,
    /// None once the driver broke the rules.
    muxer: Option<Muxer>,
    /// The driver is to be told that it has lost its connections.
    announces_reset: bool,
    /// The driver's packets wait until it has taken answers to the ones before.
    tx_waits: bool,
}

/// A worker without its queues, between a pause and the activation after it.
pub(super) struct Paused {
    muxer: Option<Muxer>,
    announces_reset: bool,
    tx_waits: bool,
}

impl Worker {
    /// A worker that goes on where another one was paused.
    pub(super) fn resumed(queues: Queues, paused: Paused) -> Self {
        let Paused {
            muxer,
            announces_reset,
            tx_waits,
        } = paused;
        Self {
            queues,
            muxer,
            announces_reset,
            tx_waits,
        }
    }

    /// Stops, and keeps the connections.
    pub(super) fn pause(self) -> (Vec<Queue>, Paused) {
        let paused = Paused {
            muxer: self.muxer,
            announces_reset: self.announces_reset,
            tx_waits: self.tx_waits,
        };
        (self.queues.into_vec(), paused)
    }

    /// A worker. If the queues are older than the muxer, their driver is told that its connections are
    /// lost.
    pub(super) fn new(queues: Queues, muxer: Muxer) -> Self {
        let goes_on = |queue: &Queue| queue.position() != (0, 0);
        let announces_reset = queues.iter().any(|(_, queue)| goes_on(queue));
        Self {
            announces_reset,
            queues,
            muxer: Some(muxer),
            tx_waits: false,
        }
    }

    fn serve(&mut self, event: u32, now: Instant) -> Result<(), queue::Error> {
        let Some(muxer) = &mut self.muxer else {
            return Ok(());
        };
        let Queues {
            rx,
            tx,
            event: events,
        } = &mut self.queues;
        match event {
            RX => muxer.counts().rx_kicks.add(1),
            TX => muxer.counts().tx_kicks.add(1),
            HOST => {
                muxer.counts().host_events.add(1);
                muxer.poll(now);
            }
            _ => {}
        }
        if self.announces_reset
            && let Some(events) = events
        {
            self.announces_reset = !announce_reset(events)?;
        }
        if let Some(tx) = tx
            && (event == TX || self.tx_waits)
        {
            self.tx_waits = serve_tx(tx, muxer, now)?;
        }
        if let Some(rx) = rx {
            serve_rx(rx, muxer, now)?;
        }
        if let Some(tx) = tx
            && self.tx_waits
            && !muxer.is_congested()
        {
            tx.kick_myself();
        }
        Ok(())
    }

    /// The driver broke the rules: its connections end, and nothing is done until it resets the device.
    fn fail(&mut self, error: &queue::Error, ops: &mut EventOps) {
        if let Some((_, queue)) = self.queues.iter().next() {
            queue.fail(error);
        }
        if let Some(muxer) = self.muxer.take() {
            // Fails only for a descriptor that is not watched.
            let _ = ops.remove(Events::empty_raw(muxer.fd()));
        }
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        let number = event.data();
        if let Some((_, queue)) = self.queues.iter().find(|(queue, _)| *queue == number) {
            // Empties it; fails if it is empty.
            let _ = queue.kick().read();
        }
        if let Err(error) = self.serve(number, Instant::now()) {
            self.fail(&error, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        for (number, queue) in self.queues.iter() {
            let _ = ops.add(Events::with_data(&**queue.kick(), number, EventSet::IN));
        }
        if let Some(muxer) = &self.muxer {
            let _ = ops.add(Events::with_data_raw(muxer.fd(), HOST, EventSet::IN));
        }
    }
}

/// Tells the driver that it has lost its connections; false if it has no buffer for that.
fn announce_reset(events: &mut Queue) -> Result<bool, queue::Error> {
    for _ in 0..events.size() {
        let Some(chain) = events.pop()? else {
            if events.enable_kicks()? {
                continue;
            }
            return Ok(false);
        };
        let written = chain
            .writable
            .write(events.memory(), 0, &EVENT_TRANSPORT_RESET);
        let len = if written.is_ok() {
            EVENT_TRANSPORT_RESET.len() as u32
        } else {
            0
        };
        events.complete(chain.head(), len)?;
        if written.is_ok() {
            events.notify()?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes packets from the driver. True if there are more that have to wait for the driver to take the
/// answers.
fn serve_tx(tx: &mut Queue, muxer: &mut Muxer, now: Instant) -> Result<bool, queue::Error> {
    let mut moved = 0;
    let mut waits = false;
    tx.disable_kicks()?;
    loop {
        if muxer.is_congested() {
            waits = true;
            break;
        }
        if moved >= TURN_BYTES {
            tx.kick_myself();
            break;
        }
        let Some(chain) = tx.pop()? else {
            if tx.enable_kicks()? {
                continue;
            }
            break;
        };
        let head = chain.head();
        // At least a header's worth of work, however small it is.
        moved += HEADER_SIZE.max(chain.readable.len().min(TURN_BYTES));
        // One without a whole header has no one to answer to.
        if let Ok((header, data)) = Header::split(tx.memory(), chain.readable) {
            muxer.receive(&header, &data, tx.memory(), now);
        }
        tx.complete(head, 0)?;
    }
    tx.notify()?;
    Ok(waits)
}

/// Fills the driver's buffers as long as there are any, and something to put into them.
fn serve_rx(rx: &mut Queue, muxer: &mut Muxer, now: Instant) -> Result<(), queue::Error> {
    let mut moved = 0;
    while muxer.has_work() {
        if moved >= TURN_BYTES {
            rx.kick_myself();
            break;
        }
        let Some(slot) = next_slot(rx, &mut moved)? else {
            if moved < TURN_BYTES && rx.enable_kicks()? {
                continue;
            }
            if moved >= TURN_BYTES {
                rx.kick_myself();
            }
            break;
        };
        match muxer.next_work(now) {
            Some(Work::Packet(header)) => {
                muxer.counts().rx_packets.add(1);
                put(rx, &slot.chain, &header)?;
                moved += HEADER_SIZE;
            }
            Some(Work::Data(id)) => {
                moved += HEADER_SIZE + send_data(rx, muxer, id, slot, now)?;
                muxer.end_turn(id, now);
            }
            None => rx.undo_pop(),
        }
    }
    rx.notify()
}

/// The driver's next buffer. Those that no data fits into go back to it, and count as `moved`.
fn next_slot(rx: &mut Queue, moved: &mut u32) -> Result<Option<Slot>, queue::Error> {
    while *moved < TURN_BYTES {
        let Some(chain) = rx.pop()? else {
            break;
        };
        let room = chain.writable.len().saturating_sub(HEADER_SIZE);
        if room > 0 {
            return Ok(Some(Slot { chain, room }));
        }
        rx.complete(chain.head(), 0)?;
        *moved += HEADER_SIZE;
    }
    Ok(None)
}

/// Puts a packet without data into a buffer.
fn put(rx: &mut Queue, chain: &Chain, header: &Header) -> Result<(), queue::Error> {
    let written = chain.writable.write(rx.memory(), 0, &header.to_bytes());
    let len = if written.is_ok() {
        HEADER_SIZE + header.len
    } else {
        0
    };
    rx.complete(chain.head(), len)
}

/// Reads a stream into as many of the driver's buffers as one read may fill, `first` and those that
/// follow it; says how many bytes that were.
fn send_data(
    rx: &mut Queue,
    muxer: &mut Muxer,
    id: Id,
    first: Slot,
    now: Instant,
) -> Result<u32, queue::Error> {
    let counts = Arc::clone(muxer.counts());
    let Some(connection) = muxer.connection(id) else {
        rx.undo_pop();
        return Ok(0);
    };
    let limit = connection.credit().min(DATA_MAX);
    let memory = Arc::clone(rx.memory());
    let mut slots: SmallVec<[Slot; BATCH_MAX]> = SmallVec::new();
    let mut slices = Slices::new();
    let mut room = 0;
    let mut next = Some(first);
    while let Some(mut slot) = next.take() {
        let data: Buffers = slot.chain.writable.split_off(HEADER_SIZE);
        slot.room = add_slices(&mut slices, &data, &memory, limit - room);
        room += slot.room;
        slots.push(slot);
        if room == limit || slots.len() == BATCH_MAX || slices.len() == SLICES_MAX {
            break;
        }
        next = match rx.pop()? {
            Some(chain) if chain.writable.len() > HEADER_SIZE => Some(Slot { chain, room: 0 }),
            Some(_) => {
                rx.undo_pop();
                None
            }
            None => None,
        };
    }
    let got = match connection.read(&slices, now) {
        Got::Data(count) => u32::try_from(count).unwrap_or(room).min(room),
        Got::Nothing => 0,
    };
    let mut left = got;
    for slot in &slots {
        let len = left.min(slot.room);
        if len == 0 {
            rx.undo_pop();
            continue;
        }
        left -= len;
        counts.rx_packets.add(1);
        counts.rx_bytes.add(len.into());
        let header = connection.data_header(len);
        put(rx, &slot.chain, &header)?;
    }
    Ok(got)
}
