use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::socket::dhcpv4;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpProtocol, Ipv4Address};

use super::packet::{Ends, HEADROOM, Link, TcpFields, internet_checksum, transport_checksum};
use super::policy::{Policy, Rule};
use super::test_support::{GUEST_V6, Guest, host_v4};
use super::{Config, FrameOffload, UserNet, icmp};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

fn config(rules: &[&str]) -> Config {
    let rules = rules.iter().map(|rule| rule.parse::<Rule>().unwrap());
    Config {
        policy: Policy::new(rules.collect()),
        ..Config::default()
    }
}

/// The guest's way of writing frames.
fn link() -> Link {
    let config = Config::default();
    Link {
        guest_mac: config.gateway_mac,
        gateway_mac: config.guest_mac,
        mtu: 1500,
        offloads: Default::default(),
        ident: 0,
    }
}

fn echo_request(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let v4 = source.is_ipv4();
    let mut icmp = vec![if v4 { 8 } else { 128 }, 0, 0, 0, 0xab, 0xcd, 0, 1];
    icmp.extend(b"some payload");
    let (protocol, sum) = match v4 {
        true => (IpProtocol::Icmp, internet_checksum(&icmp)),
        false => (
            IpProtocol::Icmpv6,
            transport_checksum(source, destination, 58, &icmp),
        ),
    };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    link().ip_frame(source, destination, protocol, &icmp)
}

fn udp_frame(destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let source = match destination.ip() {
        IpAddr::V4(_) => IpAddr::V4(GUEST),
        IpAddr::V6(_) => IpAddr::V6(GUEST_V6),
    };
    let ends = Ends {
        source: SocketAddr::new(source, 5000),
        destination,
    };
    let mut frame = vec![0; HEADROOM];
    frame.extend_from_slice(payload);
    let (start, _) = link().write_udp(&mut frame, HEADROOM, ends);
    frame.split_off(start)
}

fn syn_frame(destination: SocketAddr) -> Vec<u8> {
    let source = match destination.ip() {
        IpAddr::V4(_) => IpAddr::V4(GUEST),
        IpAddr::V6(_) => IpAddr::V6(GUEST_V6),
    };
    let ends = Ends {
        source: SocketAddr::new(source, 5000),
        destination,
    };
    let fields = TcpFields {
        syn: true,
        window: 1000,
        ..TcpFields::default()
    };
    let mut frame = [0; HEADROOM];
    let (start, _) = link().write_tcp(&mut frame, HEADROOM, ends, fields, 1460);
    frame[start..].to_vec()
}

#[test]
fn dhcp_gives_the_guest_its_address() {
    let config = Config {
        hostname: Some("box".to_owned()),
        ..Config::default()
    };
    let mut guest = Guest::bare(config);
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let lease = guest.run("lease", |guest| {
        let socket = guest.sockets.get_mut::<dhcpv4::Socket>(handle);
        match socket.poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                let router = lease.router;
                Some((lease.address, router, lease.dns_servers.to_vec()))
            }
            _ => None,
        }
    });
    assert_eq!(lease.0.address(), GUEST);
    assert_eq!(lease.0.prefix_len(), 24);
    assert_eq!(lease.1, Some(Ipv4Address::new(10, 0, 2, 2)));
    assert_eq!(lease.2, [DNS]);
}

/// A DHCP message with these options.
fn dhcp_frame(source: Ipv4Addr, kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[1, 2, 3, 4]);
    message[28..34].copy_from_slice(&Config::default().guest_mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    message.extend(options);
    message.push(255);
    let ends = Ends {
        source: SocketAddr::new(source.into(), 68),
        destination: SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67),
    };
    let mut frame = vec![0; HEADROOM];
    frame.extend(message);
    let (start, _) = link().write_udp(&mut frame, HEADROOM, ends);
    frame[start..start + 6].fill(0xff);
    frame.split_off(start)
}

