//! Frames of a guest, made of the fuzzer's bytes: almost right, of all protocols that there are.

use crate::Input;

pub(super) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
pub(super) const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
pub(super) const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const DNS: [u8; 4] = [10, 0, 2, 3];
pub(super) const PREFIX: [u8; 8] = [0xfd, 0, 0x6d, 0x6f, 0x74, 0x65, 0, 0];
/// Ports of servers of the host.
pub(super) const SERVED: u16 = 7;
pub(super) const RESOLVER: u16 = 53;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// An address of either kind, in 16 bytes; IPv4 in the last four.
pub(super) type Address = [u8; 16];

fn v6(last: u8) -> Address {
    let mut address = [0; 16];
    address[..8].copy_from_slice(&PREFIX);
    address[15] = last;
    address
}

fn v4(bytes: [u8; 4]) -> Address {
    let mut address = [0; 16];
    address[12..].copy_from_slice(&bytes);
    address
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) is_v6: bool,
    pub(super) guest: Address,
    pub(super) remote: Address,
    pub(super) guest_port: u16,
    pub(super) remote_port: u16,
}

impl Ends {
    /// Most often the gateway or the resolver, and ports that lead somewhere.
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let shape = input.u8();
        let is_v6 = shape & 1 != 0;
        let guest = if is_v6 { v6(0x15) } else { v4(GUEST) };
        let remote = match (shape >> 1 & 3, is_v6) {
            (0 | 1, false) => v4(GATEWAY),
            (0 | 1, true) => v6(2),
            (2, false) => v4(DNS),
            (2, true) => v6(3),
            (_, false) => v4([input.u8(), input.u8(), 2, input.u8()]),
            (_, true) => {
                let mut address = [0; 16];
                address[..2].copy_from_slice(&input.u16().to_be_bytes());
                address[15] = input.u8();
                address
            }
        };
        let remote_port = match shape >> 3 & 3 {
            0 => SERVED,
            1 => RESOLVER,
            2 => 9,
            _ => input.u16(),
        };
        Self {
            is_v6,
            guest,
            remote,
            guest_port: 1000 + u16::from(shape >> 5),
            remote_port,
        }
    }
}

fn sum(mut all: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        all += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    all
}

fn fold(mut all: u32) -> u16 {
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    !(all as u16)
}

/// Fills in the checksum at `at` of a payload between these ends.
fn checksum(ends: &Ends, protocol: u8, payload: &mut [u8], at: usize) {
    let mut all = 0;
    if protocol != ICMP {
        let from = if ends.is_v6 { 0 } else { 12 };
        all = sum(sum(0, &ends.guest[from..]), &ends.remote[from..]);
        all += u32::from(protocol) + payload.len() as u32;
    }
    payload[at..at + 2].fill(0);
    let value = fold(sum(all, payload)).to_be_bytes();
    payload[at..at + 2].copy_from_slice(&value);
}

pub(super) fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend_from_slice(&GUEST_MAC);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A packet, or the part of one that starts at `offset` and is not the last if `more`.
fn packet(ends: &Ends, protocol: u8, payload: &[u8], part: Option<(u16, bool)>) -> Vec<u8> {
    let mut packet = Vec::new();
    if ends.is_v6 {
        let extra = if part.is_some() { 8 } else { 0 };
        packet.extend_from_slice(&[0x60, 0, 0, 0]);
        packet.extend_from_slice(&(payload.len() as u16 + extra).to_be_bytes());
        packet.extend_from_slice(&[if part.is_some() { FRAGMENT } else { protocol }, 64]);
        packet.extend_from_slice(&ends.guest);
        packet.extend_from_slice(&ends.remote);
        if let Some((offset, more)) = part {
            packet.extend_from_slice(&[protocol, 0]);
            packet.extend_from_slice(&(offset & !7 | u16::from(more)).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0, 1]);
        }
        packet.extend_from_slice(payload);
        return ethernet(GATEWAY_MAC, 0x86dd, &packet);
    }
    let (offset, more) = part.unwrap_or((0, false));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&(payload.len() as u16 + 20).to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet.extend_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&ends.guest[12..]);
    packet.extend_from_slice(&ends.remote[12..]);
    let value = fold(sum(0, &packet)).to_be_bytes();
    packet[10..12].copy_from_slice(&value);
    packet.extend_from_slice(payload);
    ethernet(GATEWAY_MAC, 0x0800, &packet)
}

