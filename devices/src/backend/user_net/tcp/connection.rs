//! One TCP connection: the guest's end (RFC 9293), and the host's socket.
//!
//! The guest's link loses nothing but what the guest has no room for, and keeps the order, so there is
//! little of the algorithms that the Internet needs: what comes out of order is left to be sent again,
//! nothing is selectively acknowledged, and the guest's window is the only limit. Data of the guest
//! goes to the socket at once; only what the socket refuses is held here. Data of the host is read when
//! the guest has room for it, into the buffer that it is sent from, and stays there until the guest has
//! acknowledged it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::super::host;
use super::super::packet::TcpFields;
use super::super::shared::{Alarm, Shared};
use super::Memory;
use super::timer::{CONNECT_TIMEOUT, FIRST_RTO, Timer};

/// Bytes that wait for one connection's guest, and are offered to it as a window, at most.
pub(super) const MAX_HELD: usize = 512 << 10;
/// The same when memory is short.
pub(super) const MIN_HELD: usize = 16 << 10;
/// Whether sequence number `a` is after `b`.
pub(super) fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// A segment of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) window: u16,
    pub(super) scale: Option<u8>,
    pub(super) mss: Option<u16>,
    pub(super) payload: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The host has not connected yet; the guest has sent its SYN.
    Connecting,
    /// The host has connected, and the guest is told.
    SynReceived,
    /// The host has connected, and the guest is asked.
    SynSent,
    Established,
}

/// An event of a connection's socket.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Ready {
    pub(in super::super) readable: bool,
    pub(in super::super) writable: bool,
    /// The peer has ended its side, or all is over.
    pub(in super::super) ended: bool,
    pub(in super::super) failed: bool,
}

/// Why a connection ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The host's socket failed, or has to be closed for its peer: the guest gets a reset.
    Reset,
    /// The host could not connect.
    Unreachable(Errno),
    /// The guest has ended it, or is not there: the host's peer gets a reset.
    Guest,
}

/// Data on its way to the guest.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) buffer: Vec<u8>,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) socket: OwnedFd,
    pub(super) state: State,
    /// It is among those that are counted as half open.
    pub(super) half_open: bool,
    /// It has a turn coming.
    pub(super) queued: bool,
    pub(super) alarm: Alarm,

    // The host's side.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// An end is to be read behind what there is.
    pub(super) ending: bool,
    /// The host's peer has ended its side.
    pub(super) host_ended: bool,
    /// Our side of the socket was ended.
    pub(super) socket_ended: bool,

    // To the guest. Everything before `acked` has arrived, `next` is sent next, `sent` is the end of
    // all that was ever sent, `end` of the data.
    pub(super) acked: u32,
    pub(super) next: u32,
    pub(super) sent: u32,
    pub(super) end: u32,
    pub(super) chunks: VecDeque<Chunk>,
    pub(super) window: u32,
    /// The segment that the window is from.
    pub(super) window_seq: u32,
    pub(super) window_ack: u32,
    pub(super) scale: Option<u8>,
    pub(super) mss: usize,
    pub(super) repeated_acks: u8,
    /// Something was lost: one segment at a time until the guest acknowledges.
    pub(super) lost: bool,

    // From the guest. Everything before `received` was taken; up to `edge` was offered.
    pub(super) received: u32,
    pub(super) edge: u32,
    pub(super) held: VecDeque<u8>,
    pub(super) guest_ended: bool,

    // What is to be sent, besides data.
    pub(super) syn_owed: bool,
    pub(super) ack_owed: bool,
    pub(super) probe_owed: bool,

    pub(super) timer: Timer,
    pub(super) deadline: Instant,
    pub(super) restart_timer: bool,
    pub(super) rto: Duration,
    pub(super) retries: u8,
    /// The guest was asked whether it is there.
    pub(super) asked: bool,
}

