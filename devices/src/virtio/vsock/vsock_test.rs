use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use super::packet::{HOST_CID, op, shutdown};
use super::test_support::{
    Guest, Socket, TempDir, assert_ended, client, is_free, line, pattern, read_exact,
};
use super::*;
use crate::virtio::test_support::{TestLoop, lifecycle_suite};
use crate::virtio::transport::core::{Half, feature};

lifecycle_suite!({
    let dir = TempDir::new();
    let config = VsockConfig {
        cid: 3,
        path: dir.join("v.sock"),
    };
    Vsock::new(config, TestLoop::start()).unwrap()
});

#[test]
fn tells_the_guest_its_id() {
    let guest = Guest::usual();
    let mut config = [0xaa; 12];
    guest.driver.core.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Stream sockets and no others.
    assert_eq!(guest.driver.core.offered_features(Half::Low) & 0xff_ffff, 1);
}

#[test]
fn an_id_is_a_guests() {
    let dir = TempDir::new();
    for cid in [0, 1, 2, u32::MAX] {
        let path = dir.join("s");
        let config = VsockConfig {
            cid,
            path: path.clone(),
        };
        let error = Vsock::new(config, TestLoop::start()).err().unwrap();
        assert!(matches!(error, Error::Cid { .. }));
        assert!(is_free(&path));
    }
    for cid in [CID_MIN, CID_MAX] {
        let path = dir.join("s");
        Vsock::new(VsockConfig { cid, path }, TestLoop::start()).unwrap();
    }
}

#[test]
fn a_client_reaches_the_guest() {
    let mut guest = Guest::usual();
    let mut client = client(&guest, 52);
    client.write_all(b"early").unwrap();
    let mut socket = guest.accept(52);
    assert_eq!(line(&mut client), format!("OK {}\n", socket.host));
    assert!(socket.host >= 1 << 30);
    assert_eq!(guest.read(&mut socket, 5), b"early");
    client.write_all(b" bird").unwrap();
    assert_eq!(guest.read(&mut socket, 5), b" bird");
    guest.write(&mut socket, b"worm");
    assert_eq!(read_exact(&mut client, 4), b"worm");
    // The guest closes.
    let end = socket.shutdown(shutdown::BOTH);
    guest.send(&end, &[]);
    assert_ended(&mut client);
    guest.expect(op::RST);
}

#[test]
fn a_client_is_refused() {
    let mut guest = Guest::usual();
    let mut refused = client(&guest, 52);
    let mut socket = Socket::answer(&guest.expect(op::REQUEST));
    let reset = socket.header(op::RST);
    guest.send(&reset, &[]);
    assert_eq!(line(&mut refused), "");
    // Who says something else never gets so far.
    let mut rude = UnixStream::connect(&guest.path).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_ended(&mut rude);
    let mut next = client(&guest, 53);
    guest.accept(53);
    assert!(line(&mut next).starts_with("OK "));
}

#[test]
fn the_guest_reaches_a_server() {
    let mut guest = Guest::usual();
    let server = UnixListener::bind(guest.path_of(80)).unwrap();
    let mut socket = guest.connect(5000, 80);
    let (mut stream, _) = server.accept().unwrap();
    guest.write(&mut socket, b"hello");
    assert_eq!(read_exact(&mut stream, 5), b"hello");
    stream.write_all(b"world").unwrap();
    assert_eq!(guest.read(&mut socket, 5), b"world");
    // The server closes.
    drop(stream);
    loop {
        if guest.expect(op::SHUTDOWN).flags == shutdown::BOTH {
            break;
        }
    }
    let reset = socket.header(op::RST);
    guest.send(&reset, &[]);
    // The same ports again.
    let mut socket = guest.connect(5000, 80);
    let (mut stream, _) = server.accept().unwrap();
    guest.write(&mut socket, b"again");
    assert_eq!(read_exact(&mut stream, 5), b"again");
}

#[test]
fn the_guest_is_refused() {
    let mut guest = Guest::usual();
    drop(UnixListener::bind(guest.path_of(81)).unwrap());
    std::fs::write(guest.path_of(82), "no socket").unwrap();
    for port in [80, 81, 82, u32::MAX] {
        let request = Socket::new(5000, port).header(op::REQUEST);
        guest.send(&request, &[]);
        let reset = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (port, 5000));
        assert_eq!(reset.src_cid, HOST_CID);
    }
}

#[test]
fn the_guest_waits_for_a_busy_server() {
    let mut guest = Guest::usual();
    let server = UnixListener::bind(guest.path_of(80)).unwrap();
    rustix::net::listen(&server, 0).unwrap();
    guest.connect(5000, 80);
    let request = Socket::new(5001, 80).header(op::REQUEST);
    guest.send(&request, &[]);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.try_receive(), None);
    let _first = server.accept().unwrap();
    assert_eq!(guest.expect(op::RESPONSE).dst_port, 5001);
    server.accept().unwrap();
}

