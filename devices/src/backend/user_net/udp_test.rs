use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;

use super::packet::{Ends, HEADROOM};
use super::test_support::{GUEST_V6, Guest, host_v4, host_v6, pattern};
use super::{Config, Forward, FrameOffload, Gso, GsoKind, Protocol};

/// A UDP socket of the host.
fn host(address: &str) -> (UdpSocket, u16) {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A UDP socket of the guest.
fn guest_socket(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 17]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

fn send(guest: &mut Guest, handle: SocketHandle, bytes: &[u8], to: SocketAddr) {
    let socket = guest.sockets.get_mut::<udp::Socket>(handle);
    socket.send_slice(bytes, to).unwrap();
}

/// What the guest's socket gets next, and from whom.
fn receive(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
    guest.run("datagram to the guest", |guest| {
        let socket = guest.sockets.get_mut::<udp::Socket>(handle);
        let (bytes, from) = socket.recv().ok()?;
        let endpoint = from.endpoint;
        let from = SocketAddr::new(IpAddr::from(endpoint.addr), endpoint.port);
        Some((bytes.to_vec(), from))
    })
}

/// What the host's socket gets next, and from whom.
fn receive_at(guest: &mut Guest, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    guest.run("datagram to the host", |_| {
        let (len, from) = socket.recv_from(&mut buffer).ok()?;
        Some((buffer[..len].to_vec(), from))
    })
}

#[test]
fn datagrams_pass_both_ways() {
    let (socket, port) = host("127.0.0.1:0");
    let mut guest = Guest::new(Config::default());
    let handle = guest_socket(&mut guest, 5000);
    send(&mut guest, handle, b"ping", host_v4(port));
    let (bytes, from) = receive_at(&mut guest, &socket);
    assert_eq!(bytes, b"ping");
    for answer in [&b"pong"[..], b"", &pattern(0, 1472)] {
        socket.send_to(answer, from).unwrap();
        assert_eq!(
            receive(&mut guest, handle),
            (answer.to_vec(), host_v4(port))
        );
    }
    assert_eq!(guest.net.flows(), 1);
    // Another flow is another socket: nobody else's answers come in.
    let other = guest_socket(&mut guest, 5001);
    send(&mut guest, other, b"", host_v4(port));
    let (bytes, other_from) = receive_at(&mut guest, &socket);
    assert_eq!(bytes, b"");
    assert_ne!(from, other_from);
    let (stranger, _) = host("127.0.0.1:0");
    stranger.send_to(b"hello", from).unwrap();
    guest.idle(Duration::from_millis(50));
    assert!(!guest.sockets.get::<udp::Socket>(handle).can_recv());
}

#[test]
fn datagrams_pass_over_ipv6() {
    let (socket, port) = host("[::1]:0");
    for large in [false, true] {
        let mut guest = Guest::new(Config::default());
        if large {
            guest = guest.large();
        }
        let handle = guest_socket(&mut guest, 5000);
        send(&mut guest, handle, b"ping", host_v6(port));
        let (bytes, from) = receive_at(&mut guest, &socket);
        assert_eq!(bytes, b"ping");
        socket.send_to(b"pong", from).unwrap();
        assert_eq!(
            receive(&mut guest, handle),
            (b"pong".to_vec(), host_v6(port))
        );
    }
}

#[test]
fn a_closed_port_is_reported() {
    let (socket, port) = host("127.0.0.1:0");
    drop(socket);
    let mut guest = Guest::new(Config::default());
    let frame = datagram(5000, host_v4(port), b"ping");
    for _ in 0..2 {
        guest.net.send(&frame, FrameOffload::default());
        let frames = guest.wait_frames("error");
        let icmp = frames.first().unwrap();
        // ICMP port unreachable, with the ports quoted.
        assert_eq!(icmp[23], 1);
        assert_eq!(icmp[34..36], [3, 3]);
        assert_eq!(icmp[62..64], 5000_u16.to_be_bytes());
        assert_eq!(icmp[64..66], port.to_be_bytes());
        assert_eq!(super::packet::internet_checksum(&icmp[34..]), 0);
    }
}

/// A frame of the guest with one datagram.
fn datagram(port: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let config = Config::default();
    let mut link = super::packet::Link {
        guest_mac: config.gateway_mac,
        gateway_mac: config.guest_mac,
        mtu: 65535,
        offloads: Default::default(),
        ident: 0,
    };
    let source = match to.ip() {
        IpAddr::V4(_) => IpAddr::V4(config.ipv4.guest),
        IpAddr::V6(_) => IpAddr::V6(GUEST_V6),
    };
    let ends = Ends {
        source: SocketAddr::new(source, port),
        destination: to,
    };
    let mut frame = vec![0; HEADROOM];
    frame.extend_from_slice(payload);
    let (start, _) = link.write_udp(&mut frame, HEADROOM, ends);
    frame.split_off(start)
}

#[test]
fn large_datagrams_pass_in_fragments() {
    for (address, remote) in [
        ("127.0.0.1:0", host_v4 as fn(u16) -> SocketAddr),
        ("[::1]:0", host_v6),
    ] {
        let (socket, port) = host(address);
        let mut guest = Guest::new(Config::default());
        let frame = datagram(5000, remote(port), &pattern(0, 30_000));
        let mut pieces = super::fragment::split(&frame, 1500, 7);
        assert!(pieces.len() > 20);
        // In whatever order.
        pieces.reverse();
        for piece in &pieces {
            assert!(piece.len() <= 1514);
            guest.net.send(piece, FrameOffload::default());
        }
        let (bytes, from) = receive_at(&mut guest, &socket);
        assert!(bytes == pattern(0, 30_000));
        socket.send_to(&pattern(9, 20_000), from).unwrap();
        let frames = guest.wait_frames("pieces");
        assert!(frames.iter().all(|frame| frame.len() <= 1514));
        // The guest puts them together as we do.
        let mut reassembly = super::Reassembly::default();
        let mut whole = None;
        for frame in &frames {
            let packet = match frame[12] {
                8 => super::packet::parse_ipv4(&frame[14..]),
                _ => super::packet::parse_ipv6(&frame[14..]),
            };
            let packet = packet.unwrap();
            let piece = packet.fragment.unwrap();
            if let super::Piece::Complete(bytes) = reassembly.add(&packet, piece, Instant::now()) {
                let whole_packet = super::IpPacket {
                    payload: &bytes,
                    ..packet
                };
                assert!(super::packet::transport_checksum_ok(&whole_packet));
                whole = Some(bytes[8..].to_vec());
            }
        }
        assert!(whole.unwrap() == pattern(9, 20_000));
    }
}

#[test]
fn segmented_datagrams_are_cut() {
    let (socket, port) = host("127.0.0.1:0");
    let mut guest = Guest::new(Config::default());
    let frame = datagram(5000, host_v4(port), &pattern(0, 2500));
    let offload = |size| FrameOffload {
        checksum: None,
        gso: Some(Gso {
            kind: GsoKind::Udp,
            size,
            header_len: 42,
        }),
    };
    guest.net.send(&frame, offload(1000));
    for (from, len) in [(0, 1000), (1000, 1000), (2000, 500)] {
        let (bytes, _) = receive_at(&mut guest, &socket);
        assert!(bytes == pattern(from, len));
    }
    // Nobody is made to send thousands.
    for size in [0, 1, 19] {
        guest.net.send(&frame, offload(size));
    }
    assert_eq!(guest.net.counters().dropped_malformed, 3);
}

#[test]
fn forwarded_datagrams_are_answered_from_the_port_they_came_to() {
    let config = Config {
        forwards: vec![Forward {
            protocol: Protocol::Udp,
            address: Ipv4Addr::LOCALHOST.into(),
            host_port: 0,
            guest_port: 53,
        }],
        ..Config::default()
    };
    let mut guest = Guest::new(config);
    let forward = guest.net.forwards().next().unwrap();
    let address = SocketAddr::new(forward.address, forward.host_port);
    let handle = guest_socket(&mut guest, 53);
    let clients: Vec<_> = (0..3).map(|_| host("127.0.0.1:0").0).collect();
    for round in 0..3 {
        for (index, client) in clients.iter().enumerate() {
            let question = pattern(index * 10 + round, 100);
            client.send_to(&question, address).unwrap();
            let (bytes, from) = receive(&mut guest, handle);
            assert!(bytes == question);
            assert_eq!(from.ip(), IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)));
            send(&mut guest, handle, &pattern(index, 50), from);
            let (answer, server) = receive_at(&mut guest, client);
            assert!(answer == pattern(index, 50));
            assert_eq!(server, address);
        }
    }
    assert_eq!(guest.net.flows(), 3);
}

