use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::{self, State};

use super::Config;
use super::test_support::{Guest, host_v4, host_v6, pattern};

const MIB: usize = 1 << 20;

pub(super) fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A listener of the host, where the guest finds it, and a guest.
fn listener_and_guest(large: bool, v6: bool) -> (TcpListener, SocketAddr, Guest) {
    let address = if v6 { "[::1]:0" } else { "127.0.0.1:0" };
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let remote = if v6 { host_v6(port) } else { host_v4(port) };
    let guest = Guest::new(Config::default());
    let guest = if large { guest.large() } else { guest };
    (listener, remote, guest)
}

/// All connections end, and nothing of them is kept.
fn end(guest: &mut Guest) {
    guest.run("end", |guest| (guest.net.connections() == 0).then_some(()));
    assert_eq!(guest.net.memory(), 0);
}

/// The guest sends `total` bytes, then its end.
fn upload(guest: &mut Guest, remote: SocketAddr, total: usize) {
    let handle = guest.connect(512 << 10, remote);
    let mut sent = 0;
    guest.run("upload", |guest| {
        let socket = guest.tcp(handle);
        while sent < total && socket.can_send() {
            let chunk = pattern(sent, (total - sent).min(128 << 10));
            sent += socket.send_slice(&chunk).unwrap();
        }
        if sent == total {
            socket.close();
        }
        (socket.state() == State::Closed || socket.state() == State::TimeWait).then_some(())
    });
}

/// Reads to the end, and checks every byte.
pub(super) fn check_all(mut stream: impl Read) -> usize {
    let mut buffer = vec![0; 1 << 17];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return total;
        }
        assert!(buffer[..count] == pattern(total, count), "at {total}");
        total += count;
    }
}

fn upload_case(large: bool, v6: bool, total: usize) {
    let (listener, remote, mut guest) = listener_and_guest(large, v6);
    let reader = thread::spawn(move || check_all(listener.accept().unwrap().0));
    upload(&mut guest, remote, total);
    assert_eq!(reader.join().unwrap(), total);
    end(&mut guest);
    let counters = guest.net.counters();
    assert_eq!(counters.connections_out, 1);
    assert_eq!(counters.dropped_malformed, 0);
    assert_eq!(counters.retransmitted, 0);
}

#[test]
fn uploads_arrive_whole() {
    upload_case(false, false, 16 * MIB);
}

#[test]
fn uploads_in_large_segments_arrive_whole() {
    upload_case(true, false, 64 * MIB);
}

#[test]
fn uploads_over_ipv6_arrive_whole() {
    upload_case(true, true, 16 * MIB);
}

fn download_case(large: bool, v6: bool, total: usize) {
    let (listener, remote, mut guest) = listener_and_guest(large, v6);
    let writer = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut sent = 0;
        while sent < total {
            let chunk = pattern(sent, (total - sent).min(128 << 10));
            stream.write_all(&chunk).unwrap();
            sent += chunk.len();
        }
    });
    let handle = guest.connect(512 << 10, remote);
    let mut received = 0;
    guest.run("download", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            let count = socket
                .recv(|bytes| {
                    assert!(bytes == pattern(received, bytes.len()), "at {received}");
                    (bytes.len(), bytes.len())
                })
                .unwrap();
            received += count;
        }
        (socket.state() == State::CloseWait).then(|| socket.close())
    });
    assert_eq!(received, total);
    writer.join().unwrap();
    end(&mut guest);
    if large {
        assert!(guest.largest > 60_000, "largest frame: {}", guest.largest);
    }
}

#[test]
fn downloads_arrive_whole() {
    download_case(false, false, 16 * MIB);
}

#[test]
fn downloads_in_large_segments_arrive_whole() {
    download_case(true, false, 64 * MIB);
}

#[test]
fn downloads_over_ipv6_arrive_whole() {
    download_case(true, true, 16 * MIB);
}

