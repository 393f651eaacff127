//! For tests: a guest that makes its frames itself.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, TcpPacket, TcpSeqNumber,
};

use super::stack::Stack;
use super::{DEFAULT_ADDRESS, Mmds, MmdsConfig, Version};

pub(super) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Where the guest thinks that its packets go.
pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
pub(super) const SERVICE_MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// A service with a document that is known.
pub(super) fn mmds(version: Version) -> Arc<Mmds> {
    let mmds = Mmds::new("test", 100_000).unwrap();
    mmds.set_config(MmdsConfig {
        version,
        ..MmdsConfig::default()
    });
    mmds.put(json!({"small": "value", "large": large()}))
        .unwrap();
    Arc::new(mmds)
}

/// 40 KiB in which no two places are the same.
pub(super) fn large() -> Value {
    let text: String = (0..8192).map(|number| format!("{number:05}")).collect();
    Value::String(text)
}

/// Takes the guest's frames, and has some for it.
pub(super) trait Service {
    fn send(&mut self, frame: &[u8]);
    fn recv(&mut self) -> Option<Vec<u8>>;
}

/// A stack with a clock that stands until it is moved.
pub(super) struct Bench {
    pub(super) stack: Stack,
    pub(super) now: Instant,
    /// The guest's device has filled in checksums.
    pub(super) is_checksummed: bool,
}

impl Bench {
    pub(super) fn new(mmds: Arc<Mmds>) -> Self {
        Self {
            stack: Stack::new(mmds, Some(GUEST_MAC), 1500, 1),
            now: Instant::now(),
            is_checksummed: true,
        }
    }

    /// Lets time pass, as a timer would.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        // It is no more often in a hurry than this.
        for _ in 0..1000 {
            match self.stack.poll_at(self.now).filter(|at| *at <= end) {
                Some(at) => self.now = at.max(self.now + Duration::from_millis(1)).min(end),
                None => break,
            }
            self.stack.process(self.now);
        }
        self.now = end;
        self.stack.process(self.now);
    }
}

impl Service for Bench {
    fn send(&mut self, frame: &[u8]) {
        self.stack.frame(frame, self.is_checksummed, self.now);
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        self.stack.pop(self.now)
    }
}

