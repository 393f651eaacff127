use smoltcp::wire::UdpPacket;

use super::*;
use crate::mmds::test_support::{
    ACK, Bench, Client, FIN, GET_LARGE, GET_SMALL, GUEST, GUEST_MAC, RST, SERVICE_MAC, SYN,
    Segment, Service, arp, large, mmds, packet,
};
use crate::mmds::{DEFAULT_ADDRESS, Version};

fn bench() -> Bench {
    Bench::new(mmds(Version::V1))
}

#[track_caller]
fn assert_silent(bench: &mut Bench) {
    assert_eq!(bench.recv(), None);
}

#[test]
fn arp_is_answered_for_the_address() {
    let mut bench = bench();
    bench.send(&arp(ArpOperation::Request, DEFAULT_ADDRESS));
    let frame = bench.recv().unwrap();
    let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
    assert_eq!(ethernet.dst_addr().0, GUEST_MAC);
    assert_eq!(ethernet.src_addr().0, SERVICE_MAC);
    let message = ArpPacket::new_checked(ethernet.payload()).unwrap();
    let expected = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(SERVICE_MAC),
        source_protocol_addr: DEFAULT_ADDRESS,
        target_hardware_addr: EthernetAddress(GUEST_MAC),
        target_protocol_addr: GUEST,
    };
    assert_eq!(ArpRepr::parse(&message).unwrap(), expected);
    assert_silent(&mut bench);
    // No requests.
    bench.send(&arp(ArpOperation::Reply, DEFAULT_ADDRESS));
    bench.send(&arp(ArpOperation::Request, DEFAULT_ADDRESS)[..40]);
    let mut other = arp(ArpOperation::Request, DEFAULT_ADDRESS);
    other[14] = 9;
    bench.send(&other);
    assert_silent(&mut bench);
    let counters = bench.stack.mmds.counters();
    assert_eq!((counters.rx_accepted, counters.rx_bad_eth), (4, 3));
    assert_eq!(
        (counters.rx_count, counters.tx_count, counters.tx_frames),
        (1, 1, 1)
    );
    assert_eq!(counters.tx_bytes, 42);
}

#[test]
fn the_hardware_address_is_not_the_guests() {
    let mmds = mmds(Version::V1);
    let of = |guest| Stack::new(Arc::clone(&mmds), guest, 1500, 1).mac.0;
    assert_eq!(of(None), SERVICE_MAC);
    assert_eq!(of(Some(GUEST_MAC)), SERVICE_MAC);
    let other = of(Some(SERVICE_MAC));
    assert!(other != SERVICE_MAC && other[0] & 1 == 0);
}

#[test]
fn a_request_is_answered() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    assert_eq!(bench.stack.connections(), 1);
    assert_eq!(client.ask(&mut bench, GET_SMALL), "value");
    // Again on the same connection, and byte by byte.
    client.received.clear();
    for byte in GET_SMALL.bytes() {
        client.say(&mut bench, ACK, &[byte]);
        client.listen(&mut bench);
    }
    assert_eq!(client.body(), "value");
    let body = client.ask(&mut bench, GET_LARGE);
    assert!(Some(&*body) == large().as_str());
    // Each is acknowledged, and the connection closed by the guest.
    client.say(&mut bench, ACK | FIN, b"");
    client.listen(&mut bench);
    assert!(client.is_finished);
    assert_eq!(bench.stack.connections(), 0);
    let counters = bench.stack.mmds.counters();
    assert_eq!(
        (counters.connections_created, counters.connections_destroyed),
        (1, 1)
    );
    assert_eq!(counters.rx_count, counters.rx_accepted);
    assert_eq!((counters.rx_no_token, counters.tx_errors), (3, 0));
}

#[test]
fn requests_that_come_at_once_are_answered() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    let many = GET_SMALL.repeat(50);
    client.ask(&mut bench, &many);
    let text = String::from_utf8(client.received.clone()).unwrap();
    assert_eq!(text.matches("value").count(), 50);
}

