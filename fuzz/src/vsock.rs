//! A guest and programs of the host, both made of the fuzzer's bytes, with a socket device between them:
//! packets that are almost right, receive buffers of all sizes, clients and servers that come, write,
//! read, close and go; one of the servers has no room for more than one that it has not accepted.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use devices::virtio::vsock::packet::{HEADER_SIZE, HOST_CID, Header};
use devices::virtio::vsock::{Vsock, VsockConfig};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind as bind_socket, listen, socket};
use vm_memory::{Bytes, GuestAddress};

use super::{Guest, Input, MAX_OPERATIONS, RINGS, RINGS_SIZE};

const CID: u32 = 3;
const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
/// Entries of a queue, as the driver sets it up.
const SIZE: u16 = 64;
/// Where receive buffers are, 64 KiB and a header each; and where packets to the host are.
const RX_BUFFERS: u64 = 0x1000_0000;
const RX_LENS: [u32; 8] = [0, 43, 44, 45, 100, 4096, 4096, 65_536];
const TX_BUFFER: u64 = 0x8_0000;
const EVENT_BUFFER: u64 = 0x7_0000;
/// The same packet, so many times.
const BURST: u16 = 60;
/// Ports that a server of the host listens on.
const SERVED: [u32; 2] = [1, FULL];
/// The one with no room.
const FULL: u32 = 2;
/// The first port of the host's clients.
const CLIENT_PORT: u32 = 1 << 30;
/// How long a connection that has found no room waits, and a little more; and how often a run does.
const WAIT: Duration = Duration::from_millis(21);
const MAX_WAITS: u8 = 2;
/// Streams at a time.
const STREAMS: usize = 8;

struct Sockets {
    guest: Guest,
    path: PathBuf,
    servers: Vec<UnixListener>,
    streams: Vec<UnixStream>,
    /// Length of the receive buffer at each head.
    given: HashMap<u16, u32>,
    used: u16,
    waits: u8,
    /// The driver has broken the rules: nobody knows what comes of it.
    wild: bool,
}

/// Runs one guest, and its host.
pub fn run(input: &[u8]) {
    let path = std::env::temp_dir().join(format!("mote-fuzz-vsock-{}", std::process::id()));
    let of_port = |port: &u32| PathBuf::from(format!("{}_{port}", path.display()));
    let config = VsockConfig {
        cid: CID,
        path: path.clone(),
    };
    let guest = Guest::new(|event_loop| Vsock::new(config, event_loop).unwrap());
    let bind = |port: &u32| {
        let path = of_port(port);
        // Of the last run.
        let _ = std::fs::remove_file(&path);
        let address = SocketAddrUnix::new(&path).unwrap();
        let server = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind_socket(&server, &address).unwrap();
        listen(&server, if *port == FULL { 0 } else { 16 }).unwrap();
        let server = UnixListener::from(server);
        server.set_nonblocking(true).unwrap();
        server
    };
    let mut sockets = Sockets {
        guest,
        servers: SERVED.iter().map(bind).collect(),
        path: path.clone(),
        streams: Vec::new(),
        given: HashMap::new(),
        used: 0,
        waits: 0,
        wild: false,
    };
    sockets.guest.start(0);
    let mut input = Input(input);
    for _ in 0..MAX_OPERATIONS {
        if input.0.is_empty() {
            break;
        }
        sockets.operate(&mut input);
        sockets.guest.event_loop.turn();
        sockets.check();
    }
    for port in &SERVED {
        let _ = std::fs::remove_file(of_port(port));
    }
}

