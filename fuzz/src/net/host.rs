//! What is at the other end of a guest's network card: programs of the host around the user network, or a
//! wire in the place of a tap.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::backend::user_net::policy::{Policy, Rule};
use devices::backend::user_net::{Config, Forward, FrameOffload, Limits, Protocol, UserNet};
use devices::virtio::net::backend::{HEADER_LEN, NetBackend, Offloads, Support};
use vm_memory::VolatileSlice;

use super::frames::{RESOLVER, SERVED};
use crate::Input;
use crate::images::Memory;

/// Streams of the host at a time.
const STREAMS: usize = 8;

/// Servers, which live as long as the process: making them anew for each guest would be most of the work.
struct Servers {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    resolv_conf: Memory,
}

thread_local! {
    static SERVERS: RefCell<Option<Servers>> = const { RefCell::new(None) };
}

fn servers() -> Servers {
    let places = || {
        [RESOLVER, SERVED].into_iter().flat_map(|port| {
            [
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            ]
        })
    };
    let listen = |place| {
        let socket = TcpListener::bind(place).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let bind = |place| {
        let socket = UdpSocket::bind(place).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    Servers {
        tcp: places().map(listen).collect(),
        udp: places().map(bind).collect(),
        resolv_conf: Memory::new(b"nameserver 127.0.0.1\nnameserver ::1\n", 0),
    }
}

/// The host of one guest.
pub(super) struct Host {
    servers: Option<Servers>,
    forwards: Vec<Forward>,
    streams: Vec<TcpStream>,
    datagrams: Option<UdpSocket>,
}

/// A user network by these bits: 0 and 1 the rules, 2 no IPv6, 3 no loopback, 4 a name.
pub(super) fn config(shape: u8) -> Config {
    let rule = |text: &str| text.parse::<Rule>().unwrap();
    let policy = match shape & 3 {
        0 | 1 => vec![
            rule("allow=none"),
            rule("allow=10.0.2.2:7"),
            rule("allow=10.0.2.2:9"),
            rule("allow=10.0.2.3"),
            rule("allow=[fd00:6d6f:7465::2]"),
            rule("allow=[fd00:6d6f:7465::3]:53"),
        ],
        2 => vec![rule("allow=10.0.2.2"), rule("deny=10.0.2.2:7")],
        // All that there is in this process's own network, which is nothing.
        _ => Vec::new(),
    };
    let default = Config::default();
    let forward = |protocol, address, guest_port| Forward {
        protocol,
        address,
        host_port: 0,
        guest_port,
    };
    Config {
        ipv6: default.ipv6.filter(|_| shape & 4 == 0),
        host_loopback: shape & 8 == 0,
        hostname: (shape & 16 != 0).then(|| "guest".to_owned()),
        policy: Policy::new(policy),
        forwards: vec![
            forward(Protocol::Tcp, Ipv4Addr::LOCALHOST.into(), 80),
            forward(Protocol::Udp, Ipv4Addr::LOCALHOST.into(), 80),
            forward(Protocol::Tcp, Ipv6Addr::LOCALHOST.into(), 81),
        ],
        limits: Limits {
            connections: 6,
            half_open: 3,
            flows: 4,
            memory: 64 << 10,
        },
        ..default
    }
}

impl Host {
    /// Around a network that is made of `config`.
    pub(super) fn new(mut config: Config) -> (Self, UserNet) {
        let servers = SERVERS.take().unwrap_or_else(servers);
        config.resolv_conf = servers.resolv_conf.path();
        let net = UserNet::new(config).unwrap();
        let host = Self {
            servers: Some(servers),
            forwards: net.forwards().collect(),
            streams: Vec::new(),
            datagrams: None,
        };
        (host, net)
    }

    pub(super) fn operate(&mut self, input: &mut Input<'_>) {
        let Some(servers) = &self.servers else {
            return;
        };
        let (what, which) = (input.u8(), usize::from(input.u8()));
        match what % 8 {
            0 => {
                if let Ok((stream, _)) = servers.tcp[which % servers.tcp.len()].accept() {
                    self.keep(stream);
                }
            }
            1 => {
                let forward = self.forwards[which % self.forwards.len()];
                let place = SocketAddr::new(forward.address, forward.host_port);
                if forward.protocol == Protocol::Tcp {
                    if let Ok(stream) = TcpStream::connect(place) {
                        self.keep(stream);
                    }
                    return;
                }
                let socket = self.datagrams.get_or_insert_with(|| {
                    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    socket
                });
                let _ = socket.send_to(&vec![1; usize::from(input.u16())], place);
                let _ = socket.recv_from(&mut [0; 100]);
            }
            2 | 3 => {
                let count = usize::from(input.u16());
                let size = if what & 0x80 == 0 { 1 } else { 8 };
                if let Some(mut stream) = self.stream(which) {
                    let _ = stream.write(&vec![2; count * size]);
                }
            }
            4 => {
                let count = usize::from(input.u16());
                if let Some(mut stream) = self.stream(which) {
                    let _ = stream.read(&mut vec![0; count]);
                }
            }
            5 => {
                if let Some(stream) = self.stream(which) {
                    let how = [Shutdown::Write, Shutdown::Read, Shutdown::Both];
                    let _ = stream.shutdown(how[usize::from(what >> 3) % 3]);
                }
            }
            6 => {
                let Some(at) = which.checked_rem(self.streams.len()) else {
                    return;
                };
                let stream = self.streams.swap_remove(at);
                if what & 0x80 != 0 {
                    reset(&stream);
                }
            }
            // Answers whoever has asked.
            _ => {
                let socket = &servers.udp[which % servers.udp.len()];
                let mut bytes = [0; 2048];
                if let Ok((len, peer)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..len.max(usize::from(what))], peer);
                }
            }
        }
    }

    fn stream(&self, which: usize) -> Option<&TcpStream> {
        self.streams.get(which.checked_rem(self.streams.len())?)
    }

    fn keep(&mut self, stream: TcpStream) {
        stream.set_nonblocking(true).unwrap();
        self.streams.push(stream);
        if self.streams.len() > STREAMS {
            reset(&self.streams.remove(0));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.streams.iter().for_each(reset);
        let Some(servers) = self.servers.take() else {
            return;
        };
        // The next guest finds them as the first one did.
        for socket in &servers.tcp {
            while let Ok((stream, _)) = socket.accept() {
                reset(&stream);
            }
        }
        for socket in &servers.udp {
            while socket.recv_from(&mut [0; 1]).is_ok() {}
        }
        SERVERS.set(Some(servers));
    }
}

/// Has it closed with a reset, so that nothing of it is left.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// A user network whose time the fuzzer makes: what waits for seconds or hours is reached as well. Its
/// headers say nothing.
pub(super) struct Clocked {
    net: Arc<Mutex<UserNet>>,
    frame: Vec<u8>,
}

/// The hands of its clock.
#[derive(Clone)]
pub(super) struct Clock {
    net: Arc<Mutex<UserNet>>,
    ahead: Duration,
}

fn lock(net: &Mutex<UserNet>) -> MutexGuard<'_, UserNet> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clocked {
    pub(super) fn new(net: UserNet) -> (Self, Clock) {
        let net = Arc::new(Mutex::new(net));
        let clock = Clock {
            net: net.clone(),
            ahead: Duration::ZERO,
        };
        (
            Self {
                net,
                frame: Vec::new(),
            },
            clock,
        )
    }
}

