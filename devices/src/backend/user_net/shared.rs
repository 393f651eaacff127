//! What all protocols use: tokens and tables, timers, the queues towards the guest, counters.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll;

use super::config::{Config, Counters, FrameOffload, Protocol};
use super::packet::{ETHERNET_LEN, HEADROOM, Link, MAX_PACKET};
use super::{fragment, policy};

/// Frames that are not of a connection, such as answers to pings, and wait for the guest.
const MAX_FRAMES: usize = 1024;
/// Bytes of these.
const MAX_FRAME_BYTES: usize = 1 << 20;
/// Destinations for which a refusal was logged.
const MAX_LOGGED: usize = 256;
/// Large buffers that are kept for reuse.
const MAX_SPARE: usize = 32;
/// Bytes of a large buffer: any packet with its headers.
pub(super) const BUFFER_LEN: usize = HEADROOM + MAX_PACKET;

/// Whom an event, a timer or a turn is for. The generation tells an entry from its predecessor at the
/// same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Token {
    Tcp(Key),
    Flow(Key),
    /// A forwarded port, by index.
    Forward(u16),
    /// Router advertisements.
    Router,
}

/// An entry of a [`Slab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Token {
    /// As what epoll keeps with a descriptor. Of the generation 30 bits are kept.
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Self::Tcp(key) => (0, key),
            Self::Flow(key) => (1, key),
            Self::Forward(index) => (
                2,
                Key {
                    index: index.into(),
                    generation: 0,
                },
            ),
            Self::Router => (
                3,
                Key {
                    index: 0,
                    generation: 0,
                },
            ),
        };
        kind << 62 | u64::from(key.generation) << 32 | u64::from(key.index)
    }

    fn unpack(data: u64) -> Self {
        let index = data as u32;
        let generation = (data >> 32) as u32 & GENERATION_MASK;
        let key = Key { index, generation };
        match data >> 62 {
            0 => Self::Tcp(key),
            1 => Self::Flow(key),
            2 => Self::Forward(index as u16),
            _ => Self::Router,
        }
    }
}

const GENERATION_MASK: u32 = (1 << 30) - 1;

/// A table whose entries have keys that are not used again for long.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop()
            && let Some((generation, entry)) = self.entries.get_mut(index as usize)
        {
            *entry = Some(value);
            let generation = *generation;
            return Key { index, generation };
        }
        // Tables are bounded far below 4 Gi entries.
        let index = self.entries.len() as u32;
        self.entries.push((0, Some(value)));
        Key {
            index,
            generation: 0,
        }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.index as usize) {
            Some((generation, entry)) if *generation == key.generation => entry.as_mut(),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, entry) = self.entries.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let value = entry.take()?;
        *generation = (*generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        Some(value)
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let used = self.entries.iter().enumerate();
        used.filter(|(_, (_, entry))| entry.is_some())
            .map(|(index, &(generation, _))| Key {
                index: index as u32,
                generation,
            })
            .collect()
    }
}

/// When an entry wants to be called. Its timer is only moved when it would be too late: one that is
/// too early finds that out, and is set again.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    scheduled: Option<Instant>,
    wanted: Option<Instant>,
}

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, Token)>);

impl Timers {
    /// Has `token` called at `wanted`, or not at all.
    pub(super) fn set(&mut self, alarm: &mut Alarm, token: Token, wanted: Option<Instant>) {
        alarm.wanted = wanted;
        let Some(at) = wanted else { return };
        match alarm.scheduled {
            Some(scheduled) if scheduled <= at => return,
            Some(scheduled) => {
                self.0.remove(&(scheduled, token));
            }
            None => {}
        }
        alarm.scheduled = Some(at);
        self.0.insert((at, token));
    }

    /// Forgets the timer of an entry that ends.
    pub(super) fn cancel(&mut self, alarm: &mut Alarm, token: Token) {
        alarm.wanted = None;
        if let Some(scheduled) = alarm.scheduled.take() {
            self.0.remove(&(scheduled, token));
        }
    }

    /// Whether a timer that has gone off is due; sets it again if it is not.
    pub(super) fn is_due(&mut self, alarm: &mut Alarm, token: Token, now: Instant) -> bool {
        alarm.scheduled = None;
        match alarm.wanted {
            Some(wanted) if wanted <= now => {
                alarm.wanted = None;
                true
            }
            wanted => {
                self.set(alarm, token, wanted);
                false
            }
        }
    }

    /// The next timer.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(at, _)| at)
    }

    /// Takes the next timer if it has gone off.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Token> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, token)| token)
    }
}

/// Takes a frame for the guest; false if there is no room for it now.
pub(super) type Deliver<'a> = dyn FnMut(&[u8], FrameOffload) -> bool + 'a;

