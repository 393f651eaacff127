//! A guest with a network card: frames that are almost right and buffers of all sizes, commands, limits
//! and links that come and go; behind the card the user network with programs of the host around it, as
//! it is or with a clock that the fuzzer turns, or a wire in the place of a tap.
//!
//! A process that runs this has a network of its own, with nothing in it but the loopback interface.

mod frames;
mod host;
mod namespace;

use std::collections::HashMap;
use std::time::Duration;

use devices::backend::user_backend::UserBackend;
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::net::backend::{HEADER_LEN, NetBackend, Pair};
use devices::virtio::net::{Net, NetConfig, NetControl};
use vm_memory::{Bytes, GuestAddress};

use super::{ENTRIES, Guest, Input, MAX_OPERATIONS, RINGS, RINGS_SIZE};
use frames::{ACK, Ends, FIN, RST, SYN};
use host::{Clock, Clocked, Host, Wire, WireEnd};

const RX: u16 = 0;
const TX: u16 = 1;
/// The control queue of a card with one pair.
const CONTROL: u16 = 2;
/// Entries of a queue, as the driver sets it up, and those that a request has for itself.
const SLOT: u16 = 4;
/// Where receive buffers are, 128 KiB each, and what the guest sends, 128 KiB a frame.
const RX_BUFFERS: u64 = 0x1000_0000;
const RX_LENS: [u32; 8] = [0, 11, 12, 60, 1526, 1526, 4096, 65_562];
const TX_BUFFERS: u64 = 0x8_0000;
const STRIDE: u64 = 0x2_0000;
/// Bytes of a frame to the guest that are looked at.
const LOOKED_AT: usize = 12 + 14 + 40 + 60;
/// Connections that the guest remembers.
const CONNECTIONS: usize = 8;

/// What is behind the card.
enum Behind {
    User(Host),
    Clocked(Host, Clock),
    Wires(Vec<WireEnd>),
}

/// The guest's end of a connection.
struct Connection {
    ends: Ends,
    /// The next byte that it sends, and the next one that it waits for.
    ours: u32,
    theirs: u32,
}

struct Card {
    guest: Guest,
    control: NetControl,
    behind: Behind,
    pairs: u16,
    /// What may be written, by queue and head.
    given: HashMap<(u16, u16), u32>,
    used: [u16; 8],
    /// Buffers of a frame that has begun.
    rest: u16,
    connections: Vec<Connection>,
    /// Who has sent the last datagram.
    asked: Option<Ends>,
    /// The driver has broken the rules: nobody knows what comes of it.
    wild: bool,
}

/// Runs one guest.
pub fn run(input: &[u8]) {
    namespace::enter();
    let mut input = Input(input);
    let (kind, shape) = (input.u8(), input.u8());
    let (backends, behind): (Vec<Box<dyn NetBackend>>, _) = match kind % 8 {
        0..3 => {
            let (host, net) = Host::new(host::config(shape));
            let (backend, _) = UserBackend::new(net).unwrap();
            (vec![Box::new(backend)], Behind::User(host))
        }
        3..6 => {
            let (host, net) = Host::new(host::config(shape));
            let (backend, clock) = Clocked::new(net);
            (vec![Box::new(backend)], Behind::Clocked(host, clock))
        }
        kind => {
            let wires = (6..=kind).map(|_| Wire::pair());
            let (wires, ends): (Vec<_>, _) = wires.unzip();
            let boxed = |wire| Box::new(wire) as Box<dyn NetBackend>;
            (wires.into_iter().map(boxed).collect(), Behind::Wires(ends))
        }
    };
    let pairs: Vec<_> = backends
        .into_iter()
        .map(|backend| Pair {
            backend,
            kernel: None,
        })
        .collect();
    let config = NetConfig {
        id: "net0".to_owned(),
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
        mtu: (kind & 8 != 0).then_some(1500),
        rx_rate: rate(kind >> 4),
        tx_rate: rate(kind >> 6),
    };
    let pair_count = pairs.len() as u16;
    let mut control = None;
    let guest = Guest::new(|event_loop| {
        let (net, its_control) = Net::new(config, pairs, event_loop).unwrap();
        control = Some(its_control);
        net
    });
    let mut card = Card {
        guest,
        control: control.unwrap(),
        behind,
        pairs: pair_count,
        given: HashMap::new(),
        used: [0; 8],
        rest: 0,
        connections: Vec::new(),
        asked: None,
        wild: false,
    };
    card.start(input.u8());
    for _ in 0..MAX_OPERATIONS {
        if input.0.is_empty() {
            break;
        }
        card.operate(&mut input);
        card.guest.event_loop.turn();
        card.check();
    }
    card.guest.write(0x70, 0);
    card.check();
}