impl Sockets {
    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..4 => self.send(input),
            4 | 5 => self.give(input),
            6 => self.connect(input),
            7 => {
                let count = usize::from(input.u16());
                if let Some(stream) = self.stream(input) {
                    let _ = stream.write(&vec![1; count]);
                }
            }
            8 => {
                let mut bytes = vec![0; usize::from(input.u16())];
                if let Some(stream) = self.stream(input) {
                    let _ = stream.read(&mut bytes);
                }
            }
            9 => {
                let how = input.u8();
                let at = usize::from(input.u8());
                let Some(at) = at.checked_rem(self.streams.len()) else {
                    return;
                };
                match how % 3 {
                    0 => drop(self.streams.swap_remove(at)),
                    1 => _ = self.streams[at].shutdown(Shutdown::Write),
                    _ => _ = self.streams[at].shutdown(Shutdown::Read),
                }
            }
            10 => {
                let server = &self.servers[usize::from(input.u8()) % self.servers.len()];
                if let Ok((stream, _)) = server.accept() {
                    self.keep(stream);
                }
            }
            11 if input.u8().is_multiple_of(8) => {
                let rings = vec![0; 3 * RINGS_SIZE as usize];
                let start = GuestAddress(RINGS);
                self.guest.memory.write_slice(&rings, start).unwrap();
                self.guest.start(input.u8());
                self.given.clear();
                self.used = 0;
                self.wild = false;
            }
            11 => {
                // Buffers for events.
                for _ in 0..1 + input.u8() % 4 {
                    self.submit(EVENT, EVENT_BUFFER, 4, 2);
                }
            }
            12 => self.reset_queue(input.u8()),
            13 => {
                self.wild = true;
                let offset = u64::from(input.u16() % 0x200);
                let value = input.u32();
                self.guest.write(offset, value);
            }
            14 => {
                self.wild = true;
                let gpa = RINGS + u64::from(input.u16() % 0x9000);
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let _ = self.guest.memory.write_slice(&data, GuestAddress(gpa));
                for queue in [RX, TX, EVENT] {
                    self.guest.write(0x50, queue.into());
                }
            }
            // A while, in which a connection is tried again.
            _ if self.waits < MAX_WAITS && input.u8().is_multiple_of(32) => {
                self.waits += 1;
                std::thread::sleep(WAIT);
            }
            _ => {}
        }
    }

    fn stream(&mut self, input: &mut Input<'_>) -> Option<&mut UnixStream> {
        let at = usize::from(input.u8()).checked_rem(self.streams.len())?;
        self.streams.get_mut(at)
    }

    fn keep(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.streams.push(stream);
        if self.streams.len() > STREAMS {
            self.streams.remove(0);
        }
    }

    /// RING_RESET: stops a queue, whatever is in it, and sets it up again where it was. The others go on.
    fn reset_queue(&mut self, shape: u8) {
        let queue = u16::from(shape) % 3;
        self.guest.write(0x30, queue.into());
        self.guest.write(0xc0, 1);
        if self.guest.read(0x44) != 0 {
            return;
        }
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let rings = vec![0; RINGS_SIZE as usize];
        let memory = &self.guest.memory;
        memory.write_slice(&rings, GuestAddress(base)).unwrap();
        self.guest.avail[usize::from(queue)] = 0;
        if queue == RX {
            self.given.clear();
            self.used = 0;
        }
        if shape & 0x80 == 0 {
            self.guest.write(0x38, SIZE.into());
            self.guest.write(0x44, 1);
        }
    }

    /// A client, whose first line is most often right.
    fn connect(&mut self, input: &mut Input<'_>) {
        let Ok(mut stream) = UnixStream::connect(&self.path) else {
            return;
        };
        let shape = input.u8();
        let line = if shape.is_multiple_of(8) {
            let count = usize::from(input.u8() % 40);
            input.bytes(count).to_vec()
        } else {
            format!("CONNECT {}\nand more", shape % 4).into_bytes()
        };
        let _ = stream.write(&line);
        self.keep(stream);
    }

    /// A packet of the guest, which is most often almost right.
    fn send(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let host = input.u8();
        let host = match host % 4 {
            3 => CLIENT_PORT + u32::from(host >> 2) % 8,
            port => u32::from(port),
        };
        let len = match shape & 3 {
            0 | 1 => 0,
            2 => u32::from(input.u16()),
            _ => u32::from(input.u8()),
        };
        let mut header = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: u32::from(input.u8()) % 4,
            dst_port: host,
            len,
            kind: 1,
            op: u16::from(input.u8()) % 9,
            flags: u32::from(shape >> 2 & 3),
            buf_alloc: u32::from(input.u16()) << 4,
            fwd_cnt: 0,
        };
        if shape & 0x10 != 0 {
            header.fwd_cnt = u32::from(input.u16());
        }
        match shape >> 5 {
            5 => header.kind = u16::from(input.u8()),
            6 => header.len = input.u32(),
            7 => header.src_cid = input.u32().into(),
            4 => header.dst_cid = input.u32().into(),
            _ => {}
        }
        let _ = self
            .guest
            .memory
            .write_slice(&header.to_bytes(), GuestAddress(TX_BUFFER));
        // Sometimes so often that there is no room for answers.
        for _ in 0..if shape >> 5 == 3 && len < 256 {
            BURST
        } else {
            1
        } {
            self.submit(TX, TX_BUFFER, HEADER_SIZE + len, 0);
        }
    }

    /// Receive buffers.
    fn give(&mut self, input: &mut Input<'_>) {
        let shape = input.u8();
        let len = RX_LENS[usize::from(shape % 8)];
        for _ in 0..1 + shape / 64 {
            let head = self.guest.avail[usize::from(RX)] % SIZE;
            if self.given.contains_key(&head) {
                return;
            }
            self.given.insert(head, len);
            // They overlap, as a guest may have it.
            self.submit(RX, RX_BUFFERS + u64::from(head % 8) * 0x2_0000, len, 2);
        }
    }

    fn submit(&mut self, queue: u16, gpa: u64, len: u32, flags: u16) {
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let avail = &mut self.guest.avail[usize::from(queue)];
        let head = *avail % SIZE;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&gpa.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let slot = base + 0x1000 + 4 + 2 * u64::from(head);
        *avail = avail.wrapping_add(1);
        let avail = *avail;
        let memory = &self.guest.memory;
        memory
            .write_slice(&descriptor, GuestAddress(base + 16 * u64::from(head)))
            .unwrap();
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        memory
            .write_obj(avail, GuestAddress(base + 0x1002))
            .unwrap();
        self.guest.write(0x50, queue.into());
    }

    /// What the device has put into receive buffers fits into them.
    fn check(&mut self) {
        let ring = RINGS + u64::from(RX) * RINGS_SIZE + 0x2000;
        let memory = &self.guest.memory;
        let index: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap();
        if self.wild {
            self.used = index;
            self.given.clear();
        }
        while self.used != index {
            let at = ring + 4 + 8 * u64::from(self.used % SIZE);
            let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
            let given = self.given.remove(&(head as u16)).expect("a given buffer");
            assert!(len <= given && (len == 0 || len >= HEADER_SIZE));
            self.used = self.used.wrapping_add(1);
        }
    }
}
