//! Guests that mean no good: nothing panics, and what they can have is bounded.

use std::time::Duration;

use super::Version;
use super::stack::{MAX_CONNECTIONS, MAX_FRAMES};
use super::test_support::{
    ACK, Bench, Client, GET_LARGE, GET_SMALL, RST, SYN, Segment, Service, mmds,
};

/// Random enough.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[test]
fn a_flood_of_half_open_connections_shuts_nobody_out() {
    let mut bench = Bench::new(mmds(Version::V1));
    let mut client = Client::open(&mut bench, 1);
    for number in 0..10_000_u16 {
        bench.send(&Segment::new(1000 + number, SYN).frame());
        assert!(bench.stack.connections() <= MAX_CONNECTIONS);
        if number % 64 == 0 {
            while bench.recv().is_some() {}
        }
    }
    while bench.recv().is_some() {}
    // The open one is still there, and a new one is let in.
    assert_eq!(client.ask(&mut bench, GET_SMALL), "value");
    let mut other = Client::open(&mut bench, 2);
    assert_eq!(other.ask(&mut bench, GET_SMALL), "value");
    bench.pass(Duration::from_secs(40));
    assert_eq!(bench.stack.connections(), 2);
    let counters = bench.stack.mmds().counters();
    assert_eq!(
        (counters.connections_created, counters.connections_destroyed),
        (2, 0)
    );
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let mut bench = Bench::new(mmds(Version::V1));
    for number in 0..2000_u16 {
        let mut client = Client::open(&mut bench, 1000 + number);
        assert_eq!(client.ask(&mut bench, GET_SMALL), "value");
        match number % 3 {
            0 => client.say(&mut bench, ACK | RST, b""),
            1 => {
                client.say(&mut bench, ACK | super::test_support::FIN, b"");
                client.listen(&mut bench);
            }
            // It is forgotten.
            _ => {}
        }
        assert!(bench.stack.connections() <= MAX_CONNECTIONS);
    }
    bench.pass(Duration::from_secs(200));
    let counters = bench.stack.mmds().counters();
    assert_eq!(
        (counters.connections_created, counters.connections_destroyed),
        (2000, 2000)
    );
    assert_eq!(bench.stack.connections(), 0);
}

#[test]
fn who_takes_no_frames_has_a_bounded_number_of_them() {
    let mut bench = Bench::new(mmds(Version::V1));
    let mut client = Client::open(&mut bench, 1);
    client.say(&mut bench, ACK, GET_LARGE.as_bytes());
    for number in 0..10_000_u16 {
        bench.send(&Segment::new(number, ACK).frame());
        bench.send(&Segment::new(number, SYN).frame());
        // No timer that has nothing to do.
        let next = bench.stack.poll_at(bench.now).unwrap();
        assert!(number < 1000 || next > bench.now);
    }
    let mut frames = 0;
    let now = bench.now;
    while bench.stack.pop(now).is_some() {
        frames += 1;
        assert!(frames <= 4 * MAX_FRAMES);
    }
    assert!(bench.stack.mmds().counters().tx_errors > 5000);
}

#[test]
fn tiny_segments_are_a_bounded_number_at_a_time() {
    let mut bench = Bench::new(mmds(Version::V1));
    let syn = Segment {
        // A byte at a time, which is less than anybody may ask for.
        options: vec![2, 4, 0, 1],
        ..Segment::new(1, SYN)
    };
    bench.send(&syn.frame());
    let answer = Segment::parse(&bench.recv().unwrap());
    let request = Segment {
        seq: 1001,
        ack: answer.seq.wrapping_add(1),
        payload: GET_LARGE.as_bytes().to_vec(),
        ..Segment::new(1, ACK)
    };
    bench.send(&request.frame());
    for _ in 0..300 {
        let segment = Segment::parse(&bench.recv().unwrap());
        assert!(segment.payload.len() <= 48);
    }
}

#[test]
fn frames_of_all_kinds_do_no_harm() {
    let mut bench = Bench::new(mmds(Version::V2));
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut known = vec![(1000, 1000, 0)];
    for _ in 0..10_000 {
        let (port, seq, ack) = known[random.below(known.len() as u64) as usize];
        let mut near = |number: u32| match random.below(8) {
            0 => number.wrapping_add(random.below(70_000) as u32),
            1 => number.wrapping_sub(random.below(70_000) as u32),
            2 => random.next() as u32,
            _ => number,
        };
        let (seq, ack) = (near(seq), near(ack));
        let len = match random.below(100) {
            0 => random.below(60_000),
            1..40 => random.below(50),
            _ => 0,
        };
        let mut payload = GET_LARGE
            .repeat(1 + len as usize / GET_LARGE.len())
            .into_bytes();
        payload.truncate(len as usize);
        let segment = Segment {
            port: if random.below(20) == 0 { 81 } else { 80 },
            seq,
            ack,
            flags: match random.below(6) {
                0 => random.next() as u8,
                1 => SYN,
                _ => ACK,
            },
            window: match random.below(4) {
                0 => 0,
                1 => random.below(100) as u16,
                _ => random.next() as u16,
            },
            options: match random.below(8) {
                0 => vec![2, 4, 0, random.below(3) as u8, 3, 3, random.next() as u8, 0],
                1 => random.next().to_le_bytes().to_vec(),
                _ => Vec::new(),
            },
            payload,
            ..Segment::new(port, 0)
        };
        let mut frame = segment.frame();
        if random.below(50) == 0 {
            let at = random.below(frame.len() as u64) as usize;
            frame[at] = random.next() as u8;
        }
        if random.below(100) == 0 {
            frame.truncate(random.below(frame.len() as u64) as usize);
        }
        bench.is_checksummed = random.below(2) == 0;
        bench.send(&frame);
        if random.below(3) == 0 {
            bench.pass(Duration::from_millis(random.below(3000)));
        }
        for _ in 0..random.below(5) {
            let Some(frame) = bench.recv() else { break };
            if frame[12..14] != [8, 0] || frame[..6] != super::test_support::GUEST_MAC {
                continue;
            }
            // The rest of the headers may be a stranger's: addresses were damaged too.
            let field = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let port = u16::from_be_bytes([frame[36], frame[37]]);
            known.retain(|(other, ..)| *other != port);
            known.push((port, field(42), field(38).wrapping_add(1)));
            if known.len() > 40 {
                known.remove(0);
            }
        }
        if known.is_empty() || random.below(20) == 0 {
            known.push((random.next() as u16, random.next() as u32, 0));
        }
        assert!(bench.stack.connections() <= MAX_CONNECTIONS);
    }
    // There is nothing that it could not have again.
    bench.is_checksummed = true;
    while bench.recv().is_some() {}
    bench.pass(Duration::from_secs(300));
    while bench.recv().is_some() {}
    bench.pass(Duration::from_secs(300));
    while bench.recv().is_some() {}
    assert_eq!(bench.stack.connections(), 0);
    let counters = bench.stack.mmds().counters();
    assert!(counters.connections_created > 100, "{counters:?}");
    assert_eq!(counters.connections_created, counters.connections_destroyed);
    let mut client = Client::open(&mut bench, 1);
    let body = client.ask(&mut bench, GET_SMALL);
    assert!(body.starts_with("No MMDS token provided."));
}
