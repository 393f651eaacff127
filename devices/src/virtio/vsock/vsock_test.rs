use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use super::muxer::{CONNECTIONS_MAX, RESETS_MAX};
use super::packet::{HEADER_SIZE, HOST_CID, Header, op, shutdown};
use super::test_support::{CID, Guest, Socket, TempDir, is_free, pattern};
use super::*;
use crate::virtio::test_support::{DEADLINE, Desc, TestLoop, lifecycle_suite};
use crate::virtio::transport::core::{Half, feature};

lifecycle_suite!({
    let dir = TempDir::new();
    let config = VsockConfig {
        cid: 3,
        path: dir.join("v.sock"),
    };
    Vsock::new(config, TestLoop::start()).unwrap()
});

/// A client of the host that wants a port of the guest.
fn client(guest: &Guest, port: u32) -> UnixStream {
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    writeln!(client, "CONNECT {port}").unwrap();
    client
}

/// What the device answers to a client.
#[track_caller]
fn line(client: &mut UnixStream) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while client.read(&mut byte).unwrap() == 1 {
        line.push(char::from(byte[0]));
        if byte[0] == b'\n' {
            break;
        }
    }
    line
}

#[track_caller]
fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// The stream ends here, as the other side has closed it or thrown data away.
#[track_caller]
fn assert_ended(stream: &mut UnixStream) {
    match stream.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

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

/// Writes to a stream and reads as much at the same time.
fn exchange(mut stream: UnixStream, out: Vec<u8>, back: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let writer = thread::spawn(move || writer.write_all(&out).unwrap());
    let mut bytes = vec![0; back];
    stream.read_exact(&mut bytes).unwrap();
    writer.join().unwrap();
    bytes
}

/// A program of the guest that sends back what it gets.
struct Echo {
    socket: Socket,
    pending: Vec<u8>,
    /// What has to come before it sends anything back.
    threshold: usize,
}

impl Echo {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            pending: Vec::new(),
            threshold: 0,
        }
    }

    fn receive(&mut self, guest: &mut Guest, header: &Header, data: &[u8]) {
        self.socket.note(header);
        match header.op {
            op::RW => self.pending.extend(data),
            op::CREDIT_REQUEST => self.update(guest),
            op::CREDIT_UPDATE | op::SHUTDOWN => {}
            op => panic!("operation {op}"),
        }
    }

    fn update(&mut self, guest: &mut Guest) {
        let update = self.socket.header(op::CREDIT_UPDATE);
        guest.send(&update, &[]);
    }

    fn send(&mut self, guest: &mut Guest) {
        while self.pending.len() > self.threshold {
            let room = self.socket.room() as usize;
            let count = self.pending.len().min(room).min(60_000);
            if count == 0 {
                return;
            }
            let data: Vec<u8> = self.pending.drain(..count).collect();
            self.socket.forwarded = self.socket.forwarded.wrapping_add(count as u32);
            guest.write(&mut self.socket, &data);
        }
    }
}

/// Echoes until `is_done` says so.
fn run_echoes(
    guest: &mut Guest,
    echoes: &mut HashMap<(u32, u32), Echo>,
    is_done: impl Fn() -> bool,
) {
    let deadline = Instant::now() + DEADLINE;
    while !is_done() {
        assert!(Instant::now() < deadline, "echoes hang");
        let Some((header, data)) = guest.try_receive() else {
            thread::sleep(Duration::from_micros(50));
            continue;
        };
        let key = (header.src_port, header.dst_port);
        if header.op == op::REQUEST {
            let mut socket = Socket::answer(&header);
            let response = socket.header(op::RESPONSE);
            guest.send(&response, &[]);
            echoes.insert(key, Echo::new(socket));
            continue;
        }
        if header.op == op::RESPONSE {
            let mut socket = Socket::new(header.dst_port, header.src_port);
            socket.note(&header);
            echoes.insert(key, Echo::new(socket));
            continue;
        }
        let echo = echoes.get_mut(&key).unwrap();
        echo.receive(guest, &header, &data);
        echo.send(guest);
    }
}