fn rate(shape: u8) -> RateLimit {
    RateLimit {
        bandwidth: (shape & 3 == 2).then(|| Bucket::new(4096, 1, 0)).flatten(),
        ops: (shape & 3 == 3).then(|| Bucket::new(3, 1, 1)).flatten(),
    }
}

impl Card {
    fn start(&mut self, features: u8) {
        self.guest.write(0x70, 0);
        self.check();
        let rings = vec![0; usize::from(self.guest.queues) * RINGS_SIZE as usize];
        let memory = &self.guest.memory;
        memory.write_slice(&rings, GuestAddress(RINGS)).unwrap();
        self.given.clear();
        self.used = [0; 8];
        self.rest = 0;
        self.wild = false;
        self.guest.start(features);
    }

    /// RING_RESET: stops a queue, whatever is in it, and sets it up again where it was. The others go on.
    fn reset_queue(&mut self, shape: u8) {
        let queue = u16::from(shape >> 2) % self.guest.queues;
        self.guest.write(0x30, queue.into());
        self.guest.write(0xc0, 1);
        self.check();
        if self.guest.read(0x44) != 0 {
            return;
        }
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let rings = vec![0; RINGS_SIZE as usize];
        let memory = &self.guest.memory;
        memory.write_slice(&rings, GuestAddress(base)).unwrap();
        self.given.retain(|(other, _), _| *other != queue);
        self.used[usize::from(queue)] = 0;
        self.guest.avail[usize::from(queue)] = 0;
        if queue == RX {
            self.rest = 0;
        }
        if shape & 0x80 == 0 {
            self.guest.write(0x38, ENTRIES.into());
            self.guest.write(0x44, 1);
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 32 {
            0..4 => self.give(input),
            4 => self.command(input),
            5 => match (&mut self.behind, input.u8()) {
                (Behind::Clocked(_, clock), time) => {
                    let unit = [1, 50, 1000, 60_000][usize::from(time >> 6)];
                    clock.pass(Duration::from_millis(unit * u64::from(time & 0x3f)));
                    if time == 0xff {
                        clock.reset();
                    }
                    // Has the card look for frames.
                    self.guest.write(0x50, RX.into());
                }
                _ => self.guest.event_loop.turn_for(1),
            },
            6 => self.start(input.u8()),
            7 => {
                let shape = input.u8();
                match shape % 4 {
                    0 => self.control.set_link(shape & 0x80 == 0),
                    1 => _ = self.control.set_rate(rate(shape >> 4), rate(shape >> 6)),
                    2 => _ = self.guest.read(0x100 + u64::from(shape & 0x0c)),
                    _ => self.reset_queue(shape),
                }
            }
            8..12 => match &mut self.behind {
                Behind::User(host) | Behind::Clocked(host, _) => host.operate(input),
                Behind::Wires(ends) => {
                    let which = usize::from(input.u8()) % ends.len();
                    ends[which].operate(input);
                }
            },
            12 => {
                self.wild = true;
                let offset = u64::from(input.u16() % 0x200);
                let value = input.u32();
                self.guest.write(offset, value);
            }
            13 => {
                self.wild = true;
                let gpa = RINGS + u64::from(input.u16() % 0x9000);
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let _ = self.guest.memory.write_slice(&data, GuestAddress(gpa));
            }
            14 => {
                let frame = frames::udp(input, self.asked);
                self.send(&frame, input);
            }
            15 => {
                let frame = frames::arp(input);
                self.send(&frame, input);
            }
            16 => {
                let frame = frames::dhcp(input);
                self.send(&frame, input);
            }
            17 | 18 => {
                let frame = frames::echo(input);
                self.send(&frame, input);
            }
            19 => {
                let frame = frames::control(input);
                self.send(&frame, input);
            }
            20 => {
                for frame in frames::fragments(input) {
                    self.send_with(&frame, &[0; HEADER_LEN], 0, input);
                }
            }
            21 => {
                let kind = input.u16();
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let frame = frames::ethernet(frames::GATEWAY_MAC, kind, &data);
                self.send(&frame, input);
            }
            22 => {
                // Anything.
                let count = usize::from(input.u8());
                let frame = input.bytes(count).to_vec();
                self.send(&frame, input);
            }
            _ => self.segment(input),
        }
    }

    /// A TCP segment, of a connection that there is or of one that there is not.
    fn segment(&mut self, input: &mut Input<'_>) {
        let (shape, which) = (input.u8(), usize::from(input.u8()));
        let at = if shape & 0x80 == 0 {
            let ends = Ends::read(input);
            self.connection(ends)
        } else if let Some(at) = which.checked_rem(self.connections.len()) {
            at
        } else {
            return;
        };
        let (mut flags, mut len) = match shape & 7 {
            0 | 1 => (SYN, 0),
            2 => (ACK, 0),
            3 => (ACK, usize::from(input.u8())),
            4 => (ACK, usize::from(input.u16())),
            5 => (ACK | FIN, 0),
            6 => (ACK | RST, 0),
            _ => (input.u8(), usize::from(input.u8())),
        };
        if shape & 7 == 1 {
            // The answer to a forwarded connection.
            flags |= ACK;
        }
        len = len.min(65_000);
        let connection = &mut self.connections[at];
        let (mut seq, mut ack) = (connection.ours, connection.theirs);
        let mut window = 0xffff;
        match shape >> 3 & 7 {
            1 => seq = seq.wrapping_add(u32::from(input.u16())),
            2 => seq = seq.wrapping_sub(u32::from(input.u16())),
            3 => ack = ack.wrapping_sub(u32::from(input.u16())),
            4 => window = u16::from(input.u8()),
            5 => ack = ack.wrapping_add(u32::from(input.u16())),
            _ => {
                let taken = len as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
                connection.ours = seq.wrapping_add(taken);
            }
        }
        let data = vec![b'g'; len];
        let frame = frames::tcp(&connection.ends, seq, ack, flags, window, &data);
        self.send(&frame, input);
    }

    /// Which one has these ends.
    fn connection(&mut self, ends: Ends) -> usize {
        let known = self.connections.iter().position(|known| known.ends == ends);
        known.unwrap_or_else(|| {
            if self.connections.len() == CONNECTIONS {
                self.connections.remove(0);
            }
            self.connections.push(Connection {
                ends,
                ours: 1000,
                theirs: 0,
            });
            self.connections.len() - 1
        })
    }

    /// Sends a frame, which may be damaged first, with a header that may ask for something.
    fn send(&mut self, frame: &[u8], input: &mut Input<'_>) {
        let shape = input.u8();
        let mut frame = frame.to_vec();
        let mut header = [0; HEADER_LEN];
        match shape >> 4 {
            // Damaged, here and there or at its end.
            0xf | 0xe => {
                for _ in 0..1 + shape % 4 {
                    let at = usize::from(input.u8());
                    let value = input.u8();
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = value;
                    }
                }
            }
            0xd => frame.truncate(usize::from(input.u8())),
            // TCP or UDP without a checksum, and large.
            0xc | 0xb => {
                let is_v6 = frame.get(12) == Some(&0x86);
                let protocol = frame.get(if is_v6 { 20 } else { 23 }).copied().unwrap_or(0);
                let start: u16 = if is_v6 { 54 } else { 34 };
                let (offset, gso) = match protocol {
                    6 => (16u16, if is_v6 { 4 } else { 1 }),
                    _ => (6, 5),
                };
                header[0] = 1;
                header[6..8].copy_from_slice(&start.to_le_bytes());
                header[8..10].copy_from_slice(&offset.to_le_bytes());
                if shape & 0x10 != 0 {
                    header[1] = gso;
                    header[2..4].copy_from_slice(&(start + 20).to_le_bytes());
                    header[4..6].copy_from_slice(&(1 + input.u16() % 1500).to_le_bytes());
                }
            }
            0xa => {
                let count = header.len();
                let bytes = input.bytes(count);
                header[..bytes.len()].copy_from_slice(bytes);
            }
            _ => {}
        }
        self.send_with(&frame, &header, shape, input);
    }

