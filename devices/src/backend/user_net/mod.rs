//! A network for one guest that needs neither root nor any set-up: the monitor is its gateway, DHCP and
//! DNS server, and does in ordinary host sockets what the guest wants of the world.
//!
//! Reading order: `config` (what it is told), `policy` (which destinations), this file (a frame's way in
//! and out), `packet` (frames), `shared` (tables, timers, queues), `tcp` and its `connection`, `flow`
//! (UDP and pings), `forward`, then the small ones: `icmp`, `dhcp`, `resolver`, `fragment`, `host`.
//!
//! ```text
//!   guest ── frames ──► send ──► tcp, flow, icmp, dhcp ──► host sockets
//!         ◄─ frames ── receive ◄── turns, one a frame ◄── process ◄── epoll
//! ```
//! It knows nothing of virtio. Its owner gives it the guest's frames by [`UserNet::send`], calls
//! [`UserNet::process`] when its descriptor is readable or [`UserNet::poll_at`] has come, and after each
//! of these, and when the guest has room again, takes frames by [`UserNet::receive`] until there are
//! none. Host sockets are read only then: a guest that takes nothing holds the host's peers back.
//!
//! # TCP
//! Connections end here on both sides. smoltcp's own TCP sockets are not used: they cannot be had but in
//! a set that is walked through for each frame, reserve their buffers for good, and know nothing of
//! segments larger than the peer's. Large segments both ways are what makes this fast: one of the
//! guest's goes to the socket by one system call, and from the socket what comes by one call goes to
//! the guest as one segment, in the buffer that it was read into.
//!
//! # What a hostile guest can do
//! Everything it names is looked up in tables of bounded size, data that waits is bounded for each
//! connection and for all, and what does not make sense is dropped and counted. It reaches no address
//! that the policy refuses, and the host's loopback only by the gateway's address. The host's other
//! addresses, and what is in the host's networks, are destinations like all others: only the policy
//! closes them.
//!
//! # What is not there
//! Broadcast and multicast to the host's networks, path MTU discovery (the host's kernel does it), IP
//! options and extension headers but those of fragments, and any transport but TCP, UDP and ICMP echo.

mod config;
mod dhcp;
mod flow;
mod forward;
mod fragment;
mod host;
mod icmp;
mod packet;
pub mod policy;
mod resolver;
mod shared;
mod tcp;

pub use config::{
    Config, Counters, Forward, ForwardError, FrameOffload, Gso, GsoKind, Ipv4Config, Ipv6Config,
    Limits, MacAddress, Offloads, PartialChecksum, Protocol,
};

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, UdpPacket};

use flow::Flows;
use forward::Forwards;
use fragment::{Piece, Reassembly};
use icmp::Router;
use packet::{ETHERNET_LEN, IpPacket, MAX_PACKET};
use resolver::Resolver;
use shared::{Shared, Token};
use tcp::{Ready, Tcp};

/// Batches of socket events that are taken in a row.
const MAX_BATCHES: usize = 8;
/// Timers that are called in a row.
const MAX_TIMERS: usize = 4096;
/// IPv6 demands as much of a link.
const MIN_MTU: u16 = 1280;

/// The network. It belongs to one guest's network card.
#[derive(Debug)]
pub struct UserNet {
    shared: Shared,
    tcp: Tcp,
    flows: Flows,
    forwards: Forwards,
    resolver: Resolver,
    router: Router,
    reassembly: Reassembly,
    events: Vec<(Token, EventFlags)>,
}

impl UserNet {
    /// A network as `config` has it. Fails if it makes no sense or a port cannot be had.
    pub fn new(config: Config) -> io::Result<Self> {
        check(&config).map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let shared = Shared::new(config)?;
        Ok(Self {
            tcp: Tcp::new(&shared),
            flows: Flows::new(),
            forwards: Forwards::new(&shared)?,
            resolver: Resolver::default(),
            router: Router::default(),
            reassembly: Reassembly::default(),
            events: Vec::new(),
            shared,
        })
    }