#[test]
fn who_wants_no_more_gets_the_end_of_the_connection() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    let body = client.ask(&mut bench, "GET /small HTTP/1.0\r\n\r\n");
    assert_eq!(body, "value");
    assert!(client.is_finished);
    client.say(&mut bench, ACK | FIN, b"");
    client.listen(&mut bench);
    assert_eq!(bench.stack.connections(), 0);
    // A request and the end of the guest's side at once.
    let mut client = Client::open(&mut bench, 4001);
    client.say(&mut bench, ACK | FIN, GET_LARGE.as_bytes());
    client.listen(&mut bench);
    assert!(Some(&*client.body()) == large().as_str());
    assert!(client.is_finished);
    assert_eq!(bench.stack.connections(), 0);
}

#[test]
fn large_segments_and_missing_checksums_are_the_devices_business() {
    let mut bench = bench();
    bench.is_checksummed = false;
    let mut client = Client::open(&mut bench, 4000);
    let head = format!("GET /small HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2400));
    let mut frame = client.segment(ACK, head.as_bytes()).frame();
    frame[50..52].copy_from_slice(&[0x12, 0x34]);
    bench.send(&frame);
    client.seq += head.len() as u32;
    client.listen(&mut bench);
    assert_eq!(client.body(), "value");
}

#[test]
fn what_is_wrong_is_dropped() {
    let mut bench = bench();
    let good = Segment::new(4000, SYN).frame();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    let header = |change: &dyn Fn(&mut Ipv4Packet<&mut [u8]>)| {
        with(&|frame| {
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
            change(&mut packet);
            packet.fill_checksum();
        })
    };
    let bad = [
        with(&|frame| frame[50] ^= 1),
        with(&|frame| frame[24] ^= 1),
        with(&|frame| frame[14] = 0x44),
        with(&|frame| frame[14] = 0x65),
        with(&|frame| frame[14] = 0x4f),
        with(&|frame| frame[16] = 0xff),
        with(&|frame| frame.truncate(40)),
        with(&|frame| frame.truncate(20)),
        with(&|frame| frame[6] |= 1),
        header(&|packet| packet.set_total_len(30)),
        header(&|packet| packet.set_src_addr(DEFAULT_ADDRESS)),
        header(&|packet| packet.set_src_addr(Ipv4Addr::UNSPECIFIED)),
        header(&|packet| packet.set_src_addr(Ipv4Addr::BROADCAST)),
        header(&|packet| packet.set_src_addr(Ipv4Addr::new(224, 0, 0, 1))),
    ];
    for (number, frame) in bad.iter().enumerate() {
        bench.send(frame);
        assert_eq!(bench.recv(), None, "{number}");
        let counters = bench.stack.mmds.counters();
        assert_eq!(counters.rx_accepted_err, number as u64 + 1);
    }
    let mut datagram = vec![0; 20];
    UdpPacket::new_unchecked(&mut datagram).set_dst_port(80);
    let unusual = [
        packet(IpProtocol::Udp, &datagram, &[]),
        packet(IpProtocol::Icmp, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &[]),
        packet(IpProtocol::Unknown(99), b"", &[]),
        header(&|packet| packet.set_more_frags(true)),
        header(&|packet| packet.set_frag_offset(8)),
    ];
    for frame in &unusual {
        bench.send(frame);
        assert_silent(&mut bench);
    }
    let counters = bench.stack.mmds.counters();
    assert_eq!(counters.rx_accepted_unusual, unusual.len() as u64);
    assert_eq!((counters.rx_count, bench.stack.connections()), (0, 0));
    // And this one is right.
    bench.send(&good);
    assert_eq!(Segment::parse(&bench.recv().unwrap()).flags, SYN | ACK);
}

#[test]
fn ip_options_are_skipped() {
    let mut bench = bench();
    bench.send(&Segment::new(4000, SYN).frame_with(&[1, 1, 1, 0]));
    assert_eq!(Segment::parse(&bench.recv().unwrap()).flags, SYN | ACK);
}

#[test]
fn nobody_else_listens() {
    let mut bench = bench();
    for port in [1, 22, 79, 81, 443, 65535] {
        let segment = Segment {
            port,
            ..Segment::new(4000, SYN)
        };
        bench.send(&segment.frame());
        let answer = Segment::parse(&bench.recv().unwrap());
        assert_eq!((answer.flags, answer.port), (RST | ACK, port));
        assert_eq!(answer.ack, 1001);
    }
    // Segments of no connection; a reset is not answered.
    for flags in [ACK, ACK | FIN, SYN | ACK, FIN, 0] {
        bench.send(&Segment::new(4000, flags).frame());
        let answer = Segment::parse(&bench.recv().unwrap());
        assert!(answer.flags & RST != 0, "{flags}");
    }
    for flags in [RST, RST | ACK, SYN | RST] {
        bench.send(&Segment::new(4000, flags).frame());
        assert_silent(&mut bench);
    }
    bench.send(&Segment::new(0, SYN).frame());
    assert_silent(&mut bench);
    assert_eq!(bench.stack.connections(), 0);
}

#[test]
fn what_is_lost_is_sent_again() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    client.say(&mut bench, ACK, GET_LARGE.as_bytes());
    // One of ten frames is lost.
    let mut number = 0;
    for _ in 0..500 {
        let mut frames: Vec<_> = std::iter::from_fn(|| bench.recv()).collect();
        frames.retain(|_| {
            number += 1;
            number % 10 != 0
        });
        let mut delivered = Delivered(&mut bench, frames.into());
        client.listen(&mut delivered);
        bench.pass(Duration::from_millis(1500));
        if client.received.ends_with(b"08191") {
            break;
        }
    }
    assert!(Some(&*client.body()) == large().as_str());
}