    /// In one buffer, in two, with a wrong one, or without a kick.
    fn send_with(&mut self, frame: &[u8], header: &[u8], shape: u8, input: &mut Input<'_>) {
        let queue = if self.pairs > 1 && shape & 8 != 0 {
            TX + 2
        } else {
            TX
        };
        let head = self.guest.avail[usize::from(queue)] % (ENTRIES / SLOT) * SLOT;
        if self.given.contains_key(&(queue, head)) && !self.wild {
            // All are waiting for something.
            return;
        }
        let gpa = TX_BUFFERS + u64::from(head / SLOT % 8) * STRIDE;
        let memory = &self.guest.memory;
        memory.write_slice(header, GuestAddress(gpa)).unwrap();
        let at = gpa + header.len() as u64;
        memory.write_slice(frame, GuestAddress(at)).unwrap();
        let len = (header.len() + frame.len()) as u32;
        let first = match shape & 7 {
            0..4 => len,
            4 => 12.min(len),
            5 => len.min(u32::from(input.u8())),
            _ => len / 2,
        };
        let mut buffers = vec![(gpa, first, false)];
        if first < len {
            buffers.push((gpa + u64::from(first), len - first, false));
        }
        if shape & 7 == 7 && input.u8() < 0x10 {
            buffers.push((u64::from(input.u32()), input.u32(), input.u8() & 1 == 0));
        }
        self.given.insert((queue, head), 0);
        self.guest.submit(queue, head, &buffers);
        if shape & 7 != 1 {
            self.guest.write(0x50, queue.into());
            self.guest.event_loop.turn();
            self.check();
        }
    }

