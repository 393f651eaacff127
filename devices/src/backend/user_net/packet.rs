//! Frames: what the guest sent, checked, and headers for what it is to get.
//!
//! Frames are built around their payload: it is put at [`HEADROOM`] of a buffer, and the headers are
//! written before it, so that nothing is moved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};

use super::config::{FrameOffload, Gso, GsoKind, MacAddress, Offloads, PartialChecksum};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub(super) const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub(super) const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP_LEN: usize = 8;
/// Bytes kept free before a payload: Ethernet, IPv6, TCP with 12 bytes of options.
pub(super) const HEADROOM: usize = 88;
/// The largest IP packet.
pub(super) const MAX_PACKET: usize = 65535;
/// The largest payload of a TCP segment, whatever the family.
pub(super) const MAX_TCP_PAYLOAD: usize = MAX_PACKET - IPV6_LEN - TCP_LEN;

/// An IP packet of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) payload: &'a [u8],
    /// It is only a part of a packet: where its payload belongs, whether more follows, and what all
    /// parts have in common.
    pub(super) fragment: Option<Fragment>,
}

/// What part of a packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) id: u32,
    /// In bytes.
    pub(super) offset: usize,
    pub(super) more: bool,
}

/// Checks an IPv4 packet. Options are skipped.
pub(super) fn parse_ipv4(bytes: &[u8]) -> Option<IpPacket<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    if packet.version() != 4
        || usize::from(packet.header_len()) < IPV4_LEN
        || !packet.verify_checksum()
    {
        return None;
    }
    let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
    Some(IpPacket {
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        protocol: packet.next_header().into(),
        payload: packet.payload(),
        fragment: (offset != 0 || more).then(|| Fragment {
            id: packet.ident().into(),
            offset,
            more,
        }),
    })
}

/// Checks an IPv6 packet. Of extension headers it knows the one of fragments: what has others reports
/// the first one as its protocol.
pub(super) fn parse_ipv6(bytes: &[u8]) -> Option<IpPacket<'_>> {
    const FRAGMENT: u8 = 44;
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    if packet.version() != 6 {
        return None;
    }
    let mut parsed = IpPacket {
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        protocol: packet.next_header().into(),
        payload: packet.payload(),
        fragment: None,
    };
    if parsed.protocol == FRAGMENT {
        let (header, payload) = parsed.payload.split_at_checked(8)?;
        let word = u16::from_be_bytes([header[2], header[3]]);
        let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        parsed.protocol = header[0];
        parsed.payload = payload;
        let (offset, more) = (usize::from(word & !7), word & 1 != 0);
        // RFC 6946: one that is all of its packet is no fragment.
        parsed.fragment = (offset != 0 || more).then_some(Fragment { id, offset, more });
    }
    Some(parsed)
}

/// The sum of `bytes` in one's complement, not complemented, on top of `sum`. Words are summed as they
/// lie in memory: the result too is in network order there.
fn ones_sum(bytes: &[u8], sum: u64) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    // A 64-bit sum of 32-bit words cannot overflow for less than 16 GiB.
    let mut sum = chunks.by_ref().fold(sum, |sum, chunk| {
        sum + u64::from(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
    });
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Not more than 16 bits are left.
    u16::from_be((sum & 0xffff) as u16)
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let mut tail = [0; 8];
    // Packets are smaller than 64 KiB.
    tail[..4].copy_from_slice(&(len as u32).to_be_bytes());
    tail[7] = protocol;
    let add = |sum, address| match address {
        IpAddr::V4(address) => ones_sum(&Ipv4Addr::octets(&address), sum),
        IpAddr::V6(address) => ones_sum(&Ipv6Addr::octets(&address), sum),
    };
    add(add(ones_sum(&tail, 0), source), destination)
}

/// The checksum of a transport's header and payload, in which the field itself is zero.
pub(super) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &[u8],
) -> u16 {
    !fold(ones_sum(
        bytes,
        pseudo_sum(source, destination, protocol, bytes.len()),
    ))
}

/// Whether the checksum in a transport's header is right.
pub(super) fn transport_checksum_ok(packet: &IpPacket<'_>) -> bool {
    let (source, destination) = (packet.source, packet.destination);
    transport_checksum(source, destination, packet.protocol, packet.payload) == 0
}

