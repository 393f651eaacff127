//! Linux as the guest: its network stack in a namespace of its own, behind a tap. Needs root:
//! `cargo test --release -p devices user_net::linux -- --ignored --nocapture`.
#![expect(
    unsafe_code,
    reason = "a network namespace and a tap are to be had by system calls only"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::test_support::{host_v4, host_v6, pattern};
use super::{Config, FrameOffload, Gso, GsoKind, Offloads, PartialChecksum, UserNet};

const HEADER_LEN: usize = 10;
const TUN_F_ALL: libc::c_ulong = 1 | 2 | 4 | 0x20 | 0x40;

/// Moves this thread to a network namespace of its own and gives it a tap there.
fn tap(name: &str, large: bool) -> File {
    // SAFETY: it concerns only this thread, which has no sockets yet.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "unshare");
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    let fd = tap.as_raw_fd();
    // SAFETY: the descriptor is open, and the request is as large as an ifreq.
    let result = unsafe { libc::ioctl(fd, 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(result, 0, "TUNSETIFF");
    if large {
        // SAFETY: the descriptor is open; the argument is a number. Kernels before 6.2 have no USO.
        let result = unsafe { libc::ioctl(fd, 0x4004_54d0, TUN_F_ALL) };
        if result != 0 {
            // SAFETY: as above.
            let result = unsafe { libc::ioctl(fd, 0x4004_54d0, 7_u64) };
            assert_eq!(result, 0, "TUNSETOFFLOAD");
        }
    }
    // SAFETY: the descriptor is open; F_SETFL takes a number.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(result, 0);
    tap
}

fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

fn offload_of(header: &[u8]) -> FrameOffload {
    let kind = match header[1] & 0x7f {
        1 => Some(GsoKind::Tcp4),
        4 => Some(GsoKind::Tcp6),
        5 => Some(GsoKind::Udp),
        _ => None,
    };
    FrameOffload {
        checksum: (header[0] & 1 != 0).then(|| PartialChecksum {
            start: u16_at(header, 6),
            offset: u16_at(header, 8),
        }),
        gso: kind.map(|kind| Gso {
            kind,
            header_len: u16_at(header, 2),
            size: u16_at(header, 4),
        }),
    }
}

fn header_of(offload: FrameOffload) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    if let Some(sum) = offload.checksum {
        header[0] = 1;
        header[6..8].copy_from_slice(&sum.start.to_ne_bytes());
        header[8..10].copy_from_slice(&sum.offset.to_ne_bytes());
    }
    if let Some(gso) = offload.gso {
        header[1] = if gso.kind == GsoKind::Tcp4 { 1 } else { 4 };
        header[2..4].copy_from_slice(&gso.header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
    }
    header
}

/// Carries frames until it is told to stop.
fn bridge(mut net: UserNet, mut tap: File, stop: &AtomicBool) -> UserNet {
    let mut buffer = vec![0; HEADER_LEN + 14 + 65536];
    while !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        net.process(Instant::now());
        for _ in 0..64 {
            match tap.read(&mut buffer) {
                Ok(len) => {
                    moved = true;
                    let (header, frame) = buffer[..len].split_at(HEADER_LEN);
                    net.send(frame, offload_of(header));
                }
                Err(_) => break,
            }
        }
        let write = |frame: &[u8], offload: FrameOffload| {
            let header = header_of(offload);
            let parts = [IoSlice::new(&header), IoSlice::new(frame)];
            match rustix::io::writev(&tap, &parts) {
                Ok(_) => true,
                Err(rustix::io::Errno::AGAIN) => false,
                Err(error) => panic!("{error}: {offload:?}"),
            }
        };
        for _ in 0..64 {
            match net.receive(write) {
                Some(true) => moved = true,
                _ => break,
            }
        }
        if !moved {
            let until = net
                .poll_at()
                .unwrap_or(Instant::now() + Duration::from_secs(1));
            let time = until
                .saturating_duration_since(Instant::now())
                .min(Duration::from_millis(100));
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: time.subsec_nanos().into(),
            };
            let mut fds = [
                PollFd::from_borrowed_fd(net.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN),
            ];
            poll(&mut fds, Some(&timeout)).unwrap();
        }
    }
    net
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Nanoseconds that a thread of this process has run.
fn cpu(task: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/task/{task}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn send_pattern(mut stream: &TcpStream, total: usize) {
    let mut sent = 0;
    let chunk = pattern(0, 65521 * 4);
    while sent < total {
        let count = chunk.len().min(total - sent);
        stream.write_all(&chunk[..count]).unwrap();
        sent += count;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn check_pattern(mut stream: &TcpStream) -> usize {
    let table = pattern(0, 65521 * 6);
    let mut buffer = vec![0; 65521 * 4];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return total;
        }
        let from = total % 65521;
        assert!(buffer[..count] == table[from..from + count], "at {total}");
        total += count;
    }
}

/// The host: a server that sends or takes as it is told by the first byte.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut order = [0; 9];
                stream.read_exact(&mut order).unwrap();
                let total = u64::from_be_bytes(order[1..].try_into().unwrap()) as usize;
                match order[0] {
                    b'd' => send_pattern(&stream, total),
                    b'u' => {
                        assert_eq!(check_pattern(&stream), total);
                        stream.write_all(b"!").unwrap();
                    }
                    _ => panic!("no order"),
                }
            });
        }
    });
}