    /// Receive buffers.
    fn give(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let queue = if self.pairs > 1 && shape & 8 != 0 {
            RX + 2
        } else {
            RX
        };
        let len = RX_LENS[usize::from(shape % 8)];
        for _ in 0..1 + shape / 32 {
            let head = self.guest.avail[usize::from(queue)] % (ENTRIES / SLOT) * SLOT;
            if self.given.contains_key(&(queue, head)) && !self.wild {
                return;
            }
            let gpa = RX_BUFFERS + u64::from(head / SLOT) * STRIDE;
            let mut buffers = vec![(gpa, len, true)];
            if shape & 16 != 0 {
                // What follows on it.
                buffers.push((gpa + u64::from(len), 100, true));
            }
            let all = buffers.iter().map(|buffer| buffer.1).sum();
            self.given.insert((queue, head), all);
            self.guest.submit(queue, head, &buffers);
        }
        self.guest.write(0x50, queue.into());
    }

    /// A command of the driver: class, command, and what belongs to it.
    fn command(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let queue = if self.pairs > 1 && shape & 8 == 0 {
            2 * self.pairs
        } else {
            CONTROL
        };
        if queue != 2 * self.pairs {
            // It is a receive queue of such a card, where this is as good as anything.
            self.wild = true;
        }
        let head = self.guest.avail[usize::from(queue)] % (ENTRIES / SLOT) * SLOT;
        if self.given.contains_key(&(queue, head)) && !self.wild {
            return;
        }
        let command = match shape % 8 {
            0..3 => [4, 0, input.u8(), 0].to_vec(),
            3..6 => {
                let mut command = vec![5, 0];
                let bits = u64::from(input.u16()) | u64::from(input.u8()) << 54;
                command.extend_from_slice(&bits.to_le_bytes());
                command
            }
            _ => {
                let count = usize::from(input.u8() % 16);
                input.bytes(count).to_vec()
            }
        };
        let gpa = TX_BUFFERS + 9 * STRIDE + 64 * u64::from(head / SLOT);
        let memory = &self.guest.memory;
        memory.write_slice(&command, GuestAddress(gpa)).unwrap();
        let mut buffers = vec![(gpa, command.len() as u32, false)];
        let answer = u32::from(shape & 0x40 == 0);
        if answer > 0 {
            buffers.push((gpa + 32, answer, true));
        }
        self.given.insert((queue, head), answer);
        self.guest.submit(queue, head, &buffers);
        self.guest.write(0x50, queue.into());
    }

    /// Each request is returned once, with no more in it than there is room for; who has sent the guest
    /// something is remembered.
    fn check(&mut self) {
        if let Behind::Clocked(_, clock) = &self.behind {
            clock.check();
        }
        for queue in 0..self.guest.queues {
            let ring = RINGS + u64::from(queue) * RINGS_SIZE + 0x2000;
            let memory = self.guest.memory.clone();
            let index: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap();
            if self.wild {
                self.used[usize::from(queue)] = index;
                self.rest = 0;
                continue;
            }
            while self.used[usize::from(queue)] != index {
                let used = &mut self.used[usize::from(queue)];
                let at = ring + 4 + 8 * u64::from(*used % ENTRIES);
                *used = used.wrapping_add(1);
                let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
                let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
                let given = self.given.remove(&(queue, head as u16));
                assert!(
                    len <= given.expect("a request in flight"),
                    "{len} of {given:?}"
                );
                if queue == RX && len > 0 {
                    self.received(head as u16, len);
                }
            }
        }
    }

    fn received(&mut self, head: u16, len: u32) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        if (len as usize) < HEADER_LEN {
            // Buffers that are too small for a header: it is in several.
            return;
        }
        let gpa = RX_BUFFERS + u64::from(head / SLOT) * STRIDE;
        let mut bytes = vec![0; LOOKED_AT.min(len as usize)];
        let memory = &self.guest.memory;
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        self.rest = u16::from_le_bytes([bytes[10], bytes[11]]).saturating_sub(1);
        let Some(received) = frames::parse(&bytes[HEADER_LEN..]) else {
            return;
        };
        if !received.is_tcp {
            self.asked = Some(received.ends);
            return;
        }
        let at = self.connection(received.ends);
        let connection = &mut self.connections[at];
        let flags = received.flags & (SYN | FIN);
        let taken = received.len + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        connection.theirs = received.seq.wrapping_add(taken);
    }
}
