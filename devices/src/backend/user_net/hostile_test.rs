//! A guest that means harm: random frames, and good ones with mistakes.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use super::packet::{Ends, HEADROOM, TcpFields};
use super::test_support::{GUEST_V6, Guest, host_v4, host_v6};
use super::{Config, FrameOffload, Gso, GsoKind, Offloads, PartialChecksum};

/// Numbers that look random and are the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        BuildHasherDefault::<DefaultHasher>::default().hash_one(self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn offload(&mut self) -> FrameOffload {
        let number = self.next();
        let kinds = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp];
        FrameOffload {
            checksum: (number & 3 != 0).then_some(PartialChecksum {
                start: (number >> 8) as u16,
                offset: (number >> 24) as u16,
            }),
            gso: (number & 12 == 0).then(|| Gso {
                kind: kinds[(number >> 4) as usize % 3],
                size: (number >> 40) as u16,
                header_len: (number >> 48) as u16,
            }),
        }
    }
}

/// Good frames of all kinds.
fn frames(guest: &Guest, tcp: u16, udp: u16) -> Vec<Vec<u8>> {
    let mut link = guest.net.shared.link.clone();
    std::mem::swap(&mut link.guest_mac, &mut link.gateway_mac);
    let mut frames = Vec::new();
    let guest_v4 = Ipv4Addr::new(10, 0, 2, 15);
    for (source, host) in [
        (guest_v4.into(), host_v4 as fn(u16) -> SocketAddr),
        (GUEST_V6.into(), host_v6),
    ] {
        for (syn, fin, rst) in [
            (true, false, false),
            (false, false, false),
            (false, true, false),
            (false, false, true),
        ] {
            let options = [2, 4, 5, 0xb4, 1, 3, 3, 7];
            let fields = TcpFields {
                seq: 1,
                ack: (!syn).then_some(1),
                syn,
                fin,
                rst,
                window: 1000,
                options: &options,
                ..TcpFields::default()
            };
            let ends = Ends {
                source: SocketAddr::new(source, 1234),
                destination: host(tcp),
            };
            let mut frame = vec![1; HEADROOM + 100];
            let (start, _) = link.write_tcp(&mut frame, HEADROOM, ends, fields, 1460);
            frames.push(frame.split_off(start));
        }
        for port in [udp, 67, 53] {
            let ends = Ends {
                source: SocketAddr::new(source, 68),
                destination: host(port),
            };
            let mut frame = vec![1; HEADROOM + 400];
            let (start, _) = link.write_udp(&mut frame, HEADROOM, ends);
            let frame = frame.split_off(start);
            frames.extend(super::fragment::split(&frame, 200, 5));
            frames.push(frame);
        }
        for kind in [8, 128, 133, 135] {
            let mut icmp = vec![0; 64];
            icmp[0] = kind;
            let protocol = if kind == 8 { 1 } else { 58 };
            frames.push(link.ip_frame(source, host(0).ip(), u8::into(protocol), &icmp));
        }
    }
    let mut arp = vec![0xff; 6];
    arp.extend(link.gateway_mac);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([0; 20]);
    frames.push(arp);
    frames
}

