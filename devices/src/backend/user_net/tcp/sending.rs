//! The half of a connection that sends to the guest.

use rustix::io::Errno;

use super::super::host;
use super::super::packet::{Ends, HEADROOM, Link, MAX_TCP_PAYLOAD, TcpFields};
use super::super::shared::{BUFFER_LEN, Deliver, Shared};
use super::Memory;
use super::connection::{Chunk, Connection, End, MAX_HELD, State, after};

/// Pieces in which data waits for the guest's acknowledgement.
const MAX_CHUNKS: usize = 64;
/// What was read from the host is copied to a buffer of its size if it is not longer than this.
const SMALL: usize = 16 << 10;
/// Our window is in units of 16 bytes.
const SCALE: u8 = 4;

const _: () = assert!(MAX_HELD >> SCALE <= 65535 && BUFFER_LEN > HEADROOM + MAX_TCP_PAYLOAD);

/// What became of a turn to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Sent,
    Nothing,
    /// The guest has no room.
    Refused,
}

impl Connection {
    /// The largest payload of one segment.
    fn max_payload(&self, link: &Link) -> usize {
        if link.tso(self.guest.ip()) {
            MAX_TCP_PAYLOAD - MAX_TCP_PAYLOAD % self.mss
        } else {
            self.mss
        }
    }

    /// Bytes from `next` on that the guest's window has room for.
    pub(super) fn window_left(&self) -> usize {
        let edge = self.acked.wrapping_add(self.window);
        usize::try_from(edge.wrapping_sub(self.next) as i32).unwrap_or(0)
    }

    /// Bytes to read from the socket now. They are as many for a guest that takes only small segments:
    /// it gets them one by one.
    fn room_to_read(&self, memory: &Memory) -> usize {
        if !self.readable || self.host_ended || self.chunks.len() >= MAX_CHUNKS {
            return 0;
        }
        let waiting = self.end.wrapping_sub(self.acked) as usize;
        let room = memory
            .share()
            .saturating_sub(waiting)
            .min(self.window_left());
        // Not many small segments because the window opens little by little.
        if waiting > 0 && room < self.mss {
            return 0;
        }
        room.min(MAX_TCP_PAYLOAD - MAX_TCP_PAYLOAD % self.mss)
    }

    /// Bytes of data to send now that were read already.
    fn room_to_send(&self, link: &Link) -> usize {
        if self.lost && self.next != self.acked || !after(self.end, self.next) {
            return 0;
        }
        let unsent = self.end.wrapping_sub(self.next) as usize;
        unsent.min(self.window_left()).min(self.max_payload(link))
    }

    /// Whether a FIN is what comes next.
    fn fin_is_next(&self) -> bool {
        self.host_ended && self.next == self.end && !(self.lost && self.next != self.acked)
    }

    /// Whether there is something to send.
    pub(super) fn wants_turn(&self, link: &Link, memory: &Memory) -> bool {
        if self.syn_owed {
            return true;
        }
        self.state == State::Established
            && (self.ack_owed
                || self.probe_owed
                || self.room_to_send(link) > 0
                || self.fin_is_next()
                || self.next == self.end && self.room_to_read(memory) > 0)
    }

    /// Sends one segment.
    pub(super) fn turn(
        &mut self,
        shared: &mut Shared,
        memory: &mut Memory,
        deliver: &mut Deliver<'_>,
    ) -> Result<Turn, End> {
        if self.syn_owed {
            return Ok(self.send_syn(shared, memory, deliver));
        }
        if self.state != State::Established {
            return Ok(Turn::Nothing);
        }
        if self.next == self.end {
            self.read(shared, memory)?;
        }
        let count = self.room_to_send(&shared.link);
        if count > 0 {
            return Ok(self.send_data(count, shared, memory, deliver));
        }
        let fin = self.fin_is_next();
        let seq = if fin {
            self.next
        } else if self.probe_owed {
            // What the guest has long got makes it answer.
            self.acked.wrapping_sub(1)
        } else {
            self.sent
        };
        if !(fin || self.probe_owed || self.ack_owed) {
            return Ok(Turn::Nothing);
        }
        let mut frame = [0; HEADROOM];
        let fields = TcpFields {
            seq,
            fin,
            ..self.fields(memory)
        };
        let (start, offload) =
            shared
                .link
                .write_tcp(&mut frame, HEADROOM, self.ends(), fields, self.mss);
        if !deliver(&frame[start..], offload) {
            return Ok(Turn::Refused);
        }
        shared.count_delivered(HEADROOM - start);
        if fin {
            self.next = self.next.wrapping_add(1);
            self.note_sent(shared);
        } else if self.probe_owed {
            self.retries = self.retries.saturating_add(1);
        }
        self.probe_owed = false;
        self.note_ack(fields);
        Ok(Turn::Sent)
    }

