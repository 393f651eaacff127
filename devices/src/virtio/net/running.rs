//! A pair of queues while the device is active.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::{KernelError, KernelRings, NetBackend};
use super::rx::Rx;
use super::tx::Tx;
use crate::virtio::queue::Queue;

/// Who serves a pair's rings.
pub(super) enum Rings {
    Worker {
        rx: Option<Rx>,
        tx: Option<Tx>,
    },
    Kernel {
        server: Box<dyn KernelRings>,
        rx: Option<Queue>,
        tx: Option<Queue>,
        started: bool,
    },
}

/// A pair of queues that runs.
pub(super) struct Running {
    pub(super) backend: Box<dyn NetBackend>,
    pub(super) rings: Rings,
    pub(super) enabled: bool,
    /// What the backend is watched for.
    pub(super) watched: EventSet,
}

impl Running {
    /// One of its queues.
    pub(super) fn any_queue(&self) -> Option<&Queue> {
        match &self.rings {
            Rings::Worker { rx, tx } => rx.as_ref().map(Rx::queue).or(tx.as_ref().map(Tx::queue)),
            Rings::Kernel { rx, tx, .. } => rx.as_ref().or(tx.as_ref()),
        }
    }

    /// Has the kernel serve the rings, or stop doing so.
    pub(super) fn update_kernel(
        &mut self,
        wanted: bool,
        features: u64,
        memory: &GuestMemoryMmap,
    ) -> Result<(), KernelError> {
        let Rings::Kernel {
            server,
            rx: Some(rx),
            tx: Some(tx),
            started,
        } = &mut self.rings
        else {
            return Ok(());
        };
        if *started == wanted {
            return Ok(());
        }
        if wanted {
            server.start(features, memory, rx, tx, self.backend.fd())?;
            *started = true;
            // What came before it listened.
            rx.kick_myself();
            tx.kick_myself();
            return Ok(());
        }
        *started = false;
        let next = server.stop()?;
        for (queue, next_avail) in [rx, tx].into_iter().zip(next) {
            // It counts what it has used in the ring itself, behind the flags.
            let [_, _, used] = queue.addresses();
            let used: u16 = memory.load(GuestAddress(used + 2), Ordering::Acquire)?;
            queue.set_position(next_avail, u16::from_le(used));
        }
        Ok(())
    }

    /// Watches the backend for `wanted`.
    pub(super) fn watch(
        &mut self,
        data: u32,
        wanted: EventSet,
        ops: &mut EventOps,
    ) -> event_manager::Result<()> {
        if wanted == self.watched {
            return Ok(());
        }
        let was_watched = !self.watched.is_empty();
        self.watched = wanted;
        let fd: RawFd = self.backend.fd();
        let events = Events::with_data_raw(fd, data, wanted);
        // Without interest in any event, epoll would still report an error, for ever.
        match (was_watched, !wanted.is_empty()) {
            (false, _) => ops.add(events),
            (true, true) => ops.modify(events),
            (true, false) => ops.remove(events),
        }
    }
}