/// Frames that have come through.
struct Delivered<'a>(&'a mut Bench, VecDeque<Vec<u8>>);

impl Service for Delivered<'_> {
    fn send(&mut self, frame: &[u8]) {
        self.0.send(frame);
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        self.1.pop_front()
    }
}

#[test]
fn what_comes_out_of_order_or_twice_is_one_request() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    let (first, second) = GET_SMALL.split_at(9);
    let later = Segment {
        seq: client.seq + first.len() as u32,
        ..client.segment(ACK, second.as_bytes())
    };
    bench.send(&later.frame());
    while bench.recv().is_some() {}
    let whole = client.segment(ACK, first.as_bytes());
    bench.send(&whole.frame());
    bench.send(&whole.frame());
    client.seq += GET_SMALL.len() as u32;
    client.listen(&mut bench);
    assert_eq!(client.body(), "value");
}

#[test]
fn a_window_of_nothing_is_waited_for() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    client.window = 0;
    client.say(&mut bench, ACK, GET_LARGE.as_bytes());
    client.listen(&mut bench);
    assert_eq!(client.received, b"");
    // A probe comes, of a byte at the most.
    bench.pass(Duration::from_secs(3));
    let probe = Segment::parse(&bench.recv().expect("a probe"));
    assert!(probe.payload.len() <= 1);
    client.window = 2000;
    client.say(&mut bench, ACK, b"");
    client.listen(&mut bench);
    assert!(Some(&*client.body()) == large().as_str());
}

#[test]
fn a_peer_that_never_takes_its_answer_is_let_go() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    client.window = 0;
    client.say(&mut bench, ACK, GET_LARGE.as_bytes());
    for _ in 0..40 {
        bench.pass(Duration::from_secs(1));
        let frames: Vec<_> = std::iter::from_fn(|| bench.recv()).collect();
        for frame in frames {
            let segment = Segment::parse(&frame);
            client.is_reset |= segment.flags & RST != 0;
            // It is there, and wants nothing.
            client.say(&mut bench, ACK, b"");
        }
    }
    assert!(client.is_reset);
    assert_eq!(bench.stack.connections(), 0);
}

#[test]
fn a_head_that_is_too_long_ends_the_connection() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    for _ in 0..3 {
        client.say(&mut bench, ACK, &[b'G'; 1000]);
        client.listen(&mut bench);
    }
    assert!(client.is_reset);
    assert_eq!((bench.stack.connections(), client.received.len()), (0, 0));
}

