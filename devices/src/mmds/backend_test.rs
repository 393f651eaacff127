use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use smoltcp::wire::ArpOperation;

use super::*;
use crate::backend::user_backend::UserBackend;
use crate::backend::user_net::{self, UserNet};
use crate::mmds::test_support::{
    ACK, Client, GET_LARGE, GET_SMALL, GUEST, GUEST_MAC, SYN, Segment, Service, arp, large, mmds,
};
use crate::mmds::{DEFAULT_ADDRESS, Version};
use crate::virtio::net::backend::Pair;
use crate::virtio::net::{Net, NetConfig};
use crate::virtio::test_support::{Driver, TestLoop, lifecycle_suite};

const RX: usize = 0;
const TX: usize = 1;

/// What a pair is connected to: a socket.
struct Inner {
    socket: UnixDatagram,
    is_full: Arc<AtomicBool>,
    has_work: bool,
}

impl NetBackend for Inner {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        self.has_work
    }

    fn work(&mut self) {}

    fn support(&self) -> Support {
        Support::default()
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.socket.send(&joined(frame)).map(|_| ())
    }

    fn flush(&mut self) -> bool {
        false
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut frame = [0; 4096];
        let len = self.socket.recv(&mut frame)?;
        Ok(scatter(room, &[&frame[..len]]))
    }
}

fn joined(frame: &[VolatileSlice<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in frame {
        let mut copy = vec![0; piece.len()];
        piece.copy_to(&mut copy);
        bytes.extend(copy);
    }
    bytes
}

/// The other end.
struct Wire {
    socket: UnixDatagram,
    is_full: Arc<AtomicBool>,
}

impl Wire {
    fn new() -> (Self, Inner) {
        let (socket, inner) = UnixDatagram::pair().unwrap();
        for socket in [&socket, &inner] {
            socket.set_nonblocking(true).unwrap();
        }
        let is_full = Arc::<AtomicBool>::default();
        let inner = Inner {
            socket: inner,
            is_full: Arc::clone(&is_full),
            has_work: false,
        };
        (Self { socket, is_full }, inner)
    }

    fn recv(&self) -> Option<Vec<u8>> {
        let mut frame = [0; 4096];
        let len = self.socket.recv(&mut frame).ok()?;
        Some(frame[..len].to_vec())
    }
}

/// Pairs, which are all that there is of a card.
struct Pairs {
    pairs: Vec<Box<dyn NetBackend>>,
    wires: Vec<Wire>,
    /// Which one the guest uses.
    at: usize,
}

fn pairs(count: usize) -> Pairs {
    let (wires, inner): (Vec<_>, Vec<_>) = (0..count).map(|_| Wire::new()).unzip();
    let inner = inner
        .into_iter()
        .map(|inner| Box::new(inner) as _)
        .collect();
    let pairs = wrap(inner, &mmds(Version::V1), Some(GUEST_MAC), 1500).unwrap();
    Pairs {
        pairs,
        wires,
        at: 0,
    }
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN], frame].concat()
}

impl Pairs {
    fn try_send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut frame = with_header(frame);
        // Its pieces are as odd as a guest's may be.
        let (first, rest) = frame.split_at_mut(13);
        let (second, third) = rest.split_at_mut(12);
        let pieces = [first, second, third].map(VolatileSlice::from);
        self.pairs[self.at].send(&pieces)
    }

    fn is_readable(&self) -> bool {
        poll(self.pairs[self.at].fd(), 0)
    }

    fn wait(&self) {
        poll(self.pairs[self.at].fd(), -1);
    }
}

/// Whether it is readable, after so many milliseconds at the most; -1 are any number.
fn poll(fd: RawFd, timeout: i32) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    epoll.wait(timeout, &mut [EpollEvent::default()]).unwrap() > 0
}

impl Service for Pairs {
    fn send(&mut self, frame: &[u8]) {
        self.try_send(frame).unwrap();
        self.pairs[self.at].flush();
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0xff; 70_000];
        let len = {
            let room = VolatileSlice::from(&mut *frame);
            self.pairs[self.at].recv(&[room]).ok()?
        };
        assert_eq!(frame[..HEADER_LEN], [0; HEADER_LEN]);
        Some(frame[HEADER_LEN..len].to_vec())
    }
}

