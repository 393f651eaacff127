//! Measurements, not tests: `cargo test --release -p devices user_net::throughput -- --ignored
//! --nocapture --test-threads 1`.
//!
//! The guest is the least that can be one: it copies what it gets, as its card would, and acknowledges
//! each frame. What is measured is this stack and the host's loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{Ends, HEADROOM, Link, TcpFields};
use super::test_support::{Guest, host_v4};
use super::{Config, FrameOffload, Offloads, UserNet};

const TOTAL: u64 = 4 << 30;
const SEGMENT: usize = 44 * 1460;
const SCALE: u8 = 7;

/// What the guest knows of a connection.
struct Client {
    link: Link,
    ends: Ends,
    seq: u32,
    /// What the host has acknowledged, and its window.
    acked: u32,
    window: u32,
    ack: u32,
    memory: Vec<u8>,
}

fn u32_at(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
}

impl Client {
    /// Connects to the host.
    fn connect(net: &mut UserNet, host: u16, guest: u16) -> Self {
        let mut link = net.shared.link.clone();
        std::mem::swap(&mut link.guest_mac, &mut link.gateway_mac);
        let mut client = Self {
            link,
            ends: Ends {
                source: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), guest),
                destination: host_v4(host),
            },
            seq: 0,
            acked: 0,
            window: 0,
            ack: 0,
            memory: vec![0; 1 << 16],
        };
        let options = [2, 4, 5, 0xb4, 1, 3, 3, SCALE];
        let fields = TcpFields {
            syn: true,
            window: 65535,
            options: &options,
            ..TcpFields::default()
        };
        client.send(net, fields);
        client.seq = 1;
        while client.ack == 0 {
            net.process(Instant::now());
            while client.receive(net).is_some() {}
        }
        client.acknowledge(net);
        client
    }

    fn send(&mut self, net: &mut UserNet, fields: TcpFields<'_>) {
        let mut frame = [0; HEADROOM];
        let (start, offload) =
            self.link
                .write_tcp(&mut frame, HEADROOM, self.ends, fields, usize::MAX);
        net.send(&frame[start..], offload);
    }

    fn acknowledge(&mut self, net: &mut UserNet) {
        let fields = TcpFields {
            seq: self.seq,
            ack: Some(self.ack),
            window: 32768,
            ..TcpFields::default()
        };
        self.send(net, fields);
    }

    /// Takes one frame; Some with the bytes of data in it.
    fn receive(&mut self, net: &mut UserNet) -> Option<usize> {
        let mut data = 0;
        net.receive(|frame, _| {
            self.memory[..frame.len()].copy_from_slice(frame);
            let seq = u32_at(frame, 38);
            let header = usize::from(frame[46] >> 4) * 4;
            let (syn, rst) = (frame[47] & 2 != 0, frame[47] & 4 != 0);
            assert!(!rst, "reset");
            data = frame.len() - 34 - header;
            self.ack = seq.wrapping_add(data as u32 + u32::from(syn));
            self.acked = u32_at(frame, 42);
            let window = u32::from(u16::from_be_bytes([frame[48], frame[49]]));
            self.window = if syn { window } else { window << 4 };
            true
        })?;
        Some(data)
    }
}

fn sleep(net: &UserNet) {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    poll(&mut [PollFd::new(net, PollFlags::IN)], Some(&timeout)).unwrap();
}

/// Nanoseconds that this thread has run.
fn cpu() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn report(what: &str, total: u64, start: (Instant, u64), frames: u64) {
    let time = start.0.elapsed().as_secs_f64();
    let cpu = (cpu() - start.1) as f64 / 1000.0;
    let mib = total as f64 / f64::from(1 << 20);
    println!(
        "{what}: {:.2} Gbit/s, {:.1} us of CPU a MiB, {:.0} bytes a frame",
        total as f64 * 8.0 / time / 1e9,
        cpu / mib,
        total as f64 / frames as f64,
    );
}

fn network(large: bool) -> UserNet {
    let mut net = UserNet::new(Config::default()).unwrap();
    net.set_offloads(Offloads {
        checksum: large,
        tso4: large,
        tso6: large,
    });
    net
}

fn download(large: bool, total: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let writer = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let chunk = vec![7; 1 << 18];
        // The reader may end a little earlier.
        while stream.write_all(&chunk).is_ok() {}
    });
    let mut net = network(large);
    let mut client = Client::connect(&mut net, port, 40000);
    let start = (Instant::now(), cpu());
    let (mut received, mut frames) = (0, 0);
    while received < total {
        net.process(Instant::now());
        let mut moved = false;
        while let Some(data) = client.receive(&mut net) {
            moved = true;
            received += data as u64;
            frames += 1;
            client.acknowledge(&mut net);
        }
        if !moved {
            sleep(&net);
        }
    }
    let what = if large { "large" } else { "MTU-sized" };
    report(
        &format!("host to guest, {what} frames"),
        received,
        start,
        frames,
    );
    drop(net);
    writer.join().unwrap();
}