#[test]
fn a_hundred_connections_at_once() {
    const EACH: usize = 300_000;
    let mut guest = Guest::usual();
    let server = UnixListener::bind(guest.path_of(80)).unwrap();
    let path = guest.path.clone();
    let mut threads = Vec::new();
    for number in 0..50u32 {
        let path = path.clone();
        threads.push(thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            writeln!(stream, "CONNECT {number}").unwrap();
            assert!(line(&mut stream).starts_with("OK "));
            let data = pattern(number, EACH);
            assert!(exchange(stream, data.clone(), EACH) == data);
        }));
    }
    for number in 0..50u32 {
        let request = Socket::new(1000 + number, 80).header(op::REQUEST);
        guest.send(&request, &[]);
        let (stream, _) = server.accept().unwrap();
        threads.push(thread::spawn(move || {
            let data = pattern(1000 + number, EACH);
            assert!(exchange(stream, data.clone(), EACH) == data);
        }));
    }
    let mut echoes = HashMap::new();
    run_echoes(&mut guest, &mut echoes, || {
        threads.iter().all(thread::JoinHandle::is_finished)
    });
    assert_eq!(echoes.len(), 100);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Sends 8 MiB through an echo, which has this much room, and whose receive buffers are so large.
fn megabytes(room: u32, buffers: usize, size: u32, pause: Option<Duration>) {
    const ALL: usize = 8 << 20;
    let mut guest = Guest::new(buffers, size);
    let mut stream = client(&guest, 52);
    let mut socket = Socket::answer(&guest.expect(op::REQUEST));
    socket.capacity = room;
    let response = socket.header(op::RESPONSE);
    guest.send(&response, &[]);
    line(&mut stream);
    let worker = thread::spawn(move || {
        let data = pattern(9, ALL);
        let mut writer = stream.try_clone().unwrap();
        let out = data.clone();
        let writer = thread::spawn(move || writer.write_all(&out).unwrap());
        let mut back = vec![0; ALL];
        for chunk in back.chunks_mut(512 << 10) {
            stream.read_exact(chunk).unwrap();
            if let Some(pause) = pause {
                thread::sleep(pause);
            }
        }
        writer.join().unwrap();
        assert!(back == data);
    });
    let key = (socket.host, socket.guest);
    let mut echoes = HashMap::from([(key, Echo::new(socket))]);
    run_echoes(&mut guest, &mut echoes, || worker.is_finished());
    worker.join().unwrap();
}

#[test]
fn megabytes_go_through() {
    megabytes(256 << 10, 64, 4096, None);
}

#[test]
fn megabytes_go_through_large_buffers() {
    megabytes(256 << 10, 16, 64 << 10, None);
}

#[test]
fn megabytes_go_through_small_and_few_buffers() {
    megabytes(256 << 10, 3, 1000, None);
}

#[test]
fn megabytes_go_to_a_slow_guest() {
    megabytes(5000, 64, 4096, None);
}

#[test]
fn megabytes_go_to_a_slow_client() {
    megabytes(256 << 10, 64, 4096, Some(Duration::from_millis(10)));
}