fn transfer(remote: SocketAddr, order: u8, total: usize) {
    let mut stream = TcpStream::connect(remote).unwrap();
    let mut message = vec![order];
    message.extend((total as u64).to_be_bytes());
    stream.write_all(&message).unwrap();
    if order == b'd' {
        assert_eq!(check_pattern(&stream), total);
    } else {
        send_pattern(&stream, total);
        stream.read_exact(&mut [0]).unwrap();
    }
}

fn linux(large: bool, total: usize) {
    let (v4, v6) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("[::1]:0").unwrap(),
    );
    let (port_v4, port_v6) = (
        v4.local_addr().unwrap().port(),
        v6.local_addr().unwrap().port(),
    );
    serve(v4);
    serve(v6);
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let echo_port = echo.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((len, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..len], from).unwrap();
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let (give_tap, take_tap) = mpsc::channel();
    let (give_task, take_task) = mpsc::channel();
    let (give_ready, take_ready) = mpsc::channel();
    let config = Config {
        forwards: vec!["0:8000".parse().unwrap()],
        ..Config::default()
    };
    let mut net = UserNet::new(config).unwrap();
    let forward = net.forwards().next().unwrap();
    let forwarded = SocketAddr::new(forward.address, forward.host_port);
    net.set_offloads(Offloads {
        checksum: large,
        tso4: large,
        tso6: large,
    });
    let stopped = Arc::clone(&stop);
    let carrier = thread::spawn(move || {
        // SAFETY: it has no arguments and cannot fail.
        give_task.send(unsafe { libc::gettid() }).unwrap();
        bridge(net, take_tap.recv().unwrap(), &stopped)
    });
    let task = take_task.recv().unwrap();
    let guest = thread::spawn(move || {
        let mac = Config::default()
            .guest_mac
            .map(|byte| format!("{byte:02x}"));
        let tap = tap("eth0", large);
        run(&format!(
            "ip link set lo up; ip link set eth0 address {} up",
            mac.join(":")
        ));
        give_tap.send(tap).unwrap();
        let script = std::env::temp_dir().join(format!("mote-udhcpc-{}", std::process::id()));
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
            ip route add default via $router\necho dns $dns mtu $mtu\n";
        fs::write(&script, text).unwrap();
        run(&format!("chmod +x {}", script.display()));
        let said = run(&format!(
            "busybox udhcpc -i eth0 -n -q -t 5 -T 1 -s {} 2>/dev/null",
            script.display()
        ));
        fs::remove_file(&script).unwrap();
        assert!(said.contains("dns 10.0.2.3 mtu 1500"), "{said}");
        // The router and a prefix are found, and the address made of it is good.
        let start = Instant::now();
        loop {
            let addresses = run("ip -6 addr show dev eth0 scope global");
            if addresses.contains("fd00:6d6f:7465:") && !addresses.contains("tentative") {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{addresses}");
            thread::sleep(Duration::from_millis(100));
        }
        let what = if large { "large" } else { "MTU-sized" };
        for (name, remote) in [("IPv4", host_v4(port_v4)), ("IPv6", host_v6(port_v6))] {
            for (way, order) in [("host to guest", b'd'), ("guest to host", b'u')] {
                let (start, before) = (Instant::now(), cpu(task));
                transfer(remote, order, total);
                let (time, cpu) = (start.elapsed().as_secs_f64(), cpu(task) - before);
                println!(
                    "Linux, {way}, {name}, {what} frames: {:.2} Gbit/s, {:.1} us of CPU a MiB",
                    total as f64 * 8.0 / time / 1e9,
                    cpu as f64 / 1e3 / (total >> 20) as f64,
                );
            }
        }
        // Many at once, both ways.
        let workers = (0..100).map(|index| {
            thread::spawn(move || {
                let order = if index % 2 == 0 { b'd' } else { b'u' };
                transfer(host_v4(port_v4), order, 1 << 20);
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.join().unwrap();
        }
        // Datagrams up to the largest.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket.connect(host_v4(echo_port)).unwrap();
        let mut buffer = vec![0; 65536];
        for len in [0, 1, 1472, 1473, 9000, 65507] {
            socket.send(&pattern(len, len)).unwrap();
            let count = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..count] == pattern(len, len), "{len}");
        }
        // Round trips.
        let rounds = 10_000;
        let start = Instant::now();
        for _ in 0..rounds {
            socket.send(b"x").unwrap();
            socket.recv(&mut buffer).unwrap();
        }
        let time = start.elapsed() / rounds;
        println!("Linux, {what} frames: {time:?} a round trip by UDP");
        run("ping -c 2 -W 5 10.0.2.2 || busybox ping -c 2 -W 5 10.0.2.2");
        // The host connects to the guest.
        let listener = TcpListener::bind("0.0.0.0:8000").unwrap();
        give_ready.send(()).unwrap();
        let stream = listener.accept().unwrap().0;
        let total = check_pattern(&stream);
        send_pattern(&stream, total);
    });
    if take_ready.recv().is_ok() {
        let stream = TcpStream::connect(forwarded).unwrap();
        send_pattern(&stream, 1 << 20);
        assert_eq!(check_pattern(&stream), 1 << 20);
    }
    guest.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    let net = carrier.join().unwrap();
    println!("{:?}", net.counters());
    assert_eq!(net.counters().dropped_malformed, 0);
    assert_eq!(net.counters().dropped_full, 0);
}

#[test]
#[ignore = "needs root"]
fn linux_is_served() {
    linux(true, 1 << 30);
    linux(false, 128 << 20);
}
