//! ARP, ICMP, ICMPv6 and neighbour discovery: what the gateway answers itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, IpProtocol,
};

use super::config::{Ipv6Config, MacAddress};
use super::flow::Flows;
use super::packet::{ETHERNET_LEN, IpPacket, internet_checksum, ip_len, transport_checksum};
use super::shared::{Alarm, Route, Shared, Token};

/// Bytes of an ICMP header.
pub(super) const ICMP_LEN: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// How long a router that is not heard of again is one, and its DNS server.
const ROUTER_LIFETIME: Duration = Duration::from_secs(1800);
/// How often the guest hears of it.
const ADVERTISE_INTERVAL: Duration = Duration::from_secs(600);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddress = [0x33, 0x33, 0, 0, 0, 1];

/// Why a destination cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// Type and code (RFC 792 and 1812, RFC 4443).
    fn codes(self, v4: bool) -> [u8; 2] {
        match (self, v4) {
            (Self::Network, true) => [3, 0],
            (Self::Host, true) => [3, 1],
            (Self::Port, true) => [3, 3],
            (Self::Prohibited, true) => [3, 13],
            (Self::Network, false) => [1, 0],
            (Self::Prohibited, false) => [1, 1],
            (Self::Host, false) => [1, 3],
            (Self::Port, false) => [1, 4],
        }
    }
}

/// An ARP packet of the guest.
pub(super) fn arp(bytes: &[u8], shared: &mut Shared) {
    let parsed = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = parsed
    else {
        shared.counters.dropped_malformed += 1;
        return;
    };
    let ipv4 = shared.config.ipv4;
    let ours = [ipv4.gateway, ipv4.dns].contains(&target_protocol_addr);
    if operation != ArpOperation::Request || !ours {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(shared.link.gateway_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = vec![0; ETHERNET_LEN + reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_LEN..]));
    let guest = shared.link.guest_mac;
    shared
        .link
        .write_ethernet(&mut frame, guest, EthernetProtocol::Arp);
    shared.push_frame(frame);
}

/// An ICMP packet of the guest.
pub(super) fn icmp_v4(packet: &IpPacket<'_>, flows: &mut Flows, shared: &mut Shared) {
    if packet.payload.len() < ICMP_LEN || internet_checksum(packet.payload) != 0 {
        shared.counters.dropped_malformed += 1;
    } else if packet.payload[..2] == [ECHO_REQUEST, 0] {
        echo(packet, ECHO_REPLY, flows, shared);
    }
}

/// An ICMPv6 packet of the guest. Its checksum is right.
pub(super) fn icmp_v6(
    packet: &IpPacket<'_>,
    flows: &mut Flows,
    router: &mut Router,
    shared: &mut Shared,
) {
    if packet.payload.len() < ICMP_LEN {
        shared.counters.dropped_malformed += 1;
        return;
    }
    match packet.payload[..2] {
        [ECHO_REQUEST_V6, 0] => echo(packet, ECHO_REPLY_V6, flows, shared),
        [ROUTER_SOLICITATION, 0] => router.advertise(shared),
        [NEIGHBOUR_SOLICITATION, 0] => neighbour(packet, shared),
        _ => {}
    }
}

fn echo(packet: &IpPacket<'_>, reply: u8, flows: &mut Flows, shared: &mut Shared) {
    let (guest, remote) = (packet.source, packet.destination);
    let to_router = match (remote, shared.config.ipv6) {
        (IpAddr::V6(remote), Some(_)) => remote == link_local(shared.link.gateway_mac),
        _ => false,
    };
    if to_router {
        return send_echo_reply(packet.payload, reply, (remote, guest), shared);
    }
    match shared.route(SocketAddr::new(remote, 0), None) {
        Route::Local | Route::Resolver => {
            send_echo_reply(packet.payload, reply, (remote, guest), shared);
        }
        Route::Host(_) => flows.ping(packet, shared),
        Route::Refused => prohibited(packet, shared),
        Route::Nowhere => {}
    }
}

/// Tells the guest that what it has sent may not be.
pub(super) fn prohibited(packet: &IpPacket<'_>, shared: &mut Shared) {
    let guest = SocketAddr::new(packet.source, 0);
    let remote = SocketAddr::new(packet.destination, 0);
    let quoted = packet.payload.first_chunk().copied().unwrap_or_default();
    let why = Unreachable::Prohibited;
    send_unreachable(guest, remote, packet.protocol, &quoted, why, shared);
}

/// Answers `request`, an ICMP packet from the second of `ends` to the first one.
pub(super) fn send_echo_reply(
    request: &[u8],
    kind: u8,
    ends: (IpAddr, IpAddr),
    shared: &mut Shared,
) {
    let mut reply = request.to_vec();
    if let Some(head) = reply.first_chunk_mut::<4>() {
        *head = [kind, 0, 0, 0];
    }
    send_icmp(reply, ends, shared);
}

/// Sends an ICMP packet whose checksum is zero; in fragments if it has to be.
fn send_icmp(mut icmp: Vec<u8>, (source, destination): (IpAddr, IpAddr), shared: &mut Shared) {
    let protocol = icmp_protocol(source);
    let sum = match source {
        IpAddr::V4(_) => internet_checksum(&icmp),
        IpAddr::V6(_) => transport_checksum(source, destination, protocol.into(), &icmp),
    };
    if let Some(field) = icmp.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let frame = shared.link.ip_frame(source, destination, protocol, &icmp);
    shared.push_packet(frame);
}