#[test]
fn dhcp_names_mtu_and_host_and_refuses_other_addresses() {
    let config = Config {
        hostname: Some("box".to_owned()),
        ..Config::default()
    };
    let mut guest = Guest::bare(config);
    let none = Ipv4Addr::UNSPECIFIED;
    let offer = guest.exchange(&dhcp_frame(none, 1, &[]));
    assert_eq!(offer.len(), 1);
    let has = |frame: &[u8], option: &[u8]| {
        let options = &frame[42 + 240..];
        options.windows(option.len()).any(|window| window == option)
    };
    assert!(has(&offer[0], &[53, 1, 2]));
    assert!(has(&offer[0], &[26, 2, 0x05, 0xdc]));
    assert!(has(&offer[0], b"\x0c\x03box"));
    assert!(has(&offer[0], &[54, 4, 10, 0, 2, 2]));
    let nak = guest.exchange(&dhcp_frame(none, 3, &[50, 4, 10, 0, 2, 16]));
    assert!(has(&nak[0], &[53, 1, 6]));
    let ack = guest.exchange(&dhcp_frame(none, 3, &[50, 4, 10, 0, 2, 15]));
    assert!(has(&ack[0], &[53, 1, 5]));
    // Meant for another server.
    let other = [50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 99];
    assert!(guest.exchange(&dhcp_frame(none, 3, &other)).is_empty());
    let inform = guest.exchange(&dhcp_frame(GUEST, 8, &[]));
    assert!(has(&inform[0], &[53, 1, 5]));
    assert!(!has(&inform[0], &[51, 4]), "no lease");
}

#[test]
fn arp_answers_for_the_gateway_and_dns_only() {
    let mut guest = Guest::bare(Config::default());
    let config = Config::default();
    let request = |target: Ipv4Addr| {
        let mut frame = vec![0xff; 6];
        frame.extend(config.guest_mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(config.guest_mac);
        frame.extend(GUEST.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        frame
    };
    for target in [config.ipv4.gateway, config.ipv4.dns] {
        let answers = guest.exchange(&request(target));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0][..6], config.guest_mac);
        assert_eq!(answers[0][20..22], [0, 2]);
        assert_eq!(answers[0][22..28], config.gateway_mac);
        assert_eq!(answers[0][28..32], target.octets());
    }
    for target in [GUEST, Ipv4Addr::new(10, 0, 2, 99)] {
        assert!(guest.exchange(&request(target)).is_empty());
    }
}

#[test]
fn the_gateway_answers_pings() {
    let ipv6 = Config::default().ipv6.unwrap();
    let local = icmp::link_local(Config::default().gateway_mac);
    let v4 = IpAddr::V4(GUEST);
    let v6 = IpAddr::V6(GUEST_V6);
    let cases = [
        (v4, IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)), 34, 0),
        (v4, IpAddr::V4(DNS), 34, 0),
        (v6, ipv6.gateway.into(), 54, 129),
        (v6, ipv6.dns.into(), 54, 129),
        (v6, local.into(), 54, 129),
    ];
    // The policy has no say in it.
    let mut guest = Guest::new(config(&["allow=none"]));
    for (source, destination, at, reply) in cases {
        let request = echo_request(source, destination);
        let answers = guest.exchange(&request);
        assert_eq!(answers.len(), 1, "{destination}");
        let answer = &answers[0];
        assert_eq!(answer[at], reply);
        assert_eq!(answer[at + 4..], request[at + 4..]);
        let packet = match source {
            IpAddr::V4(_) => super::packet::parse_ipv4(&answer[14..]),
            IpAddr::V6(_) => super::packet::parse_ipv6(&answer[14..]),
        };
        let packet = packet.unwrap();
        assert_eq!((packet.source, packet.destination), (destination, source));
        match source {
            IpAddr::V4(_) => assert_eq!(internet_checksum(packet.payload), 0),
            IpAddr::V6(_) => assert!(super::packet::transport_checksum_ok(&packet)),
        }
    }
}

