//! A guest with sockets, as far as the tests need one.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::packet::{HEADER_SIZE, HOST_CID, Header, kind, op};
use super::{RX_QUEUE, TX_QUEUE, Vsock, VsockConfig};
use crate::virtio::chain::Buffers;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queue;
use crate::virtio::test_support::{
    DEADLINE, Desc, Driver, GuestQueue, Interrupts, ScratchBuffer, TestLoop,
};

/// The guest's context id.
pub(super) const CID: u32 = 42;
/// What the guest says it has room for, in each connection.
pub(super) const ROOM: u32 = 256 << 10;

/// A directory of a test's own.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mote-vsock-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `bytes` in guest memory, in pieces of these lengths, as a device gets them.
pub(super) fn buffers(memory: &Arc<GuestMemoryMmap>, bytes: &[u8], pieces: &[u32]) -> Buffers {
    let at = 0x80_0000;
    memory.write_slice(bytes, GuestAddress(at)).unwrap();
    let mut guest = GuestQueue::new(Arc::clone(memory), 0x10_0000, 256);
    let mut gpa = at;
    let mut descs = Vec::new();
    for len in pieces {
        descs.push(Desc::readable(gpa, *len));
        gpa += u64::from(*len);
    }
    guest.add(&descs);
    let mut queue = Queue::new(
        0,
        &guest.config(),
        256,
        false,
        Arc::clone(memory),
        EventFd::new(0).unwrap().into(),
        Interrupt::new(Box::new(Interrupts::new())),
    )
    .unwrap();
    queue.pop().unwrap().unwrap().readable
}

/// A packet that the guest has received.
pub(super) type Packet = (Header, Vec<u8>);

/// A guest's driver, with a device.
pub(super) struct Guest {
    pub(super) driver: Driver,
    pub(super) path: PathBuf,
    rx: HashMap<u16, ScratchBuffer>,
    tx: Vec<ScratchBuffer>,
    tx_next: usize,
    tx_in_flight: usize,
    inbox: VecDeque<Packet>,
    _dir: TempDir,
}

/// Packets that the guest may have under way.
const TX_BUFFERS: usize = 16;
const TX_SIZE: u32 = HEADER_SIZE + (64 << 10);

impl Guest {
    /// A guest with this many receive buffers of this size.
    pub(super) fn new(rx_buffers: usize, rx_size: u32) -> Self {
        let dir = TempDir::new();
        let path = dir.join("v.sock");
        let config = VsockConfig {
            cid: CID,
            path: path.clone(),
        };
        let device = Vsock::new(config, TestLoop::start()).unwrap();
        let mut driver = Driver::started(device);
        let tx = (0..TX_BUFFERS).map(|_| driver.buffer(TX_SIZE)).collect();
        let mut guest = Self {
            driver,
            path,
            rx: HashMap::new(),
            tx,
            tx_next: 0,
            tx_in_flight: 0,
            inbox: VecDeque::new(),
            _dir: dir,
        };
        guest.add_buffers(rx_buffers, rx_size);
        guest
    }

    /// The driver starts anew, whatever was under way.
    pub(super) fn restart(&mut self) {
        self.driver.start(u64::MAX);
        self.rx.clear();
        self.tx_in_flight = 0;
        self.inbox.clear();
        self.add_buffers(64, 4096);
    }

    pub(super) fn usual() -> Self {
        Self::new(64, 4096)
    }

    /// Gives the device more receive buffers.
    pub(super) fn add_buffers(&mut self, count: usize, size: u32) {
        for _ in 0..count {
            let buffer = self.driver.buffer(size);
            let head = self.driver.queues[RX_QUEUE].add(&[buffer.writable()]);
            self.rx.insert(head, buffer);
        }
        self.driver.kick(RX_QUEUE);
    }

