//! All connections of a guest, and the host's sockets they lead to: finds the connection of a packet,
//! makes and ends connections, and says in turn which of them have something for the guest.
//!
//! Streams are watched edge-triggered: what one has is remembered by its connection until the guest has
//! room for it.
//!
//! # Limits
//! At most [`CONNECTIONS_MAX`] connections, in whatever state, and for each at most its capacity of
//! data. Answers to packets that belong to no connection wait in a queue; once [`RESETS_MAX`] are
//! there, the driver's packets are left alone until it has taken some (section 5.10.6.1.1 wants that
//! both sides do without each other's help for as long as they can).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Key, Verdict};
use super::counters::Counts;
use super::handshake::{Line, Progress};
use super::packet::{HOST_CID, Header, kind, op};
use super::slot::{Peer, Slot};
use super::unix::{UnixSocket, connect_to, path_of_port};
use super::watch::{FIRST_ID, Happened, Id, LISTENER, TIMER, Watch};
use crate::virtio::chain::Buffers;

/// Connections at a time, with those that are not finished in either direction.
pub(super) const CONNECTIONS_MAX: usize = 1023;
/// As long as there are fewer connections than this, a new one gets the large buffer.
const LARGE_COUNT: usize = 128;
/// Bytes that the guest may send without being told of room again. Linux has the same on its side.
const LARGE_CAPACITY: u32 = 256 << 10;
/// The same for the connections that come when there are many: 88 MiB of buffers in all, if no client
/// reads.
const SMALL_CAPACITY: u32 = 64 << 10;
/// Resets that wait for the guest before its packets are left alone.
pub(super) const RESETS_MAX: usize = 256;
/// How long a client may take for its first line; it may be typed.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server of the host may have no room for another client. Linux in the guest waits as long
/// for its connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is tried.
const CONNECT_RETRY: Duration = Duration::from_millis(20);
/// How long nobody is accepted after the host had no descriptor for it.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Clients accepted at once.
const ACCEPTS: usize = 64;
/// The host's ports for its clients, as others have them: beyond those that programs use.
const FIRST_CLIENT_PORT: u32 = 1 << 30;
const LAST_CLIENT_PORT: u32 = (1 << 31) - 1;

/// Something for the guest.
#[derive(Debug)]
pub(super) enum Work {
    /// A packet without data.
    Packet(Header),
    /// The data of this connection, as much as there is: see [`Muxer::connection`].
    Data(Id),
}

/// The connections.
pub(super) struct Muxer {
    // Fixed configuration.
    guest_cid: u64,
    path: PathBuf,

    // Runtime glue.
    watch: Watch,
    counts: Arc<Counts>,

    // Volatile state.
    slots: HashMap<Id, Slot>,
    keys: HashMap<Key, Id>,
    next_id: Id,
    next_port: u32,
    ready: VecDeque<Id>,
    resets: VecDeque<Header>,
    /// When clients are accepted again, after an error.
    accept_at: Option<Instant>,
    /// The log knows that the host has no more descriptors, or that a path is too long.
    said_descriptors: bool,
    said_path: bool,
}

impl Muxer {
    /// Serves the clients of `listener`; the guest's connections go to the sockets that have the name
    /// `path` with the port behind it.
    pub(super) fn new(
        guest_cid: u32,
        path: &Path,
        listener: &Arc<UnixListener>,
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        Ok(Self {
            guest_cid: guest_cid.into(),
            path: path.to_owned(),
            watch: Watch::new(listener)?,
            counts,
            slots: HashMap::new(),
            keys: HashMap::new(),
            next_id: FIRST_ID,
            next_port: FIRST_CLIENT_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            accept_at: None,
            said_descriptors: false,
            said_path: false,
        })
    }

    // Events of the host.