#[test]
fn pings_go_out_where_the_host_lets_them() {
    let mut guest = Guest::new(Config::default());
    for (loopback, at) in [
        (Ipv4Addr::LOCALHOST.into(), 34),
        (Ipv6Addr::LOCALHOST.into(), 54),
    ] {
        let allowed = super::host::connect_ping(loopback).is_ok();
        // What the policy and the routes let out is the host's loopback here, by a name of its own.
        let (source, remote) = match loopback {
            IpAddr::V4(_) => (IpAddr::V4(GUEST), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2))),
            IpAddr::V6(_) => (IpAddr::V6(GUEST_V6), "fd00::2".parse().unwrap()),
        };
        if allowed && std::net::UdpSocket::bind((remote, 0)).is_err() {
            eprintln!("SKIPPED: this host does not have the address {remote}");
            continue;
        }
        let request = echo_request(source, remote);
        guest.net.send(&request, FrameOffload::default());
        let answer = guest.wait_frames("answer").remove(0);
        match (allowed, loopback) {
            (true, _) => assert_eq!(answer[at + 4..], request[at + 4..]),
            (false, IpAddr::V4(_)) => assert_eq!(answer[at..at + 2], [3, 13]),
            (false, IpAddr::V6(_)) => assert_eq!(answer[at..at + 2], [1, 1]),
        }
    }
}

#[test]
fn the_router_is_found_by_ipv6() {
    let mut guest = Guest::bare(Config::default());
    let own: Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().unwrap();
    let all_routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let mut icmp = vec![133, 0, 0, 0, 0, 0, 0, 0];
    let sum = transport_checksum(own.into(), all_routers.into(), 58, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = link().ip_frame(own.into(), all_routers.into(), IpProtocol::Icmpv6, &icmp);
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 2]);
    let check = |frames: Vec<Vec<u8>>| {
        assert_eq!(frames.len(), 1);
        let frame = &frames[0];
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let packet = super::packet::parse_ipv6(&frame[14..]).unwrap();
        assert!(super::packet::transport_checksum_ok(&packet));
        assert_eq!(frame[21], 255, "hop limit");
        let ndisc = smoltcp::wire::Icmpv6Packet::new_checked(packet.payload).unwrap();
        let repr = smoltcp::wire::NdiscRepr::parse(&ndisc).unwrap();
        let smoltcp::wire::NdiscRepr::RouterAdvert {
            mtu, prefix_info, ..
        } = repr
        else {
            panic!("{repr:?}");
        };
        assert_eq!(mtu, Some(1500));
        let prefix = prefix_info.unwrap();
        assert_eq!(prefix.prefix_len, 64);
        assert_eq!(
            prefix.prefix,
            "fd00:6d6f:7465::".parse::<Ipv6Addr>().unwrap()
        );
        let dns = Config::default().ipv6.unwrap().dns.octets();
        assert_eq!(packet.payload[packet.payload.len() - 16..], dns);
    };
    check(guest.exchange(&frame));
    // And again without being asked.
    let next = guest.net.poll_at().unwrap();
    guest.net.process(next);
    check(guest.collect());
    // Not after a reset, until the guest asks again.
    guest.net.reset();
    assert_eq!(guest.net.poll_at(), None);
}

/// A resolv.conf that names these, and goes away again.
struct ResolvConf(PathBuf);