    /// Where the host listens for the guest's connections to this port.
    pub(super) fn path_of(&self, port: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!("_{port}"));
        name.into()
    }

    /// Sends a packet as soon as there is a buffer for it.
    #[track_caller]
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        self.driver.wait_until("room to send", |driver| {
            let done = driver.queues[TX_QUEUE].take_used().len();
            self.tx_in_flight = self.tx_in_flight.saturating_sub(done);
            self.tx_in_flight < TX_BUFFERS
        });
        self.tx_in_flight += 1;
        self.send_without_waiting(header, data);
    }

    /// Sends a packet, by a buffer that may still be in use.
    pub(super) fn send_without_waiting(&mut self, header: &Header, data: &[u8]) {
        let buffer = self.tx[self.tx_next];
        self.tx_next = (self.tx_next + 1) % TX_BUFFERS;
        self.driver.write(buffer.gpa, &header.to_bytes());
        let at = buffer.gpa + u64::from(HEADER_SIZE);
        self.driver.write(at, data);
        let len = HEADER_SIZE + data.len() as u32;
        let desc = Desc::readable(buffer.gpa, len);
        self.driver.submit(TX_QUEUE, &[desc]);
    }

    /// Takes what has come, and gives the buffers back. True if something has.
    pub(super) fn poll(&mut self) -> bool {
        let used = self.driver.queues[RX_QUEUE].take_used();
        let came = !used.is_empty();
        for (head, len) in used {
            let buffer = self.rx.remove(&head).expect("a buffer that was given");
            let bytes = self.driver.read(buffer.gpa, len);
            let (header, data) = bytes.split_first_chunk().expect("a header");
            let header = Header::from_bytes(header);
            assert_eq!(header.len as usize, data.len());
            assert_eq!(header.dst_cid, u64::from(CID));
            self.inbox.push_back((header, data.to_vec()));
            let head = self.driver.queues[RX_QUEUE].add(&[buffer.writable()]);
            self.rx.insert(head, buffer);
        }
        if came {
            self.driver.kick(RX_QUEUE);
        }
        came
    }

    /// The next packet, if one has come.
    pub(super) fn try_receive(&mut self) -> Option<Packet> {
        self.poll();
        self.inbox.pop_front()
    }

    /// The next packet.
    #[track_caller]
    pub(super) fn receive(&mut self) -> Packet {
        if let Some(packet) = self.inbox.pop_front() {
            return packet;
        }
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(std::time::Instant::now() < deadline, "no packet");
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }

    /// The next packet, which is of this operation.
    #[track_caller]
    pub(super) fn expect(&mut self, op: u16) -> Header {
        let (header, data) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        assert_eq!(data, [0; 0]);
        header
    }

    /// A connection of the host's client, by the port that it wants: its request is awaited.
    #[track_caller]
    pub(super) fn accept(&mut self, port: u32) -> Socket {
        let request = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, port);
        assert_eq!(request.src_cid, HOST_CID);
        assert_eq!(request.kind, kind::STREAM);
        let mut socket = Socket::answer(&request);
        let response = socket.header(op::RESPONSE);
        self.send(&response, &[]);
        socket
    }

    /// A connection to the host's server, which has to accept it.
    #[track_caller]
    pub(super) fn connect(&mut self, guest: u32, host: u32) -> Socket {
        let mut socket = Socket::new(guest, host);
        let request = socket.header(op::REQUEST);
        self.send(&request, &[]);
        let response = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (host, guest));
        socket.note(&response);
        socket
    }

    /// Sends data, for which there must be room.
    #[track_caller]
    pub(super) fn write(&mut self, socket: &mut Socket, data: &[u8]) {
        assert!(data.len() <= socket.room() as usize);
        let header = socket.data_header(data.len());
        self.send(&header, data);
    }

    /// Receives data until there are so many bytes, and takes note of what comes between.
    #[track_caller]
    pub(super) fn read(&mut self, socket: &mut Socket, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let (header, data) = self.receive();
            socket.note(&header);
            match header.op {
                op::RW => {
                    socket.forwarded = socket.forwarded.wrapping_add(header.len);
                    all.extend(data);
                }
                op::CREDIT_UPDATE | op::CREDIT_REQUEST => {
                    let update = socket.header(op::CREDIT_UPDATE);
                    self.send(&update, &[]);
                }
                op => panic!("operation {op}"),
            }
        }
        all
    }
}

/// The guest's side of a connection.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    pub(super) guest: u32,
    pub(super) host: u32,
    /// What the guest says it has room for.
    pub(super) capacity: u32,
    /// Bytes that the guest's program has taken.
    pub(super) forwarded: u32,
    sent: u32,
    peer_capacity: u32,
    peer_forwarded: u32,
}

impl Socket {
    pub(super) fn new(guest: u32, host: u32) -> Self {
        Self {
            guest,
            host,
            capacity: ROOM,
            forwarded: 0,
            sent: 0,
            peer_capacity: 0,
            peer_forwarded: 0,
        }
    }

    /// The guest's side of the connection that the host asks for.
    pub(super) fn answer(request: &Header) -> Self {
        let mut socket = Self::new(request.dst_port, request.src_port);
        socket.note(request);
        socket
    }

    /// Takes note of what the host has room for.
    pub(super) fn note(&mut self, header: &Header) {
        self.peer_capacity = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// Bytes that the host has room for.
    pub(super) fn room(&self) -> u32 {
        self.peer_capacity - self.sent.wrapping_sub(self.peer_forwarded)
    }

    /// A packet without data.
    pub(super) fn header(&mut self, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            len: 0,
            kind: kind::STREAM,
            op,
            flags: 0,
            buf_alloc: self.capacity,
            fwd_cnt: self.forwarded,
        }
    }

    pub(super) fn data_header(&mut self, len: usize) -> Header {
        let len = len as u32;
        self.sent = self.sent.wrapping_add(len);
        Header {
            len,
            ..self.header(op::RW)
        }
    }

    pub(super) fn shutdown(&mut self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(op::SHUTDOWN)
        }
    }
}

/// Bytes that differ from place to place, and from `seed` to `seed`.
pub(super) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Whether nothing is at a path.
pub(super) fn is_free(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err()
}

/// A client of the host that wants a port of the guest.
pub(super) fn client(guest: &Guest, port: u32) -> UnixStream {
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    writeln!(client, "CONNECT {port}").unwrap();
    client
}

/// What the device answers to a client.
#[track_caller]
pub(super) fn line(client: &mut UnixStream) -> String {
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
pub(super) fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// The stream ends here, as the other side has closed it or thrown data away.
#[track_caller]
pub(super) fn assert_ended(stream: &mut UnixStream) {
    match stream.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}