#[test]
fn each_side_may_end_first_and_still_hear_the_other() {
    let (listener, port) = listener();
    let host = thread::spawn(move || {
        // The guest has ended; it is answered nevertheless.
        let mut stream = listener.accept().unwrap().0;
        let total = check_all(&stream);
        stream.write_all(&pattern(0, total)).unwrap();
        drop(stream);
        // The host ends first here.
        let stream = listener.accept().unwrap().0;
        stream.shutdown(Shutdown::Write).unwrap();
        check_all(stream)
    });
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(64 << 10, host_v4(port));
    guest.tcp(handle).send_slice(&pattern(0, 5000)).unwrap();
    guest.tcp(handle).close();
    let mut answer = Vec::new();
    guest.run("answer", |guest| {
        let socket = guest.tcp(handle);
        if socket.can_recv() {
            let more = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
            answer.extend(more);
        }
        (socket.state() == State::TimeWait).then_some(())
    });
    assert_eq!(answer, pattern(0, 5000));

    let handle = guest.begin(64 << 10, host_v4(port), 40001);
    guest.run("end", |guest| {
        (guest.tcp(handle).state() == State::CloseWait).then_some(())
    });
    guest.idle(Duration::from_millis(50));
    guest.tcp(handle).send_slice(&pattern(0, 7000)).unwrap();
    guest.tcp(handle).close();
    guest.run("both", |guest| (guest.net.connections() == 0).then_some(()));
    assert_eq!(host.join().unwrap(), 7000);
}

#[test]
fn a_refused_connection_is_reset() {
    let (listener, port) = listener();
    drop(listener);
    let mut guest = Guest::new(Config::default());
    let handle = guest.begin(4096, host_v4(port), 40000);
    guest.run("reset", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });
    assert_eq!(guest.net.connections(), 0);
    assert_eq!(guest.net.counters().connections_out, 0);
}

#[test]
fn resets_pass_both_ways() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(4096, host_v4(port));
    let mut stream = listener.accept().unwrap().0;
    guest.tcp(handle).abort();
    guest.run("guest's", |guest| {
        (guest.net.connections() == 0).then_some(())
    });
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let handle = guest.begin(4096, host_v4(port), 40001);
    guest.run("connect", |guest| {
        guest.tcp(handle).may_send().then_some(())
    });
    let stream = listener.accept().unwrap().0;
    super::host::close_with_reset(stream.into());
    guest.run("host's", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });
    assert_eq!(guest.net.connections(), 0);
}

#[test]
fn a_reset_of_the_device_resets_the_peers() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    guest.connect(4096, host_v4(port));
    let mut stream = listener.accept().unwrap().0;
    guest.net.reset();
    assert_eq!(guest.net.connections(), 0);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(guest.net.receive(|_, _| true).is_none());
}

#[test]
fn a_thousand_connections_at_once() {
    const COUNT: usize = 1000;
    let (listener, port) = listener();
    let (go, wait) = mpsc::channel::<()>();
    let echo = thread::spawn(move || {
        let streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        wait.recv().unwrap();
        for mut stream in streams {
            let mut request = [0; 100];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&request).unwrap();
        }
    });
    let mut guest = Guest::new(Config::default());
    let handles: Vec<_> = (0..COUNT)
        .map(|index| guest.begin(512, host_v4(port), 10000 + index as u16))
        .collect();
    guest.run("connect", |guest| {
        let up = |&&handle: &&_| guest.tcp(handle).may_send();
        (handles.iter().filter(up).count() == COUNT).then_some(())
    });
    assert_eq!(guest.net.connections(), COUNT);
    go.send(()).unwrap();
    for (index, &handle) in handles.iter().enumerate() {
        guest.tcp(handle).send_slice(&pattern(index, 100)).unwrap();
    }
    guest.run("echo", |guest| {
        let full = |&&handle: &&_| guest.tcp(handle).recv_queue() == 100;
        (handles.iter().filter(full).count() == COUNT).then_some(())
    });
    for (index, &handle) in handles.iter().enumerate() {
        let mut answer = [0; 100];
        guest.tcp(handle).recv_slice(&mut answer).unwrap();
        assert!(answer[..] == pattern(index, 100));
        guest.tcp(handle).close();
    }
    echo.join().unwrap();
    guest.run("end", |guest| (guest.net.connections() == 0).then_some(()));
    assert_eq!(guest.net.counters().connections_out, COUNT as u64);
}

