//! The guest's frames to connections, and back: ARP, IPv4 and TCP.
//!
//! TCP is smoltcp's. It is given packets and not frames: whoever has sent something is known by its
//! hardware address from then on, so that nobody has to be asked for it. The user network's own TCP is
//! made of sockets of the host, and would have had to learn to be without.
//!
//! # What a hostile guest can do
//! It has at most [`MAX_CONNECTIONS`] connections, and each has buffers of a fixed size and an answer that
//! is no longer than the document. Frames that wait for it are at most [`MAX_FRAMES`]. A connection that
//! leads to nothing makes room for the next one, and ends after a while by itself.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpProtocol, Ipv4Packet, TcpPacket,
};

use super::http::Http;
use super::{Mmds, count};

/// Where the service listens.
const PORT: u16 = 80;
/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 30;
/// Frames that wait for the guest before connections have to.
pub const MAX_FRAMES: usize = 64;
/// Bytes that a connection holds of what the guest sends: more than a request has.
const RX_BUFFER: usize = 4096;
/// Bytes that a connection holds until the guest has acknowledged them.
const TX_BUFFER: usize = 16 << 10;
/// Guests behind the card, such as containers on a bridge, whose hardware addresses are known.
const MAX_NEIGHBOURS: usize = 64;
/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Smallest and largest MTU that segments are made for.
const MTU_RANGE: (usize, usize) = (88, 1500);
/// A connection on which nothing has moved for so long may make room for another one.
const STALLED: Duration = Duration::from_secs(5);
/// And after so long it ends: it is not open yet, its answer does not go, its request does not come, or
/// it does not close.
const STALLED_END: Duration = Duration::from_secs(30);
/// A connection that is between requests for so long is closed.
const IDLE_END: Duration = Duration::from_secs(120);

/// The service's end of a card's link. It has no clock of its own: everything is told what time it is.
pub struct Stack {
    // Fixed configuration.
    mmds: Arc<Mmds>,
    address: Ipv4Addr,
    mac: EthernetAddress,
    start: Instant,
    // Volatile state.
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    connections: Vec<Connection>,
    /// Who has which address, the latest at the end.
    neighbours: VecDeque<(Ipv4Addr, EthernetAddress)>,
}

/// A connection, open or not.
struct Connection {
    handle: SocketHandle,
    peer: IpEndpoint,
    http: Http,
    /// It was counted as open.
    is_counted: bool,
    /// When something has moved the last time.
    moved: Instant,
    /// Bytes that the guest has not acknowledged.
    unacknowledged: usize,
}

/// How much use a connection is, the least first: who has to go when another one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Closing,
    HalfOpen,
    Idle,
    Stalled,
}

/// smoltcp's side of the link: one packet in, and many out.
struct Link {
    mtu: usize,
    input: Option<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
    /// Packets that found no room.
    dropped: u64,
}