#[test]
fn flows_are_bounded_and_end_when_idle() {
    let (socket, port) = host("127.0.0.1:0");
    let mut config = Config::default();
    config.limits.flows = 10;
    let mut guest = Guest::new(config);
    let first = guest_socket(&mut guest, 999);
    send(&mut guest, first, b"kept", host_v4(port));
    let (_, first_from) = receive_at(&mut guest, &socket);
    for index in 0..100 {
        // The first flow is used again and again, and so is never the one to go.
        if index % 5 == 0 {
            send(&mut guest, first, b"kept", host_v4(port));
            assert_eq!(receive_at(&mut guest, &socket).1, first_from);
        }
        guest.exchange(&datagram(2000 + index, host_v4(port), b"x"));
        receive_at(&mut guest, &socket);
        assert!(guest.net.flows() <= 10);
    }
    assert_eq!(guest.net.flows(), 10);
    assert_eq!(guest.net.counters().over_limit, 91);
    let now = Instant::now();
    guest.net.process(now + Duration::from_secs(29));
    assert_eq!(guest.net.flows(), 10);
    guest.net.process(now + Duration::from_secs(31));
    assert_eq!(guest.net.flows(), 0);
    assert_eq!(guest.net.poll_at(), None);
}

#[test]
fn a_guest_without_room_loses_nothing_that_was_read() {
    let (socket, port) = host("127.0.0.1:0");
    let mut guest = Guest::new(Config::default());
    guest.exchange(&datagram(5000, host_v4(port), b"x"));
    let (_, from) = receive_at(&mut guest, &socket);
    for index in 0..20 {
        socket.send_to(&pattern(index, 100), from).unwrap();
    }
    // It refuses each frame twice.
    let mut refused = 0;
    let mut got = Vec::new();
    let start = Instant::now();
    while got.len() < 20 {
        guest.net.process(Instant::now());
        let _ = guest.net.receive(|frame, _| {
            refused += 1;
            let take = refused % 3 == 0;
            if take {
                got.push(frame[42..].to_vec());
            }
            take
        });
        assert!(start.elapsed() < super::test_support::PATIENCE);
    }
    for (index, bytes) in got.iter().enumerate() {
        assert!(*bytes == pattern(index, 100), "{index}");
    }
}
