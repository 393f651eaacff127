//! Guests that break the rules, or go to their limits.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::muxer::{CONNECTIONS_MAX, RESETS_MAX};
use super::packet::{HEADER_SIZE, HOST_CID, Header, op};
use super::test_support::{CID, Guest, Socket, assert_ended, client, line, pattern, read_exact};
use super::{RX_QUEUE, TX_QUEUE};
use crate::virtio::test_support::{DEADLINE, Desc};

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

/// As many descriptors as the host lets us have: other tests run in the same process.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn a_flood_of_requests_is_bounded() {
    allow_descriptors();
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
        guest.restart();
        let mut next = client(&guest, 3);
        guest.accept(3);
        assert!(line(&mut next).starts_with("OK "));
    }
}
