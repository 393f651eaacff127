//! All TCP connections. A segment finds its connection by the addresses and ports in a hash table, and
//! nothing here is done for all connections but when the link is reset.

mod connection;
mod sending;
mod timer;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr};

use super::config::Protocol;
use super::host;
use super::icmp::{self, Unreachable};
use super::packet::{Ends, HEADROOM, IpPacket, TcpFields};
use super::resolver::Resolver;
use super::shared::{Deliver, Key, Route, Shared, Slab, Token};
use connection::{Connection, End, MAX_HELD, MIN_HELD, Segment, State};
use sending::Turn;

pub(super) use connection::Ready;

/// Bytes that a connection may hold in each direction when memory is getting short.
const MEDIUM_HELD: usize = 64 << 10;
/// Ports that are tried for a peer of a forwarded port whose own is taken.
const PORT_TRIES: u16 = 64;

/// The bytes that all connections hold.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) used: usize,
    limit: usize,
}

impl Memory {
    /// Bytes that a connection may hold in one direction now.
    fn share(&self) -> usize {
        if self.used < self.limit / 2 {
            MAX_HELD
        } else if self.used < self.limit {
            MEDIUM_HELD
        } else {
            MIN_HELD
        }
    }

    fn is_full(&self) -> bool {
        self.used >= self.limit
    }
}

/// The guest's address and port, and those that it talks to.
type Ports = (SocketAddr, SocketAddr);

/// All connections.
#[derive(Debug)]
pub(super) struct Tcp {
    connections: Slab<Connection>,
    index: HashMap<Ports, Key>,
    half_open: usize,
    memory: Memory,
    /// Makes initial sequence numbers that nobody can guess (RFC 6528).
    secret: RandomState,
}