/// The Internet checksum of `bytes`, in which the field itself is zero.
pub(super) fn internet_checksum(bytes: &[u8]) -> u16 {
    !fold(ones_sum(bytes, 0))
}

/// Who a packet goes from and to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// The fields of a TCP header that matter here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TcpFields<'a> {
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) psh: bool,
    pub(super) window: u16,
    /// A multiple of 4 bytes, at most 12.
    pub(super) options: &'a [u8],
}

/// The guest's link, as its headers need it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) guest_mac: MacAddress,
    pub(super) gateway_mac: MacAddress,
    pub(super) mtu: usize,
    pub(super) offloads: Offloads,
    /// The identification of the next IPv4 packet.
    pub(super) ident: u16,
}

/// The length of an IP header of the address's family.
pub(super) fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() {
        IPV4_LEN
    } else {
        IPV6_LEN
    }
}

impl Link {
    /// The largest TCP payload that fits the MTU.
    pub(super) fn mss(&self, address: IpAddr) -> usize {
        self.mtu.saturating_sub(ip_len(address) + TCP_LEN)
    }

    /// Whether the guest takes large TCP segments of this family.
    pub(super) fn tso(&self, address: IpAddr) -> bool {
        self.offloads.checksum
            && if address.is_ipv4() {
                self.offloads.tso4
            } else {
                self.offloads.tso6
            }
    }

    /// Writes an Ethernet header at the start of `frame`.
    pub(super) fn write_ethernet(
        &self,
        frame: &mut [u8],
        destination: MacAddress,
        kind: EthernetProtocol,
    ) {
        let mut header = EthernetFrame::new_unchecked(frame);
        header.set_src_addr(EthernetAddress(self.gateway_mac));
        header.set_dst_addr(EthernetAddress(destination));
        header.set_ethertype(kind);
    }

