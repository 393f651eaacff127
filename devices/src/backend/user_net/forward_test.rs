use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use smoltcp::socket::tcp::State;

use super::tcp_test::{check_all, listener};
use super::test_support::{GUEST_V6, Guest, host_v6, pattern};
use super::{Config, Forward, Protocol};

fn forward(guest_port: u16) -> Config {
    Config {
        forwards: vec![Forward {
            protocol: Protocol::Tcp,
            address: Ipv4Addr::LOCALHOST.into(),
            host_port: 0,
            guest_port,
        }],
        ..Config::default()
    }
}

fn forwarded(guest: &Guest) -> SocketAddr {
    let forward = guest.net.forwards().next().unwrap();
    SocketAddr::new(forward.address, forward.host_port)
}

#[test]
fn the_host_reaches_a_forwarded_port() {
    let mut guest = Guest::new(forward(80));
    let address = forwarded(&guest);
    assert_ne!(address.port(), 0);
    let handle = guest.tcp_socket(64 << 10);
    guest.tcp(handle).listen(80).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&pattern(0, 100_000)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        check_all(stream)
    });
    let mut received = 0;
    guest.run("echo", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() && socket.send_capacity() > socket.send_queue() {
            let room = socket.send_capacity() - socket.send_queue();
            let bytes = socket
                .recv(|bytes| {
                    let count = bytes.len().min(room);
                    (count, bytes[..count].to_vec())
                })
                .unwrap();
            received += bytes.len();
            assert_eq!(socket.send_slice(&bytes), Ok(bytes.len()));
        }
        if received == 100_000 {
            socket.close();
        }
        (socket.state() == State::Closed).then_some(())
    });
    assert_eq!(client.join().unwrap(), 100_000);
    let remote = guest.net.counters();
    assert_eq!(remote.connections_in, 1);
}

#[test]
fn a_forwarded_port_where_nobody_listens_is_closed() {
    let mut guest = Guest::new(forward(80));
    let mut stream = TcpStream::connect(forwarded(&guest)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let error = guest.run("close", |_| match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        result => Some(result.unwrap_err()),
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn a_guest_that_is_not_there_yet_is_waited_for() {
    let mut guest = Guest::new(forward(80));
    let mut stream = TcpStream::connect(forwarded(&guest)).unwrap();
    // The first SYN goes nowhere.
    let mut frames = 0;
    while frames == 0 {
        guest.net.process(Instant::now());
        frames += guest.collect().len();
    }
    let handle = guest.tcp_socket(4096);
    guest.tcp(handle).listen(80).unwrap();
    guest.run("connect", |guest| {
        guest.tcp(handle).may_send().then_some(())
    });
    guest.tcp(handle).send_slice(b"hello").unwrap();
    guest.tcp(handle).close();
    guest.run("sent", |guest| {
        (guest.tcp(handle).state() == State::FinWait2).then_some(())
    });
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    assert!(guest.net.counters().retransmitted >= 1);
}

#[test]
fn ports_in_use_are_named() {
    let (_listener, port) = listener();
    let mut config = forward(80);
    config.forwards[0].host_port = port;
    let error = super::UserNet::new(config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!(
            "Cannot forward TCP 127.0.0.1:{port} to the guest: "
        )),
        "{text}"
    );
}

#[test]
fn ipv6_peers_see_the_guests_ipv6_address() {
    let config = Config {
        forwards: vec!["[::1]:0:80".parse().unwrap()],
        ..Config::default()
    };
    let mut guest = Guest::new(config);
    let handle = guest.tcp_socket(4096);
    guest.tcp(handle).listen(80).unwrap();
    // The guest's address is known once it has used it.
    let (_listener, port) = listener();
    let other = guest.begin(4096, host_v6(port), 40000);
    guest.run("use", |guest| {
        (guest.tcp(other).state() == State::Closed).then_some(())
    });
    let _stream = TcpStream::connect(forwarded(&guest)).unwrap();
    guest.run("connect", |guest| {
        guest.tcp(handle).may_send().then_some(())
    });
    let local = guest.tcp(handle).local_endpoint().unwrap();
    assert_eq!(local.addr, std::net::IpAddr::V6(GUEST_V6).into());
}