    /// Tells what the guest's driver takes. Until then it takes nothing but complete frames of the MTU's
    /// size.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.shared.link.offloads = offloads;
    }

    /// The forwarded ports, each with the host's port that it has.
    pub fn forwards(&self) -> impl Iterator<Item = Forward> {
        self.forwards.list()
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// TCP connections there are, half open ones too.
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    /// UDP flows and pings there are.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Bytes that TCP connections hold, to be taken by the guest or by the host.
    pub fn memory(&self) -> usize {
        self.tcp.memory()
    }

    /// The guest was reset: its connections end, with a reset for their peers. Forwarded ports stay.
    pub fn reset(&mut self) {
        self.tcp.reset(&mut self.shared);
        self.flows.reset(&mut self.shared);
        self.forwards.reset(&self.shared);
        self.router.reset(&mut self.shared);
        self.reassembly.reset();
        self.shared.reset();
    }

    /// Takes a frame of the guest, without its `virtio_net_hdr`. Frames larger than 64 KiB of IP packet
    /// are dropped.
    pub fn send(&mut self, frame: &[u8], offload: FrameOffload) {
        self.pass_time(Instant::now());
        self.shared.counters.guest_frames += 1;
        self.shared.counters.guest_bytes += frame.len() as u64;
        let parsed = EthernetFrame::new_checked(frame)
            .ok()
            .filter(|frame| frame.src_addr().is_unicast() && frame.payload().len() <= MAX_PACKET);
        let Some(ethernet) = parsed else {
            self.shared.counters.dropped_malformed += 1;
            return;
        };
        let to_gateway = ethernet.dst_addr().0 == self.shared.link.gateway_mac;
        if !(to_gateway || ethernet.dst_addr().is_multicast()) {
            self.shared.counters.dropped_unroutable += 1;
            return;
        }
        let payload = &frame[ETHERNET_LEN..];
        let packet = match ethernet.ethertype() {
            EthernetProtocol::Arp => {
                self.shared.link.guest_mac = ethernet.src_addr().0;
                return icmp::arp(payload, &mut self.shared);
            }
            EthernetProtocol::Ipv4 => packet::parse_ipv4(payload),
            EthernetProtocol::Ipv6 if self.shared.config.ipv6.is_none() => return,
            EthernetProtocol::Ipv6 => packet::parse_ipv6(payload),
            _ => None,
        };
        let Some(packet) = packet else {
            self.shared.counters.dropped_malformed += 1;
            return;
        };
        if !self.is_from_guest(&packet) {
            self.shared.counters.dropped_spoofed += 1;
            return;
        }
        self.shared.link.guest_mac = ethernet.src_addr().0;
        let Some(piece) = packet.fragment else {
            return self.packet(&packet, offload);
        };
        match self.reassembly.add(&packet, piece, self.shared.now) {
            Piece::Complete(whole) => {
                let packet = IpPacket {
                    payload: &whole,
                    fragment: None,
                    ..packet
                };
                self.packet(&packet, FrameOffload::default());
            }
            Piece::Held => {}
            Piece::Dropped => self.shared.counters.dropped_malformed += 1,
        }
    }

    /// Whether the source of a packet is the guest's, or none yet.
    fn is_from_guest(&mut self, packet: &IpPacket<'_>) -> bool {
        match packet.source {
            IpAddr::V4(source) => {
                source == self.shared.config.ipv4.guest
                    || source == Ipv4Addr::UNSPECIFIED
                        && packet.protocol == u8::from(IpProtocol::Udp)
                        && packet.destination == IpAddr::V4(Ipv4Addr::BROADCAST)
            }
            IpAddr::V6(source) => {
                let Some(ipv6) = self.shared.config.ipv6 else {
                    return false;
                };
                let inside = policy::contains(ipv6.gateway.into(), 64, source.into());
                if inside && source != ipv6.gateway && source != ipv6.dns {
                    self.shared.guest_v6 = Some(source);
                    return true;
                }
                // Neighbour discovery and multicast listeners.
                let control = [u8::from(IpProtocol::Icmpv6), 0].contains(&packet.protocol);
                let local = source.segments()[0] & 0xffc0 == 0xfe80;
                control && (source.is_unspecified() || local)
            }
        }
    }

    /// A whole packet of the guest.
    fn packet(&mut self, packet: &IpPacket<'_>, offload: FrameOffload) {
        let dhcp = self.is_dhcp(packet);
        let shared = &mut self.shared;
        let protocol = IpProtocol::from(packet.protocol);
        let complete = offload.checksum.is_none();
        let checked = match protocol {
            IpProtocol::Tcp | IpProtocol::Icmpv6 => true,
            // Zero is none (RFC 768); IPv6 has no such (RFC 8200).
            IpProtocol::Udp => packet.source.is_ipv6() || packet.payload.get(6..8) != Some(&[0; 2]),
            _ => false,
        };
        if complete && checked && !packet::transport_checksum_ok(packet) {
            shared.counters.dropped_malformed += 1;
            return;
        }
        match protocol {
            IpProtocol::Tcp => self.tcp.packet(packet, &mut self.resolver, shared),
            IpProtocol::Udp if dhcp => match UdpPacket::new_checked(packet.payload) {
                Ok(udp) => dhcp::message(udp.payload(), shared),
                Err(_) => shared.counters.dropped_malformed += 1,
            },
            IpProtocol::Udp if packet.source != IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
                let (resolver, forwards) = (&mut self.resolver, &self.forwards);
                self.flows
                    .datagram(packet, offload, resolver, forwards, shared);
            }
            IpProtocol::Icmp if packet.source.is_ipv4() => {
                icmp::icmp_v4(packet, &mut self.flows, shared);
            }
            IpProtocol::Icmpv6 if packet.source.is_ipv6() => {
                icmp::icmp_v6(packet, &mut self.flows, &mut self.router, shared);
            }
            _ => shared.counters.dropped_unroutable += 1,
        }
    }

    /// Whether a UDP packet is for the DHCP server.
    fn is_dhcp(&self, packet: &IpPacket<'_>) -> bool {
        let gateway = self.shared.config.ipv4.gateway;
        let to_server = [gateway, Ipv4Addr::BROADCAST].map(IpAddr::V4);
        packet.payload.get(2..4) == Some(&dhcp::SERVER_PORT.to_be_bytes())
            && to_server.contains(&packet.destination)
    }

    /// Hands the next frame for the guest to `deliver`, which says whether it has taken it. None if there
    /// was no frame, Some(false) if one was not taken: it comes again.
    ///
    /// Without [`Offloads`] a frame is at most the MTU and 14 bytes, with them 64 KiB and 14 bytes.
    pub fn receive(
        &mut self,
        mut deliver: impl FnMut(&[u8], FrameOffload) -> bool,
    ) -> Option<bool> {
        let shared = &mut self.shared;
        // Each turn but the last takes someone out of the queue for good.
        loop {
            if shared.has_frames() {
                return shared.deliver_frame(&mut deliver);
            }
            let sent = match shared.ready.pop_front()? {
                Token::Tcp(key) => self.tcp.turn(key, shared, &mut deliver),
                Token::Flow(key) => {
                    let resolver = &mut self.resolver;
                    self.flows.turn(key, resolver, shared, &mut deliver)
                }
                Token::Forward(index) => {
                    let flows = &mut self.flows;
                    self.forwards.turn(index, flows, shared, &mut deliver)
                }
                Token::Router => None,
            };
            // Some turns leave a frame among those that wait.
            if sent.is_some() && !shared.has_frames() {
                return sent;
            }
        }
    }

    /// When [`UserNet::process`] has to be called though no event has come.
    pub fn poll_at(&self) -> Option<Instant> {
        self.shared.timers.next()
    }

    /// Takes the host's events, and does what is due at `now`. Never blocks.
    pub fn process(&mut self, now: Instant) {
        self.pass_time(now);
        let shared = &mut self.shared;
        for _ in 0..MAX_BATCHES {
            self.events.clear();
            shared.events(&mut self.events);
            if self.events.is_empty() {
                break;
            }
            for &(token, flags) in &self.events {
                let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
                let ready = Ready {
                    readable: flags.contains(EventFlags::IN),
                    writable: flags.contains(EventFlags::OUT),
                    failed: flags.contains(EventFlags::ERR),
                    ended,
                };
                match token {
                    Token::Tcp(key) => self.tcp.event(key, ready, shared),
                    Token::Flow(key) if ready.readable || ready.failed => {
                        self.flows.event(key, shared);
                    }
                    Token::Forward(index) => self.forwards.event(index, &mut self.tcp, shared),
                    Token::Flow(_) | Token::Router => {}
                }
            }
        }
        for _ in 0..MAX_TIMERS {
            match shared.timers.pop(shared.now) {
                Some(Token::Tcp(key)) => self.tcp.timer(key, shared),
                Some(Token::Flow(key)) => self.flows.timer(key, shared),
                Some(Token::Forward(index)) => self.forwards.timer(index, shared),
                Some(Token::Router) => self.router.timer(shared),
                None => break,
            }
        }
    }

    /// Time never goes back here.
    fn pass_time(&mut self, now: Instant) {
        self.shared.now = self.shared.now.max(now);
    }
}