#[test]
fn one_that_does_not_read_does_not_hold_others_up() {
    let mut guest = Guest::usual();
    let mut stuck_client = client(&guest, 1);
    let mut stuck = guest.accept(1);
    let mut other_client = client(&guest, 2);
    let mut other = guest.accept(2);
    assert!(line(&mut stuck_client).starts_with("OK "));
    line(&mut other_client);
    // The guest sends all that it may, twice as much as fits into the socket.
    let mut sent = Vec::new();
    for number in 0..1000 {
        while let Some((header, _)) = guest.try_receive() {
            assert_eq!(header.dst_port, 1);
            stuck.note(&header);
        }
        let room = stuck.room().min(50_000) as usize;
        if room == 0 {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        let data = pattern(number, room);
        guest.write(&mut stuck, &data);
        sent.extend(data);
    }
    assert!(sent.len() > 256 << 10);
    assert_eq!(stuck.room(), 0);
    guest.write(&mut other, b"hello");
    assert_eq!(read_exact(&mut other_client, 5), b"hello");
    // And the guest does not read of the other one.
    other_client.set_nonblocking(true).unwrap();
    while other_client.write(&[1; 5000]).is_ok() {}
    stuck_client.write_all(b"ping").unwrap();
    let mut got = Vec::new();
    while got != b"ping" {
        let (header, data) = guest.receive();
        if header.dst_port == 1 {
            got.extend(data);
        }
    }
    assert_eq!(read_exact(&mut stuck_client, sent.len()), sent);
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
fn packets_that_belong_to_nothing_are_refused() {
    let mut guest = Guest::usual();
    let mut socket = Socket::new(5000, 80);
    for number in [
        0,
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        8,
        u16::MAX,
    ] {
        let header = socket.header(number);
        guest.send(&header, &[]);
        assert_eq!(guest.expect(op::RST).dst_port, 5000);
    }
    // Of another type: the answer has the same.
    let other = Header {
        kind: 2,
        ..socket.header(op::REQUEST)
    };
    guest.send(&other, &[]);
    assert_eq!(guest.expect(op::RST).kind, 2);
    // To another host: the answer is from there.
    for dst_cid in [0, 1, 3, u64::from(CID), u64::MAX] {
        let header = Header {
            dst_cid,
            ..socket.header(op::REQUEST)
        };
        guest.send(&header, &[]);
        assert_eq!(guest.expect(op::RST).src_cid, dst_cid);
    }
    // From someone else: no answer. Nor to RST, nor to less than a header.
    for src_cid in [0, 1, HOST_CID, 43, u64::from(CID) | 1 << 32] {
        let header = Header {
            src_cid,
            ..socket.header(op::REQUEST)
        };
        guest.send(&header, &[]);
    }
    let reset = socket.header(op::RST);
    guest.send(&reset, &[]);
    let short = guest.driver.buffer(HEADER_SIZE - 1);
    guest.driver.submit(TX_QUEUE, &[short.readable()]);
    guest.driver.submit(TX_QUEUE, &[short.writable()]);
    let last = Socket::new(5001, 80).header(op::REQUEST);
    guest.send(&last, &[]);
    assert_eq!(guest.expect(op::RST).dst_port, 5001);
    assert!(!guest.driver.is_broken());
}

#[test]
fn a_packet_that_lies_ends_its_connection_only() {
    let mut guest = Guest::usual();
    let mut honest_client = client(&guest, 1);
    let mut honest = guest.accept(1);
    line(&mut honest_client);
    for lie in 0..6 {
        let mut stream = client(&guest, 2);
        let mut socket = guest.accept(2);
        line(&mut stream);
        let mut header = socket.header(op::RW);
        let mut data = vec![1; 10];
        match lie {
            0 => header.len = 11,
            1 => header.len = u32::MAX,
            2 => header.fwd_cnt = 1,
            3 => header.op = op::REQUEST,
            4 => header.kind = 2,
            _ => {
                // Beyond the credit, at once.
                data = vec![1; (256 << 10) + 1];
                header.len = data.len() as u32;
            }
        }
        if lie == 5 {
            let buffer = guest.driver.buffer(HEADER_SIZE + header.len);
            guest.driver.write(buffer.gpa, &header.to_bytes());
            guest.driver.submit(TX_QUEUE, &[buffer.readable()]);
        } else {
            guest.send(&header, &data);
        }
        assert_eq!(guest.expect(op::RST).dst_port, 2, "lie {lie}");
        assert_ended(&mut stream);
    }
    guest.write(&mut honest, b"unharmed");
    assert_eq!(read_exact(&mut honest_client, 8), b"unharmed");
}

#[test]
fn a_flood_of_requests_is_bounded() {
    let mut guest = Guest::usual();
    let server = UnixListener::bind(guest.path_of(80)).unwrap();
    // Descriptors may be scarcer than connections: then there are refusals, as well.
    let mut accepted = Vec::new();
    let mut answers = [0; 2];
    for number in 0..CONNECTIONS_MAX as u32 + 100 {
        let request = Socket::new(number, 80).header(op::REQUEST);
        guest.send(&request, &[]);
        let header = guest.receive().0;
        match header.op {
            op::RESPONSE => {
                answers[0] += 1;
                // The backlog has an end; and so have our own descriptors.
                if let Ok((stream, _)) = server.accept()
                    && accepted.len() < 100
                {
                    accepted.push(stream);
                }
            }
            op::RST => answers[1] += 1,
            _ => {
                // One of those that were not kept.
                let mut socket = Socket::new(header.dst_port, 80);
                let reset = socket.header(op::RST);
                guest.send(&reset, &[]);
            }
        }
    }
    assert!(answers[0] > 50, "{answers:?}");
    // As soon as others have ended, there is room again.
    for number in 0..CONNECTIONS_MAX as u32 + 100 {
        let reset = Socket::new(number, 80).header(op::RST);
        guest.send(&reset, &[]);
    }
    drop(accepted);
    while guest.try_receive().is_some() {}
    let request = Socket::new(1_000_000, 80).header(op::REQUEST);
    guest.send(&request, &[]);
    while guest.receive().0.dst_port != 1_000_000 {}
    assert!(!guest.driver.is_broken());
}

#[test]
fn a_flood_without_anyone_to_answer_is_bounded() {
    // No receive buffers.
    let mut guest = Guest::new(0, 0);
    let total = RESETS_MAX * 3;
    let size = usize::from(guest.driver.queues[TX_QUEUE].size());
    let (mut sent, mut done) = (0, 0);
    for _ in 0..200 {
        while sent < total && sent - done < size {
            let header = Socket::new(sent as u32, 80).header(op::RW);
            guest.send_without_waiting(&header, &[]);
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
        done += guest.driver.queues[TX_QUEUE].take_used().len();
    }
    assert_eq!(done, RESETS_MAX, "the rest waits");
    // With buffers, all are answered.
    guest.add_buffers(8, 100);
    let mut answers = 0;
    let deadline = Instant::now() + DEADLINE;
    while answers < total {
        assert!(Instant::now() < deadline);
        while guest.try_receive().is_some() {
            answers += 1;
        }
        done += guest.driver.queues[TX_QUEUE].take_used().len();
        while sent < total && sent - done < size {
            let header = Socket::new(sent as u32, 80).header(op::RW);
            guest.send_without_waiting(&header, &[]);
            sent += 1;
        }
        thread::yield_now();
    }
    assert_eq!(guest.try_receive(), None);
}

#[test]
fn buffers_that_hold_no_packet_go_back() {
    let mut guest = Guest::new(0, 0);
    for _ in 0..5 {
        let short = guest.driver.buffer(HEADER_SIZE);
        guest.driver.queues[RX_QUEUE].add(&[short.writable()]);
        guest.driver.queues[RX_QUEUE].add(&[short.readable()]);
    }
    let mut stream = client(&guest, 52);
    guest.driver.kick(RX_QUEUE);
    let used = guest.driver.wait_used(RX_QUEUE, 10);
    assert!(used.iter().all(|(_, len)| *len == 0));
    guest.add_buffers(4, 4096);
    guest.accept(52);
    assert!(line(&mut stream).starts_with("OK "));
}

#[test]
fn buffers_in_pieces_are_filled() {
    let mut guest = Guest::new(0, 0);
    let buffer = guest.driver.buffer(4096);
    let mut client = client(&guest, 52);
    let answer = |guest: &mut Guest, lens: &[u32]| {
        let mut gpa = buffer.gpa;
        let mut descs = Vec::new();
        for len in lens {
            descs.push(Desc::writable(gpa, *len));
            gpa += u64::from(*len);
        }
        let len = guest.driver.request(RX_QUEUE, &descs);
        guest.driver.read(buffer.gpa, len)
    };
    let bytes = answer(&mut guest, &[40, 4, 10]);
    let request = Header::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!((request.op, bytes.len()), (op::REQUEST, 44));
    let response = Socket::answer(&request).header(op::RESPONSE);
    client.write_all(&pattern(4, 200)).unwrap();
    guest.send(&response, &[]);
    assert!(line(&mut client).starts_with("OK "));
    let mut all = Vec::<u8>::new();
    for lens in [&[45][..], &[1, 42, 2, 9], &[44, 50], &[1000]] {
        let bytes = answer(&mut guest, lens);
        all.extend(&bytes[44..]);
    }
    assert_eq!(all, pattern(4, 200));
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
        guest = restart(guest);
        guest.accept(3);
        assert!(line(&mut early).starts_with("OK "));
        drop(early);
        while guest.receive().0.flags != shutdown::BOTH {}
    }
    let path = guest.path.clone();
    drop(guest);
    assert!(is_free(&path));
}

/// The driver starts anew.
fn restart(mut guest: Guest) -> Guest {
    guest.driver.start(u64::MAX);
    guest.forget();
    guest.add_buffers(64, 4096);
    guest
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

#[test]
fn a_driver_that_breaks_the_rules_loses_its_connections() {
    for queue in [RX_QUEUE, TX_QUEUE] {
        let mut guest = Guest::usual();
        let mut open = client(&guest, 2);
        guest.accept(2);
        assert!(line(&mut open).starts_with("OK "));
        if queue == RX_QUEUE {
            // It is looked at when there is something for the guest.
            let ahead = guest.driver.queues[RX_QUEUE].size() * 2;
            guest.driver.queues[RX_QUEUE].set_avail_index(ahead);
            open.write_all(b"hello").unwrap();
        } else {
            guest
                .driver
                .submit(TX_QUEUE, &[Desc::readable(u64::MAX, 64)]);
        }
        guest.driver.wait_broken();
        assert_ended(&mut open);
        let mut guest = restart(guest);
        let mut next = client(&guest, 3);
        guest.accept(3);
        assert!(line(&mut next).starts_with("OK "));
    }
}