impl ResolvConf {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mote-resolv-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn questions_go_to_the_hosts_resolver_over_both_protocols() {
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = resolver.local_addr().unwrap().port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let file = ResolvConf::new("both", "# comment\nsearch x\nnameserver 127.0.0.1\n");
    let mut guest = Guest::new(Config {
        resolv_conf: file.0.clone(),
        resolver_port: port,
        ..config(&["allow=1.2.3.4"])
    });
    let answers = thread::spawn(move || {
        let mut buffer = [0; 512];
        for _ in 0..2 {
            let (len, from) = resolver.recv_from(&mut buffer).unwrap();
            buffer[..len].reverse();
            resolver.send_to(&buffer[..len], from).unwrap();
        }
        let mut stream = listener.accept().unwrap().0;
        let mut question = [0; 8];
        stream.read_exact(&mut question).unwrap();
        question.reverse();
        stream.write_all(&question).unwrap();
    });
    let v6 = Config::default().ipv6.unwrap().dns;
    for (server, at) in [(IpAddr::V4(DNS), 42), (IpAddr::V6(v6), 62)] {
        let question = udp_frame(SocketAddr::new(server, 53), b"question");
        guest.net.send(&question, FrameOffload::default());
        let answer = guest.wait_frames("answer").remove(0);
        assert_eq!(answer[at..], *b"noitseuq");
        assert_eq!(answer[at - 8..at - 6], 53_u16.to_be_bytes());
    }
    let handle = guest.connect(4096, SocketAddr::new(DNS.into(), 53));
    guest.tcp(handle).send_slice(b"question").unwrap();
    let mut answer = [0; 8];
    guest.run("answer by TCP", |guest| {
        (guest.tcp(handle).recv_queue() == 8).then_some(())
    });
    guest.tcp(handle).recv_slice(&mut answer).unwrap();
    assert_eq!(answer, *b"noitseuq");
    answers.join().unwrap();
}

#[test]
fn the_next_resolver_is_asked_when_one_is_silent() {
    // Two addresses of the loopback, one port.
    let silent = UdpSocket::bind("127.0.0.2:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let resolver = UdpSocket::bind(("127.0.0.3", port)).unwrap();
    resolver.set_nonblocking(true).unwrap();
    let file = ResolvConf::new("silent", "nameserver 127.0.0.2\nnameserver 127.0.0.3\n");
    let mut guest = Guest::new(Config {
        resolv_conf: file.0.clone(),
        resolver_port: port,
        ..Config::default()
    });
    let question = udp_frame(SocketAddr::new(DNS.into(), 53), b"question");
    guest.exchange(&question);
    let mut buffer = [0; 512];
    assert_eq!(silent.recv(&mut buffer).unwrap(), 8);
    // It is asked again after a while.
    guest.net.process(Instant::now() + Duration::from_secs(5));
    guest.exchange(&question);
    guest.run("question", |_| resolver.recv(&mut buffer).ok());
    assert_eq!(guest.net.flows(), 1);
}

#[test]
fn the_policy_is_kept() {
    let mut guest = Guest::new(config(&["allow=none"]));
    let outside = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 99).into(), 80);
    let outside_v6 = SocketAddr::new("2001:db8::1".parse().unwrap(), 80);
    let host = host_v4(80);
    let dns = SocketAddr::new(DNS.into(), 53);
    for (index, destination) in [outside, host, dns, outside_v6].into_iter().enumerate() {
        let v4 = destination.is_ipv4();
        let tcp = guest.exchange(&syn_frame(destination));
        assert_eq!(tcp.len(), 1);
        let flags = tcp[0][if v4 { 47 } else { 67 }];
        assert_eq!(flags & 4, 4, "a reset from {destination}");
        let udp = guest.exchange(&udp_frame(destination, b"x"));
        assert_eq!(udp.len(), 1);
        match v4 {
            true => assert_eq!(udp[0][34..36], [3, 13], "{destination}"),
            false => assert_eq!(udp[0][54..56], [1, 1], "{destination}"),
        }
        assert_eq!(guest.net.counters().refused, 2 * (index as u64 + 1));
    }
    let ping = guest.exchange(&echo_request(GUEST.into(), outside.ip()));
    assert_eq!(ping[0][34..36], [3, 13]);
    assert_eq!(guest.net.connections() + guest.net.flows(), 0);
}

#[test]
fn what_is_allowed_is_reached_and_nothing_else() {
    let allowed = TcpListener::bind("127.0.0.1:0").unwrap();
    let denied = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let rule = format!("allow=10.0.2.2:{}", port(&allowed));
    let mut guest = Guest::new(config(&[&rule]));
    guest.connect(4096, host_v4(port(&allowed)));
    let handle = guest.begin(4096, host_v4(port(&denied)), 40001);
    guest.run("reset", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });
    denied.set_nonblocking(true).unwrap();
    assert!(denied.accept().is_err());
    assert_eq!(guest.net.counters().refused, 1);
}

