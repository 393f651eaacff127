use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::Config;
use super::packet::{Ends, HEADROOM, TcpFields};
use super::tcp_test::listener;
use super::test_support::{Guest, host_v4};

#[test]
fn a_host_that_does_not_answer_is_unreachable() {
    let (listener, port) = listener();
    // Nobody takes connections there any more.
    rustix::net::listen(&listener, 0).unwrap();
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let _full: Vec<TcpStream> = (0..8)
        .map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok())
        .collect();
    let mut guest = Guest::new(Config::default());
    let handle = guest.begin(4096, host_v4(port), 40000);
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.tcp(handle).state(), State::SynSent);
    assert_eq!(guest.net.connections(), 1);
    let now = Instant::now();
    guest.net.process(now + Duration::from_secs(29));
    assert!(guest.collect().is_empty());
    guest.net.process(now + Duration::from_secs(31));
    let frames = guest.collect();
    assert_eq!(frames.len(), 1);
    // ICMP host unreachable, with the ports of the SYN.
    assert_eq!(frames[0][34..36], [3, 1]);
    assert_eq!(frames[0][62..64], 40000_u16.to_be_bytes());
    assert_eq!(frames[0][64..66], port.to_be_bytes());
    assert_eq!(guest.net.connections(), 0);
}

/// When the guest is asked next. Timers of earlier days go off before, for nothing.
fn silence(guest: &mut Guest) -> Instant {
    loop {
        let next = guest.net.poll_at().unwrap();
        if next > guest.net.shared.now + Duration::from_secs(3600) {
            return next;
        }
        guest.net.process(next);
        assert!(guest.collect().is_empty());
    }
}

#[test]
fn connections_that_are_silent_for_hours_are_asked() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(4096, host_v4(port));
    let stream = listener.accept().unwrap().0;
    stream.set_nonblocking(true).unwrap();
    // A guest that is there answers, and is left alone again.
    for _ in 0..2 {
        let silence = silence(&mut guest);
        guest.net.process(silence);
        let frames = guest.frames;
        guest.run("question", |guest| (guest.frames > frames).then_some(()));
        guest.idle(Duration::from_millis(20));
    }
    assert_eq!(guest.tcp(handle).state(), State::Established);
    // One that has gone does not.
    for _ in 0..20 {
        if let Some(next) = guest.net.poll_at() {
            guest.net.process(next);
            guest.collect();
        }
    }
    assert_eq!(guest.net.connections(), 0);
    let error = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn repeated_acknowledgements_are_a_loss_and_window_updates_are_not() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    let mut link = guest.net.shared.link.clone();
    std::mem::swap(&mut link.guest_mac, &mut link.gateway_mac);
    let ends = Ends {
        source: SocketAddr::new(Ipv4Addr::new(10, 0, 2, 15).into(), 40000),
        destination: host_v4(port),
    };
    let mut segment = |syn: bool, ack, window| {
        let mut frame = [0; HEADROOM];
        let fields = TcpFields {
            seq: u32::from(!syn),
            ack,
            syn,
            window,
            ..TcpFields::default()
        };
        let (start, _) = link.write_tcp(&mut frame, HEADROOM, ends, fields, 1460);
        frame[start..].to_vec()
    };
    guest
        .net
        .send(&segment(true, None, 5000), Default::default());
    let answer = guest.wait_frames("answer").remove(0);
    let iss = u32::from_be_bytes(answer[38..42].try_into().unwrap());
    let ack = Some(iss.wrapping_add(1));
    guest.exchange(&segment(false, ack, 5000));
    (&listener.accept().unwrap().0).write_all(b"data").unwrap();
    let data = guest.wait_frames("data").remove(0);
    assert!(data.ends_with(b"data"));
    for window in 5001..5010 {
        assert!(guest.exchange(&segment(false, ack, window)).is_empty());
    }
    let again = (0..3).flat_map(|_| guest.exchange(&segment(false, ack, 5009)));
    let again: Vec<_> = again.collect();
    assert_eq!(again.len(), 1);
    assert!(again[0].ends_with(b"data"));
    assert_eq!(guest.net.counters().retransmitted, 1);
}