    /// Writes Ethernet and IP headers before the transport header at `at`, and says where the frame
    /// starts. The packet ends with `frame`.
    pub(super) fn write_ip(
        &mut self,
        frame: &mut [u8],
        at: usize,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
    ) -> usize {
        let len = frame.len() - at;
        let (start, kind) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let start = at - IPV4_LEN;
                self.ident = self.ident.wrapping_add(1);
                let mut header = Ipv4Packet::new_unchecked(&mut frame[start..]);
                header.set_version(4);
                header.set_header_len(IPV4_LEN as u8);
                header.set_dscp(0);
                header.set_ecn(0);
                header.set_total_len((len + IPV4_LEN) as u16);
                header.set_ident(self.ident);
                header.clear_flags();
                header.set_more_frags(false);
                header.set_dont_frag(protocol == u8::from(IpProtocol::Tcp));
                header.set_frag_offset(0);
                header.set_hop_limit(64);
                header.set_next_header(protocol.into());
                header.set_src_addr(source);
                header.set_dst_addr(destination);
                header.fill_checksum();
                (start, EthernetProtocol::Ipv4)
            }
            (source, destination) => {
                let start = at - IPV6_LEN;
                let mut header = Ipv6Packet::new_unchecked(&mut frame[start..]);
                header.set_version(6);
                header.set_traffic_class(0);
                header.set_flow_label(0);
                header.set_payload_len(len as u16);
                header.set_next_header(protocol.into());
                // What neighbour discovery demands (RFC 4861), and as good as any for the rest.
                header.set_hop_limit(255);
                header.set_src_addr(to_v6(source));
                header.set_dst_addr(to_v6(destination));
                (start, EthernetProtocol::Ipv6)
            }
        };
        let start = start - ETHERNET_LEN;
        self.write_ethernet(&mut frame[start..], self.guest_mac, kind);
        start
    }

    /// Fills in the checksum `field` bytes behind `at`, or leaves it to the guest.
    fn finish_checksum(
        &self,
        frame: &mut [u8],
        (start, at, field): (usize, usize, usize),
        ends: Ends,
        protocol: u8,
    ) -> Option<PartialChecksum> {
        let (source, destination) = (ends.source.ip(), ends.destination.ip());
        let len = frame.len() - at;
        let place = at + field..at + field + 2;
        if self.offloads.checksum {
            let sum = fold(pseudo_sum(source, destination, protocol, len));
            frame[place].copy_from_slice(&sum.to_be_bytes());
            return Some(PartialChecksum {
                start: (at - start) as u16,
                offset: field as u16,
            });
        }
        frame[place.clone()].fill(0);
        let mut sum = transport_checksum(source, destination, protocol, &frame[at..]);
        if sum == 0 && protocol == u8::from(IpProtocol::Udp) {
            sum = 0xffff;
        }
        frame[place].copy_from_slice(&sum.to_be_bytes());
        None
    }

    /// Writes all headers of a TCP segment whose payload is all of `frame` from `payload` on, and says
    /// where the frame starts. `mss` is what the guest is to cut it into, if it is larger.
    pub(super) fn write_tcp(
        &mut self,
        frame: &mut [u8],
        payload: usize,
        ends: Ends,
        fields: TcpFields<'_>,
        mss: usize,
    ) -> (usize, FrameOffload) {
        let protocol = u8::from(IpProtocol::Tcp);
        let header_len = TCP_LEN + fields.options.len();
        let at = payload - header_len;
        let mut header = TcpPacket::new_unchecked(&mut frame[at..]);
        header.set_src_port(ends.source.port());
        header.set_dst_port(ends.destination.port());
        header.set_seq_number(smoltcp::wire::TcpSeqNumber(fields.seq as i32));
        let ack = fields.ack.unwrap_or(0);
        header.set_ack_number(smoltcp::wire::TcpSeqNumber(ack as i32));
        header.clear_flags();
        header.set_header_len(header_len as u8);
        header.set_ack(fields.ack.is_some());
        header.set_syn(fields.syn);
        header.set_fin(fields.fin);
        header.set_rst(fields.rst);
        header.set_psh(fields.psh);
        header.set_window_len(fields.window);
        header.set_urgent_at(0);
        frame[at + TCP_LEN..payload].copy_from_slice(fields.options);
        let start = self.write_ip(frame, at, ends.source.ip(), ends.destination.ip(), protocol);
        let checksum = self.finish_checksum(frame, (start, at, 16), ends, protocol);
        let gso = (frame.len() - payload > mss).then(|| Gso {
            kind: if ends.source.is_ipv4() {
                GsoKind::Tcp4
            } else {
                GsoKind::Tcp6
            },
            size: mss as u16,
            header_len: (payload - start) as u16,
        });
        (start, FrameOffload { checksum, gso })
    }

    /// Writes all headers of a UDP datagram whose payload is all of `frame` from `payload` on, and says
    /// where the frame starts. If it is larger than the MTU it has to be fragmented: its checksum is
    /// complete then.
    pub(super) fn write_udp(
        &mut self,
        frame: &mut [u8],
        payload: usize,
        ends: Ends,
    ) -> (usize, FrameOffload) {
        let protocol = u8::from(IpProtocol::Udp);
        let at = payload - UDP_LEN;
        let len = frame.len() - at;
        let mut header = UdpPacket::new_unchecked(&mut frame[at..]);
        header.set_src_port(ends.source.port());
        header.set_dst_port(ends.destination.port());
        header.set_len(len as u16);
        let start = self.write_ip(frame, at, ends.source.ip(), ends.destination.ip(), protocol);
        let offloads = self.offloads;
        self.offloads.checksum &= frame.len() - start - ETHERNET_LEN <= self.mtu;
        let checksum = self.finish_checksum(frame, (start, at, 6), ends, protocol);
        self.offloads = offloads;
        let gso = None;
        (start, FrameOffload { checksum, gso })
    }

    /// A frame with this transport header and payload, complete.
    pub(super) fn ip_frame(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        transport: &[u8],
    ) -> Vec<u8> {
        let at = ETHERNET_LEN + ip_len(source);
        let mut frame = vec![0; at + transport.len()];
        frame[at..].copy_from_slice(transport);
        self.write_ip(&mut frame, at, source, destination, protocol.into());
        frame
    }
}

/// The address as one of IPv6.
fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}