impl Tcp {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            connections: Slab::new(),
            index: HashMap::new(),
            half_open: 0,
            memory: Memory {
                used: 0,
                limit: shared.config.limits.memory,
            },
            secret: RandomState::new(),
        }
    }

    /// Connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Bytes that they hold.
    pub(super) fn memory(&self) -> usize {
        self.memory.used
    }

    /// A packet of the guest. Its checksum is right.
    pub(super) fn packet(
        &mut self,
        packet: &IpPacket<'_>,
        resolver: &mut Resolver,
        shared: &mut Shared,
    ) {
        let source: IpAddress = packet.source.into();
        let destination: IpAddress = packet.destination.into();
        let parsed = TcpPacket::new_checked(packet.payload).and_then(|tcp| {
            let ignored = ChecksumCapabilities::ignored();
            TcpRepr::parse(&tcp, &source, &destination, &ignored)
        });
        let Ok(tcp) = parsed else {
            shared.counters.dropped_malformed += 1;
            return;
        };
        let ports = (
            SocketAddr::new(packet.source, tcp.src_port),
            SocketAddr::new(packet.destination, tcp.dst_port),
        );
        let segment = Segment {
            seq: tcp.seq_number.0 as u32,
            ack: tcp.ack_number.map(|ack| ack.0 as u32),
            syn: tcp.control == TcpControl::Syn,
            fin: tcp.control == TcpControl::Fin,
            rst: tcp.control == TcpControl::Rst,
            window: tcp.window_len,
            scale: tcp.window_scale,
            mss: tcp.max_seg_size,
            payload: tcp.payload,
        };
        if let Some(&key) = self.index.get(&ports) {
            self.with(key, shared, |connection, shared, memory| {
                connection.segment(&segment, shared, memory)
            });
        } else if segment.syn && segment.ack.is_none() {
            self.open(ports, &segment, resolver, shared);
        } else if !segment.rst {
            refuse(ports, &segment, shared);
        }
    }

    /// The guest wants a connection.
    fn open(
        &mut self,
        ports: Ports,
        segment: &Segment<'_>,
        resolver: &mut Resolver,
        shared: &mut Shared,
    ) {
        let address = match shared.route(ports.1, Some(Protocol::Tcp)) {
            Route::Host(address) => address,
            Route::Resolver => resolver.address(shared),
            Route::Nowhere => return,
            Route::Refused | Route::Local => return refuse(ports, segment, shared),
        };
        if !self.has_room(shared) {
            return refuse(ports, segment, shared);
        }
        match host::connect_tcp(address) {
            Ok(socket) => {
                let iss = self.initial_sequence(ports, shared);
                let connection = Connection::outgoing(ports, socket, iss, segment, shared);
                self.insert(connection, shared);
            }
            Err(error) => match unreachable(error) {
                Some(why) => {
                    let quoted = packet_start(ports, segment.seq);
                    icmp::send_unreachable(ports.0, ports.1, 6, &quoted, why, shared);
                }
                None => refuse(ports, segment, shared),
            },
        }
    }

    /// A connection to a forwarded port has come. It is closed if it cannot be had.
    pub(super) fn accept(
        &mut self,
        socket: OwnedFd,
        peer: SocketAddr,
        guest_port: u16,
        shared: &mut Shared,
    ) {
        if !self.has_room(shared) {
            return host::close_with_reset(socket);
        }
        host::prepare_tcp(&socket);
        let guest = shared.guest_address(peer.ip());
        let guest_end = SocketAddr::new(guest, guest_port);
        let Some(address) = shared.peer_address(peer.ip(), guest) else {
            return host::close_with_reset(socket);
        };
        // Peers of several addresses may be one to the guest.
        let free = (0..PORT_TRIES)
            .map(|try_| peer.port().wrapping_add(try_).max(1))
            .map(|port| (guest_end, SocketAddr::new(address, port)))
            .find(|ports| !self.index.contains_key(ports));
        let Some(ports) = free else {
            shared.counters.over_limit += 1;
            return host::close_with_reset(socket);
        };
        let iss = self.initial_sequence(ports, shared);
        let connection = Connection::incoming(ports, socket, iss, shared);
        self.insert(connection, shared);
    }

    fn has_room(&self, shared: &mut Shared) -> bool {
        let limits = shared.config.limits;
        let room = self.connections.len() < limits.connections && self.half_open < limits.half_open;
        shared.counters.over_limit += u64::from(!room);
        room
    }

    fn initial_sequence(&self, ports: Ports, shared: &Shared) -> u32 {
        self.secret.hash_one((ports, shared.now)) as u32
    }

    fn insert(&mut self, connection: Connection, shared: &mut Shared) {
        let ports = (connection.guest, connection.remote);
        let key = self.connections.insert(connection);
        self.index.insert(ports, key);
        self.half_open += 1;
        self.with(key, shared, |connection, shared, _| {
            shared
                .watch_edges(connection.socket(), Token::Tcp(key))
                .map_err(|_| End::Reset)
        });
    }

    /// An event of a connection's socket.
    pub(super) fn event(&mut self, key: Key, ready: Ready, shared: &mut Shared) {
        self.with(key, shared, |connection, shared, memory| {
            connection.socket_event(ready, shared, memory)
        });
    }

    /// A connection's timer has gone off.
    pub(super) fn timer(&mut self, key: Key, shared: &mut Shared) {
        self.with(key, shared, |connection, shared, _| {
            let now = shared.now;
            match shared
                .timers
                .is_due(&mut connection.alarm, Token::Tcp(key), now)
            {
                true => connection.timer(),
                false => Ok(()),
            }
        });
    }

    /// A connection's turn to send. Some(false) if the guest has no room, None if it had nothing.
    pub(super) fn turn(
        &mut self,
        key: Key,
        shared: &mut Shared,
        deliver: &mut Deliver<'_>,
    ) -> Option<bool> {
        let mut turn = Turn::Nothing;
        self.with(key, shared, |connection, shared, memory| {
            turn = connection.turn(shared, memory, deliver)?;
            // One that had nothing to send has not until something happens.
            connection.queued = turn == Turn::Nothing;
            Ok(())
        });
        if let Some(connection) = self.connections.get_mut(key)
            && turn == Turn::Nothing
        {
            connection.queued = false;
        }
        match turn {
            Turn::Sent => Some(true),
            Turn::Nothing => None,
            Turn::Refused => Some(false),
        }
    }

    /// Does something with a connection, and what follows from it: its end, its timer, its turn.
    fn with(
        &mut self,
        key: Key,
        shared: &mut Shared,
        work: impl FnOnce(&mut Connection, &mut Shared, &mut Memory) -> Result<(), End>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let result = work(connection, shared, &mut self.memory);
        if connection.half_open && connection.state == State::Established {
            connection.half_open = false;
            self.half_open -= 1;
        }
        if let Err(end) = result {
            return self.close(key, Some(end), shared);
        }
        if connection.is_over() {
            return self.close(key, None, shared);
        }
        let deadline = connection.update_timer(shared.now);
        let token = Token::Tcp(key);
        shared
            .timers
            .set(&mut connection.alarm, token, Some(deadline));
        if !connection.queued && connection.wants_turn(&shared.link, &self.memory) {
            connection.queued = true;
            shared.ready.push_back(token);
        }
    }

    fn close(&mut self, key: Key, end: Option<End>, shared: &mut Shared) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        let ports = (connection.guest, connection.remote);
        self.index.remove(&ports);
        self.half_open -= usize::from(connection.half_open);
        shared.timers.cancel(&mut connection.alarm, Token::Tcp(key));
        let quoted = packet_start(ports, connection.received.wrapping_sub(1));
        let fields = connection.close(end, &mut self.memory);
        match end {
            Some(End::Unreachable(error)) if let Some(why) = unreachable(error) => {
                icmp::send_unreachable(ports.0, ports.1, 6, &quoted, why, shared);
            }
            _ => {
                if let Some(fields) = fields {
                    push_segment(ports, fields, shared);
                }
            }
        }
    }

    /// Ends all connections: the guest is no longer there.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        for key in self.connections.keys() {
            self.close(key, Some(End::Guest), shared);
        }
    }
}