#[test]
fn each_way_ends_by_itself() {
    let mut guest = Guest::usual();
    let mut client = client(&guest, 52);
    let mut socket = guest.accept(52);
    line(&mut client);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::SHUTDOWN).flags, shutdown::SEND);
    guest.write(&mut socket, b"still here");
    assert_eq!(read_exact(&mut client, 10), b"still here");
    let end = socket.shutdown(shutdown::SEND);
    guest.send(&end, &[]);
    assert_ended(&mut client);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    let reset = socket.header(op::RST);
    guest.send(&reset, &[]);

    let mut client = self::client(&guest, 52);
    let mut socket = guest.accept(52);
    line(&mut client);
    let end = socket.shutdown(shutdown::SEND);
    guest.send(&end, &[]);
    assert_ended(&mut client);
    client.write_all(b"still here").unwrap();
    assert_eq!(guest.read(&mut socket, 10), b"still here");
    let end = socket.shutdown(shutdown::RECEIVE);
    guest.send(&end, &[]);
    guest.expect(op::RST);
    assert!(client.write_all(b"anyone?").is_err());
}

#[test]
fn all_that_was_sent_arrives_before_the_end() {
    let mut guest = Guest::usual();
    let mut client = client(&guest, 52);
    let mut socket = guest.accept(52);
    line(&mut client);
    // More than the socket of the host holds.
    let data = pattern(1, 400_000);
    let mut rest = data.as_slice();
    while !rest.is_empty() {
        while let Some((header, _)) = guest.try_receive() {
            socket.note(&header);
        }
        let count = rest.len().min(socket.room() as usize).min(60_000);
        let (now, later) = rest.split_at(count);
        if count > 0 {
            guest.write(&mut socket, now);
        }
        rest = later;
    }
    let end = socket.shutdown(shutdown::BOTH);
    guest.send(&end, &[]);
    while guest.receive().0.op != op::RST {}
    // The guest has forgotten it, and may use the ports for something else.
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, data);
}

#[test]
fn a_client_that_is_killed_is_forgotten() {
    let mut guest = Guest::usual();
    // At every stage.
    drop(UnixStream::connect(&guest.path).unwrap());
    let mut half = UnixStream::connect(&guest.path).unwrap();
    half.write_all(b"CONN").unwrap();
    drop(half);
    let asking = client(&guest, 1);
    let request = guest.expect(op::REQUEST);
    drop(asking);
    assert_eq!(guest.expect(op::RST).src_port, request.src_port);
    let mut stream = client(&guest, 2);
    let mut socket = guest.accept(2);
    line(&mut stream);
    stream.write_all(&[1; 100_000]).unwrap();
    guest.write(&mut socket, &[2; 50_000]);
    drop(stream);
    let mut count = 0;
    loop {
        let (header, data) = guest.receive();
        count += data.len();
        if header.op == op::SHUTDOWN && header.flags == shutdown::BOTH {
            break;
        }
    }
    assert_eq!(count, 100_000, "what it wrote before");
    // What the guest sent meanwhile does no harm.
    guest.write(&mut socket, &[2; 50_000]);
    let end = socket.shutdown(shutdown::BOTH);
    guest.send(&end, &[]);
    while guest.receive().0.op != op::RST {}
    guest.send(&end, &[]);
    guest.expect(op::RST);
}

#[test]
fn a_guest_that_resets_is_heard() {
    let mut guest = Guest::usual();
    let mut stream = client(&guest, 2);
    let mut socket = guest.accept(2);
    line(&mut stream);
    guest.write(&mut socket, b"last words");
    let reset = socket.header(op::RST);
    guest.send(&reset, &[]);
    assert_eq!(read_exact(&mut stream, 10), b"last words");
    assert_ended(&mut stream);
    // It is not answered, not even a second time.
    guest.send(&reset, &[]);
    let mut next = client(&guest, 3);
    guest.accept(3);
    assert!(line(&mut next).starts_with("OK "));
}

#[test]
fn connections_do_not_outlive_the_driver() {
    let mut guest = Guest::usual();
    let server = UnixListener::bind(guest.path_of(80)).unwrap();
    for _ in 0..3 {
        let mut waiting = client(&guest, 1);
        guest.expect(op::REQUEST);
        let mut open = client(&guest, 2);
        guest.accept(2);
        assert!(line(&mut open).starts_with("OK "));
        guest.connect(5000, 80);
        let (mut served, _) = server.accept().unwrap();
        guest.driver.reset();
        assert_ended(&mut waiting);
        assert_ended(&mut open);
        assert_ended(&mut served);
        // Who comes now waits for the next driver.
        let mut early = client(&guest, 3);
        guest.restart();
        guest.accept(3);
        assert!(line(&mut early).starts_with("OK "));
        drop(early);
        while guest.receive().0.flags != shutdown::BOTH {}
    }
    let path = guest.path.clone();
    drop(guest);
    assert!(is_free(&path));
}

#[test]
fn a_driver_that_goes_on_is_told_that_its_connections_are_lost() {
    let mut guest = Guest::usual();
    assert_ne!(
        guest.driver.core.offered_features(Half::High) & 1 << (feature::RING_RESET - 32),
        0
    );
    let mut open = client(&guest, 2);
    guest.accept(2);
    assert!(line(&mut open).starts_with("OK "));
    guest.driver.core.reset_queue(EVENT_QUEUE);
    assert_ended(&mut open);
    // The other queues go on.
    let mut next = client(&guest, 3);
    guest.accept(3);
    assert!(line(&mut next).starts_with("OK "));
    guest.driver.set_up_queue(EVENT_QUEUE);
    assert_ended(&mut next);
    let event = guest.driver.buffer(8);
    assert_eq!(guest.driver.request(EVENT_QUEUE, &[event.writable()]), 4);
    assert_eq!(
        guest.driver.contents(event),
        [0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]
    );
}
