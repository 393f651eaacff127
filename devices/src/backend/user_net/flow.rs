//! UDP and pings: each pair of ends is a flow with a socket of its own at the host, so that the host's
//! kernel sees to it that only the other end is heard, and tells of its errors.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, sendto};
use smoltcp::wire::{IpProtocol, UdpPacket};

use super::config::{FrameOffload, Gso, GsoKind, Protocol};
use super::forward::Forwards;
use super::host;
use super::icmp::{self, Unreachable};
use super::packet::{ETHERNET_LEN, Ends, HEADROOM, IpPacket};
use super::resolver::Resolver;
use super::shared::{Alarm, BUFFER_LEN, Deliver, Key, Route, Shared, Slab, Token};

/// How long a flow lives on after its last packet: when both sides have been heard,
const ANSWERED_TIMEOUT: Duration = Duration::from_secs(180);
/// when only one has,
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(30);
/// and one to a resolver.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(10);
/// A question that is asked again after this long goes to the next resolver.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(1);
/// Datagrams that one large frame of the guest is cut into, as Linux has it.
const MAX_DATAGRAMS: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Udp,
    /// The guest's port is the identifier of its pings; the other end has none.
    Ping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    kind: Kind,
    guest: SocketAddr,
    remote: SocketAddr,
}

#[derive(Debug)]
enum Via {
    /// A socket that talks to nobody else.
    Own(OwnedFd),
    /// A forwarded port, and who talks to it.
    Forward(u16, SocketAddr),
}

#[derive(Debug)]
struct Flow {
    name: Name,
    via: Via,
    /// The resolver that this goes to, if it does.
    resolver: Option<SocketAddr>,
    queued: bool,
    answered: bool,
    /// When the first packet was sent that nothing was heard of since.
    asked: Option<Instant>,
    last: Instant,
    /// Its place among all flows, by use.
    used: u64,
    alarm: Alarm,
}

impl Flow {
    fn timeout(&self) -> Duration {
        match (self.resolver, self.answered) {
            (Some(_), _) => RESOLVER_TIMEOUT,
            (None, true) => ANSWERED_TIMEOUT,
            (None, false) => UNANSWERED_TIMEOUT,
        }
    }
}

/// All flows.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Slab<Flow>,
    index: HashMap<Name, Key>,
    /// By use, the oldest first.
    order: BTreeMap<u64, Key>,
    uses: u64,
}

