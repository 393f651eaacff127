//! A guest that talks to the metadata service: connections with the right numbers and with wrong ones,
//! requests that are almost right, frames of all kinds; a clock that the fuzzer turns, and a host that
//! changes the document meanwhile.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::mmds::{MAX_CONNECTIONS, MAX_FRAMES, Mmds, MmdsConfig, Stack, Version};

use super::{Input, MAX_OPERATIONS};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const SERVICE: [u8; 4] = [169, 254, 169, 254];
const TCP: u8 = 6;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Guest's ports, and so connections that it remembers.
const PORTS: usize = 64;
/// Bytes of the document, at most.
const LIMIT: usize = 4096;
/// What a guest may ask for, in pieces or whole.
const REQUESTS: [&str; 8] = [
    "GET / HTTP/1.1\r\n\r\n",
    "GET /large HTTP/1.1\r\nAccept: application/json\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
    "GET /small HTTP/1.0\r\n\r\n",
    "GET //small/ HTTP/1.1\r\nConnection: close\r\nX-aws-ec2-metadata-token: AAAA\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 30\r\nExpect: 100-continue\r\n\r\n",
    "GET /large HTTP/1.1\r\n\r\nGET /small HTTP/1.1\r\n\r\nDELETE / HTTP/1.1\r\n\r\n",
    "HEAD http://x/a~1b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
];

/// The guest's end of a connection.
#[derive(Clone, Copy, Default)]
struct Connection {
    /// The next byte that it sends, and the next one that it waits for.
    ours: u32,
    theirs: u32,
    window: u16,
}

struct Guest {
    mmds: Arc<Mmds>,
    stack: Stack,
    now: Instant,
    connections: [Connection; PORTS],
}

/// Runs one guest.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let shape = input.u8();
    let mmds = Arc::new(Mmds::new("fuzzed", LIMIT).unwrap());
    mmds.set_config(MmdsConfig {
        version: if shape & 1 == 0 {
            Version::V1
        } else {
            Version::V2
        },
        imds_compat: shape & 2 != 0,
        ..MmdsConfig::default()
    });
    if shape & 4 == 0 {
        let document = serde_json::json!({"small": "value", "large": "x".repeat(4000)});
        mmds.put(document).unwrap();
    }
    let mtu = if shape & 8 == 0 {
        1500
    } else {
        u16::from(shape)
    };
    let mut guest = Guest {
        stack: Stack::new(Arc::clone(&mmds), Some(GUEST_MAC), mtu, 1),
        mmds,
        now: Instant::now(),
        connections: [Connection::default(); PORTS],
    };
    for _ in 0..MAX_OPERATIONS {
        if input.0.is_empty() {
            break;
        }
        guest.operate(&mut input);
        guest.check();
    }
    guest.end();
}