impl Stack {
    /// A stack for a card whose guest has the hardware address `guest`, if that is known, and this MTU.
    /// Nobody should be able to guess `seed`: sequence numbers come of it.
    pub fn new(mmds: Arc<Mmds>, guest: Option<[u8; 6]>, mtu: u16, seed: u64) -> Self {
        let address = mmds.config().address;
        let (smallest, largest) = MTU_RANGE;
        let mut link = Link {
            mtu: usize::from(mtu).clamp(smallest, largest),
            input: None,
            output: VecDeque::new(),
            dropped: 0,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32));
        });
        let mut mac = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
        if guest == Some(mac) {
            mac[5] = 2;
        }
        Self {
            mmds,
            address,
            mac: EthernetAddress(mac),
            start: Instant::now(),
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            connections: Vec::new(),
            neighbours: VecDeque::new(),
        }
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Connections there are, whatever their state.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The service itself.
    #[cfg(test)]
    pub(super) fn mmds(&self) -> &Mmds {
        &self.mmds
    }

    /// Whether there are frames for the guest.
    pub fn has_frames(&self) -> bool {
        !self.link.output.is_empty()
    }

    /// Takes a frame of the guest that is for this address. Its TCP checksum is right if
    /// `is_checksummed`, else it is for us to make one up.
    pub fn frame(&mut self, frame: &[u8], is_checksummed: bool, now: Instant) {
        let counts = &self.mmds.counts;
        count(&counts.rx_accepted);
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
            return count(&counts.rx_accepted_err);
        };
        let sender = ethernet.src_addr();
        if ethernet.ethertype() == EthernetProtocol::Arp {
            match self.arp(ethernet.payload()) {
                Some(reply) => {
                    count(&self.mmds.counts.rx_count);
                    self.push(reply);
                }
                None => count(&self.mmds.counts.rx_bad_eth),
            }
            return;
        }
        let packet = Ipv4Packet::new_checked(ethernet.payload())
            .ok()
            .filter(|packet| packet.version() == 4 && packet.header_len() >= 20);
        let Some(packet) = packet else {
            return count(&counts.rx_accepted_err);
        };
        let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
        if packet.next_header() != IpProtocol::Tcp || is_fragment {
            return count(&counts.rx_accepted_unusual);
        }
        let source = packet.src_addr();
        let ends = (source.into(), packet.dst_addr().into());
        let segment = TcpPacket::new_checked(packet.payload()).ok().filter(|tcp| {
            let is_good = !is_checksummed || tcp.verify_checksum(&ends.0, &ends.1);
            let is_someone = source != self.address && !source.is_unspecified();
            is_good && is_someone && !source.is_multicast() && !source.is_broadcast()
        });
        let is_good = packet.verify_checksum() && sender.is_unicast();
        let Some(segment) = segment.filter(|_| is_good) else {
            return count(&counts.rx_accepted_err);
        };
        count(&counts.rx_count);
        let opens = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin();
        let peer = IpEndpoint::new(ends.0, segment.src_port());
        let is_for_service = segment.dst_port() == PORT && peer.port != 0;
        self.meet(source, sender);
        if opens && is_for_service {
            self.make_room(peer, now);
        }
        self.link.input = Some(ethernet.payload().to_vec());
        let time = self.time(now);
        self.interface
            .poll_ingress_single(time, &mut self.link, &mut self.sockets);
        // It was taken.
        self.link.input = None;
        self.process(now);
    }

    /// The answer to an ARP request.
    fn arp(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let message = ArpPacket::new_checked(message).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&message).ok()?
        else {
            return None;
        };
        if target_protocol_addr != self.address || !source_hardware_addr.is_unicast() {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: self.mac,
            source_protocol_addr: self.address,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut frame = vec![0; ETHERNET_LEN + reply.buffer_len()];
        let kind = EthernetProtocol::Arp;
        self.write_ethernet(&mut frame, source_hardware_addr, kind);
        reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_LEN..]));
        Some(frame)
    }

    fn write_ethernet(&self, frame: &mut [u8], to: EthernetAddress, kind: EthernetProtocol) {
        let mut header = EthernetFrame::new_unchecked(frame);
        header.set_src_addr(self.mac);
        header.set_dst_addr(to);
        header.set_ethertype(kind);
    }

    /// Remembers who has an address.
    fn meet(&mut self, address: Ipv4Addr, mac: EthernetAddress) {
        if self.neighbours.back() == Some(&(address, mac)) {
            return;
        }
        self.neighbours.retain(|(other, _)| *other != address);
        if self.neighbours.len() >= MAX_NEIGHBOURS {
            self.neighbours.pop_front();
        }
        self.neighbours.push_back((address, mac));
    }

    /// Has a socket listen for a connection of `peer`, if there can be one more.
    fn make_room(&mut self, peer: IpEndpoint, now: Instant) {
        if self.connections.iter().any(|known| known.peer == peer) {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let ranked = self.connections.iter().enumerate();
            let least = ranked
                .filter_map(|(at, connection)| {
                    let rank = connection.rank(self.sockets.get(connection.handle), now)?;
                    Some((rank, connection.moved, at))
                })
                .min();
            // smoltcp resets a connection for which nobody listens.
            let Some((_, _, at)) = least else { return };
            self.reset(at, now);
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RX_BUFFER), buffer(TX_BUFFER));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        // It is not open, and the port is none that is made up.
        let _ = socket.listen(PORT);
        self.connections.push(Connection {
            handle: self.sockets.add(socket),
            peer,
            http: Http::default(),
            is_counted: false,
            moved: now,
            unacknowledged: 0,
        });
    }

    /// Ends a connection at once, and tells its peer.
    fn reset(&mut self, at: usize, now: Instant) {
        let connection = self.connections.swap_remove(at);
        let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
        if connection.is_counted {
            socket.abort();
            self.transmit(now);
        }
        self.forget(&connection);
    }

    fn forget(&mut self, connection: &Connection) {
        self.sockets.remove(connection.handle);
        if connection.is_counted {
            count(&self.mmds.counts.connections_destroyed);
        }
    }

    /// Moves bytes between connections and the service, ends what is to end, and makes frames of what
    /// can be sent.
    pub fn process(&mut self, now: Instant) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut(connection.handle);
            connection.serve(socket, &self.mmds, now);
        }
        self.transmit(now);
        let mut at = 0;
        while let Some(connection) = self.connections.get(at) {
            let socket = self.sockets.get::<Socket<'_>>(connection.handle);
            let is_over = match socket.state() {
                // Nobody has come after all, or he has gone.
                State::Closed | State::Listen => true,
                // Who has sent the last segment waits for a copy of the one before. Here is one link, and
                // it loses none.
                State::TimeWait => self.link.has_room(),
                _ => false,
            };
            if is_over {
                let connection = self.connections.swap_remove(at);
                self.forget(&connection);
            } else {
                at += 1;
            }
        }
    }

    /// Makes packets, for as long as there is room for them.
    fn transmit(&mut self, now: Instant) {
        let time = self.time(now);
        let (link, sockets) = (&mut self.link, &mut self.sockets);
        // Each round makes at least one packet, and there is a bound to these.
        while self.interface.poll_egress(time, link, sockets) != smoltcp::iface::PollResult::None {}
        let dropped = std::mem::take(&mut self.link.dropped);
        let counts = &self.mmds.counts;
        counts.tx_errors.fetch_add(dropped, Ordering::Relaxed);
    }

    /// The next frame for the guest.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let was_full = !self.link.has_room();
        let mut frame = self.link.output.pop_front()?;
        if was_full {
            // Connections had to wait.
            self.process(now);
        }
        let counts = &self.mmds.counts;
        if frame[12..ETHERNET_LEN] == [0; 2] {
            // A packet, behind room for its header.
            let to = Ipv4Packet::new_unchecked(&frame[ETHERNET_LEN..]).dst_addr();
            let known = self.neighbours.iter().find(|(address, _)| *address == to);
            // Forgotten, as there are so many; one of them it will be.
            let latest = self.neighbours.back();
            let (_, mac) = *known.or(latest)?;
            self.write_ethernet(&mut frame, mac, EthernetProtocol::Ipv4);
            count(&counts.tx_count);
        }
        count(&counts.tx_frames);
        counts
            .tx_bytes
            .fetch_add(frame.len() as u64, Ordering::Relaxed);
        Some(frame)
    }

    fn push(&mut self, frame: Vec<u8>) {
        let counts = &self.mmds.counts;
        if self.link.has_any_room() {
            self.link.output.push_back(frame);
            count(&counts.tx_count);
        } else {
            count(&counts.tx_errors);
        }
    }

    /// When [`Stack::process`] has to be called though no frame has come.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let ends = self.connections.iter().map(|connection| {
            let socket = self.sockets.get(connection.handle);
            connection.moved + connection.patience(socket)
        });
        let end = ends.min();
        // While the guest takes no frames, there is no use in making any.
        if !self.link.has_room() {
            return end;
        }
        let time = self.time(now);
        let next = self.interface.poll_at(time, &self.sockets);
        // Zero is at once.
        let since = |at: StackInstant| u64::try_from(at.total_micros()).unwrap_or(0);
        let next = next.map(|at| self.start + Duration::from_micros(since(at)));
        next.into_iter().chain(end).min()
    }

    /// As smoltcp counts it.
    fn time(&self, now: Instant) -> StackInstant {
        let since = now.saturating_duration_since(self.start).as_micros();
        // Enough for a hundred thousand years.
        StackInstant::from_micros(i64::try_from(since).unwrap_or(i64::MAX / 2))
    }
}