/// One segment.
pub(super) fn tcp(ends: &Ends, seq: u32, ack: u32, flags: u8, window: u16, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&ends.guest_port.to_be_bytes());
    segment.extend_from_slice(&ends.remote_port.to_be_bytes());
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    let options: &[u8] = if flags & SYN != 0 {
        &[2, 4, 5, 0xb4, 1, 3, 3, 2]
    } else {
        &[]
    };
    segment.extend_from_slice(&[(5 + options.len() as u8 / 4) << 4, flags]);
    segment.extend_from_slice(&window.to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    segment.extend_from_slice(options);
    segment.extend_from_slice(data);
    checksum(ends, TCP, &mut segment, 16);
    packet(ends, TCP, &segment, None)
}

fn datagram(ends: &Ends, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&ends.guest_port.to_be_bytes());
    datagram.extend_from_slice(&ends.remote_port.to_be_bytes());
    datagram.extend_from_slice(&(data.len() as u16 + 8).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    checksum(ends, UDP, &mut datagram, 6);
    datagram
}

/// A payload that is the fuzzer's, or so many bytes of one kind.
fn data(input: &mut Input<'_>) -> Vec<u8> {
    let shape = input.u8();
    if shape < 0xc0 {
        input.bytes(usize::from(shape)).to_vec()
    } else {
        vec![shape; usize::from(input.u16() % 60_000)]
    }
}

/// A datagram; from the last guest port, to `asked` if there is such.
pub(super) fn udp(input: &mut Input<'_>, asked: Option<Ends>) -> Vec<u8> {
    let ends = Ends::read(input);
    let ends = asked.filter(|_| ends.guest_port == 1007).unwrap_or(ends);
    let datagram = datagram(&ends, &data(input));
    packet(&ends, UDP, &datagram, None)
}

/// Pieces of a datagram, in any order, some of them missing or twice.
pub(super) fn fragments(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let ends = Ends::read(input);
    let datagram = datagram(&ends, &data(input));
    let size = 8 * (1 + usize::from(input.u8() % 0x80));
    let count = datagram.len().div_ceil(size);
    (0..1 + input.u8() % 16)
        .map(|_| {
            let number = usize::from(input.u8()) % count;
            let piece = &datagram[number * size..datagram.len().min((number + 1) * size)];
            let part = ((number * size) as u16, number + 1 < count);
            packet(&ends, UDP, piece, Some(part))
        })
        .collect()
}

pub(super) fn echo(input: &mut Input<'_>) -> Vec<u8> {
    let ends = Ends::read(input);
    let mut message = vec![if ends.is_v6 { 128 } else { 8 }, 0, 0, 0, 0, 1];
    message.extend_from_slice(&u16::from(input.u8()).to_be_bytes());
    message.extend_from_slice(&data(input));
    let protocol = if ends.is_v6 { ICMPV6 } else { ICMP };
    checksum(&ends, protocol, &mut message, 2);
    packet(&ends, protocol, &message, None)
}