/// Gives the IPv4 header a right checksum, so that what is behind it is looked at.
fn repair(frame: &mut [u8]) {
    let header_len = usize::from(frame.get(14).map_or(0, |byte| byte & 15)) * 4;
    if let Some(header) = frame.get_mut(14..14 + header_len)
        && header.len() >= 20
    {
        header[10..12].fill(0);
        let sum = super::packet::internet_checksum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

fn hostile(seed: u64, rounds: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = Config::default();
    config.limits.connections = 20;
    config.limits.half_open = 10;
    config.limits.flows = 10;
    config.limits.memory = 1 << 16;
    config.resolv_conf = "/nonexistent".into();
    // Nothing reaches anyone but these sockets.
    let (tcp, udp) = (
        listener.local_addr().unwrap().port(),
        socket.local_addr().unwrap().port(),
    );
    let gateway = config.ipv6.unwrap().gateway;
    let listener_v6 = TcpListener::bind(("::1", tcp)).ok();
    let rules = [
        "allow=none".to_owned(),
        format!("allow=10.0.2.2:{tcp}+{udp}"),
        match &listener_v6 {
            Some(_) => format!("allow=[{gateway}]:{tcp}"),
            None => format!("deny=[{gateway}]"),
        },
    ];
    let rules = rules.iter().map(|rule| rule.parse().unwrap());
    config.policy = super::policy::Policy::new(rules.collect());
    let mut guest = Guest::new(config);
    let good = frames(&guest, tcp, udp);
    let mut random = Random(seed << 32);
    let mut now = Instant::now();
    for round in 0..rounds {
        let mut frame = good[random.below(good.len())].clone();
        match random.below(4) {
            // All random but where it goes.
            0 => {
                let len = random.below(200);
                frame.resize(14 + len, 0);
                for byte in &mut frame[14..] {
                    *byte = random.next() as u8;
                }
            }
            1 => frame.truncate(random.below(frame.len() + 1)),
            _ => {}
        }
        for _ in 0..random.below(4) {
            if frame.len() > 14 {
                let at = 14 + random.below(frame.len() - 14);
                let bit = random.below(8);
                match random.below(2) {
                    0 => frame[at] ^= 1 << bit,
                    _ => frame[at] = [0, 1, 0x7f, 0x80, 0xff][bit % 5],
                }
            }
        }
        if random.below(4) != 0 && frame.get(12..14) == Some(&[8, 0]) {
            repair(&mut frame);
        }
        let offload = random.offload();
        guest.net.send(&frame, offload);
        if round % 7 == 0 {
            now += Duration::from_millis(random.next() % 400);
            guest.net.process(now);
            let _ = listener.accept();
        }
        let take = random.below(3) != 0;
        let mut got = 0;
        while guest.net.receive(|frame, _| {
            assert!(frame.len() <= 65535 + 14);
            take
        }) == Some(true)
        {
            got += 1;
            assert!(got < 10_000, "there is no end to it");
        }
        if round % 501 == 0 {
            guest.net.set_offloads(Offloads {
                checksum: random.below(2) == 0,
                tso4: random.below(2) == 0,
                tso6: random.below(2) == 0,
            });
        }
        assert!(guest.net.connections() <= 20);
        assert!(guest.net.flows() <= 10);
    }
    let counters = guest.net.counters();
    assert!(counters.dropped_malformed > rounds as u64 / 20);
    assert!(counters.host_frames > rounds as u64 / 100);
    guest.net.reset();
    assert_eq!(guest.net.connections() + guest.net.flows(), 0);
    assert_eq!(guest.net.memory(), 0);
}

#[test]
fn nothing_that_a_guest_sends_does_harm() {
    for seed in 0..4 {
        hostile(seed, 10_000);
    }
}

/// For longer: `MOTE_ROUNDS=10000000 cargo test --release … -- --ignored nothing_that`.
#[test]
#[ignore = "takes as long as it is told to"]
fn nothing_that_a_guest_sends_does_harm_in_the_long_run() {
    let rounds = std::env::var("MOTE_ROUNDS").map_or(1_000_000, |text| text.parse().unwrap());
    hostile(99, rounds);
}

#[test]
fn a_guest_that_takes_nothing_fills_nothing() {
    let mut guest = Guest::new(Config::default());
    let good = frames(&guest, 1, 1);
    for round in 0..20_000 {
        let frame = &good[round % good.len()];
        guest.net.send(frame, FrameOffload::default());
    }
    assert!(guest.net.counters().dropped_full > 1000);
    let mut bytes = 0;
    let mut count = 0;
    while guest.net.receive(|frame, _| {
        bytes += frame.len();
        count += 1;
        true
    }) == Some(true)
    {}
    assert!(count <= 2000 && bytes <= 2 << 20, "{count} {bytes}");
}