impl Connection {
    /// Moves its bytes.
    fn serve(&mut self, socket: &mut Socket<'_>, mmds: &Mmds, now: Instant) {
        if socket.state() == State::Listen {
            return;
        }
        if !self.is_counted && socket.may_send() {
            self.is_counted = true;
            self.moved = now;
            count(&mmds.counts.connections_created);
        }
        let mut has_moved = socket.send_queue() < self.unacknowledged;
        // Each round takes or gives at least a byte, and buffers are finite.
        loop {
            let mut moved = 0;
            if self.http.wants_input() && socket.can_recv() {
                let taken = socket.recv(|bytes| match self.http.input(bytes, mmds, now) {
                    Ok(taken) => (taken, Some(taken)),
                    Err(_) => (bytes.len(), None),
                });
                match taken {
                    Ok(Some(taken)) => moved += taken,
                    // Its head is too long, and nobody reads on.
                    Ok(None) => return socket.abort(),
                    Err(_) => {}
                }
            }
            if !self.http.output().is_empty() && socket.can_send() {
                // Fails only if it cannot send.
                let sent = socket.send_slice(self.http.output()).unwrap_or(0);
                self.http.advance(sent);
                moved += sent;
            }
            if moved == 0 {
                break;
            }
            has_moved = true;
        }
        let has_ended = !socket.may_recv() && socket.may_send() && self.http.output().is_empty();
        if self.http.is_over() || has_ended {
            socket.close();
        }
        self.unacknowledged = socket.send_queue();
        if has_moved {
            self.moved = now;
        }
        let waited = now.saturating_duration_since(self.moved);
        if waited >= self.patience(socket) {
            if self.is_idle(socket) {
                self.moved = now;
                socket.close();
            } else {
                socket.abort();
            }
        }
    }