impl Flows {
    pub(super) fn new() -> Self {
        Self {
            flows: Slab::new(),
            index: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Flows there are.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A datagram of the guest, or several in one frame. Its checksum is right.
    pub(super) fn datagram(
        &mut self,
        packet: &IpPacket<'_>,
        offload: FrameOffload,
        resolver: &mut Resolver,
        forwards: &Forwards,
        shared: &mut Shared,
    ) {
        let udp = match UdpPacket::new_checked(packet.payload) {
            Ok(udp) if udp.dst_port() != 0 && udp.src_port() != 0 => udp,
            _ => {
                shared.counters.dropped_malformed += 1;
                return;
            }
        };
        let name = Name {
            kind: Kind::Udp,
            guest: SocketAddr::new(packet.source, udp.src_port()),
            remote: SocketAddr::new(packet.destination, udp.dst_port()),
        };
        let Some(key) = self.find_udp(name, packet, resolver, shared) else {
            return;
        };
        let payload = udp.payload();
        let size = match offload.gso {
            Some(Gso {
                kind: GsoKind::Udp,
                size,
                ..
            }) => usize::from(size).max(1),
            _ => payload.len().max(1),
        };
        if payload.len().div_ceil(size) > MAX_DATAGRAMS {
            shared.counters.dropped_malformed += 1;
            return;
        }
        if payload.is_empty() {
            self.send(key, payload, forwards, shared);
        }
        for datagram in payload.chunks(size) {
            self.send(key, datagram, forwards, shared);
        }
    }

    /// The flow for a datagram of the guest, which may be its first.
    fn find_udp(
        &mut self,
        name: Name,
        packet: &IpPacket<'_>,
        resolver: &mut Resolver,
        shared: &mut Shared,
    ) -> Option<Key> {
        if let Some(&key) = self.index.get(&name)
            && let Some(flow) = self.flows.get_mut(key)
        {
            let now = shared.now;
            let patient = |asked| now.saturating_duration_since(asked) < RESOLVER_PATIENCE;
            match flow.resolver {
                Some(address) if !flow.asked.is_none_or(patient) => {
                    resolver.failed(address);
                    self.remove(key, shared);
                }
                _ => return Some(key),
            }
        }
        let route = shared.route(name.remote, Some(Protocol::Udp));
        let (address, asked) = match route {
            Route::Host(address) => (address, None),
            Route::Resolver => {
                let address = resolver.address(shared);
                (address, Some(address))
            }
            Route::Refused => {
                icmp::prohibited(packet, shared);
                return None;
            }
            Route::Local => {
                unreachable(name, Unreachable::Port, shared);
                return None;
            }
            Route::Nowhere => return None,
        };
        self.make_room(shared);
        match host::connect_udp(address) {
            Ok(socket) => self.insert(name, Via::Own(socket), asked, shared),
            Err(error) => {
                if let Some(address) = asked {
                    resolver.failed(address);
                }
                report(name, error, shared);
                None
            }
        }
    }

    /// A ping of the guest to the outside.
    pub(super) fn ping(&mut self, packet: &IpPacket<'_>, shared: &mut Shared) {
        let Some(&[_, _, _, _, high, low, _, _]) = packet.payload.first_chunk::<8>() else {
            return;
        };
        let name = Name {
            kind: Kind::Ping,
            guest: SocketAddr::new(packet.source, u16::from_be_bytes([high, low])),
            remote: SocketAddr::new(packet.destination, 0),
        };
        // The policy was asked; this gives the address.
        let Route::Host(address) = shared.route(name.remote, None) else {
            return;
        };
        let key = match self.index.get(&name) {
            Some(&key) => Some(key),
            None => {
                self.make_room(shared);
                match host::connect_ping(address.ip()) {
                    Ok(socket) => self.insert(name, Via::Own(socket), None, shared),
                    Err(error) => {
                        report(name, error, shared);
                        None
                    }
                }
            }
        };
        if let Some(key) = key {
            // The kernel puts in an identifier of its own, and the checksum.
            self.send(key, packet.payload, &Forwards::default(), shared);
        }
    }

    /// Ends the flow that was idle longest, if there are too many.
    fn make_room(&mut self, shared: &mut Shared) {
        while self.flows.len() >= shared.config.limits.flows.max(1) {
            let Some((_, &key)) = self.order.first_key_value() else {
                return;
            };
            shared.counters.over_limit += 1;
            self.remove(key, shared);
        }
    }

    fn insert(
        &mut self,
        name: Name,
        via: Via,
        resolver: Option<SocketAddr>,
        shared: &mut Shared,
    ) -> Option<Key> {
        let flow = Flow {
            name,
            via,
            resolver,
            queued: false,
            answered: false,
            asked: None,
            last: shared.now,
            used: self.uses,
            alarm: Alarm::default(),
        };
        let key = self.flows.insert(flow);
        self.index.insert(name, key);
        self.order.insert(self.uses, key);
        self.uses += 1;
        shared.counters.flows += 1;
        let flow = self.flows.get_mut(key)?;
        if let Via::Own(socket) = &flow.via
            && shared.watch_edges(socket, Token::Flow(key)).is_err()
        {
            self.remove(key, shared);
            return None;
        }
        self.touch(key, shared);
        Some(key)
    }

    fn remove(&mut self, key: Key, shared: &mut Shared) {
        if let Some(mut flow) = self.flows.remove(key) {
            self.index.remove(&flow.name);
            self.order.remove(&flow.used);
            shared.timers.cancel(&mut flow.alarm, Token::Flow(key));
        }
    }

    /// Notes that a flow was used.
    fn touch(&mut self, key: Key, shared: &mut Shared) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        self.order.remove(&flow.used);
        flow.used = self.uses;
        self.order.insert(self.uses, key);
        self.uses += 1;
        flow.last = shared.now;
        let end = flow.last + flow.timeout();
        shared
            .timers
            .set(&mut flow.alarm, Token::Flow(key), Some(end));
    }

    /// Sends one datagram or ping of the guest.
    fn send(&mut self, key: Key, payload: &[u8], forwards: &Forwards, shared: &mut Shared) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let name = flow.name;
        flow.asked.get_or_insert(shared.now);
        let mut result = transmit(&flow.via, payload, forwards);
        if result == Err(Errno::CONNREFUSED) {
            // That was the answer to an earlier one.
            unreachable(name, Unreachable::Port, shared);
            result = transmit(&flow.via, payload, forwards);
        }
        match result {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) => {
                shared.counters.dropped_full += 1;
            }
            Err(error) => report(name, error, shared),
        }
        self.touch(key, shared);
    }

    /// An event of a flow's socket.
    pub(super) fn event(&mut self, key: Key, shared: &mut Shared) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.queued
        {
            flow.queued = true;
            shared.ready.push_back(Token::Flow(key));
        }
    }

    /// A flow's timer has gone off.
    pub(super) fn timer(&mut self, key: Key, shared: &mut Shared) {
        let now = shared.now;
        if let Some(flow) = self.flows.get_mut(key)
            && shared.timers.is_due(&mut flow.alarm, Token::Flow(key), now)
        {
            self.remove(key, shared);
        }
    }

    /// A flow's turn to send. Some(false) if the guest had no room, None if there was nothing.
    pub(super) fn turn(
        &mut self,
        key: Key,
        resolver: &mut Resolver,
        shared: &mut Shared,
        deliver: &mut Deliver<'_>,
    ) -> Option<bool> {
        let flow = self.flows.get_mut(key)?;
        flow.queued = false;
        let (name, Via::Own(socket)) = (flow.name, &flow.via) else {
            return None;
        };
        let mut buffer = shared.take_buffer();
        let result = host::receive(socket, &mut buffer[HEADROOM..]);
        let sent = match result {
            Ok(len) => {
                flow.answered = true;
                flow.asked = None;
                flow.queued = true;
                shared.ready.push_back(Token::Flow(key));
                self.touch(key, shared);
                Some(hand_over(name, &mut buffer, len, shared, deliver))
            }
            Err(Errno::AGAIN) => None,
            Err(error) => {
                let asked = flow.resolver;
                report(name, error, shared);
                if let Some(address) = asked {
                    resolver.failed(address);
                }
                // What the guest sends next begins it anew.
                self.remove(key, shared);
                None
            }
        };
        shared.give_buffer(buffer);
        sent
    }

    /// A datagram for a forwarded port has come: `len` bytes of `buffer` behind the room for headers.
    pub(super) fn forwarded(
        &mut self,
        (index, guest_port): (u16, u16),
        peer: SocketAddr,
        (buffer, len): (&mut [u8], usize),
        shared: &mut Shared,
        deliver: &mut Deliver<'_>,
    ) -> bool {
        let guest = shared.guest_address(peer.ip());
        let Some(address) = shared.peer_address(peer.ip(), guest) else {
            return true;
        };
        let name = Name {
            kind: Kind::Udp,
            guest: SocketAddr::new(guest, guest_port),
            remote: SocketAddr::new(address, peer.port()),
        };
        let key = match self.index.get(&name) {
            Some(&key) => Some(key),
            None => {
                self.make_room(shared);
                self.insert(name, Via::Forward(index, peer), None, shared)
            }
        };
        let Some(key) = key else { return true };
        if let Some(flow) = self.flows.get_mut(key) {
            // The latest of several peers that are one to the guest gets its answers.
            if let Via::Forward(_, known) = &mut flow.via {
                *known = peer;
            }
            flow.answered |= flow.asked.is_some();
        }
        self.touch(key, shared);
        hand_over(name, buffer, len, shared, deliver)
    }

    /// Ends all flows.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        for key in self.flows.keys() {
            self.remove(key, shared);
        }
    }
}