/// A frame of no protocol.
fn other_frame() -> Vec<u8> {
    let mut frame = vec![7; 60];
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

#[test]
fn what_is_for_the_service_does_not_leave() {
    let mut pairs = pairs(1);
    let address = DEFAULT_ADDRESS;
    let mut to_router = Segment::new(1, SYN).frame();
    to_router[33] = 1;
    let mut vlan = Segment::new(1, SYN).frame();
    vlan[12..14].copy_from_slice(&[0x81, 0]);
    let mut v6 = Segment::new(1, SYN).frame();
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    // About the guest's own address.
    let mut about_guest = arp(ArpOperation::Request, GUEST);
    about_guest[28..32].copy_from_slice(&address.octets());
    for frame in [
        other_frame(),
        arp(ArpOperation::Request, GUEST),
        about_guest,
        to_router,
        vlan,
        v6,
        vec![8; 14],
        vec![],
    ] {
        pairs.try_send(&[&frame[..], &[0; 20]].concat()).unwrap();
        let left = pairs.wires[0].recv().unwrap();
        assert_eq!(left[HEADER_LEN..left.len() - 20], frame);
    }
    let mut cut_off = Segment::new(1, SYN).frame();
    cut_off.truncate(34);
    for mut frame in [
        arp(ArpOperation::Request, address),
        arp(ArpOperation::Reply, address),
        Segment::new(1, SYN).frame(),
        cut_off,
    ] {
        for mac in [[0xff; 6], [0; 6], GUEST_MAC] {
            frame[..6].copy_from_slice(&mac);
            pairs.try_send(&frame).unwrap();
            assert_eq!(pairs.wires[0].recv(), None);
        }
    }
}

#[test]
fn frames_come_from_both_sides() {
    let mut pairs = pairs(1);
    let mut client = Client::open(&mut pairs, 4000);
    pairs.wires[0]
        .socket
        .send(&with_header(&other_frame()))
        .unwrap();
    client.say(&mut pairs, ACK, GET_SMALL.as_bytes());
    assert!(pairs.pairs[0].flush());
    // The service's is first.
    let first = pairs.recv().unwrap();
    assert!(Segment::parse(&first).flags & ACK != 0);
    let mut others = 0;
    while let Some(frame) = pairs.recv() {
        others += usize::from(frame == other_frame());
    }
    assert_eq!(others, 1);
    assert!(!pairs.pairs[0].flush());
}

#[test]
fn a_connection_may_go_from_pair_to_pair() {
    let mut pairs = pairs(3);
    let mut client = Client::open(&mut pairs, 4000);
    for number in 0..6 {
        pairs.at = number % 3;
        assert_eq!(client.ask(&mut pairs, GET_SMALL), "value");
        assert!(Some(&*client.ask(&mut pairs, GET_LARGE)) == large().as_str());
    }
    // Nothing of it is seen by the host.
    for wire in &pairs.wires {
        assert_eq!(wire.recv(), None);
    }
}

#[test]
fn what_is_lost_comes_again_though_the_guest_is_silent() {
    let mut pairs = pairs(2);
    pairs.at = 1;
    assert!(!pairs.pairs[0].has_work());
    pairs.send(&Segment::new(4000, SYN).frame());
    pairs.recv().unwrap();
    assert!(pairs.pairs[0].has_work() && !pairs.pairs[1].has_work());
    // The first pair has the timer.
    pairs.at = 0;
    assert!(!pairs.is_readable());
    pairs.wait();
    pairs.pairs[0].work();
    assert!(!pairs.is_readable());
    let again = Segment::parse(&pairs.recv().unwrap());
    assert_eq!(again.guest_port, 4000);
}

#[test]
fn frames_that_nobody_takes_call_once() {
    let mut pairs = pairs(1);
    // Without connections it is as if there were no service.
    let frame = with_header(&other_frame());
    pairs.wires[0].socket.send(&frame).unwrap();
    assert!(!pairs.pairs[0].has_work() && pairs.is_readable());
    assert_eq!(pairs.recv(), Some(other_frame()));
    assert!(!pairs.is_readable());
    let _client = Client::open(&mut pairs, 4000);
    while pairs.recv().is_some() {}
    assert!(pairs.pairs[0].has_work());
    for _ in 0..3 {
        // Each frame calls again.
        pairs.wires[0].socket.send(&frame).unwrap();
        assert!(pairs.is_readable());
        pairs.pairs[0].work();
        assert!(!pairs.is_readable());
    }
    for _ in 0..3 {
        assert_eq!(pairs.recv(), Some(other_frame()));
    }
    assert_eq!(pairs.recv(), None);
    // None is missed that has come when all were taken.
    pairs.wires[0].socket.send(&frame).unwrap();
    assert!(pairs.is_readable());
    assert_eq!(pairs.recv(), Some(other_frame()));
    // Nor is one whose call was not heard, as there was no work.
    assert!(!pairs.is_readable());
}

#[test]
fn who_takes_no_frames_says_when_he_does() {
    let mut pairs = pairs(1);
    pairs.wires[0].is_full.store(true, Ordering::Relaxed);
    let error = pairs.try_send(&other_frame()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    // The service does all the same.
    let mut client = Client::open(&mut pairs, 4000);
    assert_eq!(client.ask(&mut pairs, GET_SMALL), "value");
    let _ = pairs.try_send(&other_frame()).unwrap_err();
    assert!(pairs.pairs[0].has_work());
    // The socket itself has room.
    assert!(pairs.is_readable());
    pairs.pairs[0].work();
    pairs.wires[0].is_full.store(false, Ordering::Relaxed);
    pairs.try_send(&other_frame()).unwrap();
    assert_eq!(pairs.wires[0].recv(), Some(with_header(&other_frame())));
    assert!(!pairs.is_readable());
}

#[test]
fn the_user_network_is_behind_it() {
    let network = UserNet::new(user_net::Config::default()).unwrap();
    let (backend, control) = UserBackend::new(network).unwrap();
    let pairs = wrap(
        vec![Box::new(backend)],
        &mmds(Version::V1),
        Some(GUEST_MAC),
        1500,
    );
    let mut pairs = Pairs {
        pairs: pairs.unwrap(),
        wires: Vec::new(),
        at: 0,
    };
    let gateway = [10, 0, 2, 2];
    pairs.send(&arp(ArpOperation::Request, gateway.into()));
    let reply = pairs.recv().unwrap();
    assert_eq!(
        (&reply[20..22], &reply[28..32]),
        (&[0, 2][..], &gateway[..])
    );
    let mut client = Client::open(&mut pairs, 4000);
    assert_eq!(client.ask(&mut pairs, GET_SMALL), "value");
    assert_eq!(control.counters().guest_frames, 1);
    // It has work, as it had before, and is quiet when that is done.
    pairs.pairs[0].work();
    assert!(pairs.pairs[0].has_work() && !pairs.is_readable());
}

/// A card on the service and a socket.
fn card() -> (Net, Wire) {
    let (wire, inner) = Wire::new();
    let inner: Box<dyn NetBackend> = Box::new(inner);
    let backends = wrap(vec![inner], &mmds(Version::V1), None, 1500).unwrap();
    let pair = |backend| Pair {
        backend,
        kernel: None,
    };
    let pairs = backends.into_iter().map(pair).collect();
    let (net, _) = Net::new(NetConfig::default(), pairs, TestLoop::start()).unwrap();
    (net, wire)
}

lifecycle_suite!(card().0);

/// A guest with rings.
struct Rings(Driver);

impl Service for Rings {
    fn send(&mut self, frame: &[u8]) {
        let buffer = self.0.buffer_with(&with_header(frame)).readable();
        self.0.request(TX, &[buffer]);
    }

    /// Waits for a frame.
    fn recv(&mut self) -> Option<Vec<u8>> {
        let buffer = self.0.buffer(2000);
        self.0.submit(RX, &[buffer.writable()]);
        let len = self.0.wait_used(RX, 1)[0].1;
        Some(self.0.read(buffer.gpa, len)[HEADER_LEN..].to_vec())
    }
}

#[test]
fn a_card_has_the_service_behind_its_rings() {
    let (net, wire) = card();
    let mut rings = Rings(Driver::started(net));
    rings.send(&other_frame());
    wire.socket.set_nonblocking(false).unwrap();
    assert_eq!(wire.recv(), Some(with_header(&other_frame())));
    rings.send(&arp(ArpOperation::Request, DEFAULT_ADDRESS));
    assert_eq!(rings.recv().unwrap()[12..14], [8, 6]);
    rings.send(&Segment::new(4000, SYN).frame());
    let lost = Segment::parse(&rings.recv().unwrap());
    // It comes again by itself, and what the host sends comes too.
    let again = Segment::parse(&rings.recv().unwrap());
    assert_eq!(again, lost);
    wire.socket.send(&with_header(&other_frame())).unwrap();
    assert_eq!(rings.recv().unwrap(), other_frame());
}

#[test]
fn a_card_that_had_to_wait_for_its_host_goes_on() {
    let (net, wire) = card();
    let mut rings = Rings(Driver::started(net));
    wire.is_full.store(true, Ordering::Relaxed);
    let frame = with_header(&other_frame());
    let buffer = rings.0.buffer_with(&frame).readable();
    rings.0.submit(TX, &[buffer]);
    std::thread::sleep(Duration::from_millis(20));
    wire.is_full.store(false, Ordering::Relaxed);
    // The host says that it has room, which a socket of this kind does by something to read.
    wire.socket.send(&frame).unwrap();
    rings.0.wait_used(TX, 1);
    assert_eq!(wire.recv(), Some(frame));
}