#[test]
fn connections_beyond_the_limit_are_reset() {
    let (_listener, port) = listener();
    let mut config = Config::default();
    config.limits.connections = 3;
    let mut guest = Guest::new(config);
    for index in 0..3 {
        let handle = guest.begin(4096, host_v4(port), 40000 + index);
        guest.run("connect", |guest| {
            guest.tcp(handle).may_send().then_some(())
        });
    }
    let handle = guest.begin(4096, host_v4(port), 50000);
    guest.run("reset", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });
    assert_eq!(guest.net.connections(), 3);
    assert_eq!(guest.net.counters().over_limit, 1);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default()).large();
    let handle = guest.connect(4 * MIB, host_v4(port));
    let stream = listener.accept().unwrap().0;
    let total = 64 * MIB;
    let mut sent = 0;
    let mut most = 0;
    let mut push = |guest: &mut Guest| {
        let memory = guest.net.memory();
        let socket = guest.tcp(handle);
        while sent < total && socket.can_send() {
            let chunk = pattern(sent, (total - sent).min(128 << 10));
            sent += socket.send_slice(&chunk).unwrap();
        }
        most = most.max(memory);
        sent
    };
    // Until nothing moves any more.
    let mut last = (0, Instant::now());
    guest.run("stop", |guest| {
        let now = push(guest);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let stopped = push(&mut guest);
    assert!(stopped < total, "all of {stopped} bytes were taken");
    assert!(guest.net.memory() <= 512 << 10);
    // It goes on when the host does.
    let reader = thread::spawn(move || check_all(stream));
    guest.run("all", |guest| (push(guest) == total).then_some(()));
    guest.tcp(handle).close();
    assert!(most <= 512 << 10, "{most} bytes were held");
    guest.run("end of the host", |guest| {
        (guest.net.connections() == 0).then_some(())
    });
    assert_eq!(reader.join().unwrap(), total);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(64 << 10, host_v4(port));
    let stream = listener.accept().unwrap().0;
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut idle = Instant::now();
    guest.run("stop", |guest| {
        let chunk = pattern(sent, 64 << 10);
        match (&stream).write(&chunk) {
            Ok(count) => {
                sent += count;
                idle = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(guest.net.memory() <= 600 << 10);
        (idle.elapsed() > Duration::from_millis(700)).then_some(())
    });
    assert_eq!(guest.tcp(handle).recv_queue(), 64 << 10);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = 0;
    guest.run("all", |guest| {
        let socket = guest.tcp(handle);
        if socket.can_recv() {
            let count = socket
                .recv(|bytes| {
                    assert!(bytes == pattern(received, bytes.len()), "at {received}");
                    (bytes.len(), bytes.len())
                })
                .unwrap();
            received += count;
        }
        (received == sent && socket.state() == State::CloseWait).then_some(())
    });
    assert_eq!(guest.net.memory(), 0);
}

#[test]
fn many_slow_readers_share_the_memory() {
    let mut config = Config::default();
    config.limits.memory = MIB;
    let (listener, port) = listener();
    let mut guest = Guest::new(config).large();
    let mut streams = Vec::new();
    for index in 0..32 {
        // Guests with large windows whose programs do not read, and hosts that do not either.
        guest.begin(MIB, host_v4(port), 40000 + index);
    }
    let data = pattern(0, 256 << 10);
    listener.set_nonblocking(true).unwrap();
    let mut last = (0, Instant::now());
    guest.run("fill", |guest| {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        for mut stream in &streams {
            if stream.write(&data).is_ok() {
                last.1 = Instant::now();
            }
        }
        for (_, socket) in guest.sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket else {
                continue;
            };
            if socket.can_send() {
                socket.send_slice(&data).unwrap();
            }
        }
        let memory = guest.net.memory();
        assert!(memory <= MIB + 32 * (32 << 10) + (128 << 10), "{memory}");
        if memory != last.0 {
            last = (memory, Instant::now());
        }
        let quiet = last.1.elapsed() > Duration::from_millis(500);
        (streams.len() == 32 && quiet).then_some(())
    });
    assert!(guest.net.memory() >= MIB, "the limit was never met");
}

#[test]
fn half_open_floods_are_bounded() {
    use super::packet::{Ends, HEADROOM, TcpFields};
    let (listener, port) = listener();
    let mut config = Config::default();
    config.limits.half_open = 50;
    let mut guest = Guest::new(config);
    let mut link = guest.net.shared.link.clone();
    std::mem::swap(&mut link.guest_mac, &mut link.gateway_mac);
    let mut answers = Vec::new();
    for index in 0..5000_u16 {
        let mut frame = [0; HEADROOM];
        let ends = Ends {
            source: SocketAddr::new(Ipv4Addr::new(10, 0, 2, 15).into(), 1000 + index),
            destination: host_v4(port),
        };
        let fields = TcpFields {
            syn: true,
            window: 1000,
            ..TcpFields::default()
        };
        let (start, _) = link.write_tcp(&mut frame, HEADROOM, ends, fields, 1460);
        answers.extend(guest.exchange(&frame[start..]));
        guest.net.process(Instant::now());
        assert!(guest.net.connections() <= 50);
    }
    assert!(guest.net.counters().over_limit >= 4900);
    let resets = answers.iter().filter(|frame| frame[47] & 4 != 0).count();
    assert!(resets >= 4900, "{resets}");
    // They end by themselves when the guest does not go on.
    let mut now = Instant::now();
    for _ in 0..40 {
        now += Duration::from_secs(2);
        guest.net.process(now);
        guest.collect();
    }
    assert_eq!(guest.net.connections(), 0);
    drop(listener);
}

#[test]
fn what_the_guest_loses_is_sent_again() {
    let (listener, port) = listener();
    let total = 4 * MIB;
    let writer = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(&pattern(0, total)).unwrap();
    });
    let mut guest = Guest::new(Config::default());
    let handle = guest.connect(256 << 10, host_v4(port));
    let mut received = 0;
    let mut count = 0;
    guest.run("download", |guest| {
        // Every 97th frame is lost.
        guest.net.process(Instant::now());
        let wire = &mut guest.wire;
        while guest
            .net
            .receive(|frame, offload| {
                count += 1;
                if count % 97 != 0 {
                    let frame = super::test_support::complete(frame, offload);
                    wire.to_guest.push_back(frame);
                }
                true
            })
            .is_some()
        {}
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            received += socket
                .recv(|bytes| {
                    assert!(bytes == pattern(received, bytes.len()), "at {received}");
                    (bytes.len(), bytes.len())
                })
                .unwrap();
        }
        (socket.state() == tcp::State::CloseWait).then_some(())
    });
    assert_eq!(received, total);
    assert!(guest.net.counters().retransmitted > 0);
    writer.join().unwrap();
}

#[test]
fn a_guest_that_has_gone_is_given_up() {
    let (listener, port) = listener();
    let mut guest = Guest::new(Config::default());
    guest.connect(4096, host_v4(port));
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(b"anyone there?").unwrap();
    // It acknowledges nothing from now on.
    let mut now = Instant::now();
    for _ in 0..200 {
        guest.net.process(now);
        guest.collect();
        now += Duration::from_secs(5);
    }
    assert_eq!(guest.net.connections(), 0);
    assert!(guest.net.counters().retransmitted <= 12);
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
