//! Fragments of IP packets: datagrams that are larger than the link's MTU, both ways.
//!
//! What the guest sends in pieces is held until it is complete, in a bounded table. Pieces that overlap
//! are an attack or a mistake, and end the whole packet (RFC 5722).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::wire::Ipv4Packet;

use super::packet::{ETHERNET_LEN, Fragment, IPV4_LEN, IPV6_LEN, IpPacket, MAX_PACKET};

/// Packets that are incomplete.
const MAX_PACKETS: usize = 16;
/// Pieces of each: enough for the largest packet in pieces of 1280 bytes.
const MAX_PIECES: usize = 64;
/// How long a packet may be incomplete.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of the header of a fragment in IPv6.
const FRAGMENT_LEN: usize = 8;
const FRAGMENT_PROTOCOL: u8 = 44;

/// What all pieces of a packet have in common.
type PacketId = (IpAddr, IpAddr, u8, u32);

#[derive(Debug)]
struct Partial {
    id: PacketId,
    begun: Instant,
    pieces: Vec<(usize, Vec<u8>)>,
    /// Bytes of the whole, once the last piece is there.
    total: Option<usize>,
}

/// Incomplete packets of the guest, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    partial: VecDeque<Partial>,
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The payload of the whole packet.
    Complete(Vec<u8>),
    Held,
    /// It, or an older packet for it, was dropped.
    Dropped,
}

impl Reassembly {
    /// Takes a piece.
    pub(super) fn add(&mut self, packet: &IpPacket<'_>, piece: Fragment, now: Instant) -> Piece {
        let end = piece.offset + packet.payload.len();
        // All but the last are multiples of 8 bytes.
        let odd = piece.more && !packet.payload.len().is_multiple_of(8);
        if packet.payload.is_empty() || end > MAX_PACKET || odd {
            return Piece::Dropped;
        }
        self.partial
            .retain(|partial| now.saturating_duration_since(partial.begun) < TIMEOUT);
        let id = (packet.source, packet.destination, packet.protocol, piece.id);
        let mut dropped = false;
        let found = self.partial.iter().position(|partial| partial.id == id);
        let index = found.unwrap_or_else(|| {
            if self.partial.len() >= MAX_PACKETS {
                self.partial.pop_front();
                dropped = true;
            }
            self.partial.push_back(Partial {
                id,
                begun: now,
                pieces: Vec::new(),
                total: None,
            });
            self.partial.len() - 1
        });
        let Some(partial) = self.partial.get_mut(index) else {
            return Piece::Dropped;
        };
        if !partial.add(piece, packet.payload) {
            self.partial.remove(index);
            return Piece::Dropped;
        }
        match partial.take() {
            Some(whole) => {
                self.partial.remove(index);
                Piece::Complete(whole)
            }
            None if dropped => Piece::Dropped,
            None => Piece::Held,
        }
    }

    /// Forgets all.
    pub(super) fn reset(&mut self) {
        self.partial.clear();
    }
}

impl Partial {
    /// Adds a piece; false if that makes no sense.
    fn add(&mut self, piece: Fragment, payload: &[u8]) -> bool {
        let end = piece.offset + payload.len();
        let known_end = self
            .pieces
            .iter()
            .map(|(offset, bytes)| offset + bytes.len())
            .max();
        let sensible = match (piece.more, self.total) {
            (true, Some(total)) => end <= total,
            (true, None) => true,
            (false, None) => known_end.is_none_or(|known| known <= end),
            (false, Some(_)) => false,
        };
        let overlaps = self
            .pieces
            .iter()
            .any(|(offset, bytes)| *offset < end && piece.offset < offset + bytes.len());
        if !sensible || overlaps || self.pieces.len() >= MAX_PIECES {
            return false;
        }
        if !piece.more {
            self.total = Some(end);
        }
        self.pieces.push((piece.offset, payload.to_vec()));
        true
    }

    /// The whole, if all of it is there.
    fn take(&mut self) -> Option<Vec<u8>> {
        let total = self.total?;
        // Pieces do not overlap: they are all if they are as long.
        let len: usize = self.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        if len != total {
            return None;
        }
        self.pieces.sort_unstable_by_key(|&(offset, _)| offset);
        Some(self.pieces.drain(..).flat_map(|(_, bytes)| bytes).collect())
    }
}

/// Cuts a frame whose IP packet is larger than `mtu` into frames that are not. The packet has neither
/// options nor extension headers.
pub(super) fn split(frame: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let v4 = frame.get(ETHERNET_LEN).is_some_and(|byte| byte >> 4 == 4);
    let ip_len = if v4 { IPV4_LEN } else { IPV6_LEN };
    let (Some(headers), Some(payload)) = (
        frame.get(..ETHERNET_LEN + ip_len),
        frame.get(ETHERNET_LEN + ip_len..),
    ) else {
        return Vec::new();
    };
    let own_len = if v4 { 0 } else { FRAGMENT_LEN };
    let piece_len = mtu.saturating_sub(ip_len + own_len).max(8) & !7;
    let pieces = payload.chunks(piece_len);
    let last = pieces.len().saturating_sub(1);
    pieces
        .enumerate()
        .map(|(index, piece)| {
            let offset = index * piece_len;
            let more = index != last;
            let mut frame = headers.to_vec();
            if v4 {
                let mut header = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_LEN..]);
                header.set_total_len((IPV4_LEN + piece.len()) as u16);
                header.set_dont_frag(false);
                header.set_more_frags(more);
                header.set_frag_offset(offset as u16);
                header.fill_checksum();
            } else {
                let len = ((FRAGMENT_LEN + piece.len()) as u16).to_be_bytes();
                frame[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&len);
                let protocol = std::mem::replace(&mut frame[ETHERNET_LEN + 6], FRAGMENT_PROTOCOL);
                frame.extend([protocol, 0]);
                frame.extend((offset as u16 | u16::from(more)).to_be_bytes());
                frame.extend(id.to_be_bytes());
            }
            frame.extend_from_slice(piece);
            frame
        })
        .collect()
}

#[cfg(test)]
#[path = "fragment_test.rs"]
mod tests;