impl Guest {
    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..7 => self.segment(input),
            7 | 8 => self.take(input.u8().into()),
            9 => self.open(input.u8()),
            10 => {
                // Of milliseconds, or of seconds.
                let time = u64::from(input.u8());
                let unit = if time < 0x80 { 10 } else { 1000 };
                self.pass(Duration::from_millis(unit * (time & 0x7f)));
            }
            11 => {
                let shape = input.u8();
                let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1 + (shape & 1)];
                message.extend(GUEST_MAC);
                message.extend(GUEST);
                message.extend([0; 6]);
                message.extend(SERVICE);
                message.truncate(if shape & 2 == 0 { 28 } else { shape.into() });
                self.send(&ethernet([8, 6], &message), true);
            }
            12 => {
                // Any packet, or anything.
                let shape = input.u8();
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let frame = match shape % 4 {
                    0 => data,
                    1 => ethernet([8, 0], &data),
                    _ => ethernet([8, 0], &packet(shape, &data)),
                };
                self.send(&frame, shape & 0x80 == 0);
            }
            13 => {
                // Any number of connections that come to nothing.
                let first = input.u16();
                for number in 0..64 {
                    let port = first.wrapping_add(number);
                    self.tcp((port, 80), [1000, 0], SYN, 1000, &[], &[]);
                }
            }
            14 => self.host(input),
            _ => self.stack.process(self.now),
        }
    }

    /// What the host does.
    fn host(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let count = usize::from(input.u8());
        let data = input.bytes(count);
        let before = self.mmds.get();
        let Ok(value) = serde_json::from_slice(data) else {
            let version = if shape & 1 == 0 {
                Version::V1
            } else {
                Version::V2
            };
            let config = self.mmds.config();
            return self.mmds.set_config(MmdsConfig { version, ..config });
        };
        let result = if shape & 1 == 0 {
            self.mmds.put(value)
        } else {
            self.mmds.patch(&value)
        };
        let after = self.mmds.get();
        match result {
            Ok(()) => assert!(after.unwrap().to_string().len() <= LIMIT),
            Err(_) => assert_eq!(before, after),
        }
    }

    /// Opens a connection, as a guest does that means well.
    fn open(&mut self, port: u8) {
        let at = usize::from(port) % PORTS;
        self.connections[at] = Connection {
            ours: 1000,
            theirs: 0,
            window: 0xffff,
        };
        self.say(at, SYN, &[]);
        self.take(MAX_FRAMES);
        self.say(at, ACK, &[]);
    }

    /// A segment of a connection, with what the guest takes for the right numbers.
    fn say(&mut self, at: usize, flags: u8, data: &[u8]) {
        let Connection {
            ours,
            theirs,
            window,
        } = self.connections[at];
        self.tcp(
            (at as u16 + 1, 80),
            [ours, theirs],
            flags,
            window,
            &[],
            data,
        );
        let taken = data.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.connections[at].ours = ours.wrapping_add(taken);
    }

    /// A segment with numbers that are right or not.
    fn segment(&mut self, input: &mut Input<'_>) {
        let (at, shape, kind) = (input.u8(), input.u8(), input.u8());
        let at = usize::from(at) % PORTS;
        let data = match kind >> 5 {
            0 | 1 => Vec::new(),
            2 | 3 => REQUESTS[usize::from(kind % 8)].as_bytes().to_vec(),
            4 => {
                let request = REQUESTS[usize::from(kind % 8)].as_bytes();
                let at = usize::from(input.u8()) % request.len();
                if kind & 8 == 0 {
                    &request[..at]
                } else {
                    &request[at..]
                }
                .to_vec()
            }
            5 => vec![b'a' + kind % 8; usize::from(input.u16() % 60_000)],
            _ => {
                let count = usize::from(input.u8());
                input.bytes(count).to_vec()
            }
        };
        let flags = match shape & 7 {
            0..4 => ACK,
            4 => ACK | FIN,
            5 => ACK | RST,
            6 => SYN,
            _ => input.u8(),
        };
        let Connection { ours, theirs, .. } = self.connections[at];
        let (mut seq, mut ack) = (ours, theirs);
        let mut options = Vec::new();
        match shape >> 3 & 7 {
            1 => seq = seq.wrapping_add(u32::from(input.u16())),
            2 => seq = seq.wrapping_sub(u32::from(input.u16())),
            3 => ack = ack.wrapping_sub(u32::from(input.u16())),
            4 => ack = ack.wrapping_add(u32::from(input.u16())),
            5 => self.connections[at].window = u16::from(input.u8()),
            6 => self.connections[at].window = 0xffff,
            7 => {
                let count = usize::from(input.u8() % 10) * 4;
                options = input.bytes(count).to_vec();
                options.resize(options.len().next_multiple_of(4), 0);
            }
            _ => {}
        }
        if seq == ours && ack == theirs && options.is_empty() {
            return self.say(at, flags, &data);
        }
        let window = self.connections[at].window;
        let port = if shape & 0xc0 == 0xc0 { 81 } else { 80 };
        self.tcp(
            (at as u16 + 1, port),
            [seq, ack],
            flags,
            window,
            &options,
            &data,
        );
    }

    fn tcp(
        &mut self,
        (guest, service): (u16, u16),
        [seq, ack]: [u32; 2],
        flags: u8,
        window: u16,
        options: &[u8],
        data: &[u8],
    ) {
        let mut segment = [guest.to_be_bytes(), service.to_be_bytes()].concat();
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([(5 + options.len() as u8 / 4) << 4, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(data);
        // Its checksum is left to the device.
        self.send(&ethernet([8, 0], &packet(TCP, &segment)), false);
    }

    fn send(&mut self, frame: &[u8], is_checksummed: bool) {
        self.stack.frame(frame, is_checksummed, self.now);
    }

    /// Takes frames, and remembers what they acknowledge; answers none.
    fn take(&mut self, count: usize) {
        for _ in 0..count {
            let Some(frame) = self.stack.pop(self.now) else {
                return;
            };
            assert!((42..=14 + 1500).contains(&frame.len()));
            if frame[12..14] != [8, 0] || frame[23] != TCP {
                assert_eq!(frame[12..14], [8, 6]);
                continue;
            }
            assert_eq!(frame[26..30], SERVICE);
            assert_eq!(checksum(&frame[14..34]), 0);
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let port = u16::from_be_bytes([frame[36], frame[37]]);
            let Some(connection) = self.connections.get_mut(usize::from(port).wrapping_sub(1))
            else {
                continue;
            };
            let header = usize::from(frame[46] >> 4) * 4;
            let flags = u32::from(frame[47] & (SYN | FIN) != 0);
            let taken = (frame.len() - 34 - header) as u32 + flags;
            connection.theirs = word(38).wrapping_add(taken);
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1000 {
            match self.stack.poll_at(self.now).filter(|at| *at <= end) {
                Some(at) => self.now = at.max(self.now + Duration::from_millis(1)).min(end),
                None => break,
            }
            self.stack.process(self.now);
        }
        self.now = end;
        self.stack.process(self.now);
    }

    fn check(&self) {
        assert!(self.stack.connections() <= MAX_CONNECTIONS);
        let counters = self.mmds.counters();
        let open = counters.connections_created - counters.connections_destroyed;
        assert!(open <= self.stack.connections() as u64);
    }

    /// In the end nothing is left, whatever the guest has done.
    fn end(&mut self) {
        for _ in 0..3 {
            self.take(100_000);
            self.pass(Duration::from_secs(150));
        }
        self.take(100_000);
        assert!(!self.stack.has_frames());
        assert_eq!(self.stack.connections(), 0);
        assert_eq!(self.stack.poll_at(self.now), None);
        assert_eq!(self.stack.address(), Ipv4Addr::from(SERVICE));
    }
}

fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2], &GUEST_MAC[..], &kind, payload].concat()
}

/// A packet from the guest to the service.
fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(GUEST);
    packet.extend(SERVICE);
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// The Internet checksum of a header.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