    /// It is open, and between two requests.
    fn is_idle(&self, socket: &Socket<'_>) -> bool {
        socket.state() == State::Established && self.http.is_idle() && socket.send_queue() == 0
    }

    /// How long it may be as it is.
    fn patience(&self, socket: &Socket<'_>) -> Duration {
        if self.is_idle(socket) {
            IDLE_END
        } else {
            STALLED_END
        }
    }

    /// How little use it is, if it may go.
    fn rank(&self, socket: &Socket<'_>, now: Instant) -> Option<Rank> {
        match socket.state() {
            State::Listen | State::SynReceived => Some(Rank::HalfOpen),
            State::Established if self.is_idle(socket) => Some(Rank::Idle),
            State::Established | State::CloseWait => {
                let waited = now.saturating_duration_since(self.moved);
                (waited >= STALLED).then_some(Rank::Stalled)
            }
            _ => Some(Rank::Closing),
        }
    }
}

impl Link {
    /// For what connections have to say.
    fn has_room(&self) -> bool {
        self.output.len() < MAX_FRAMES
    }

    /// For an answer to a packet, which is lost otherwise.
    fn has_any_room(&self) -> bool {
        self.output.len() < 2 * MAX_FRAMES
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sending<'a>(&'a mut Link);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        // Its header is written when it is known where to.
        let mut frame = vec![0; ETHERNET_LEN + len];
        let result = fill(&mut frame[ETHERNET_LEN..]);
        if self.0.has_any_room() {
            self.0.output.push_back(frame);
        } else {
            self.0.dropped += 1;
        }
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sending<'_>)> {
        let packet = self.input.take()?;
        Some((Received(packet), Sending(self)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        self.has_room().then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Those of the guest were looked at, if there were any.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
#[path = "stack_test.rs"]
mod tests;
