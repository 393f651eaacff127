//! What a network card stands on at the host's side: a tap, a network stack in this process, or a
//! test's double.

use std::error::Error;
use std::io;
use std::os::fd::RawFd;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use crate::virtio::queue::Queue;

/// Bytes of the header that is before every frame, both ways: `virtio_net_hdr_v1` (section 5.1.6).
pub const HEADER_LEN: usize = 12;
/// Longest frame without its header: an IP packet of 64 KiB, to be cut to what fits on a wire, with its
/// Ethernet header and a VLAN tag.
pub const MAX_FRAME: usize = 0xffff + LINK_HEADER;
/// Bytes of an Ethernet header with a VLAN tag.
pub const LINK_HEADER: usize = 18;
/// Shortest: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// What a receiver of frames can do itself, so that the sender need not have done it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Fill in checksums. The others need it.
    pub csum: bool,
    /// Cut TCP over IPv4 into segments.
    pub tso4: bool,
    /// Cut TCP over IPv6.
    pub tso6: bool,
    /// Do so where congestion is signalled (ECN).
    pub ecn: bool,
    /// Cut UDP over IPv4 and IPv6 into datagrams.
    pub uso: bool,
}

impl Offloads {
    /// All.
    pub const ALL: Self = Self {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };

    /// Whether a frame may be longer than the MTU.
    pub fn has_segmentation(&self) -> bool {
        self.tso4 || self.tso6 || self.uso
    }
}

/// What a backend can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// With frames that the guest sends.
    pub from_guest: Offloads,
    /// Frames that it gives to a guest which can do this.
    pub to_guest: Offloads,
}

/// One pair of queues of the host's end. It belongs to the worker, and is called on its loop.
///
/// Nothing here blocks. A frame begins with its header of [`HEADER_LEN`] bytes, as the guest has written
/// it or will read it; of that, `num_buffers` is the device's. What the guest has written is checked
/// here, before anyone believes it.
pub trait NetBackend: Send {
    /// Always the same descriptor, readable while [`NetBackend::recv`] has a frame, and writable when
    /// [`NetBackend::send`] takes one again.
    fn fd(&self) -> RawFd;

    /// Whether it has work of its own, such as that of a network stack: then the descriptor is watched
    /// also while the guest cannot take frames, and is readable until [`NetBackend::work`] was called.
    /// Frames that it has not taken are sent again then, whether the descriptor is writable or not.
    fn has_work(&self) -> bool;

    /// Does that work; frames may come of it.
    fn work(&mut self);

    /// What it can do; always the same.
    fn support(&self) -> Support;

    /// The guest takes frames with these left to it, which are among those that it supports. Asked of
    /// the first pair, for all.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Whether the guest serves this pair. No frames come to one that it does not.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()>;

    /// Sends a frame of the guest, whole. `WouldBlock` if there is no room now; with any other error
    /// the frame is lost.
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// No more frames are sent for now. True if there may be some to receive that the descriptor does
    /// not tell of.
    fn flush(&mut self) -> bool;

    /// Receives a frame, and returns how many bytes it has: if there is not room for all of it, as many
    /// as there is room for. `WouldBlock` if there is none; after any other error nothing more can be
    /// received.
    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;
}

/// Why the host's kernel does not serve a pair of rings.
pub type KernelError = Box<dyn Error + Send + Sync>;

/// Someone who serves a pair of rings in the place of the worker: the host's kernel.
pub trait KernelRings: Send {
    /// Which of the transport's and the device's features it knows.
    fn features(&self) -> u64;

    /// Serves `rx` and `tx`, to and from the backend whose descriptor is `fd`.
    fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        rx: &Queue,
        tx: &Queue,
        fd: RawFd,
    ) -> Result<(), KernelError>;

    /// Stops, after all that is in flight, and says what comes next in the available rings of `rx` and
    /// `tx`.
    fn stop(&mut self) -> Result<[u16; 2], KernelError>;
}

/// A pair of queues at the host's side.
pub struct Pair {
    /// The backend.
    pub backend: Box<dyn NetBackend>,
    /// Who serves the rings, if it is not the worker.
    pub kernel: Option<Box<dyn KernelRings>>,
}