    /// Takes the events that have come, up to a limit: if there are more, the descriptor stays readable.
    pub(super) fn poll(&mut self, now: Instant) {
        for Happened { id, events } in self.watch.take() {
            match id {
                LISTENER => self.accept(now),
                TIMER => self.tick(now),
                id => self.handle(id, events, now),
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            if self.slots.len() >= CONNECTIONS_MAX {
                self.watch.stop_listening();
                return;
            }
            match UnixSocket::accept(self.watch.listener()) {
                Ok(socket) => self.greet(socket, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_gone(&error) => {}
                // No descriptors, no memory. The client keeps waiting.
                Err(error) => {
                    self.say_exhausted(&error);
                    self.watch.stop_listening();
                    let at = now + ACCEPT_RETRY;
                    self.accept_at = Some(at);
                    self.watch.set_alarm(at, now);
                    return;
                }
            }
        }
    }

    fn say_exhausted(&mut self, error: &io::Error) {
        if !self.said_descriptors {
            self.said_descriptors = true;
            log::warn!("vsock: no connection can be made: {error}");
        }
    }

    fn resume_accepting(&mut self) {
        if self.accept_at.is_none()
            && self.slots.len() < CONNECTIONS_MAX
            && self.watch.listen().is_err()
        {
            // As if there had been no descriptor.
            let now = Instant::now();
            let at = now + ACCEPT_RETRY;
            self.accept_at = Some(at);
            self.watch.set_alarm(at, now);
        }
    }

    /// A client has come.
    fn greet(&mut self, socket: UnixSocket, now: Instant) {
        let id = self.next_id();
        if self.watch.add(&socket, id).is_err() {
            return;
        }
        let line = Line::default();
        let deadline = now + LINE_TIMEOUT;
        let slot = Slot::new(Peer::Client { line, socket }, Some(deadline));
        self.slots.insert(id, slot);
        self.watch.set_alarm(deadline, now);
        // What it has said before it was accepted is an event as well.
    }

    fn next_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn handle(&mut self, id: Id, events: EventSet, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        match &mut slot.peer {
            Peer::Client { line, socket } => match socket.read_line(line) {
                Progress::Incomplete => {}
                Progress::Connect(port) => self.request(id, port, now),
                Progress::Wrong => self.remove(id),
            },
            Peer::Server { .. } => {}
            Peer::Connected(connection) => {
                if events.contains(EventSet::OUT) {
                    connection.writable(now);
                }
                let ended = EventSet::HANG_UP | EventSet::ERROR;
                let verdict = if events.intersects(ended) {
                    connection.hang_up(now)
                } else {
                    Verdict::Alive
                };
                if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
                    connection.readable();
                }
                self.conclude(id, verdict, now);
            }
        }
    }

    /// A client wants to be connected to a port of the guest.
    fn request(&mut self, id: Id, port: u32, now: Instant) {
        let capacity = self.capacity();
        let key = self.free_key(port);
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        let (Peer::Client { socket, .. }, Some(key)) = (slot.peer, key) else {
            self.resume_accepting();
            return;
        };
        let connection = Connection::request(key, self.guest_cid, capacity, socket, now);
        self.insert(id, connection, now);
    }

    fn capacity(&self) -> u32 {
        if self.slots.len() < LARGE_COUNT {
            LARGE_CAPACITY
        } else {
            SMALL_CAPACITY
        }
    }

    /// A port of the host that is not connected to port `guest` of the guest.
    fn free_key(&mut self, guest: u32) -> Option<Key> {
        for _ in 0..=CONNECTIONS_MAX {
            let host = self.next_port;
            self.next_port = match host {
                LAST_CLIENT_PORT => FIRST_CLIENT_PORT,
                port => port + 1,
            };
            let key = Key { host, guest };
            if !self.keys.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    fn insert(&mut self, id: Id, connection: Connection<UnixSocket>, now: Instant) {
        self.counts.connections.add(1);
        self.keys.insert(connection.key(), id);
        let slot = Slot::new(Peer::Connected(connection), None);
        self.slots.insert(id, slot);
        self.conclude(id, Verdict::Alive, now);
    }

    // Packets of the guest.

    /// Whether so many answers wait for the guest that it is to send no more packets.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// The guest has sent a packet.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        data: &Buffers,
        memory: &GuestMemoryMmap,
        now: Instant,
    ) {
        // Whoever that is, it is not this guest (section 5.10.6.2): there is no one to answer to.
        if header.src_cid != self.guest_cid {
            return;
        }
        self.counts.tx_packets.add(1);
        self.counts.tx_bytes.add(data.len().into());
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        let id = self.keys.get(&key).copied();
        let id = id.filter(|_| header.dst_cid == HOST_CID);
        let Some(id) = id else {
            self.receive_first(key, header, now);
            return;
        };
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        match &mut slot.peer {
            Peer::Connected(connection) => {
                let verdict = connection.receive(header, data, memory, now);
                self.conclude(id, verdict, now);
            }
            Peer::Client { .. } | Peer::Server { .. } => {
                self.remove(id);
                self.refuse(header);
            }
        }
    }

    /// A packet that belongs to no connection.
    fn receive_first(&mut self, key: Key, header: &Header, now: Instant) {
        let is_request = header.op == op::REQUEST
            && header.kind == kind::STREAM
            && header.dst_cid == HOST_CID
            && self.slots.len() < CONNECTIONS_MAX;
        if !is_request {
            self.refuse(header);
            return;
        }
        let id = self.next_id();
        let credit = (header.buf_alloc, header.fwd_cnt);
        match self.connect(id, key, credit, now) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let peer = Peer::Server {
                    key,
                    credit,
                    give_up: now + CONNECT_TIMEOUT,
                };
                let again = now + CONNECT_RETRY;
                self.slots.insert(id, Slot::new(peer, Some(again)));
                self.keys.insert(key, id);
                self.watch.set_alarm(again, now);
            }
            Err(error) => {
                self.explain(&error, key.host);
                self.refuse(header);
            }
        }
    }