fn transmit(via: &Via, payload: &[u8], forwards: &Forwards) -> Result<usize, Errno> {
    match via {
        Via::Own(socket) => host::transmit(socket, payload),
        Via::Forward(index, peer) => {
            let socket = forwards.socket(*index).ok_or(Errno::NOTCONN)?;
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            sendto(socket, payload, flags, peer)
        }
    }
}

/// Makes a frame of `len` bytes that were received for a flow, and hands it over.
fn hand_over(
    name: Name,
    buffer: &mut [u8],
    len: usize,
    shared: &mut Shared,
    deliver: &mut Deliver<'_>,
) -> bool {
    let (source, destination) = (name.remote.ip(), name.guest.ip());
    let received = &mut buffer[..(HEADROOM + len).min(BUFFER_LEN)];
    if name.kind == Kind::Ping {
        let Some(icmp) = received.get_mut(HEADROOM..) else {
            return true;
        };
        let (kind, reply): (_, u8) = match source {
            IpAddr::V4(_) => (icmp.first(), 0),
            IpAddr::V6(_) => (icmp.first(), 129),
        };
        if kind == Some(&reply) && icmp.len() >= icmp::ICMP_LEN {
            icmp[4..6].copy_from_slice(&name.guest.port().to_be_bytes());
            icmp::send_echo_reply(icmp, reply, (source, destination), shared);
        }
        // It waits among the frames.
        return true;
    }
    let ends = Ends {
        source: name.remote,
        destination: name.guest,
    };
    let (start, offload) = shared.link.write_udp(received, HEADROOM, ends);
    let frame = &received[start..];
    if frame.len() - ETHERNET_LEN > shared.link.mtu {
        shared.push_packet(frame.to_vec());
        return true;
    }
    shared.deliver_or_push(frame, offload, deliver)
}

