//! The service on a card's link: what stands between the card and its backend, and takes the frames that
//! are for the service.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::Mmds;
use super::stack::Stack;
use crate::backend::user_backend::scatter;
use crate::lock;
use crate::random::random;
use crate::virtio::net::backend::{HEADER_LEN, NetBackend, Offloads, Support};

/// Flag of the header: the checksum is not filled in (section 5.1.6).
const F_NEEDS_CSUM: u8 = 1;
/// Bytes of a frame that say whom it is for: Ethernet and ARP.
const LOOKED_AT: usize = 14 + 28;
/// Bytes of memory that are kept for the next frame.
const MAX_KEPT: usize = 4096;
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const ETHERTYPE_ARP: [u8; 2] = [8, 6];
/// Where the target's address is in a frame, by its protocol.
const IPV4_TARGET: usize = 14 + 16;
const ARP_TARGET: usize = 14 + 24;
/// A timer does not expire earlier: 0 would disarm it, and whoever is in a hurry for no reason gets no
/// more of the loop than this.
const SHORTEST: Duration = Duration::from_millis(1);

// Which descriptor an event is for.
const INNER: u64 = 0;
const TIMER: u64 = 1;

/// One pair of queues with the service on it.
struct MmdsBackend {
    // Fixed configuration.
    address: Ipv4Addr,
    /// The first pair, which is always in use, has the timer.
    is_first: bool,
    // Runtime glue.
    inner: Box<dyn NetBackend>,
    responder: Arc<Mutex<Responder>>,
    epoll: Epoll,
    /// A frame for the service, in one piece.
    frame: Vec<u8>,
    // Volatile state.
    /// The pair's backend takes no frames for now.
    is_blocked: bool,
}

/// What all pairs of a card share: a guest may send one connection's segments by any of them.
struct Responder {
    stack: Stack,
    timer: TimerFd,
    /// When it expires.
    armed: Option<Instant>,
}

/// Puts the service on the link of a card: on all of its pairs. `guest` is the card's hardware address, if
/// it has one. Fails when the process has no file descriptors left.
pub fn wrap(
    pairs: Vec<Box<dyn NetBackend>>,
    mmds: &Arc<Mmds>,
    guest: Option<[u8; 6]>,
    mtu: u16,
) -> io::Result<Vec<Box<dyn NetBackend>>> {
    let seed = u64::from_ne_bytes(random()?);
    let stack = Stack::new(Arc::clone(mmds), guest, mtu, seed);
    let address = stack.address();
    let responder = Arc::new(Mutex::new(Responder {
        stack,
        timer: TimerFd::new()?,
        armed: None,
    }));
    pairs
        .into_iter()
        .enumerate()
        .map(|(number, inner)| {
            let is_first = number == 0;
            let epoll = Epoll::new()?;
            let event = EpollEvent::new(watched(&*inner, false), INNER);
            epoll.ctl(ControlOperation::Add, inner.fd(), event)?;
            if is_first {
                let event = EpollEvent::new(EventSet::IN, TIMER);
                let timer = lock(&responder).timer.as_raw_fd();
                epoll.ctl(ControlOperation::Add, timer, event)?;
            }
            let backend = MmdsBackend {
                address,
                is_first,
                inner,
                responder: Arc::clone(&responder),
                epoll,
                frame: Vec::new(),
                is_blocked: false,
            };
            Ok(Box::new(backend) as Box<dyn NetBackend>)
        })
        .collect()
}

/// What of the pair's own backend is waited for.
///
/// One without work of its own stays readable while the guest takes no frames, and is watched all the
/// same once this backend has work: it is told of once a frame. One with work is quiet when it was done.
fn watched(inner: &dyn NetBackend, is_blocked: bool) -> EventSet {
    let mut events = EventSet::IN;
    if !inner.has_work() {
        events |= EventSet::EDGE_TRIGGERED;
    }
    if is_blocked {
        events |= EventSet::OUT;
    }
    events
}

impl Responder {
    /// Sets the timer for what the stack has to do next.
    fn arm(&mut self, now: Instant) {
        let next = self.stack.poll_at(now);
        if next == self.armed {
            return;
        }
        self.armed = next;
        // Fail only with arguments that are not used here.
        let _ = match next {
            None => self.timer.clear(),
            Some(next) => {
                let wait = next.saturating_duration_since(now).max(SHORTEST);
                self.timer.reset(wait, None)
            }
        };
    }