/// Tells the guest that nobody is there (RFC 9293 section 3.10.7.1).
fn refuse(ports: Ports, segment: &Segment<'_>, shared: &mut Shared) {
    let len = segment.payload.len() + usize::from(segment.syn) + usize::from(segment.fin);
    let fields = match segment.ack {
        Some(ack) => TcpFields {
            seq: ack,
            rst: true,
            ..TcpFields::default()
        },
        None => TcpFields {
            ack: Some(segment.seq.wrapping_add(len as u32)),
            rst: true,
            ..TcpFields::default()
        },
    };
    push_segment(ports, fields, shared);
}

fn push_segment(ports: Ports, fields: TcpFields<'_>, shared: &mut Shared) {
    let mut frame = [0; HEADROOM];
    let ends = Ends {
        source: ports.1,
        destination: ports.0,
    };
    let (start, offload) = shared
        .link
        .write_tcp(&mut frame, HEADROOM, ends, fields, usize::MAX);
    shared.push_frame_with(frame[start..].to_vec(), offload);
}

/// The first 8 bytes of the guest's SYN.
fn packet_start((guest, remote): Ports, seq: u32) -> [u8; 8] {
    let mut start = [0; 8];
    start[..2].copy_from_slice(&guest.port().to_be_bytes());
    start[2..4].copy_from_slice(&remote.port().to_be_bytes());
    start[4..].copy_from_slice(&seq.to_be_bytes());
    start
}

/// What the guest is told of an error of the host, if not by a reset.
fn unreachable(error: Errno) -> Option<Unreachable> {
    match error {
        Errno::NETUNREACH | Errno::NETDOWN => Some(Unreachable::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Some(Unreachable::Host),
        Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
        _ => None,
    }
}