/// Tells the guest that a flow's other end cannot be reached.
fn unreachable(name: Name, why: Unreachable, shared: &mut Shared) {
    let mut quoted = [0; 8];
    let protocol = match (name.kind, name.guest) {
        (Kind::Udp, _) => {
            quoted[..2].copy_from_slice(&name.guest.port().to_be_bytes());
            quoted[2..4].copy_from_slice(&name.remote.port().to_be_bytes());
            quoted[4..6].copy_from_slice(&8_u16.to_be_bytes());
            IpProtocol::Udp
        }
        (Kind::Ping, SocketAddr::V4(_)) => {
            quoted[0] = 8;
            quoted[4..6].copy_from_slice(&name.guest.port().to_be_bytes());
            IpProtocol::Icmp
        }
        (Kind::Ping, SocketAddr::V6(_)) => {
            quoted[0] = 128;
            quoted[4..6].copy_from_slice(&name.guest.port().to_be_bytes());
            IpProtocol::Icmpv6
        }
    };
    let (guest, remote) = (name.guest, name.remote);
    icmp::send_unreachable(guest, remote, protocol.into(), &quoted, why, shared);
}

/// Tells the guest of an error of the host.
fn report(name: Name, error: Errno, shared: &mut Shared) {
    let why = match error {
        Errno::CONNREFUSED => Unreachable::Port,
        Errno::NETUNREACH | Errno::NETDOWN => Unreachable::Network,
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Unreachable::Host,
        Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
        _ => {
            shared.counters.dropped_full += 1;
            return;
        }
    };
    unreachable(name, why, shared);
}