impl AsFd for UserNet {
    /// Readable while a host socket has something to tell.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.epoll().as_fd()
    }
}

impl AsRawFd for UserNet {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.epoll().as_raw_fd()
    }
}

/// What makes no sense in a configuration.
fn check(config: &Config) -> Result<(), String> {
    let ipv4 = config.ipv4;
    let all = [ipv4.guest, ipv4.gateway, ipv4.dns];
    let inside =
        |address: Ipv4Addr| policy::contains(ipv4.gateway.into(), ipv4.prefix, address.into());
    if ipv4.prefix > 30 || ipv4.prefix == 0 || !all.into_iter().all(inside) {
        return Err(format!(
            "The guest's addresses are not in one network of /{}",
            ipv4.prefix
        ));
    }
    if ipv4.guest == ipv4.gateway || ipv4.guest == ipv4.dns {
        return Err("The guest's address is also the gateway's or the DNS server's".to_owned());
    }
    if let Some(ipv6) = config.ipv6
        && !policy::contains(ipv6.gateway.into(), 64, ipv6.dns.into())
    {
        return Err("The IPv6 gateway and DNS server are not in one network of /64".to_owned());
    }
    if config.mtu < MIN_MTU {
        return Err(format!("An MTU of {} is less than {MIN_MTU}", config.mtu));
    }
    let bad_name = |name: &String| name.is_empty() || name.len() > 63;
    if config.hostname.as_ref().is_some_and(bad_name) {
        return Err("The host name is empty or longer than 63 bytes".to_owned());
    }
    for mac in [config.guest_mac, config.gateway_mac] {
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err("The MAC address is not one of a single card".to_owned());
        }
    }
    if config.guest_mac == config.gateway_mac {
        return Err("The guest and the gateway have the same MAC address".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod test_support;

#[cfg(test)]
mod forward_test;

#[cfg(test)]
mod link_test;

#[cfg(test)]
mod linux_test;

#[cfg(test)]
mod tcp_test;

#[cfg(test)]
mod tcp_timer_test;

#[cfg(test)]
mod udp_test;

#[cfg(test)]
mod hostile_test;

#[cfg(test)]
mod throughput_test;