#[test]
fn the_loopback_has_no_other_name_than_the_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(Config::default());
    let names = [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "10.0.2.255",
        "10.0.2.99",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "ff02::1",
        "fe80::1",
        "fd00:6d6f:7465::99",
    ];
    for name in names {
        let destination = SocketAddr::new(name.parse().unwrap(), port);
        assert!(guest.exchange(&syn_frame(destination)).is_empty(), "{name}");
        let frame = udp_frame(destination, b"x");
        assert!(guest.exchange(&frame).is_empty(), "{name}");
    }
    assert_eq!(guest.net.connections() + guest.net.flows(), 0);
    let counters = guest.net.counters();
    assert_eq!(counters.dropped_unroutable, 2 * names.len() as u64);

    let mut config = config(&[]);
    config.host_loopback = false;
    let mut guest = Guest::new(config);
    let answers = guest.exchange(&syn_frame(host_v4(port)));
    assert_eq!(answers[0][47] & 4, 4);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn only_the_guests_address_is_heard() {
    let mut guest = Guest::new(Config::default());
    let gateway = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
    let sources = ["10.0.2.16", "10.0.2.2", "127.0.0.1", "0.0.0.0", "8.8.8.8"];
    for source in sources {
        let frame = echo_request(source.parse().unwrap(), gateway);
        assert!(guest.exchange(&frame).is_empty(), "{source}");
    }
    let ipv6 = Config::default().ipv6.unwrap();
    for source in [ipv6.gateway, ipv6.dns, Ipv6Addr::LOCALHOST] {
        let frame = echo_request(source.into(), ipv6.gateway.into());
        assert!(guest.exchange(&frame).is_empty(), "{source}");
    }
    assert_eq!(guest.net.counters().dropped_spoofed, 8);
    assert_eq!(guest.net.counters().host_frames, 0);
}

#[test]
fn wrong_checksums_are_dropped_unless_they_are_left_to_us() {
    let mut guest = Guest::new(Config::default());
    let closed = SocketAddr::new(DNS.into(), 80);
    for (mut frame, at) in [(syn_frame(closed), 50), (udp_frame(closed, b"x"), 40)] {
        assert_eq!(guest.exchange(&frame).len(), 1);
        frame[at] ^= 1;
        assert!(guest.exchange(&frame).is_empty());
        let offload = FrameOffload {
            checksum: Some(super::PartialChecksum {
                start: 34,
                offset: (at - 34) as u16,
            }),
            gso: None,
        };
        guest.net.send(&frame, offload);
        assert_eq!(guest.collect().len(), 1);
        // The IP header's is never left.
        frame[24] ^= 1;
        guest.net.send(&frame, offload);
        assert!(guest.collect().is_empty());
    }
    assert_eq!(guest.net.counters().dropped_malformed, 4);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let wrong = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        UserNet::new(config).unwrap_err().to_string()
    };
    let text = wrong(|config| config.mtu = 1279);
    assert!(text.contains("1279 is less than 1280"), "{text}");
    let text = wrong(|config| config.ipv4.dns = Ipv4Addr::new(10, 0, 3, 3));
    assert!(text.contains("not in one network of /24"), "{text}");
    let text = wrong(|config| config.ipv4.guest = config.ipv4.gateway);
    assert!(text.contains("also the gateway's"), "{text}");
    let text = wrong(|config| config.guest_mac = config.gateway_mac);
    assert!(text.contains("same MAC address"), "{text}");
    let text = wrong(|config| config.guest_mac[0] |= 1);
    assert!(text.contains("not one of a single card"), "{text}");
    let text = wrong(|config| config.hostname = Some("x".repeat(64)));
    assert!(text.contains("longer than 63"), "{text}");
    let text = wrong(|config| config.ipv6.as_mut().unwrap().dns = Ipv6Addr::LOCALHOST);
    assert!(text.contains("/64"), "{text}");
}
