//! The user network behind a network card: frames with their headers on one side, [`UserNet`] on the
//! other.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::user_net::{
    self, Counters, Forward, FrameOffload, Gso, GsoKind, PartialChecksum, UserNet,
};
use crate::lock;
use crate::virtio::net::backend::{HEADER_LEN, NetBackend, Offloads, Support};

/// Flag of the header: the checksum is not filled in (section 5.1.6).
const F_NEEDS_CSUM: u8 = 1;
// Kinds of segmentation.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// TCP with ECN: no other work for a network in which nothing is congested.
const GSO_ECN: u8 = 0x80;
/// A timer that is to expire at once: 0 would disarm it.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// A pair of queues, of which a card on the user network has one.
pub struct UserBackend {
    // Runtime glue.
    net: Arc<Mutex<UserNet>>,
    /// Readable when either of the network's descriptor and `timer` is.
    epoll: Epoll,
    timer: TimerFd,
    /// The guest's frame, in one piece.
    frame: Vec<u8>,
    // Volatile state.
    /// When the timer expires.
    armed: Option<Instant>,
}

/// The way to a user network while its guest runs.
#[derive(Clone)]
pub struct UserNetControl(Arc<Mutex<UserNet>>);

impl UserNetControl {
    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        lock(&self.0).counters()
    }

    /// The forwarded ports, each with the host's port that it has.
    pub fn forwards(&self) -> Vec<Forward> {
        lock(&self.0).forwards().collect()
    }
}

impl UserBackend {
    /// Puts a network behind a card. Fails when the process has no file descriptors left.
    pub fn new(net: UserNet) -> io::Result<(Self, UserNetControl)> {
        let epoll = Epoll::new()?;
        let timer = TimerFd::new()?;
        for fd in [net.as_raw_fd(), timer.as_raw_fd()] {
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        let net = Arc::new(Mutex::new(net));
        let control = UserNetControl(Arc::clone(&net));
        let mut backend = Self {
            net,
            epoll,
            timer,
            frame: Vec::new(),
            armed: None,
        };
        backend.arm();
        Ok((backend, control))
    }

    /// Sets the timer for what the network has to do next.
    fn arm(&mut self) {
        let next = lock(&self.net).poll_at();
        if next == self.armed {
            return;
        }
        self.armed = next;
        // Fail only with arguments that are not used here.
        let _ = match next {
            None => self.timer.clear(),
            Some(next) => {
                let wait = next.saturating_duration_since(Instant::now()).max(AT_ONCE);
                self.timer.reset(wait, None)
            }
        };
    }
}

impl NetBackend for UserBackend {
    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        true
    }

    fn work(&mut self) {
        if self.armed.is_some_and(|armed| armed <= Instant::now()) {
            // Also takes back the expiry.
            let _ = self.timer.clear();
            self.armed = None;
        }
        lock(&self.net).process(Instant::now());
        self.arm();
    }

    fn support(&self) -> Support {
        Support {
            from_guest: Offloads::ALL,
            to_guest: Offloads {
                ecn: false,
                uso: false,
                ..Offloads::ALL
            },
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let Offloads {
            csum: checksum,
            tso4,
            tso6,
            ecn: _,
            uso: _,
        } = offloads;
        lock(&self.net).set_offloads(user_net::Offloads {
            checksum,
            tso4,
            tso6,
        });
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        // It is the only pair, so it is always in use.
        if enabled {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.frame.clear();
        for piece in frame {
            let start = self.frame.len();
            self.frame.resize(start + piece.len(), 0);
            piece.copy_to(&mut self.frame[start..]);
        }
        let Some((header, frame)) = self.frame.split_first_chunk() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let offload = read_header(header).ok_or(io::ErrorKind::InvalidInput)?;
        lock(&self.net).send(frame, offload);
        Ok(())
    }

    fn flush(&mut self) -> bool {
        self.arm();
        true
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut written = None;
        // What it says is known from whether it was called.
        let _ = lock(&self.net).receive(|frame, offload| {
            written = Some(scatter(room, &[&write_header(offload), frame]));
            true
        });
        written.ok_or_else(|| {
            self.arm();
            io::ErrorKind::WouldBlock.into()
        })
    }
}

/// Copies `parts`, one after the other, to where there is room; says how many bytes found some.
pub(crate) fn scatter(room: &[VolatileSlice<'_>], parts: &[&[u8]]) -> usize {
    let mut room = room.iter().copied();
    let mut piece = room.next();
    let mut written = 0;
    for part in parts {
        let mut left = *part;
        while let Some(here) = piece
            && !left.is_empty()
        {
            let (now, later) = left.split_at(left.len().min(here.len()));
            here.copy_from(now);
            left = later;
            written += now.len();
            // Exactly as long as the piece at the most.
            piece = match here.offset(now.len()) {
                Ok(rest) if !rest.is_empty() => Some(rest),
                _ => room.next(),
            };
        }
    }
    written
}

/// What a header of the guest says; None if it makes no sense.
fn read_header(header: &[u8; HEADER_LEN]) -> Option<FrameOffload> {
    let [flags, gso_type, l0, l1, s0, s1, c0, c1, o0, o1, _, _] = *header;
    let checksum = (flags & F_NEEDS_CSUM != 0).then_some(PartialChecksum {
        start: u16::from_le_bytes([c0, c1]),
        offset: u16::from_le_bytes([o0, o1]),
    });
    let kind = match gso_type & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(GsoKind::Tcp4),
        GSO_TCPV6 => Some(GsoKind::Tcp6),
        GSO_UDP_L4 => Some(GsoKind::Udp),
        _ => return None,
    };
    let gso = kind.map(|kind| Gso {
        kind,
        size: u16::from_le_bytes([s0, s1]),
        header_len: u16::from_le_bytes([l0, l1]),
    });
    // Section 5.1.6.2.1: segments need checksums, and are not empty.
    let is_good = gso.is_none_or(|gso| gso.size > 0 && checksum.is_some());
    is_good.then_some(FrameOffload { checksum, gso })
}

/// The header for a frame to the guest.
fn write_header(offload: FrameOffload) -> [u8; HEADER_LEN] {
    let FrameOffload { checksum, gso } = offload;
    let mut header = [0; HEADER_LEN];
    if let Some(gso) = gso {
        header[1] = match gso.kind {
            GsoKind::Tcp4 => GSO_TCPV4,
            GsoKind::Tcp6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        };
        header[2..4].copy_from_slice(&gso.header_len.to_le_bytes());
        header[4..6].copy_from_slice(&gso.size.to_le_bytes());
    }
    if let Some(checksum) = checksum {
        header[0] = F_NEEDS_CSUM;
        header[6..8].copy_from_slice(&checksum.start.to_le_bytes());
        header[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
    }
    header
}

#[cfg(test)]
#[path = "user_backend_test.rs"]
mod tests;