    /// Connects the guest to the server of a port.
    fn connect(&mut self, id: Id, key: Key, credit: (u32, u32), now: Instant) -> io::Result<()> {
        let socket = connect_to(&path_of_port(&self.path, key.host))?;
        self.watch.add(&socket, id)?;
        let capacity = self.capacity();
        let connection = Connection::accept(key, self.guest_cid, capacity, socket, credit, now);
        self.insert(id, connection, now);
        Ok(())
    }

    /// Tells the log why the guest cannot be connected, if that is not as usual.
    fn explain(&mut self, error: &io::Error, port: u32) {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ECONNREFUSED) => {}
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                self.say_exhausted(error);
            }
            _ if !self.said_path => {
                self.said_path = true;
                let path = path_of_port(&self.path, port);
                log::warn!("vsock: cannot connect to {}: {error}", path.display());
            }
            _ => {}
        }
    }

    /// Answers a packet with RST; never an RST.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    // To the guest.

    /// What is counted.
    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Descriptor of the epoll instance.
    pub(super) fn fd(&self) -> RawFd {
        self.watch.as_raw_fd()
    }

    /// Whether there is something for the guest.
    pub(super) fn has_work(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What is next for the guest; each connection in its turn.
    pub(super) fn next_work(&mut self, now: Instant) -> Option<Work> {
        if let Some(reset) = self.resets.pop_front() {
            self.counts.resets.add(1);
            return Some(Work::Packet(reset));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.is_ready = false;
            let Peer::Connected(connection) = &mut slot.peer else {
                continue;
            };
            if let Some(header) = connection.control() {
                self.conclude(id, Verdict::Alive, now);
                return Some(Work::Packet(header));
            }
            if connection.may_read() {
                return Some(Work::Data(id));
            }
        }
        None
    }

    /// A connection whose turn it is.
    pub(super) fn connection(&mut self, id: Id) -> Option<&mut Connection<UnixSocket>> {
        match &mut self.slots.get_mut(&id)?.peer {
            Peer::Connected(connection) => Some(connection),
            Peer::Client { .. } | Peer::Server { .. } => None,
        }
    }

    /// The turn of a connection is over.
    pub(super) fn end_turn(&mut self, id: Id, now: Instant) {
        self.conclude(id, Verdict::Alive, now);
    }

    // What all have in common.

    /// Does what is to be done after something happened to a connection.
    fn conclude(&mut self, id: Id, verdict: Verdict, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let Peer::Connected(connection) = &mut slot.peer else {
            return;
        };
        if let Verdict::Over { reset } = verdict
            && !connection.is_draining()
        {
            let key = connection.key();
            self.keys.remove(&key);
            let is_drained = !connection.drain(now);
            if reset {
                self.resets.push_back(reset_of(key, self.guest_cid));
            }
            if is_drained {
                self.remove(id);
                return;
            }
        }
        if connection.is_draining() && !connection.wants_writable() {
            self.remove(id);
            return;
        }
        if connection.has_packet() && !slot.is_ready {
            slot.is_ready = true;
            self.ready.push_back(id);
        }
        let wants_writable = connection.wants_writable();
        if slot.watches_writable != wants_writable
            && self
                .watch
                .modify(connection.stream(), id, wants_writable)
                .is_ok()
        {
            slot.watches_writable = wants_writable;
        }
        let deadline = connection.deadline();
        if let Some(deadline) = deadline {
            self.watch.set_alarm(deadline, now);
        }
    }

    /// Forgets a connection, and closes its socket.
    fn remove(&mut self, id: Id) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        if slot.is_ready {
            self.ready.retain(|ready| *ready != id);
        }
        let key = match &slot.peer {
            Peer::Client { .. } => None,
            Peer::Server { key, .. } => Some(*key),
            Peer::Connected(connection) => {
                self.counts.ended.add(1);
                Some(connection.key())
            }
        };
        // Another connection may have the key by now, if this one was over for the guest.
        if let Some(key) = key
            && self.keys.get(&key) == Some(&id)
        {
            self.keys.remove(&key);
        }
        // Before others are accepted: it is closed, and watched no more.
        drop(slot);
        self.resume_accepting();
    }

    /// The timer went off.
    fn tick(&mut self, now: Instant) {
        self.watch.clear_alarm();
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            self.resume_accepting();
        }
        let is_due = |(id, slot): (&Id, &Slot)| {
            let is_due = slot.deadline().is_some_and(|deadline| deadline <= now);
            is_due.then_some(*id)
        };
        let due: Vec<Id> = self.slots.iter().filter_map(is_due).collect();
        for id in due {
            self.expire(id, now);
        }
        let next = self.slots.values().filter_map(Slot::deadline);
        if let Some(next) = next.chain(self.accept_at).min() {
            self.watch.set_alarm(next, now);
        }
    }

    /// A deadline has passed.
    fn expire(&mut self, id: Id, now: Instant) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        match &mut slot.peer {
            Peer::Client { .. } => self.remove(id),
            Peer::Server {
                key,
                credit,
                give_up,
            } => {
                let (key, credit, give_up) = (*key, *credit, *give_up);
                self.retry(id, key, credit, give_up, now);
            }
            Peer::Connected(connection) => {
                let verdict = connection.expire(now);
                self.conclude(id, verdict, now);
            }
        }
    }

    /// Tries once more to connect the guest to a server.
    fn retry(&mut self, id: Id, key: Key, credit: (u32, u32), give_up: Instant, now: Instant) {
        match self.connect(id, key, credit, now) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && now < give_up => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.deadline = Some(now + CONNECT_RETRY);
                }
            }
            Err(error) => {
                self.explain(&error, key.host);
                self.remove(id);
                self.resets.push_back(reset_of(key, self.guest_cid));
            }
        }
    }
}

/// Ends a connection.
fn reset_of(key: Key, guest_cid: u64) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: key.host,
        dst_port: key.guest,
        kind: kind::STREAM,
        op: op::RST,
        ..Header::default()
    }
}

/// The client has gone before it was accepted, or a signal came.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}