fn upload(large: bool, total: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reader = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut chunk = vec![0; 1 << 18];
        while stream.read(&mut chunk).is_ok_and(|count| count > 0) {}
    });
    let mut net = network(large);
    let mut client = Client::connect(&mut net, port, 40000);
    let segment = if large { SEGMENT } else { 1460 };
    let mut buffer = vec![5; HEADROOM + segment];
    let start = (Instant::now(), cpu());
    let (mut sent, mut frames) = (0, 0);
    while sent < total {
        net.process(Instant::now());
        while client.receive(&mut net).is_some() {}
        let mut moved = false;
        for _ in 0..16 {
            let flight = client.seq.wrapping_sub(client.acked) as usize;
            if flight + segment > client.window as usize {
                break;
            }
            moved = true;
            let fields = TcpFields {
                seq: client.seq,
                ack: Some(client.ack),
                window: 32768,
                ..TcpFields::default()
            };
            let ends = client.ends;
            let (start, offload) = client
                .link
                .write_tcp(&mut buffer, HEADROOM, ends, fields, 1460);
            client.memory[..buffer.len() - start].copy_from_slice(&buffer[start..]);
            net.send(&client.memory[..buffer.len() - start], offload);
            client.seq = client.seq.wrapping_add(segment as u32);
            sent += segment as u64;
            frames += 1;
        }
        if !moved {
            sleep(&net);
        }
    }
    let what = if large { "large" } else { "MTU-sized" };
    report(
        &format!("guest to host, {what} frames"),
        sent,
        start,
        frames,
    );
    drop(net);
    reader.join().unwrap();
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    download(true, TOTAL);
    download(false, TOTAL / 8);
    upload(true, TOTAL);
    upload(false, TOTAL / 8);
    // What the host does without a guest in between.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let writer = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let chunk = vec![7; 1 << 16];
        while stream.write_all(&chunk).is_ok() {}
    });
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let start = (Instant::now(), cpu());
    let mut buffer = vec![0; 1 << 16];
    let (mut received, mut frames) = (0, 0);
    while received < TOTAL {
        received += stream.read(&mut buffer).unwrap() as u64;
        frames += 1;
    }
    report("loopback alone", received, start, frames);
    drop(stream);
    writer.join().unwrap();
}

/// The time that a segment takes does not depend on how many connections there are.
#[test]
#[ignore = "a measurement"]
fn connections_cost_nothing_to_others() {
    const ROUNDS: u32 = 200_000;
    for count in [1_u16, 100, 4000] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = thread::spawn(move || {
            let streams: Vec<_> = (0..count).map(|_| listener.accept().unwrap()).collect();
            thread::park();
            drop(streams);
        });
        let mut net = network(true);
        let connect = |index| Client::connect(&mut net, port, 10000 + index);
        let mut clients: Vec<_> = (0..count).map(connect).collect();
        let client = &mut clients[0];
        let start = Instant::now();
        for _ in 0..ROUNDS {
            // Something known already, which has to be acknowledged.
            let fields = TcpFields {
                seq: client.seq.wrapping_sub(1),
                ack: Some(client.ack),
                window: 32768,
                ..TcpFields::default()
            };
            client.send(&mut net, fields);
            assert!(client.receive(&mut net).is_some());
        }
        let nanos = start.elapsed().as_nanos() / u128::from(ROUNDS);
        println!("{count} connections: {nanos} ns a segment and its answer");
        holder.thread().unpark();
        holder.join().unwrap();
    }
    // What it would be with smoltcp's sockets: the guest of the tests has them.
    for count in [1_u16, 100, 1000] {
        let mut guest = Guest::new(Config::default());
        for index in 0..count {
            let handle = guest.tcp_socket(512);
            guest.tcp(handle).listen(1000 + index).unwrap();
        }
        let link = &mut guest.net.shared.link;
        let ends = Ends {
            source: host_v4(1),
            destination: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), 999),
        };
        let fields = TcpFields {
            ack: Some(1),
            ..TcpFields::default()
        };
        let mut frame = [0; HEADROOM];
        let (begin, _): (_, FrameOffload) =
            link.write_tcp(&mut frame, HEADROOM, ends, fields, usize::MAX);
        let rounds = 20_000;
        let start = Instant::now();
        for _ in 0..rounds {
            guest.wire.to_guest.push_back(frame[begin..].to_vec());
            let now = smoltcp::time::Instant::ZERO;
            guest.iface.poll(now, &mut guest.wire, &mut guest.sockets);
            guest.wire.to_net.clear();
        }
        let nanos = start.elapsed().as_nanos() / rounds;
        println!("smoltcp, {count} sockets: {nanos} ns a segment and its answer");
    }
}