impl Clock {
    /// Time passes, and what is due is done.
    pub(super) fn pass(&mut self, time: Duration) {
        self.ahead += time;
        lock(&self.net).process(Instant::now() + self.ahead);
    }

    /// Whatever the guest has done, the network is within its bounds.
    pub(super) fn check(&self) {
        let net = lock(&self.net);
        assert!(net.connections() <= 6 && net.flows() <= 4);
        // What `Limits` says.
        assert!(
            net.memory() <= (64 << 10) + 6 * (32 << 10),
            "{}",
            net.memory()
        );
    }

    pub(super) fn reset(&self) {
        lock(&self.net).reset();
    }
}

impl NetBackend for Clocked {
    fn fd(&self) -> RawFd {
        lock(&self.net).as_raw_fd()
    }

    fn has_work(&self) -> bool {
        true
    }

    fn work(&mut self) {
        lock(&self.net).process(Instant::now());
    }

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
        gather(frame, &mut self.frame);
        if let Some(frame) = self.frame.get(HEADER_LEN..) {
            lock(&self.net).send(frame, FrameOffload::default());
        }
        Ok(())
    }

    fn flush(&mut self) -> bool {
        true
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut written = None;
        let _ = lock(&self.net).receive(|frame, offload| {
            assert_eq!(offload, FrameOffload::default());
            written = Some(scatter(room, &[&[0; HEADER_LEN], frame].concat()));
            true
        });
        written.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

fn gather(frame: &[VolatileSlice<'_>], bytes: &mut Vec<u8>) {
    bytes.clear();
    for piece in frame {
        let start = bytes.len();
        bytes.resize(start + piece.len(), 0);
        piece.copy_to(&mut bytes[start..]);
    }
}

fn scatter(room: &[VolatileSlice<'_>], bytes: &[u8]) -> usize {
    let mut left = bytes;
    for piece in room {
        let (now, later) = left.split_at(left.len().min(piece.len()));
        piece.copy_from(now);
        left = later;
    }
    bytes.len() - left.len()
}

/// In the place of a tap: frames come and go by a socket.
pub(super) struct Wire {
    socket: UnixDatagram,
    fails: Arc<Mutex<bool>>,
    frame: Vec<u8>,
}

/// Its other end.
pub(super) struct WireEnd {
    socket: UnixDatagram,
    fails: Arc<Mutex<bool>>,
}

impl Wire {
    pub(super) fn pair() -> (Self, WireEnd) {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_nonblocking(true).unwrap();
        let fails = Arc::<Mutex<bool>>::default();
        let end = WireEnd {
            socket: there,
            fails: fails.clone(),
        };
        (
            Self {
                socket: here,
                fails,
                frame: Vec::new(),
            },
            end,
        )
    }

    fn check(&self) -> io::Result<()> {
        match *self.fails.lock().unwrap_or_else(PoisonError::into_inner) {
            true => Err(io::ErrorKind::NotConnected.into()),
            false => Ok(()),
        }
    }
}

impl WireEnd {
    /// A frame with any header, or all that have come, or the end.
    pub(super) fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 | 1 => {
                let count = usize::from(input.u8() % 80);
                let mut frame = input.bytes(count).to_vec();
                // Never shorter than a header, which is the kernel's.
                frame.resize(HEADER_LEN + 14 + usize::from(input.u16()), 7);
                let _ = self.socket.send(&frame);
            }
            2 => while self.socket.recv(&mut [0; 1]).is_ok() {},
            _ => {
                let fails = input.u8().is_multiple_of(4);
                *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = fails;
            }
        }
    }
}

impl NetBackend for Wire {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        false
    }

    fn work(&mut self) {}

    fn support(&self) -> Support {
        Support {
            from_guest: Offloads::ALL,
            to_guest: Offloads::ALL,
        }
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        self.check()
    }

    fn set_enabled(&mut self, _: bool) -> io::Result<()> {
        self.check()
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check()?;
        gather(frame, &mut self.frame);
        assert!(self.frame.len() >= HEADER_LEN);
        self.socket.send(&self.frame).map(|_| ())
    }

    fn flush(&mut self) -> bool {
        false
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame)?;
        Ok(scatter(room, &frame[..len]))
    }
}
