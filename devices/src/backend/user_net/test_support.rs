//! A guest for tests: smoltcp's stack at the other end of the link.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config as IfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::packet::internet_checksum;
use super::{Config, FrameOffload, Offloads, PartialChecksum, UserNet};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6d6f, 0x7465, 0, 0, 0, 0, 0x15);

/// Both ends of the cable.
pub(super) struct Wire {
    pub(super) to_guest: VecDeque<Vec<u8>>,
    pub(super) to_net: VecDeque<Vec<u8>>,
    /// The guest has segmentation offload.
    large: bool,
}

pub(super) struct Guest {
    pub(super) net: UserNet,
    pub(super) wire: Wire,
    pub(super) iface: Interface,
    pub(super) sockets: SocketSet<'static>,
    /// Frames that the guest has got.
    pub(super) frames: u64,
    /// The largest.
    pub(super) largest: usize,
    start: Instant,
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Queue<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Frame, Queue<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Frame(frame), Queue(&mut self.to_net)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Queue<'_>> {
        Some(Queue(&mut self.to_net))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = if self.large { 65535 + 14 } else { 1514 };
        if self.large {
            capabilities.checksum.tcp = Checksum::None;
        }
        capabilities
    }
}

pub(super) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(super) struct Queue<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Queue<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

/// Does what the guest's card or kernel does with a frame that is not complete.
pub(super) fn complete(frame: &[u8], offload: FrameOffload) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(PartialChecksum { start, offset }) = offload.checksum {
        let (start, offset) = (usize::from(start), usize::from(offset));
        let sum = internet_checksum(&frame[start..]);
        frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
    if let Some(gso) = offload.gso {
        assert!(frame.len() > usize::from(gso.header_len) + usize::from(gso.size));
        assert!(offload.checksum.is_some());
    }
    frame
}

impl Guest {
    /// A guest whose addresses are set.
    pub(super) fn new(config: Config) -> Self {
        let mut guest = Self::bare(config);
        let ipv4 = guest.net.shared.config.ipv4;
        let ipv6 = guest.net.shared.config.ipv6;
        guest.iface.update_ip_addrs(|addresses| {
            let v4 = IpCidr::new(IpAddr::V4(ipv4.guest).into(), ipv4.prefix);
            addresses.push(v4).unwrap();
            let v6 = IpCidr::new(IpAddr::V6(GUEST_V6).into(), 64);
            addresses.push(v6).unwrap();
        });
        let routes = guest.iface.routes_mut();
        routes.add_default_ipv4_route(ipv4.gateway).unwrap();
        if let Some(ipv6) = ipv6 {
            routes.add_default_ipv6_route(ipv6.gateway).unwrap();
        }
        guest
    }

    /// One that has no address yet.
    pub(super) fn bare(config: Config) -> Self {
        let mac = EthernetAddress(config.guest_mac);
        let mut wire = Wire {
            to_guest: VecDeque::new(),
            to_net: VecDeque::new(),
            large: false,
        };
        let mut iface_config = IfaceConfig::new(mac.into());
        iface_config.random_seed = 1;
        let iface = Interface::new(iface_config, &mut wire, SmolInstant::ZERO);
        Self {
            net: UserNet::new(config).unwrap(),
            wire,
            iface,
            sockets: SocketSet::new(Vec::new()),
            frames: 0,
            largest: 0,
            start: Instant::now(),
        }
    }

    /// Gives it segmentation and checksum offload.
    pub(super) fn large(mut self) -> Self {
        self.wire.large = true;
        self.net.set_offloads(Offloads {
            checksum: true,
            tso4: true,
            tso6: true,
        });
        // smoltcp asks for the MTU only here.
        let mut config = IfaceConfig::new(EthernetAddress(self.net.shared.config.guest_mac).into());
        config.random_seed = 1;
        let old = std::mem::replace(
            &mut self.iface,
            Interface::new(config, &mut self.wire, SmolInstant::ZERO),
        );
        let addresses = old.ip_addrs().to_vec();
        self.iface.update_ip_addrs(|new| new.extend(addresses));
        let (ipv4, ipv6) = (
            self.net.shared.config.ipv4,
            self.net.shared.config.ipv6.unwrap(),
        );
        let routes = self.iface.routes_mut();
        routes.add_default_ipv4_route(ipv4.gateway).unwrap();
        routes.add_default_ipv6_route(ipv6.gateway).unwrap();
        self
    }