#[test]
fn garbage_is_answered_and_ends_the_connection() {
    let mut bench = bench();
    let mut client = Client::open(&mut bench, 4000);
    client.say(&mut bench, ACK, b"\x16\x03\x01 hello\r\n\r\n");
    client.listen(&mut bench);
    assert!(client.received.starts_with(b"HTTP/1.1 400 "));
    assert!(client.is_finished && !client.is_reset);
}

#[test]
fn what_leads_to_nothing_ends_by_itself() {
    let mut bench = bench();
    // Not open, open and idle, with half a request.
    bench.send(&Segment::new(4000, SYN).frame());
    while bench.recv().is_some() {}
    let mut idle = Client::open(&mut bench, 4001);
    let mut slow = Client::open(&mut bench, 4002);
    slow.say(&mut bench, ACK, b"GET /");
    assert_eq!(bench.stack.connections(), 3);
    while bench.recv().is_some() {}
    bench.pass(Duration::from_secs(31));
    assert_eq!(bench.stack.connections(), 1);
    slow.listen(&mut bench);
    assert!(slow.is_reset);
    // The idle one is closed, and not reset.
    bench.pass(Duration::from_secs(90));
    idle.listen(&mut bench);
    assert!(idle.is_finished && !idle.is_reset);
    idle.say(&mut bench, ACK | FIN, b"");
    assert_eq!(bench.stack.connections(), 0);
    // Nothing is waited for any more.
    assert_eq!(bench.stack.poll_at(bench.now), None);
}

#[test]
fn the_least_useful_one_makes_room() {
    let mut bench = bench();
    let mut clients: Vec<_> = (0..30)
        .map(|port| Client::open(&mut bench, 4000 + port))
        .collect();
    // The second is the one that was idle for longest: the first has said something since.
    bench.pass(Duration::from_secs(1));
    assert_eq!(clients[0].ask(&mut bench, GET_SMALL), "value");
    let mut newest = Client::open_with(&mut bench, 5000, &mut clients[1]);
    assert!(clients[1].is_reset);
    assert_eq!(bench.stack.connections(), 30);
    assert_eq!(newest.ask(&mut bench, GET_SMALL), "value");
    // All are busy: the next one is refused, and after some time one of them is taken to be stuck.
    clients.remove(1);
    clients.push(newest);
    for client in &mut clients {
        client.say(&mut bench, ACK, b"GET /sm");
        client.received.clear();
    }
    while bench.recv().is_some() {}
    bench.send(&Segment::new(5001, SYN).frame());
    assert_eq!(Segment::parse(&bench.recv().unwrap()).flags, RST | ACK);
    bench.pass(Duration::from_secs(6));
    let mut newest = Client::open_with(&mut bench, 5002, &mut clients[0]);
    assert!(clients[0].is_reset);
    assert_eq!(newest.ask(&mut bench, GET_SMALL), "value");
    // The others can go on.
    for client in &mut clients[1..] {
        assert_eq!(client.ask(&mut bench, "all HTTP/1.1\r\n\r\n"), "value");
    }
    let counters = bench.stack.mmds.counters();
    assert_eq!(
        (counters.connections_created, counters.connections_destroyed),
        (32, 2)
    );
}

impl Client {
    /// Opens a connection, for which another one has to end.
    #[track_caller]
    fn open_with(bench: &mut Bench, port: u16, other: &mut Client) -> Client {
        bench.send(&Segment::new(port, SYN).frame());
        let reset = Segment::parse(&bench.recv().unwrap());
        other.is_reset = reset.guest_port == other.port && reset.flags & RST != 0;
        // What is left is the answer, which comes again for the same segment.
        while bench.recv().is_some() {}
        bench.pass(Duration::from_secs(2));
        let answer = Segment::parse(&bench.recv().unwrap());
        assert_eq!(answer.flags, SYN | ACK);
        let mut client = Client {
            port,
            seq: 1001,
            ack: answer.seq.wrapping_add(1),
            window: 65_000,
            received: Vec::new(),
            ahead: Vec::new(),
            is_finished: false,
            is_reset: false,
        };
        client.say(bench, ACK, b"");
        client
    }
}