/// Where a packet of the guest is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To this address of the host's network.
    Host(SocketAddr),
    /// To a resolver.
    Resolver,
    /// To the gateway itself, or the DNS address: nothing but ICMP is there.
    Local,
    /// The policy refuses it.
    Refused,
    /// Nobody can be there.
    Nowhere,
}

/// What all protocols use.
#[derive(Debug)]
pub(super) struct Shared {
    // Fixed configuration.
    pub(super) config: Config,
    // Runtime glue.
    epoll: OwnedFd,
    // Volatile state.
    pub(super) link: Link,
    pub(super) now: Instant,
    pub(super) timers: Timers,
    pub(super) counters: Counters,
    /// Whose turn it is to send to the guest. None is here twice.
    pub(super) ready: VecDeque<Token>,
    /// Frames that wait for the guest; complete, with their offload.
    frames: VecDeque<(Vec<u8>, FrameOffload)>,
    frame_bytes: usize,
    /// The identification of the last packet of IPv6 in fragments.
    fragment_id: u32,
    spare: Vec<Vec<u8>>,
    logged: HashSet<(IpAddr, Option<u16>)>,
    /// The address in the IPv6 network that the guest used last.
    pub(super) guest_v6: Option<Ipv6Addr>,
}

impl Shared {
    pub(super) fn new(config: Config) -> io::Result<Self> {
        let link = Link {
            guest_mac: config.guest_mac,
            gateway_mac: config.gateway_mac,
            mtu: config.mtu.into(),
            offloads: Default::default(),
            ident: 0,
        };
        Ok(Self {
            config,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            link,
            now: Instant::now(),
            timers: Timers::default(),
            counters: Counters::default(),
            ready: VecDeque::new(),
            frames: VecDeque::new(),
            frame_bytes: 0,
            fragment_id: 0,
            spare: Vec::new(),
            logged: HashSet::new(),
            guest_v6: None,
        })
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Reports each change of `fd` to `token`, once.
    pub(super) fn watch_edges(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        use epoll::EventFlags;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, event_data(token), flags)?;
        Ok(())
    }

