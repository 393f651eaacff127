//! What a user network is told, and what it tells.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::policy::Policy;

/// An Ethernet address.
pub type MacAddress = [u8; 6];

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to one of the guest: `[ADDR:]HOSTPORT:GUESTPORT[/tcp|/udp]`, with an
/// IPv6 address in brackets. Without an address only programs of the host reach it, at 127.0.0.1:
/// `0.0.0.0` or `[::]` opens it to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address.
    pub address: IpAddr,
    /// The host's port; 0 has the host choose one.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A text that is no [`Forward`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{text}' is not [ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 8080:80 or [::1]:5353:53/udp")]
pub struct ForwardError {
    /// The text.
    pub text: String,
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        parse_forward(text).ok_or_else(|| ForwardError {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Forward {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}:{}", self.host_port, self.guest_port)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

fn parse_forward(text: &str) -> Option<Forward> {
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (rest, guest_port) = ports.rsplit_once(':')?;
    let (address, host_port) = match rest.rsplit_once(':') {
        None => (Ipv4Addr::LOCALHOST.into(), rest),
        Some((address, host_port)) => {
            let bracketed = address
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            let address = match bracketed {
                Some(address) => IpAddr::V6(address.parse().ok()?),
                None => IpAddr::V4(address.parse().ok()?),
            };
            (address, host_port)
        }
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    Some(Forward {
        protocol,
        address,
        host_port: number(host_port)?,
        guest_port: number(guest_port).filter(|&port| port != 0)?,
    })
}

/// The IPv4 network of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Config {
    /// The only address that the guest may use; DHCP leases it.
    pub guest: Ipv4Addr,
    /// The guest's router, and its name for the host.
    pub gateway: Ipv4Addr,
    /// Where the DNS relay answers.
    pub dns: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
}

/// The IPv6 network of the guest. Its prefix has 64 bits, and the guest chooses its addresses there.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Config {
    /// The guest's router, and its name for the host. Its first 64 bits are the prefix.
    pub gateway: Ipv6Addr,
    /// Where the DNS relay answers.
    pub dns: Ipv6Addr,
}

/// Bounds. What goes beyond is refused or dropped, and counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// TCP connections. Each is a descriptor: the process must be allowed as many.
    pub connections: usize,
    /// Of these, those that one side has not answered.
    pub half_open: usize,
    /// UDP flows and pings. Beyond it the one that was idle longest ends.
    pub flows: usize,
    /// Bytes that all TCP connections may hold in both directions before each is cut back to its
    /// least. What they hold at most is this and 32 KiB a connection.
    pub memory: usize,
}

/// How a user network is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address of the guest's card.
    pub guest_mac: MacAddress,
    /// The address of the gateway's.
    pub gateway_mac: MacAddress,
    /// IP packets are no larger, but for segmentation offload. 1280 to 65535, in bytes.
    pub mtu: u16,
    /// IPv4.
    pub ipv4: Ipv4Config,
    /// IPv6, if the guest is to have it.
    pub ipv6: Option<Ipv6Config>,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// Whether the gateway's address stands for the host's loopback address. The policy decides about
    /// it as about any other address: with any `allow` rule it has to be named.
    pub host_loopback: bool,
    /// Which destinations may be reached.
    pub policy: Policy,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
    /// Where the host's resolvers are named.
    pub resolv_conf: PathBuf,
    /// The port of the resolvers: 53.
    pub resolver_port: u16,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            guest_mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            gateway_mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
            mtu: 1500,
            ipv4: Ipv4Config {
                guest: Ipv4Addr::new(10, 0, 2, 15),
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Ipv4Addr::new(10, 0, 2, 3),
                prefix: 24,
            },
            // Unique local (RFC 4193): a guest with this and IPv4 prefers IPv4 for the outside, which
            // more hosts have.
            ipv6: Some(Ipv6Config {
                gateway: Ipv6Addr::new(0xfd00, 0x6d6f, 0x7465, 0, 0, 0, 0, 2),
                dns: Ipv6Addr::new(0xfd00, 0x6d6f, 0x7465, 0, 0, 0, 0, 3),
            }),
            hostname: None,
            host_loopback: true,
            policy: Policy::default(),
            forwards: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolver_port: 53,
            limits: Limits {
                connections: 8192,
                half_open: 1024,
                flows: 1024,
                memory: 64 << 20,
            },
        }
    }
}

/// What the guest's driver takes from the device, negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are not filled in (VIRTIO_NET_F_GUEST_CSUM).
    pub checksum: bool,
    /// Large TCP segments over IPv4 (VIRTIO_NET_F_GUEST_TSO4). Needs `checksum`.
    pub tso4: bool,
    /// Large TCP segments over IPv6 (VIRTIO_NET_F_GUEST_TSO6). Needs `checksum`.
    pub tso6: bool,
}

/// What a large frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams (VIRTIO_NET_HDR_GSO_UDP_L4).
    Udp,
}

/// Segmentation that is left to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Into what.
    pub kind: GsoKind,
    /// Bytes of payload in each.
    pub size: u16,
    /// Bytes of Ethernet, IP and transport headers.
    pub header_len: u16,
}

/// A checksum that is left to the receiver: the Internet checksum of all from `start` on is to be
/// stored `offset` bytes behind it. The sum of the pseudo header is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// In bytes from the start of the frame.
    pub start: u16,
    /// In bytes from `start`.
    pub offset: u16,
}

/// What a `virtio_net_hdr` says of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameOffload {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM.
    pub checksum: Option<PartialChecksum>,
    /// `gso_type` other than none.
    pub gso: Option<Gso>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the guest.
    pub guest_frames: u64,
    /// Bytes in them.
    pub guest_bytes: u64,
    /// Frames to the guest.
    pub host_frames: u64,
    /// Bytes in them.
    pub host_bytes: u64,
    /// TCP connections that the guest has made.
    pub connections_out: u64,
    /// TCP connections that were made into the guest.
    pub connections_in: u64,
    /// UDP flows and pings.
    pub flows: u64,
    /// Destinations that the policy has refused, each time.
    pub refused: u64,
    /// Connections and flows for which there was no room.
    pub over_limit: u64,
    /// Frames that were malformed, had a wrong checksum, or were none of the protocols spoken here.
    pub dropped_malformed: u64,
    /// Packets that were not from the guest's address.
    pub dropped_spoofed: u64,
    /// Packets to broadcast, multicast and addresses where nobody can be.
    pub dropped_unroutable: u64,
    /// Frames to the guest and data from it for which there was no room.
    pub dropped_full: u64,
    /// Segments that had to be sent again.
    pub retransmitted: u64,
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