impl Connection {
    fn new(
        state: State,
        (guest, remote): (SocketAddr, SocketAddr),
        socket: OwnedFd,
        iss: u32,
        shared: &Shared,
    ) -> Self {
        Self {
            guest,
            remote,
            socket,
            state,
            half_open: true,
            queued: false,
            alarm: Alarm::default(),
            readable: false,
            writable: false,
            ending: false,
            host_ended: false,
            socket_ended: false,
            acked: iss,
            next: iss,
            sent: iss,
            end: iss.wrapping_add(1),
            chunks: VecDeque::new(),
            window: 0,
            window_seq: 0,
            window_ack: 0,
            scale: None,
            mss: shared.link.mss(guest.ip()),
            repeated_acks: 0,
            lost: false,
            received: 0,
            edge: 0,
            held: VecDeque::new(),
            guest_ended: false,
            syn_owed: false,
            ack_owed: false,
            probe_owed: false,
            timer: Timer::Connect,
            deadline: shared.now + CONNECT_TIMEOUT,
            restart_timer: false,
            rto: FIRST_RTO,
            retries: 0,
            asked: false,
        }
    }

    /// One that the guest begins, by `syn`. `socket` is connecting.
    pub(super) fn outgoing(
        ends: (SocketAddr, SocketAddr),
        socket: OwnedFd,
        iss: u32,
        syn: &Segment<'_>,
        shared: &Shared,
    ) -> Self {
        let mut connection = Self::new(State::Connecting, ends, socket, iss, shared);
        connection.take_syn(syn);
        connection
    }

    /// One that the host begins. `socket` is connected.
    pub(super) fn incoming(
        ends: (SocketAddr, SocketAddr),
        socket: OwnedFd,
        iss: u32,
        shared: &Shared,
    ) -> Self {
        let mut connection = Self::new(State::SynSent, ends, socket, iss, shared);
        connection.syn_owed = true;
        connection
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What the guest's SYN says.
    fn take_syn(&mut self, syn: &Segment<'_>) {
        self.received = syn.seq.wrapping_add(1);
        self.edge = self.received;
        self.window_seq = syn.seq;
        self.window = syn.window.into();
        self.scale = syn.scale;
        // Without the option it is 536 (RFC 9293 section 3.7.1). Less than that has no use but to
        // have much sent for little.
        let mss = usize::from(syn.mss.unwrap_or(536)).max(536);
        self.mss = self.mss.min(mss);
    }

    /// An event of the socket.
    pub(super) fn socket_event(
        &mut self,
        ready: Ready,
        shared: &Shared,
        memory: &mut Memory,
    ) -> Result<(), End> {
        if self.state == State::Connecting {
            if !(ready.writable || ready.failed) {
                return Ok(());
            }
            match rustix::net::sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => return Err(End::Unreachable(error)),
            }
            self.state = State::SynReceived;
            self.syn_owed = true;
        }
        if ready.failed && !matches!(rustix::net::sockopt::socket_error(&self.socket), Ok(Ok(()))) {
            return Err(End::Reset);
        }
        self.ending |= ready.ended || ready.failed;
        self.readable |= ready.readable || self.ending;
        self.writable |= ready.writable;
        self.flush(shared, memory)
    }