    /// Reports to `token` while `fd` is readable.
    pub(super) fn watch_input(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::add(&self.epoll, fd, event_data(token), epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Changes what [`Shared::watch_input`] has begun.
    pub(super) fn pause_input(&self, fd: impl AsFd, token: Token, paused: bool) {
        let flags = match paused {
            true => epoll::EventFlags::empty(),
            false => epoll::EventFlags::IN,
        };
        // Fails only for a descriptor that is not watched.
        let _ = epoll::modify(&self.epoll, fd, event_data(token), flags);
    }

    /// The next events, at most as many as `events` can hold.
    pub(super) fn events(&self, events: &mut Vec<(Token, epoll::EventFlags)>) {
        let zero = rustix::event::Timespec::default();
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 256];
        let ready = epoll::wait(&self.epoll, &mut buffer, Some(&zero));
        // Nothing to wait for cannot fail but by a signal, after which the descriptor is ready still.
        if let Ok((ready, _)) = ready {
            let ready = ready.iter();
            events.extend(ready.map(|event| (Token::unpack(event.data.u64()), event.flags)));
        }
    }

    /// Queues a frame for the guest.
    pub(super) fn push_frame(&mut self, frame: Vec<u8>) {
        self.push_frame_with(frame, FrameOffload::default());
    }

    /// Queues a frame for the guest, complete, and in fragments if it is too large.
    pub(super) fn push_packet(&mut self, frame: Vec<u8>) {
        if frame.len() <= self.link.mtu + ETHERNET_LEN {
            return self.push_frame(frame);
        }
        self.fragment_id = self.fragment_id.wrapping_add(1);
        for piece in fragment::split(&frame, self.link.mtu, self.fragment_id) {
            self.push_frame(piece);
        }
    }

    /// Queues a frame for the guest that leaves something to it.
    pub(super) fn push_frame_with(&mut self, frame: Vec<u8>, offload: FrameOffload) {
        if self.frames.len() >= MAX_FRAMES || self.frame_bytes + frame.len() > MAX_FRAME_BYTES {
            self.counters.dropped_full += 1;
            return;
        }
        self.frame_bytes += frame.len();
        self.frames.push_back((frame, offload));
    }

    /// Whether frames wait that are not of a connection.
    pub(super) fn has_frames(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Hands the oldest such frame over. None if there is none, Some(false) if it was not taken.
    pub(super) fn deliver_frame(&mut self, deliver: &mut Deliver<'_>) -> Option<bool> {
        let (frame, offload) = self.frames.front()?;
        if !deliver(frame, *offload) {
            return Some(false);
        }
        let len = frame.len();
        self.frame_bytes = self.frame_bytes.saturating_sub(len);
        self.frames.pop_front();
        self.count_delivered(len);
        Some(true)
    }

    /// Hands a frame over now, or queues it.
    pub(super) fn deliver_or_push(
        &mut self,
        frame: &[u8],
        offload: FrameOffload,
        deliver: &mut Deliver<'_>,
    ) -> bool {
        if self.frames.is_empty() && deliver(frame, offload) {
            self.count_delivered(frame.len());
            return true;
        }
        self.push_frame_with(frame.to_vec(), offload);
        false
    }

    /// Counts a frame that the guest has got.
    pub(super) fn count_delivered(&mut self, len: usize) {
        self.counters.host_frames += 1;
        self.counters.host_bytes += len as u64;
    }

    /// Gives up all that waits for the guest, and what is known of it.
    pub(super) fn reset(&mut self) {
        self.frames.clear();
        self.frame_bytes = 0;
        self.ready.clear();
        self.guest_v6 = None;
        self.link.guest_mac = self.config.guest_mac;
    }

    /// A buffer of [`BUFFER_LEN`] bytes.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| vec![0; BUFFER_LEN])
    }

    /// Takes back a buffer for reuse, if it is a large one.
    pub(super) fn give_buffer(&mut self, buffer: Vec<u8>) {
        if buffer.len() == BUFFER_LEN && self.spare.len() < MAX_SPARE {
            self.spare.push(buffer);
        }
    }

    /// Where a packet to `destination` goes. A port of 0 stands for ICMP.
    pub(super) fn route(&mut self, destination: SocketAddr, protocol: Option<Protocol>) -> Route {
        let (address, port) = (destination.ip(), destination.port());
        let named_port = protocol.map(|_| port);
        let (ipv4, ipv6) = (self.config.ipv4, self.config.ipv6);
        let gateway = address == ipv4.gateway || ipv6.is_some_and(|ipv6| address == ipv6.gateway);
        let dns = address == ipv4.dns || ipv6.is_some_and(|ipv6| address == ipv6.dns);
        let policy = &self.config.policy;
        let (allowed, route) = if dns && named_port == Some(53) {
            (policy.allows_dns(address), Route::Resolver)
        } else if protocol.is_none() && (gateway || dns) {
            (true, Route::Local)
        } else if gateway && self.config.host_loopback {
            let loopback = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            let host = SocketAddr::new(loopback, port);
            (policy.allows(address, named_port), Route::Host(host))
        } else if gateway || dns {
            (true, Route::Local)
        } else if !self.is_outside(address) {
            self.counters.dropped_unroutable += 1;
            return Route::Nowhere;
        } else {
            (policy.allows(address, named_port), Route::Host(destination))
        };
        if allowed {
            return route;
        }
        self.counters.refused += 1;
        if self.logged.len() < MAX_LOGGED && self.logged.insert((address, named_port)) {
            match named_port {
                Some(_) => log::warn!("User network: refused the guest {destination}"),
                None => log::warn!("User network: refused the guest {address}"),
            }
        }
        Route::Refused
    }

    /// Whether `address` is one of a single host that is neither in the guest's network nor, by
    /// whatever way of writing it, the host's loopback.
    fn is_outside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let ipv4 = self.config.ipv4;
                let first = v4.octets()[0];
                !(first == 0
                    || first == 127
                    // Multicast, reserved, broadcast.
                    || first >= 224
                    || policy::contains(ipv4.gateway.into(), ipv4.prefix, address))
            }
            IpAddr::V6(v6) => {
                let first = v6.segments()[0];
                // All of ::/96 and ::ffff:0:0/96 stands for something of IPv4, such as 127.0.0.1.
                let embedded = v6.segments()[..5] == [0; 5];
                let inside = self
                    .config
                    .ipv6
                    .is_some_and(|ipv6| policy::contains(ipv6.gateway.into(), 64, address));
                !(embedded || inside || v6.is_multicast() || first & 0xffc0 == 0xfe80)
            }
        }
    }

    /// The address under which the guest sees a peer of a forwarded port.
    pub(super) fn peer_address(&self, peer: IpAddr, guest: IpAddr) -> Option<IpAddr> {
        if peer.is_ipv4() == guest.is_ipv4() && self.is_outside(peer) {
            return Some(peer);
        }
        match guest {
            IpAddr::V4(_) => Some(self.config.ipv4.gateway.into()),
            IpAddr::V6(_) => Some(self.config.ipv6?.gateway.into()),
        }
    }

    /// The guest's address for a peer that came by IPv4 or IPv6.
    pub(super) fn guest_address(&self, peer: IpAddr) -> IpAddr {
        match (peer, self.guest_v6) {
            (IpAddr::V6(_), Some(guest)) => guest.into(),
            _ => self.config.ipv4.guest.into(),
        }
    }
}

fn event_data(token: Token) -> epoll::EventData {
    epoll::EventData::new_u64(token.pack())
}

#[cfg(test)]
#[path = "shared_test.rs"]
mod tests;
