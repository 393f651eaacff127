//! One connection between a port of the guest and a stream of the host: a state machine that takes
//! packets and events, and says what is to be sent. It knows neither queues nor descriptors.
//!
//! # From the guest to the host
//! Data goes from the guest's buffer to the stream without a copy. What the stream does not take waits
//! in a buffer, which is no larger than what the guest was told: a guest that sends more breaks the
//! rules. Each packet to the guest says how much has left that buffer; when a guest that obeys would
//! have less than half of the room left, it is told without being asked.
//!
//! # From the host to the guest
//! Data goes from the stream to the guest's buffers, as much as the guest has room for; nothing is kept
//! here. What the guest says of its room only decides how much is sent into the buffers that it gave, so
//! a lie harms nobody else.
//!
//! # The end
//! ```text
//!  REQUEST sent ──RESPONSE──► open ──both ways have ended──► SHUTDOWN sent ──RST or time-out──► over
//!       └─────RST, time-out─────┴──RST, SHUTDOWN of both, a broken rule──────────────────────► over
//! ```
//! A connection that is over for the guest still writes to the host what it has of the guest's data.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::credit::{Incoming, Outgoing};
use super::packet::{HOST_CID, Header, kind, op, shutdown};
use crate::virtio::chain::Buffers;

/// How long the guest may take to answer a request: as its driver needs no one in user space for the
/// answer, one that is alive needs milliseconds.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to end a connection of which it was told that both ways are closed. Linux gives
/// its peers as much.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the host may take nothing of what a guest has left behind that has closed the connection.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Pieces of memory that are read or written at once.
pub(super) const SLICES_MAX: usize = 64;
/// Bytes copied at once from the guest's memory into the buffer.
const COPY_SIZE: u32 = 8192;

/// Pieces of memory, of the guest or not.
pub(super) type Slices<'m> = SmallVec<[VolatileSlice<'m>; SLICES_MAX]>;

/// The host's end. Nothing here waits: what would is [`io::ErrorKind::WouldBlock`].
pub(super) trait Stream {
    /// Reads into pieces of memory, at most [`SLICES_MAX`]; 0 at the end of the stream.
    fn read(&self, to: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes pieces of memory, at most [`SLICES_MAX`].
    fn write(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Ends one way or both.
    fn shutdown(&self, how: Shutdown);
}

/// What identifies a connection; the context ids are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The host's port.
    pub(super) host: u32,
    /// The guest's port.
    pub(super) guest: u32,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    /// It does.
    Alive,
    /// Not for the guest, which is to be told so with RST, or knows it.
    Over {
        /// It is to be told.
        reset: bool,
    },
}

const RESET: Verdict = Verdict::Over { reset: true };
const OVER: Verdict = Verdict::Over { reset: false };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest is asked for it.
    Requested,
    /// Data can go both ways, or one way after a half-close.
    Open,
    /// The guest is told that both ways have ended, and its RST is awaited.
    Closing,
    /// Over for the guest. The host gets what is left.
    Draining,
}

/// What [`Connection::read`] has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// So many bytes.
    Data(usize),
    /// Nothing for now, or for ever.
    Nothing,
}

/// A connection.
pub(super) struct Connection<S> {
    // Fixed configuration.
    key: Key,
    guest_cid: u64,

    // Runtime glue.
    stream: S,

    // Volatile state.
    state: State,
    deadline: Option<Instant>,
    /// REQUEST or RESPONSE, if that is still to be sent.
    opening: Option<u16>,
    /// The guest has asked how much room there is.
    update_wanted: bool,
    /// The guest's data that the stream has not taken.
    buffer: VecDeque<u8>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// There may be something to read.
    readable: bool,
    /// What the guest will do no more, of [`shutdown`].
    guest_shut: u32,
    /// What the host will do no more, and what the guest knows of that.
    host_shut: u32,
    told_shut: u32,
    /// The stream's writing end is closed.
    write_shut: bool,
}

