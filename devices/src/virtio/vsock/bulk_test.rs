//! Many connections, and much data.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use super::packet::{Header, op};
use super::test_support::{Guest, Socket, client, line, pattern, read_exact};
use crate::virtio::test_support::DEADLINE;

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