/// A segment, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) guest_port: u16,
    pub(super) port: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Segment {
    pub(super) fn new(guest_port: u16, flags: u8) -> Self {
        Self {
            guest_port,
            port: 80,
            seq: 1000,
            ack: 0,
            flags,
            window: 65_000,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// As a frame of the guest's.
    pub(super) fn frame(&self) -> Vec<u8> {
        self.frame_with(&[])
    }

    /// The same with IPv4 options.
    pub(super) fn frame_with(&self, ip_options: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut segment = vec![0; header_len + self.payload.len()];
        let mut tcp = TcpPacket::new_unchecked(&mut segment);
        tcp.set_src_port(self.guest_port);
        tcp.set_dst_port(self.port);
        tcp.set_seq_number(TcpSeqNumber(self.seq as i32));
        tcp.set_ack_number(TcpSeqNumber(self.ack as i32));
        tcp.set_header_len(header_len as u8);
        tcp.set_window_len(self.window);
        segment[13] = self.flags;
        segment[20..header_len].copy_from_slice(&self.options);
        segment[header_len..].copy_from_slice(&self.payload);
        let (from, to) = (GUEST.into(), DEFAULT_ADDRESS.into());
        TcpPacket::new_unchecked(&mut segment).fill_checksum(&from, &to);
        packet(IpProtocol::Tcp, &segment, ip_options)
    }

    /// What the service has sent, which must be right in all respects.
    #[track_caller]
    pub(super) fn parse(frame: &[u8]) -> Self {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        assert_eq!(ethernet.ethertype(), EthernetProtocol::Ipv4);
        assert_eq!(ethernet.src_addr().0, SERVICE_MAC);
        assert_eq!(ethernet.dst_addr().0, GUEST_MAC);
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!(packet.src_addr(), DEFAULT_ADDRESS);
        assert_eq!(packet.dst_addr(), GUEST);
        assert_eq!(packet.next_header(), IpProtocol::Tcp);
        let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
        let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
        assert!(tcp.verify_checksum(&from, &to));
        Self {
            guest_port: tcp.dst_port(),
            port: tcp.src_port(),
            seq: tcp.seq_number().0 as u32,
            ack: tcp.ack_number().0 as u32,
            flags: packet.payload()[13],
            window: tcp.window_len(),
            options: tcp.options().to_vec(),
            payload: tcp.payload().to_vec(),
        }
    }
}

/// A packet of the guest's to the service, through the router.
pub(super) fn packet(protocol: IpProtocol, payload: &[u8], options: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut frame = vec![0; 14 + header_len + payload.len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
    ethernet.set_dst_addr(EthernetAddress(ROUTER_MAC));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    frame[34..14 + header_len].copy_from_slice(options);
    frame[14 + header_len..].copy_from_slice(payload);
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
    packet.set_version(4);
    packet.set_header_len(header_len as u8);
    packet.set_total_len((header_len + payload.len()) as u16);
    packet.set_hop_limit(64);
    packet.set_next_header(protocol);
    packet.set_src_addr(GUEST);
    packet.set_dst_addr(DEFAULT_ADDRESS);
    packet.fill_checksum();
    frame
}

/// An ARP message about `target`.
pub(super) fn arp(operation: ArpOperation, target: Ipv4Addr) -> Vec<u8> {
    let message = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut frame = vec![0; 14 + message.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
    ethernet.set_dst_addr(EthernetAddress::BROADCAST);
    ethernet.set_ethertype(EthernetProtocol::Arp);
    message.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

/// The guest's end of a connection.
pub(super) struct Client {
    pub(super) port: u16,
    /// What it sends next.
    pub(super) seq: u32,
    /// What it expects next.
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) received: Vec<u8>,
    /// What has come before its turn.
    pub(super) ahead: Vec<Segment>,
    pub(super) is_finished: bool,
    pub(super) is_reset: bool,
}

impl Client {
    /// Opens a connection.
    #[track_caller]
    pub(super) fn open(service: &mut impl Service, port: u16) -> Self {
        let mut client = Self {
            port,
            seq: 1000,
            ack: 0,
            window: 65_000,
            received: Vec::new(),
            ahead: Vec::new(),
            is_finished: false,
            is_reset: false,
        };
        service.send(&Segment::new(port, SYN).frame());
        // Someone else may have been made to end.
        let mut frames = std::iter::from_fn(|| service.recv()).map(|frame| Segment::parse(&frame));
        let answer = frames.find(|answer| answer.guest_port == port);
        let answer = answer.expect("an answer to a SYN");
        assert_eq!(answer.flags, SYN | ACK);
        assert_eq!(answer.ack, 1001);
        client.seq = 1001;
        client.ack = answer.seq.wrapping_add(1);
        client.say(service, ACK, b"");
        client
    }

    pub(super) fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        Segment {
            seq: self.seq,
            ack: self.ack,
            window: self.window,
            payload: payload.to_vec(),
            ..Segment::new(self.port, flags)
        }
    }

    /// Sends a segment.
    pub(super) fn say(&mut self, service: &mut impl Service, flags: u8, payload: &[u8]) {
        service.send(&self.segment(flags, payload).frame());
        let taken = payload.len() as u32 + u32::from(flags & FIN);
        self.seq = self.seq.wrapping_add(taken);
    }

    /// Whether a segment has what comes next.
    fn reaches(&self, segment: &Segment) -> bool {
        let known = self.ack.wrapping_sub(segment.seq) as usize;
        known < segment.payload.len() + usize::from(segment.flags & FIN != 0)
    }

    fn take(&mut self, segment: &Segment) {
        let known = self.ack.wrapping_sub(segment.seq) as usize;
        let new = &segment.payload[known..];
        self.received.extend(new);
        self.ack = self.ack.wrapping_add(new.len() as u32);
        if segment.flags & FIN != 0 {
            self.is_finished = true;
            self.ack = self.ack.wrapping_add(1);
        }
    }

    /// Takes what there is, and acknowledges it, until there is nothing more.
    pub(super) fn listen(&mut self, service: &mut impl Service) {
        while let Some(frame) = service.recv() {
            let segment = Segment::parse(&frame);
            if segment.guest_port != self.port {
                continue;
            }
            self.is_reset |= segment.flags & RST != 0;
            let is_new = !segment.payload.is_empty() || segment.flags & FIN != 0;
            if is_new {
                self.ahead.push(segment);
                while let Some(at) = self.ahead.iter().position(|ahead| self.reaches(ahead)) {
                    let segment = self.ahead.swap_remove(at);
                    self.take(&segment);
                }
            }
            if is_new {
                self.say(service, ACK, b"");
            }
        }
    }

    /// Sends a request, and returns the body of its answer, which is the last.
    #[track_caller]
    pub(super) fn ask(&mut self, service: &mut impl Service, request: &str) -> String {
        self.received.clear();
        self.say(service, ACK, request.as_bytes());
        self.listen(service);
        self.body()
    }

    #[track_caller]
    pub(super) fn body(&self) -> String {
        let text = String::from_utf8(self.received.clone()).unwrap();
        let (_, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {text:?}"));
        body.to_owned()
    }
}

pub(super) const GET_SMALL: &str = "GET /small HTTP/1.1\r\n\r\n";
pub(super) const GET_LARGE: &str = "GET /large HTTP/1.1\r\n\r\n";