    fn work(&mut self, now: Instant) {
        if self.armed.is_some_and(|armed| armed <= now) {
            // Also takes back the expiry.
            let _ = self.timer.clear();
            self.armed = None;
        }
        self.stack.process(now);
        self.arm(now);
    }
}

impl MmdsBackend {
    /// Whether the pair's own backend is waited for to be writable.
    fn set_blocked(&mut self, is_blocked: bool) {
        if !self.is_blocked && !is_blocked {
            return;
        }
        // Also if it was before: who is asked whether he is writable says when he is.
        self.is_blocked = is_blocked;
        let event = EpollEvent::new(watched(&*self.inner, is_blocked), INNER);
        // Fails only for a descriptor that is not there.
        let _ = self
            .epoll
            .ctl(ControlOperation::Modify, self.inner.fd(), event);
    }

    /// Gives a frame to the service.
    fn take(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.frame.clear();
        for piece in frame {
            let start = self.frame.len();
            self.frame.resize(start + piece.len(), 0);
            piece.copy_to(&mut self.frame[start..]);
        }
        let Some((header, frame)) = self.frame.split_first_chunk::<HEADER_LEN>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let is_checksummed = header[0] & F_NEEDS_CSUM == 0;
        // What the guest has changed since it was looked at is still the service's.
        let now = Instant::now();
        lock(&self.responder)
            .stack
            .frame(frame, is_checksummed, now);
        if self.frame.capacity() > MAX_KEPT {
            self.frame = Vec::new();
        }
        Ok(())
    }
}

impl NetBackend for MmdsBackend {
    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        self.inner.has_work()
            || self.is_blocked
            || self.is_first && lock(&self.responder).stack.connections() > 0
    }

    fn work(&mut self) {
        // Nobody is told twice of what is edge-triggered; what comes of it is seen below.
        let mut events = [EpollEvent::default(); 2];
        let _ = self.epoll.wait(0, &mut events);
        if self.inner.has_work() {
            self.inner.work();
        }
        if self.is_first {
            lock(&self.responder).work(Instant::now());
        }
    }

    fn support(&self) -> Support {
        self.inner.support()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        self.inner.set_enabled(enabled)
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        if is_for(self.address, &beginning(frame)) {
            return self.take(frame);
        }
        let result = self.inner.send(frame);
        let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.set_blocked(result.as_ref().is_err_and(would_block));
        result
    }

    fn flush(&mut self) -> bool {
        let has_frames = {
            let responder = &mut *lock(&self.responder);
            responder.arm(Instant::now());
            responder.stack.has_frames()
        };
        self.inner.flush() || has_frames
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        {
            let responder = &mut *lock(&self.responder);
            if responder.stack.has_frames() {
                let now = Instant::now();
                let frame = responder.stack.pop(now);
                if !responder.stack.has_frames() {
                    responder.arm(now);
                }
                if let Some(frame) = frame {
                    return Ok(scatter(room, &[&[0; HEADER_LEN], &frame]));
                }
            }
        }
        self.inner.recv(room)
    }
}

/// The first bytes of a frame, behind its header; zeroes behind its end.
fn beginning(frame: &[VolatileSlice<'_>]) -> [u8; LOOKED_AT] {
    let mut beginning = [0; HEADER_LEN + LOOKED_AT];
    let mut filled = 0;
    for piece in frame {
        // Not more than there is room for.
        filled += piece.copy_to(&mut beginning[filled..]);
        if filled >= beginning.len() {
            break;
        }
    }
    let mut frame = [0; LOOKED_AT];
    frame.copy_from_slice(&beginning[HEADER_LEN..]);
    frame
}

/// Whether a frame is an IPv4 packet to `address`, or an ARP message about it.
fn is_for(address: Ipv4Addr, frame: &[u8; LOOKED_AT]) -> bool {
    let target = match [frame[12], frame[13]] {
        ETHERTYPE_IPV4 => IPV4_TARGET,
        ETHERTYPE_ARP => ARP_TARGET,
        _ => return false,
    };
    frame[target..target + 4] == address.octets()
}

#[cfg(test)]
#[path = "backend_test.rs"]
mod tests;
