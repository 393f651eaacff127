//! The DHCP server (RFC 2131). It has one lease, and that is always the guest's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};

use super::packet::{ETHERNET_LEN, Ends, IPV4_LEN, UDP_LEN};
use super::shared::Shared;

/// The server's UDP port.
pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long an address is leased. It never goes to anyone else.
const LEASE_SECONDS: u32 = 24 * 3600;
/// BOOTP clients want no less.
const MIN_LEN: usize = 300;

// Options that `DhcpRepr` has no field for (RFC 2132).
const OPTION_HOST_NAME: u8 = 12;
const OPTION_MTU: u8 = 26;

/// A message of the guest to the server's port.
pub(super) fn message(bytes: &[u8], shared: &mut Shared) {
    let parsed = DhcpPacket::new_checked(bytes);
    let Some(request) = parsed
        .as_ref()
        .ok()
        .and_then(|packet| DhcpRepr::parse(packet).ok())
    else {
        shared.counters.dropped_malformed += 1;
        return;
    };
    let ipv4 = shared.config.ipv4;
    let for_other = request
        .server_identifier
        .is_some_and(|server| server != ipv4.gateway);
    if for_other {
        return;
    }
    let answer = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => {
            let wanted = request.requested_ip.unwrap_or(request.client_ip);
            match wanted == ipv4.guest {
                true => DhcpMessageType::Ack,
                false => DhcpMessageType::Nak,
            }
        }
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return,
    };
    send(answer, &request, shared);
}

fn send(answer: DhcpMessageType, request: &DhcpRepr<'_>, shared: &mut Shared) {
    let ipv4 = shared.config.ipv4;
    let none = Ipv4Addr::UNSPECIFIED;
    let nak = answer == DhcpMessageType::Nak;
    let inform = request.message_type == DhcpMessageType::Inform;
    let leases = !nak && !inform;
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(ipv4.prefix.into()));
    let mtu = shared.config.mtu.to_be_bytes();
    let mut options = Vec::new();
    if !nak {
        options.push(DhcpOption {
            kind: OPTION_MTU,
            data: &mtu,
        });
        if let Some(name) = &shared.config.hostname {
            options.push(DhcpOption {
                kind: OPTION_HOST_NAME,
                data: name.as_bytes(),
            });
        }
    }
    let reply = DhcpRepr {
        message_type: answer,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if nak { none } else { request.client_ip },
        your_ip: if leases { ipv4.guest } else { none },
        server_ip: if nak { none } else { ipv4.gateway },
        router: (!nak).then_some(ipv4.gateway),
        subnet_mask: (!nak).then(|| Ipv4Addr::from_bits(mask.unwrap_or(0))),
        relay_agent_ip: none,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(ipv4.gateway),
        parameter_request_list: None,
        dns_servers: (!nak).then(|| [ipv4.dns].into_iter().collect()),
        max_size: None,
        lease_duration: leases.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let payload = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
    let len = reply.buffer_len().max(MIN_LEN);
    let mut frame = vec![0; payload + len];
    let mut packet = DhcpPacket::new_unchecked(&mut frame[payload..]);
    if reply.emit(&mut packet).is_err() {
        return;
    }
    // A client that knows its address is told there; others have none that it could be sent to.
    let known = !nak && !request.client_ip.is_unspecified() && request.client_ip == ipv4.guest;
    let destination = match known {
        true => request.client_ip,
        false => Ipv4Addr::BROADCAST,
    };
    let ends = Ends {
        source: SocketAddr::new(IpAddr::V4(ipv4.gateway), SERVER_PORT),
        destination: SocketAddr::new(IpAddr::V4(destination), CLIENT_PORT),
    };
    let mac = match known {
        true => request.client_hardware_address.0,
        false => [0xff; 6],
    };
    let guest = std::mem::replace(&mut shared.link.guest_mac, mac);
    let (start, offload) = shared.link.write_udp(&mut frame, payload, ends);
    shared.link.guest_mac = guest;
    shared.push_frame_with(frame.split_off(start), offload);
}