    /// Moves all frames that there are, once. True if anything happened.
    pub(super) fn step(&mut self) -> bool {
        self.net.process(Instant::now());
        let before = self.frames;
        self.take_frames();
        let now = SmolInstant::from_micros(self.start.elapsed().as_micros() as i64);
        let result = self.iface.poll(now, &mut self.wire, &mut self.sockets);
        let mut moved = self.frames != before || result == PollResult::SocketStateChanged;
        while let Some(frame) = self.wire.to_net.pop_front() {
            moved = true;
            let large = self.wire.large && frame[12..14] != [8, 6];
            let offload = FrameOffload {
                // Where it is does not matter.
                checksum: large.then_some(PartialChecksum {
                    start: 34,
                    offset: 16,
                }),
                gso: None,
            };
            self.net.send(&frame, offload);
        }
        moved
    }

    fn take_frames(&mut self) {
        let (wire, frames, largest) = (&mut self.wire, &mut self.frames, &mut self.largest);
        let large = wire.large;
        let mtu = usize::from(self.net.shared.config.mtu);
        let mut take = |frame: &[u8], offload: FrameOffload| {
            assert!(offload.gso.is_some() || frame.len() <= mtu + 14);
            let mut frame = complete(frame, offload);
            *frames += 1;
            *largest = (*largest).max(frame.len());
            if large {
                raise_mss(&mut frame);
            }
            wire.to_guest.push_back(frame);
            true
        };
        while self.net.receive(&mut take).is_some() {}
    }

    /// Goes on until `done`.
    pub(super) fn run<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let moved = self.step();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(start.elapsed() < PATIENCE, "timed out: {what}");
            if !moved {
                self.sleep();
            }
        }
    }

    /// Goes on for a while in which nothing is to happen.
    pub(super) fn idle(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            if !self.step() {
                self.sleep();
            }
        }
    }

    fn sleep(&self) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let mut fds = [PollFd::new(&self.net, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
    }

    /// A TCP socket with buffers of this size.
    pub(super) fn tcp_socket(&mut self, buffer: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    /// Begins a connection to `remote`.
    pub(super) fn begin(&mut self, buffer: usize, remote: SocketAddr, port: u16) -> SocketHandle {
        let handle = self.tcp_socket(buffer);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(self.iface.context(), remote, port)
            .expect("cannot connect");
        handle
    }

    /// Connects to `remote`.
    pub(super) fn connect(&mut self, buffer: usize, remote: SocketAddr) -> SocketHandle {
        let handle = self.begin(buffer, remote, 40000);
        self.run("connect", |guest| {
            guest.tcp(handle).may_send().then_some(())
        });
        handle
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends a frame of its own making and returns what comes back.
    pub(super) fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.net.send(frame, FrameOffload::default());
        self.collect()
    }

    /// The next frames for the guest, which its stack does not see.
    pub(super) fn wait_frames(&mut self, what: &str) -> Vec<Vec<u8>> {
        let start = Instant::now();
        loop {
            self.net.process(Instant::now());
            let frames = self.collect();
            if !frames.is_empty() {
                return frames;
            }
            assert!(start.elapsed() < PATIENCE, "timed out: {what}");
            self.sleep();
        }
    }

    /// All frames for the guest, complete.
    pub(super) fn collect(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while self
            .net
            .receive(|frame, offload| {
                frames.push(complete(frame, offload));
                true
            })
            .is_some()
        {}
        frames
    }
}

/// Has smoltcp send large segments, as a guest with segmentation offload does.
fn raise_mss(frame: &mut [u8]) {
    let tcp = match frame[12..14] {
        [0x08, 0x00] if frame[23] == 6 => 34,
        [0x86, 0xdd] if frame[20] == 6 => 54,
        _ => return,
    };
    let syn = frame[tcp + 13] & 2 != 0;
    if syn && frame[tcp + 20..tcp + 22] == [2, 4] {
        frame[tcp + 22..tcp + 24].copy_from_slice(&65000_u16.to_be_bytes());
    }
}

/// The gateway's address, which stands for the host, with a port.
pub(super) fn host_v4(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 0, 2, 2).into(), port)
}

/// The same of IPv6.
pub(super) fn host_v6(port: u16) -> SocketAddr {
    let gateway = Config::default().ipv6.unwrap().gateway;
    SocketAddr::new(gateway.into(), port)
}

/// Bytes that show where they belong.
pub(super) fn pattern(offset: usize, len: usize) -> Vec<u8> {
    // A prime, so that no two places that a mistake could confuse look alike.
    const PERIOD: usize = 65521;
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let byte = |index: usize| (index ^ index >> 8) as u8;
        (0..PERIOD).map(byte).collect()
    });
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let from = (offset + bytes.len()) % PERIOD;
        let count = (len - bytes.len()).min(PERIOD - from);
        bytes.extend_from_slice(&TABLE[from..from + count]);
    }
    bytes
}