impl<S: Stream> Connection<S> {
    /// The host wants to be connected.
    pub(super) fn request(
        key: Key,
        guest_cid: u64,
        capacity: u32,
        stream: S,
        now: Instant,
    ) -> Self {
        Self {
            key,
            guest_cid,
            stream,
            state: State::Requested,
            deadline: Some(now + REQUEST_TIMEOUT),
            opening: Some(op::REQUEST),
            update_wanted: false,
            buffer: VecDeque::new(),
            incoming: Incoming::new(capacity),
            outgoing: Outgoing::new(0, 0),
            readable: true,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            write_shut: false,
        }
    }

    /// The guest wants to be connected, by a request with these credits, and the host has accepted.
    pub(super) fn accept(
        key: Key,
        guest_cid: u64,
        capacity: u32,
        stream: S,
        (buf_alloc, fwd_cnt): (u32, u32),
        now: Instant,
    ) -> Self {
        Self {
            state: State::Open,
            deadline: None,
            opening: Some(op::RESPONSE),
            outgoing: Outgoing::new(buf_alloc, fwd_cnt),
            ..Self::request(key, guest_cid, capacity, stream, now)
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// When [`Connection::expire`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the stream is to tell when it takes more.
    pub(super) fn wants_writable(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the guest takes part in it.
    pub(super) fn is_draining(&self) -> bool {
        self.state == State::Draining
    }

    // From the guest.

    /// The guest has sent a packet, with this data.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        data: &Buffers,
        memory: &GuestMemoryMmap,
        now: Instant,
    ) -> Verdict {
        if header.op == op::RST {
            return OVER;
        }
        if header.kind != kind::STREAM || !self.outgoing.update(header) {
            return RESET;
        }
        let verdict = match (header.op, self.state) {
            (op::RESPONSE, State::Requested) if self.opening.is_none() => self.open(),
            (op::RW, State::Open) => self.take_data(header, data, memory),
            // It was sent before the guest knew.
            (op::RW, State::Closing) if header.len <= self.incoming.capacity() => Verdict::Alive,
            (op::SHUTDOWN, State::Open | State::Closing) => {
                self.guest_shut |= header.flags & shutdown::BOTH;
                if self.guest_shut == shutdown::BOTH {
                    return RESET;
                }
                if self.guest_shut & shutdown::RECEIVE != 0 {
                    self.stream.shutdown(Shutdown::Read);
                }
                Verdict::Alive
            }
            (op::CREDIT_UPDATE, State::Open | State::Closing) => Verdict::Alive,
            (op::CREDIT_REQUEST, State::Open | State::Closing) => {
                self.update_wanted = true;
                Verdict::Alive
            }
            _ => RESET,
        };
        self.settle(now);
        verdict
    }

    /// The guest has accepted: the client is told.
    fn open(&mut self) -> Verdict {
        let mut answer = format!("OK {}\n", self.key.host).into_bytes();
        let len = answer.len();
        let slice = VolatileSlice::from(answer.as_mut_slice());
        // A fresh stream has room for it, unless nobody is there.
        if !matches!(self.stream.write(&[slice]), Ok(written) if written == len) {
            return RESET;
        }
        self.state = State::Open;
        self.deadline = None;
        Verdict::Alive
    }

    fn take_data(&mut self, header: &Header, data: &Buffers, memory: &GuestMemoryMmap) -> Verdict {
        let len = data.len();
        if len != header.len || len > self.incoming.room() || self.guest_shut & shutdown::SEND != 0
        {
            return RESET;
        }
        self.incoming.receive(len);
        if self.host_shut & shutdown::RECEIVE != 0 {
            self.incoming.forward(len as usize);
            return Verdict::Alive;
        }
        let mut written = 0;
        if self.buffer.is_empty() && len > 0 {
            let slices = slices(data, memory, len);
            match self.stream.write(&slices) {
                Ok(count) => written = u32::try_from(count).unwrap_or(len).min(len),
                Err(error) if is_transient(&error) => {}
                Err(_) => {
                    self.incoming.forward(len as usize);
                    self.host_takes_no_more();
                    return Verdict::Alive;
                }
            }
        }
        self.incoming.forward(written as usize);
        self.keep(data, written, memory)
    }

    /// Buffers `data` from `offset` on.
    fn keep(&mut self, data: &Buffers, mut offset: u32, memory: &GuestMemoryMmap) -> Verdict {
        let len = data.len();
        if offset == len {
            return Verdict::Alive;
        }
        // By powers of two, as is the capacity: so never more than that.
        let needed = self.buffer.len() + (len - offset) as usize;
        if needed > self.buffer.capacity() {
            let more = needed.next_power_of_two() - self.buffer.len();
            self.buffer.reserve_exact(more);
        }
        let mut copy = [0; COPY_SIZE as usize];
        while offset < len {
            let count = COPY_SIZE.min(len - offset);
            let copy = &mut copy[..count as usize];
            if data.read(memory, offset, copy).is_err() {
                return RESET;
            }
            self.buffer.extend(&*copy);
            offset += count;
        }
        Verdict::Alive
    }

    // From the host.

    /// The stream can be read.
    pub(super) fn readable(&mut self) {
        self.readable = true;
    }

    /// The host has closed both ways, or what there was of them.
    pub(super) fn hang_up(&mut self, now: Instant) -> Verdict {
        self.readable = true;
        match self.state {
            // If the guest was not asked yet, it need not know.
            State::Requested if self.opening.is_some() => OVER,
            State::Requested => RESET,
            // What is left for the host nobody will read; what is left of the host may still be read.
            State::Open | State::Closing | State::Draining => {
                self.host_takes_no_more();
                self.settle(now);
                Verdict::Alive
            }
        }
    }

    /// The stream takes more.
    pub(super) fn writable(&mut self, now: Instant) {
        while !self.buffer.is_empty() {
            let (first, second) = self.buffer.as_mut_slices();
            let slices = [VolatileSlice::from(first), VolatileSlice::from(second)];
            let used = if slices[1].is_empty() { 1 } else { 2 };
            match self.stream.write(&slices[..used]) {
                Ok(0) => return,
                Ok(count) => {
                    let count = count.min(self.buffer.len());
                    self.buffer.drain(..count);
                    self.incoming.forward(count);
                    if self.state == State::Draining {
                        self.deadline = Some(now + DRAIN_TIMEOUT);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.host_takes_no_more(),
            }
        }
        self.buffer = VecDeque::new();
        self.settle(now);
    }

    /// A deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) -> Verdict {
        match self.deadline {
            Some(deadline) if deadline <= now => {}
            _ => return Verdict::Alive,
        }
        self.deadline = None;
        match self.state {
            State::Requested if self.opening.is_some() => OVER,
            State::Draining => {
                self.host_takes_no_more();
                OVER
            }
            State::Requested | State::Open | State::Closing => RESET,
        }
    }

    /// It is over for the guest. False if nothing is left for the host either.
    pub(super) fn drain(&mut self, now: Instant) -> bool {
        self.state = State::Draining;
        self.stream.shutdown(Shutdown::Read);
        if self.buffer.is_empty() {
            return false;
        }
        self.deadline = Some(now + DRAIN_TIMEOUT);
        true
    }

    /// Nothing more can be written to the stream: the guest's data is thrown away.
    fn host_takes_no_more(&mut self) {
        self.incoming.forward(self.buffer.len());
        self.buffer = VecDeque::new();
        self.host_shut |= shutdown::RECEIVE;
    }

    /// Draws the conclusions of what has ended.
    fn settle(&mut self, now: Instant) {
        if self.state != State::Open {
            return;
        }
        let guest_sends = self.guest_shut & shutdown::SEND == 0;
        if !guest_sends && self.buffer.is_empty() && !self.write_shut {
            self.write_shut = true;
            self.stream.shutdown(Shutdown::Write);
        }
        let to_host =
            (guest_sends || !self.buffer.is_empty()) && self.host_shut & shutdown::RECEIVE == 0;
        let to_guest =
            self.guest_shut & shutdown::RECEIVE == 0 && self.host_shut & shutdown::SEND == 0;
        if !to_host && !to_guest {
            self.host_shut = shutdown::BOTH;
            self.state = State::Closing;
            self.deadline = Some(now + SHUTDOWN_TIMEOUT);
        }
    }

    // To the guest.

    /// Whether [`Connection::control`] or [`Connection::read`] may have something.
    pub(super) fn has_packet(&self) -> bool {
        self.has_control() || self.may_read()
    }

    fn has_control(&self) -> bool {
        self.state != State::Draining
            && (self.opening.is_some()
                || self.told_shut != self.host_shut
                || self.owes_credit()
                || self.needs_credit())
    }

    /// The next packet that has no data, if there is one to be sent.
    pub(super) fn control(&mut self) -> Option<Header> {
        if !self.has_control() {
            return None;
        }
        if let Some(op) = self.opening.take() {
            return Some(self.header(op));
        }
        if self.told_shut != self.host_shut {
            self.told_shut = self.host_shut;
            let flags = self.host_shut;
            return Some(Header {
                flags,
                ..self.header(op::SHUTDOWN)
            });
        }
        if self.owes_credit() {
            return Some(self.header(op::CREDIT_UPDATE));
        }
        self.outgoing.ask();
        Some(self.header(op::CREDIT_REQUEST))
    }

    /// Whether the stream may have data that the guest has room for.
    pub(super) fn may_read(&self) -> bool {
        self.wants_data() && self.credit() > 0
    }

    fn wants_data(&self) -> bool {
        self.readable
            && self.state == State::Open
            && self.opening.is_none()
            && self.guest_shut & shutdown::RECEIVE == 0
            && self.host_shut & shutdown::SEND == 0
    }

    /// Bytes that the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        self.outgoing.room()
    }

    fn needs_credit(&self) -> bool {
        self.wants_data() && self.outgoing.has_to_ask()
    }

    /// Whether the guest has to be told of room.
    fn owes_credit(&self) -> bool {
        let sends = self.guest_shut & shutdown::SEND == 0 && self.state == State::Open;
        self.update_wanted || (sends && self.incoming.has_news())
    }

    /// Reads data for the guest, of which there must be no more than [`Connection::credit`] allows.
    pub(super) fn read(&mut self, to: &[VolatileSlice<'_>], now: Instant) -> Got {
        match self.stream.read(to) {
            Ok(0) => self.host_shut |= shutdown::SEND,
            Ok(count) => {
                self.outgoing.send(count);
                return Got::Data(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Got::Nothing,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The host has closed it without reading all of what the guest sent.
            Err(_) => self.host_shut |= shutdown::SEND,
        }
        self.readable = false;
        self.settle(now);
        Got::Nothing
    }

    /// The header of `len` bytes of data that were read.
    pub(super) fn data_header(&mut self, len: u32) -> Header {
        Header {
            len,
            ..self.header(op::RW)
        }
    }

    fn header(&mut self, op: u16) -> Header {
        self.update_wanted = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host,
            dst_port: self.key.guest,
            len: 0,
            kind: kind::STREAM,
            op,
            flags: 0,
            buf_alloc: self.incoming.capacity(),
            fwd_cnt: self.incoming.tell(),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The first `limit` bytes of `buffers`, or fewer if they are in too many pieces.
fn slices<'m>(buffers: &Buffers, memory: &'m GuestMemoryMmap, limit: u32) -> Slices<'m> {
    let mut slices = Slices::new();
    add_slices(&mut slices, buffers, memory, limit);
    slices
}

/// Appends the first `limit` bytes of `buffers`; says how many that was, as there is an end to the
/// number of pieces.
pub(super) fn add_slices<'m>(
    slices: &mut Slices<'m>,
    buffers: &Buffers,
    memory: &'m GuestMemoryMmap,
    limit: u32,
) -> u32 {
    let mut left = limit as usize;
    for slice in buffers.slices(memory) {
        if left == 0 || slices.len() == SLICES_MAX {
            break;
        }
        // Guest memory was checked to be there.
        let Ok(slice) = slice else { break };
        let count = left.min(slice.len());
        let Ok(slice) = slice.subslice(0, count) else {
            break;
        };
        slices.push(slice);
        left -= count;
    }
    limit - u32::try_from(left).unwrap_or(limit)
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