    /// Hands the socket what it has refused before.
    fn flush(&mut self, shared: &Shared, memory: &mut Memory) -> Result<(), End> {
        while self.writable && !self.held.is_empty() {
            let (front, _) = self.held.as_slices();
            match host::transmit(&self.socket, front) {
                Ok(count) => {
                    self.held.drain(..count);
                    memory.used = memory.used.saturating_sub(count);
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return Err(End::Reset),
            }
        }
        if self.held.is_empty() && self.held.capacity() > 0 {
            self.held = VecDeque::new();
        }
        // Window updates (RFC 9293 section 3.8.6.2.2).
        if self.state == State::Established && !self.guest_ended {
            let offer = self.received.wrapping_add(self.offer(memory));
            let opened = offer.wrapping_sub(self.edge) as i32;
            let left = self.edge.wrapping_sub(self.received) as i32;
            let worth = i32::try_from(MIN_HELD.min(2 * shared.link.mtu)).unwrap_or(i32::MAX);
            let half = i32::try_from(memory.share() / 2).unwrap_or(i32::MAX);
            self.ack_owed |= opened >= half || opened >= worth && left <= worth;
        }
        self.end_socket();
        Ok(())
    }

    /// Ends our side of the socket once all data of a guest that has ended is there.
    fn end_socket(&mut self) {
        if self.guest_ended && self.held.is_empty() && !self.socket_ended {
            self.socket_ended = true;
            // Fails only when the socket has failed: reading from it tells.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// Bytes that the guest may be offered to send.
    pub(super) fn offer(&self, memory: &Memory) -> u32 {
        let most = if self.scale.is_none() {
            65535
        } else {
            memory.share()
        };
        most.saturating_sub(self.held.len()) as u32
    }

    /// A segment of the guest.
    pub(super) fn segment(
        &mut self,
        segment: &Segment<'_>,
        shared: &mut Shared,
        memory: &mut Memory,
    ) -> Result<(), End> {
        match self.state {
            State::Connecting if segment.rst => return Err(End::Guest),
            // The SYN again, most likely.
            State::Connecting => return Ok(()),
            State::SynSent => return self.answer(segment, shared),
            State::SynReceived | State::Established => {}
        }
        let ahead = segment.seq.wrapping_sub(self.received) as i32;
        if segment.rst {
            // Not one of an earlier connection (RFC 9293 section 3.10.7.4).
            let window = self.edge.wrapping_sub(self.received) as i32;
            return match (0..=window.max(0)).contains(&ahead) {
                true => Err(End::Guest),
                false => Ok(()),
            };
        }
        if segment.syn {
            // The guest has not got the answer; or it has forgotten the connection, and answers an
            // acknowledgement with a reset (RFC 9293 section 3.5.1).
            match self.state {
                State::SynReceived => self.syn_owed = true,
                _ => self.ack_owed = true,
            }
            return Ok(());
        }
        let Some(ack) = segment.ack else {
            return Ok(());
        };
        self.heard();
        if self.state == State::SynReceived {
            if ack != self.end {
                return Err(End::Reset);
            }
            self.establish(shared);
        }
        if after(ack, self.sent) {
            self.ack_owed = true;
            return Ok(());
        }
        let window = self.window;
        self.take_window(segment, ack);
        // Anything else that it says is no sign of a loss (RFC 5681 section 2).
        let repeats = window == self.window && segment.payload.is_empty() && !segment.fin;
        self.take_ack(ack, repeats, shared, memory);
        self.take_payload(segment, ahead, shared, memory)?;
        self.end_socket();
        Ok(())
    }

    /// An answer to our SYN.
    fn answer(&mut self, segment: &Segment<'_>, shared: &mut Shared) -> Result<(), End> {
        match segment.ack {
            Some(ack) if ack == self.end => {}
            // From an earlier connection: a reset makes the guest forget it.
            Some(_) if !segment.rst => return Err(End::Reset),
            _ => return Ok(()),
        }
        if segment.rst {
            return Err(End::Guest);
        }
        if segment.syn {
            self.take_syn(segment);
            self.window_ack = self.end;
            self.acked = self.end;
            self.heard();
            self.establish(shared);
            self.ack_owed = true;
        }
        Ok(())
    }

    fn establish(&mut self, shared: &mut Shared) {
        match self.state {
            State::SynSent => shared.counters.connections_in += 1,
            _ => shared.counters.connections_out += 1,
        }
        self.state = State::Established;
        self.syn_owed = false;
        self.next = self.end;
    }

    /// The guest is there.
    fn heard(&mut self) {
        self.retries = 0;
        self.asked = false;
        self.restart_timer |= matches!(self.timer, Timer::Idle | Timer::Probe);
    }

    fn take_window(&mut self, segment: &Segment<'_>, ack: u32) {
        let newer = after(segment.seq, self.window_seq)
            || segment.seq == self.window_seq && !after(self.window_ack, ack);
        if newer {
            self.window_seq = segment.seq;
            self.window_ack = ack;
            self.window = u32::from(segment.window) << self.scale.unwrap_or(0).min(14);
        }
    }

    fn take_ack(&mut self, ack: u32, repeats: bool, shared: &mut Shared, memory: &mut Memory) {
        if !after(ack, self.acked) {
            let repeated = repeats && ack == self.acked && self.sent != self.acked;
            self.repeated_acks = match repeated {
                true => self.repeated_acks.saturating_add(1),
                false => 0,
            };
            if self.repeated_acks == 3 {
                self.next = self.acked;
                self.lost = true;
            }
            return;
        }
        // Also a SYN and a FIN count, which are not in any chunk.
        let mut count = ack.wrapping_sub(self.acked) as usize;
        self.acked = ack;
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.len > count {
                chunk.start += count;
                chunk.len -= count;
                break;
            }
            count -= chunk.len;
            memory.used = memory.used.saturating_sub(chunk.buffer.len());
            if let Some(chunk) = self.chunks.pop_front() {
                shared.give_buffer(chunk.buffer);
            }
        }
        if after(self.acked, self.next) {
            self.next = self.acked;
        }
        self.repeated_acks = 0;
        self.lost = false;
        self.rto = FIRST_RTO;
        self.restart_timer = true;
    }

    fn take_payload(
        &mut self,
        segment: &Segment<'_>,
        ahead: i32,
        shared: &mut Shared,
        memory: &mut Memory,
    ) -> Result<(), End> {
        let known = ahead.wrapping_neg();
        let data = match usize::try_from(known) {
            // Something is missing before it.
            Err(_) => {
                self.ack_owed = true;
                return Ok(());
            }
            Ok(known) => segment.payload.get(known..),
        };
        let Some(data) = data else {
            // It is all known; also how a guest asks whether we are there.
            self.ack_owed = true;
            return Ok(());
        };
        if data.is_empty() && !segment.fin {
            self.ack_owed |= known != 0;
            return Ok(());
        }
        self.ack_owed = true;
        if self.guest_ended {
            return Ok(());
        }
        let window = self.edge.wrapping_sub(self.received) as usize;
        let fits = data.get(..window).unwrap_or(data);
        let taken = self.take_data(fits, memory)?;
        self.received = self.received.wrapping_add(taken as u32);
        if taken < data.len() {
            shared.counters.dropped_full += 1;
        } else if segment.fin {
            self.received = self.received.wrapping_add(1);
            self.guest_ended = true;
        }
        Ok(())
    }

    /// Hands data to the socket, or holds it; as much as there is room for.
    fn take_data(&mut self, data: &[u8], memory: &mut Memory) -> Result<usize, End> {
        let mut rest = data;
        while self.held.is_empty() && self.writable && !rest.is_empty() {
            match host::transmit(&self.socket, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return Err(End::Reset),
            }
        }
        let room = match memory.is_full() {
            true => MIN_HELD,
            false => MAX_HELD,
        };
        let room = room.saturating_sub(self.held.len());
        let hold = rest.get(..room).unwrap_or(rest);
        self.held.extend(hold);
        memory.used += hold.len();
        Ok(data.len() - (rest.len() - hold.len()))
    }

    /// Whether all is said and acknowledged on both sides.
    pub(super) fn is_over(&self) -> bool {
        self.guest_ended
            && self.held.is_empty()
            && self.host_ended
            && self.acked == self.end.wrapping_add(1)
            && !self.ack_owed
    }

    /// Ends the connection: its socket, and what tells the guest.
    pub(super) fn close(self, end: Option<End>, memory: &mut Memory) -> Option<TcpFields<'static>> {
        let waiting = self.chunks.iter().map(|chunk| chunk.buffer.len());
        memory.used = memory
            .used
            .saturating_sub(self.held.len() + waiting.sum::<usize>());
        match end {
            None => {
                drop(self.socket);
                return None;
            }
            Some(_) => host::close_with_reset(self.socket),
        }
        let reset = end == Some(End::Reset)
            // The guest's answer to its SYN.
            || matches!(end, Some(End::Unreachable(_)));
        reset.then(|| TcpFields {
            seq: match self.state {
                State::Connecting => 0,
                _ => self.sent,
            },
            ack: (self.state != State::SynSent).then_some(self.received),
            rst: true,
            ..TcpFields::default()
        })
    }
}
