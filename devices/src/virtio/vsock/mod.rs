//! Socket device (virtio 1.2 section 5.10): streams between programs of the guest and programs of the
//! host, without a network.
//!
//! Reading order: this file (the device and its idle half), `packet` (the header), `credit` and
//! `connection` (the state of one), `handshake` and `unix` (the host's sockets), `watch`,
//! `slot` and `muxer` (all connections), `worker` (the running half).
//!
//! # At the host
//! A program of the host connects to the Unix socket at the configured path, writes `CONNECT <port>\n`,
//! and reads `OK <host port>\n` once a program of the guest that listens on this port has it; from then
//! on the stream is theirs. If nobody listens, the connection is closed. A program of the guest that
//! connects to port N of context id 2 reaches the Unix socket that has the path with `_N` behind it,
//! and is refused if nobody listens there.
//!
//! The socket at the path listens from the device's construction to its end. Who connects before the
//! guest's driver is ready waits in the socket's backlog until it is.
//!
//! Connections do not outlive the driver: when the device is reset or deactivated, they are closed at
//! the host. A driver that goes on afterwards with the same queues is told so by a transport reset
//! event (section 5.10.6.7).

mod connection;
mod counters;
mod credit;
mod handshake;
mod muxer;
pub mod packet;
mod slot;
#[cfg(test)]
mod test_support;
mod unix;
mod watch;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use self::counters::Counts;
pub use self::counters::{VsockControl, VsockCounters};
use self::muxer::Muxer;
use self::unix::Listening;
use self::worker::{Paused, Queues, Worker};
use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes, restore_nothing};
use crate::state::BadState;

/// Sizes of the receive, transmit and event queue. The driver fills the first with buffers: 1 MiB of
/// its memory, if it is Linux.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const EVENT_QUEUE: usize = 2;
/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
const F_STREAM: u32 = 0;
/// The first context id that is a guest's, and the last: 0 to 2 and 2^32-1 have a meaning.
const CID_MIN: u32 = 3;
const CID_MAX: u32 = 0xffff_fffe;

/// Why there can be no such device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A context id that is not for a guest.
    #[error("A guest's context id is from {CID_MIN} to {CID_MAX}, and not {cid}")]
    Cid {
        /// The id.
        cid: u32,
    },
    /// No path, one that is too long, or one with a zero byte in it.
    #[error("The path of a Unix socket has 1 to {max} bytes and no zero, unlike {path:?}")]
    Path {
        /// The path.
        path: PathBuf,
        /// Bytes it may have.
        max: usize,
    },
    /// Another process listens there, or it is no socket.
    #[error("{} is already in use", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("Cannot listen at {}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id: 3 to 0xffff_fffe. Only the guest sees it: it need not differ from other
    /// guests'.
    pub cid: u32,
    /// Where the host's Unix socket is, at most 107 bytes. With `_N` behind it, it is where the host
    /// listens for the guest's connections to port N.
    pub path: PathBuf,
}

/// The device.
pub struct Vsock {
    // Fixed configuration.
    cid: u32,
    // Runtime glue.
    event_loop: Arc<dyn EventLoop>,
    listening: Listening,
    counts: Arc<Counts>,
    worker: Option<Attached<Worker>>,
    /// Its connections, while it is paused.
    paused: Option<Box<Paused>>,
}

impl Vsock {
    /// A device whose worker lives on `event_loop`. The host's socket listens when this returns.
    pub fn new(config: VsockConfig, event_loop: Arc<dyn EventLoop>) -> Result<Self, Error> {
        let VsockConfig { cid, path } = config;
        if !(CID_MIN..=CID_MAX).contains(&cid) {
            return Err(Error::Cid { cid });
        }
        Ok(Self {
            cid,
            event_loop,
            listening: Listening::new(&path)?,
            counts: Arc::default(),
            worker: None,
            paused: None,
        })
    }

    /// What can be asked about it from outside.
    pub fn control(&self) -> VsockControl {
        VsockControl(Arc::clone(&self.counts))
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // The upper half of guest_cid is reserved (section 5.10.4).
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        // All of it is read-only.
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        let paused = self.paused.take().filter(|_| resources.resumed);
        let queues = Queues {
            rx: resources.take_queue(RX_QUEUE),
            tx: resources.take_queue(TX_QUEUE),
            event: resources.take_queue(EVENT_QUEUE),
        };
        let worker = match paused {
            Some(paused) => Worker::resumed(queues, *paused),
            None => {
                let counts = Arc::clone(&self.counts);
                let (path, listener) = (self.listening.path(), self.listening.listener());
                let muxer = Muxer::new(self.cid, path, listener, counts)
                    .map_err(|error| ActivateError(Box::new(error)))?;
                Worker::new(queues, muxer)
            }
        };
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.paused = None;
        let worker = self.worker.take().and_then(Attached::detach);
        // The connections end here, and with them their sockets.
        worker.map_or_else(Vec::new, |worker| worker.queues.into_vec())
    }

    fn pause(&mut self) -> Vec<Queue> {
        let Some(worker) = self.worker.take().and_then(Attached::detach) else {
            return Vec::new();
        };
        let (queues, paused) = worker.pause();
        self.paused = Some(Box::new(paused));
        queues
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        restore_nothing(state)
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;

#[cfg(test)]
mod bulk_test;
#[cfg(test)]
mod hostile_test;
