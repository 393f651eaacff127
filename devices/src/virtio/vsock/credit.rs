//! Who has room for how much (virtio 1.2 section 5.10.6.3): both sides count what went through, modulo
//! 2^32, and tell each other.

use std::num::Wrapping;

use super::packet::Header;

/// Of the room that the guest says it has, no more is used: so that counters that differ by more are
/// a lie and no old packet.
pub(super) const CREDIT_MAX: u32 = 1 << 30;

/// What may be sent to the guest.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// What the guest has said.
    capacity: u32,
    forwarded: Wrapping<u32>,
    /// The guest was asked for credit, and has given none since.
    asked: bool,
}

impl Outgoing {
    /// With what the guest has said first: both count from there.
    pub(super) fn new(buf_alloc: u32, fwd_cnt: u32) -> Self {
        Self {
            sent: Wrapping(fwd_cnt),
            capacity: buf_alloc,
            forwarded: Wrapping(fwd_cnt),
            asked: false,
        }
    }

    /// Takes what a packet says. False if it says that the guest took what it was never sent.
    #[must_use]
    pub(super) fn update(&mut self, header: &Header) -> bool {
        let forwarded = Wrapping(header.fwd_cnt);
        if (self.sent - forwarded).0 > CREDIT_MAX {
            return false;
        }
        // Packets overtake each other in the guest: an older one says less.
        if (forwarded - self.forwarded).0 <= CREDIT_MAX {
            self.forwarded = forwarded;
        }
        self.capacity = header.buf_alloc;
        self.asked &= self.room() == 0;
        true
    }

    /// Bytes that the guest has room for.
    pub(super) fn room(&self) -> u32 {
        let in_flight = (self.sent - self.forwarded).0;
        self.capacity.min(CREDIT_MAX).saturating_sub(in_flight)
    }

    /// So many bytes were sent.
    pub(super) fn send(&mut self, count: usize) {
        self.sent += wrapped(count);
    }

    /// Whether the guest is to be asked for room.
    pub(super) fn has_to_ask(&self) -> bool {
        self.room() == 0 && !self.asked
    }

    /// The guest is asked.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }
}

/// What the guest may send.
#[derive(Debug)]
pub(super) struct Incoming {
    /// What the guest is told to have room for.
    capacity: u32,
    /// Bytes that the guest has sent.
    received: Wrapping<u32>,
    /// Of these, what has left the buffer, and what the guest knows of that.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
}

impl Incoming {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes that the guest may send, at most: it may not know of all of them yet.
    pub(super) fn room(&self) -> u32 {
        let held = (self.received - self.forwarded).0;
        self.capacity.saturating_sub(held)
    }

    /// So many bytes have come.
    pub(super) fn receive(&mut self, count: u32) {
        self.received += count;
    }

    /// So many bytes have left the buffer, or never were in it.
    pub(super) fn forward(&mut self, count: usize) {
        self.forwarded += wrapped(count);
    }

    /// Whether the guest, as far as it knows, has little room left, and there is more.
    pub(super) fn has_news(&self) -> bool {
        let known = self.capacity.saturating_sub((self.received - self.told).0);
        self.forwarded != self.told && known < self.capacity / 2
    }

    /// The counter for a packet to the guest, which then knows it.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded.0
    }
}

#[expect(clippy::cast_possible_truncation, reason = "counts modulo 2^32")]
fn wrapped(count: usize) -> u32 {
    count as u32
}

#[cfg(test)]
#[path = "credit_test.rs"]
mod tests;