fn icmp_protocol(address: IpAddr) -> IpProtocol {
    match address {
        IpAddr::V4(_) => IpProtocol::Icmp,
        IpAddr::V6(_) => IpProtocol::Icmpv6,
    }
}

/// Tells the guest that `remote` cannot be reached. `quoted` is how the payload of its packet began.
pub(super) fn send_unreachable(
    guest: SocketAddr,
    remote: SocketAddr,
    protocol: u8,
    quoted: &[u8; 8],
    why: Unreachable,
    shared: &mut Shared,
) {
    let (guest, remote) = (guest.ip(), remote.ip());
    let gateway = match remote {
        IpAddr::V4(_) => Some(IpAddr::V4(shared.config.ipv4.gateway)),
        IpAddr::V6(_) => shared.config.ipv6.map(|ipv6| IpAddr::V6(ipv6.gateway)),
    };
    // A port is the destination's own.
    let source = match why {
        Unreachable::Port => remote,
        _ => gateway.unwrap_or(remote),
    };
    let original = shared.link.ip_frame(guest, remote, protocol.into(), quoted);
    let mut icmp = vec![0; ICMP_LEN];
    icmp[..2].copy_from_slice(&why.codes(remote.is_ipv4()));
    icmp.extend_from_slice(original.get(ETHERNET_LEN..).unwrap_or_default());
    debug_assert_eq!(icmp.len(), ICMP_LEN + ip_len(remote) + quoted.len());
    send_icmp(icmp, (source, guest), shared);
}

/// The link-local address that belongs to a MAC address (RFC 4291 appendix A).
pub(super) fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(a ^ 2, b),
        pair(c, 0xff),
        pair(0xfe, d),
        pair(e, f),
    )
}

/// Answers who has one of our addresses (RFC 4861 section 7.2).
fn neighbour(packet: &IpPacket<'_>, shared: &mut Shared) {
    let (Some(ipv6), IpAddr::V6(asker)) = (shared.config.ipv6, packet.source) else {
        return;
    };
    let Some(target) = packet.payload.get(8..).and_then(<[u8]>::first_chunk::<16>) else {
        shared.counters.dropped_malformed += 1;
        return;
    };
    let target = Ipv6Addr::from(*target);
    let own = link_local(shared.link.gateway_mac);
    if ![own, ipv6.gateway, ipv6.dns].contains(&target) {
        return;
    }
    // One who looks for its own address first has none to be answered at.
    let (solicited, destination) = match asker.is_unspecified() {
        true => (0, ALL_NODES),
        false => (0x40, asker),
    };
    const ROUTER: u8 = 0x80;
    const OVERRIDE: u8 = 0x20;
    let mut icmp = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0];
    icmp.extend([ROUTER | OVERRIDE | solicited, 0, 0, 0]);
    icmp.extend(target.octets());
    // Option 2: the target's link-layer address.
    icmp.extend([2, 1]);
    icmp.extend(shared.link.gateway_mac);
    send_icmp(icmp, (target.into(), destination.into()), shared);
}

/// Advertises the gateway as the guest's IPv6 router.
#[derive(Debug, Default)]
pub(super) struct Router {
    alarm: Alarm,
}

impl Router {
    /// The timer has gone off.
    pub(super) fn timer(&mut self, shared: &mut Shared) {
        let now = shared.now;
        if shared.timers.is_due(&mut self.alarm, Token::Router, now) {
            self.advertise(shared);
        }
    }

    /// Sends an advertisement, and the next one after a while.
    fn advertise(&mut self, shared: &mut Shared) {
        let Some(ipv6) = shared.config.ipv6 else {
            return;
        };
        let next = shared.now + ADVERTISE_INTERVAL;
        shared
            .timers
            .set(&mut self.alarm, Token::Router, Some(next));
        let source = link_local(shared.link.gateway_mac);
        let icmp = advertisement(ipv6, shared);
        let guest = std::mem::replace(&mut shared.link.guest_mac, ALL_NODES_MAC);
        send_icmp(icmp, (source.into(), ALL_NODES.into()), shared);
        shared.link.guest_mac = guest;
    }

    /// Is silent until it is asked again.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        shared.timers.cancel(&mut self.alarm, Token::Router);
    }
}

/// A router advertisement (RFC 4861 section 4.2), with the prefix, the MTU and the DNS server.
fn advertisement(ipv6: Ipv6Config, shared: &Shared) -> Vec<u8> {
    let lifetime = ROUTER_LIFETIME.as_secs() as u32;
    let mut icmp = vec![ROUTER_ADVERTISEMENT, 0, 0, 0];
    // Hop limit; neither addresses nor anything else by DHCPv6.
    icmp.extend([64, 0]);
    icmp.extend((lifetime as u16).to_be_bytes());
    // Reachable time and retransmission timer: not said.
    icmp.extend([0; 8]);
    // Option 1: our link-layer address.
    icmp.extend([1, 1]);
    icmp.extend(shared.link.gateway_mac);
    // Option 3: a prefix of 64 bits, on the link, to make addresses of, for ever.
    icmp.extend([3, 4, 64, 0xc0]);
    icmp.extend([0xff; 8]);
    icmp.extend([0; 4]);
    icmp.extend(&ipv6.gateway.octets()[..8]);
    icmp.extend([0; 8]);
    // Option 5: the MTU.
    icmp.extend([5, 1, 0, 0]);
    icmp.extend((shared.link.mtu as u32).to_be_bytes());
    // Option 25: a recursive DNS server (RFC 8106).
    icmp.extend([25, 3, 0, 0]);
    icmp.extend(lifetime.to_be_bytes());
    icmp.extend(ipv6.dns.octets());
    icmp
}