    /// Reads from the socket what the guest has room for.
    fn read(&mut self, shared: &mut Shared, memory: &mut Memory) -> Result<(), End> {
        let room = self.room_to_read(memory);
        if room == 0 {
            return Ok(());
        }
        let mut buffer = shared.take_buffer();
        let result = host::receive(&self.socket, &mut buffer[HEADROOM..HEADROOM + room]);
        let len = match result {
            Ok(len) => len,
            Err(error) => {
                shared.give_buffer(buffer);
                self.readable = false;
                return match error {
                    Errno::AGAIN => Ok(()),
                    _ => Err(End::Reset),
                };
            }
        };
        // A short read has taken all; what comes later is an event of its own.
        self.readable = len == room || self.ending;
        if len <= SMALL {
            let small = buffer[..HEADROOM + len].to_vec();
            shared.give_buffer(buffer);
            buffer = small;
        }
        if len == 0 {
            self.host_ended = true;
            return Ok(());
        }
        memory.used += buffer.len();
        self.end = self.end.wrapping_add(len as u32);
        self.chunks.push_back(Chunk {
            buffer,
            start: HEADROOM,
            len,
        });
        Ok(())
    }

    fn send_syn(
        &mut self,
        shared: &mut Shared,
        memory: &Memory,
        deliver: &mut Deliver<'_>,
    ) -> Turn {
        let answer = self.state == State::SynReceived;
        let mss = (shared.link.mss(self.guest.ip()) as u16).to_be_bytes();
        // Maximum segment size; no operation, window scale.
        let options = [2, 4, mss[0], mss[1], 1, 3, 3, SCALE];
        let scaled = !answer || self.scale.is_some();
        // A SYN's window has no scale.
        let window = if answer { self.offer(memory) } else { 65535 };
        let mut frame = [0; HEADROOM];
        let fields = TcpFields {
            seq: self.end.wrapping_sub(1),
            ack: answer.then_some(self.received),
            syn: true,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            options: if scaled { &options } else { &options[..4] },
            ..TcpFields::default()
        };
        let (start, offload) =
            shared
                .link
                .write_tcp(&mut frame, HEADROOM, self.ends(), fields, self.mss);
        if !deliver(&frame[start..], offload) {
            return Turn::Refused;
        }
        shared.count_delivered(HEADROOM - start);
        self.syn_owed = false;
        self.edge = self.received.wrapping_add(fields.window.into());
        self.next = self.end;
        self.note_sent(shared);
        Turn::Sent
    }

    fn send_data(
        &mut self,
        count: usize,
        shared: &mut Shared,
        memory: &Memory,
        deliver: &mut Deliver<'_>,
    ) -> Turn {
        let mut offset = self.next.wrapping_sub(self.acked) as usize;
        let Some(index) = self.chunks.iter().position(|chunk| {
            let here = offset < chunk.len;
            if !here {
                offset -= chunk.len;
            }
            here
        }) else {
            return Turn::Nothing;
        };
        let fields = TcpFields {
            seq: self.next,
            psh: true,
            ..self.fields(memory)
        };
        let (ends, mss) = (self.ends(), self.mss);
        let Some(chunk) = self.chunks.get_mut(index) else {
            return Turn::Nothing;
        };
        let count = count.min(chunk.len - offset);
        let from = chunk.start + offset;
        let mut copy = None;
        // The headers go where acknowledged data was, or to the free room. Data that is not
        // acknowledged must not be overwritten.
        let (frame, payload) = if offset == 0 {
            (&mut chunk.buffer[..from + count], from)
        } else {
            let copy = copy.insert(shared.take_buffer());
            copy[HEADROOM..HEADROOM + count].copy_from_slice(&chunk.buffer[from..from + count]);
            (&mut copy[..HEADROOM + count], HEADROOM)
        };
        let (start, offload) = shared.link.write_tcp(frame, payload, ends, fields, mss);
        let len = frame.len() - start;
        let delivered = deliver(&frame[start..], offload);
        if let Some(copy) = copy {
            shared.give_buffer(copy);
        }
        if !delivered {
            return Turn::Refused;
        }
        shared.count_delivered(len);
        self.next = self.next.wrapping_add(count as u32);
        self.note_sent(shared);
        self.note_ack(fields);
        Turn::Sent
    }

    fn ends(&self) -> Ends {
        Ends {
            source: self.remote,
            destination: self.guest,
        }
    }

    /// Fields of a segment that acknowledges.
    fn fields(&self, memory: &Memory) -> TcpFields<'static> {
        // What was offered stays so.
        let offer = self.received.wrapping_add(self.offer(memory));
        let edge = if after(offer, self.edge) {
            offer
        } else {
            self.edge
        };
        let scale = self.scale.map_or(0, |_| SCALE);
        let window = edge.wrapping_sub(self.received) >> scale;
        TcpFields {
            seq: self.next,
            ack: Some(self.received),
            window: u16::try_from(window).unwrap_or(u16::MAX),
            ..TcpFields::default()
        }
    }

    /// A segment with these fields was sent.
    fn note_ack(&mut self, fields: TcpFields<'_>) {
        self.ack_owed = false;
        let scale = self.scale.map_or(0, |_| SCALE);
        let window = u32::from(fields.window) << scale;
        let edge = self.received.wrapping_add(window);
        if after(edge, self.edge) {
            self.edge = edge;
        }
    }

    /// `next` has advanced.
    fn note_sent(&mut self, shared: &mut Shared) {
        if after(self.next, self.sent) {
            self.sent = self.next;
        } else {
            shared.counters.retransmitted += 1;
            self.retries = self.retries.saturating_add(1);
            self.restart_timer = true;
        }
    }
}