/// Who has an address, and where is the router, over IPv6; or any message of ICMP.
pub(super) fn control(input: &mut Input<'_>) -> Vec<u8> {
    let mut ends = Ends::read(input);
    let kind = input.u8();
    let mut message = match kind {
        133 => vec![
            133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56,
        ],
        135 => {
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&ends.remote);
            message.extend_from_slice(&[1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
            message
        }
        _ => [&[kind, input.u8(), 0, 0], &data(input)[..]].concat(),
    };
    if ends.is_v6 && matches!(kind, 133 | 135) {
        // From the link's address, to all.
        ends.guest = [0; 16];
        ends.guest[..2].copy_from_slice(&[0xfe, 0x80]);
        ends.guest[15] = 1;
        ends.remote = [0; 16];
        ends.remote[..2].copy_from_slice(&[0xff, 2]);
        ends.remote[15] = 2;
    }
    let protocol = if ends.is_v6 { ICMPV6 } else { ICMP };
    checksum(&ends, protocol, &mut message, 2);
    let mut frame = packet(&ends, protocol, &message, None);
    if ends.is_v6 && matches!(kind, 133 | 135) {
        // Neighbours' hop limit.
        frame[21] = 255;
    }
    frame
}

pub(super) fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let target = match input.u8() {
        0..100 => GATEWAY,
        100..200 => DNS,
        last => [10, 0, 2, last],
    };
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
    message.extend_from_slice(&GUEST_MAC);
    message.extend_from_slice(&GUEST);
    message.extend_from_slice(&[0; 6]);
    message.extend_from_slice(&target);
    ethernet([0xff; 6], 0x0806, &message)
}

/// A message to the DHCP server: its kind, and options.
pub(super) fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.u8();
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[1, 2, 3, 4]);
    message[28..34].copy_from_slice(&GUEST_MAC);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend_from_slice(&[53, 1, kind]);
    message.extend_from_slice(&data(input));
    message.push(255);
    let mut ends = Ends {
        is_v6: false,
        guest: [0; 16],
        remote: v4([255; 4]),
        guest_port: 68,
        remote_port: 67,
    };
    if kind & 0x80 != 0 {
        // Renewal.
        ends.guest = v4(GUEST);
        ends.remote = v4(GATEWAY);
    }
    let datagram = datagram(&ends, &message);
    packet(&ends, UDP, &datagram, None)
}

/// A segment or a datagram for the guest.
pub(super) struct Received {
    pub(super) ends: Ends,
    pub(super) is_tcp: bool,
    pub(super) seq: u32,
    pub(super) flags: u8,
    /// Bytes of data.
    pub(super) len: u32,
}

/// What a frame to the guest is, if it is TCP or UDP.
pub(super) fn parse(frame: &[u8]) -> Option<Received> {
    let packet = frame.get(14..)?;
    let is_v6 = match frame.get(12..14)? {
        [8, 0] => false,
        [0x86, 0xdd] => true,
        _ => return None,
    };
    let be16 = |bytes: &[u8], at: usize| -> Option<u16> {
        Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
    };
    let (header, protocol, total) = if is_v6 {
        (40, *packet.get(6)?, usize::from(be16(packet, 4)?) + 40)
    } else {
        (20, *packet.get(9)?, usize::from(be16(packet, 2)?))
    };
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let address = |at: usize| -> Option<Address> {
        if is_v6 {
            packet.get(at..at + 16)?.try_into().ok()
        } else {
            Some(v4(packet.get(at..at + 4)?.try_into().ok()?))
        }
    };
    let places = if is_v6 { (8, 24) } else { (12, 16) };
    let segment = packet.get(header..)?;
    let ends = Ends {
        is_v6,
        remote: address(places.0)?,
        guest: address(places.1)?,
        remote_port: be16(segment, 0)?,
        guest_port: be16(segment, 2)?,
    };
    if protocol == UDP {
        return Some(Received {
            ends,
            is_tcp: false,
            seq: 0,
            flags: 0,
            len: 0,
        });
    }
    let offset = usize::from(*segment.get(12)? >> 4) * 4;
    Some(Received {
        ends,
        is_tcp: true,
        seq: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        flags: *segment.get(13)?,
        len: total.checked_sub(header + offset)? as u32,
    })
}
