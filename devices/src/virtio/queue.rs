//! A queue that runs: a split ring whose size and addresses were checked (virtio 1.2 section 2.7), with
//! the eventfd by which its driver kicks it and the interrupt by which it answers.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap, VolatileMemory, VolatileSlice,
    volatile_memory,
};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Chain};
use super::interrupt::Interrupt;

/// Largest size of a queue (section 2.7).
pub const MAX_SIZE: u16 = 1 << 15;
/// Bytes of a ring before its entries, of an entry of the available ring, of one of the used ring, and of
/// the event index behind them.
const RING_HEADER: usize = 4;
const AVAIL_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
const EVENT_FIELD: usize = 2;
/// Where in a ring its index is.
const AVAIL_INDEX: usize = 2;
const USED_INDEX: usize = 2;
/// Flag of the available ring: no interrupts (section 2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// What is wrong with a queue. Its driver broke the rules; only a reset helps.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a power of two, or more than the device allows.
    #[error("Queue {index} cannot have {size} entries")]
    Size {
        /// The queue.
        index: u16,
        /// What the driver wants.
        size: u16,
    },
    /// Misaligned, or not in RAM.
    #[error("Queue {index} cannot have its rings at {desc:#x}, {avail:#x} and {used:#x}")]
    Addresses {
        /// The queue.
        index: u16,
        /// Descriptor table.
        desc: u64,
        /// Available ring.
        avail: u64,
        /// Used ring.
        used: u64,
    },
    /// The available index ran ahead of what the ring can hold.
    #[error("The available ring of queue {index} jumped")]
    Jumped {
        /// The queue.
        index: u16,
    },
    /// A bad request.
    #[error("A bad descriptor chain in queue {index}")]
    Chain {
        /// The queue.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: chain::Error,
    },
    /// The ring itself cannot be accessed.
    #[error("The ring of queue {index} cannot be used")]
    Ring {
        /// The queue.
        index: u16,
        /// Why.
        #[source]
        source: virtio_queue::Error,
    },
}

/// A queue as its driver has described it, before anything was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries.
    pub size: u16,
    /// GPA of the descriptor table.
    pub desc: u64,
    /// GPA of the available ring.
    pub avail: u64,
    /// GPA of the used ring.
    pub used: u64,
    /// The driver has finished describing it.
    pub ready: bool,
}

/// A running queue.
pub struct Queue {
    // Fixed configuration.
    index: u16,
    // Runtime glue.
    memory: Arc<GuestMemoryMmap>,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    // Volatile state.
    ring: Ring,
    /// The used index when the driver was last notified, or did not want to be.
    notified: u16,
}

impl Queue {
    /// Checks what the driver described; `max_size` is the device's limit.
    pub fn new(
        index: u16,
        config: &QueueConfig,
        max_size: u16,
        event_idx: bool,
        memory: Arc<GuestMemoryMmap>,
        kick: Arc<EventFd>,
        interrupt: Interrupt,
    ) -> Result<Self, Error> {
        let &QueueConfig {
            size,
            desc,
            avail,
            used,
            ready: _,
        } = config;
        if !size.is_power_of_two() || size > max_size {
            return Err(Error::Size { index, size });
        }
        let wrong = || Error::Addresses {
            index,
            desc,
            avail,
            used,
        };
        let wrong_ring = |_| wrong();
        let mut ring = Ring::new(size).map_err(wrong_ring)?;
        ring.try_set_size(size).map_err(wrong_ring)?;
        ring.try_set_desc_table_address(GuestAddress(desc))
            .map_err(wrong_ring)?;
        ring.try_set_avail_ring_address(GuestAddress(avail))
            .map_err(wrong_ring)?;
        ring.try_set_used_ring_address(GuestAddress(used))
            .map_err(wrong_ring)?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        if !ring.is_valid(&*memory) || !rings_are_ram(&memory, config) {
            return Err(wrong());
        }
        Ok(Self {
            index,
            memory,
            kick,
            interrupt,
            ring,
            notified: 0,
        })
    }

    /// Its index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries: a power of two.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Readable when the driver has kicked; to be read before the queue is looked at.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Has the queue looked at again, after the others of its loop have had their turn.
    pub fn kick_myself(&self) {
        // Fails only when the counter is at its maximum: it is readable then too.
        let _ = self.kick.write(1);
    }

    /// How it interrupts.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// GPAs of the descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [
            self.ring.desc_table(),
            self.ring.avail_ring(),
            self.ring.used_ring(),
        ]
    }

    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub fn event_idx(&self) -> bool {
        self.ring.event_idx_enabled()
    }

    /// Indices of the next entry of the available and the used ring, as the device counts them.
    pub fn position(&self) -> (u16, u16) {
        (self.ring.next_avail(), self.ring.next_used())
    }

    /// Goes on from there: where the kernel of the host, or an earlier life of this queue, stopped.
    pub fn set_position(&mut self, next_avail: u16, next_used: u16) {
        self.ring.set_next_avail(next_avail);
        self.ring.set_next_used(next_used);
        self.notified = next_used;
    }

    /// The next request, if there is one. On an error the queue is broken: see [`Queue::fail`].
    pub fn pop(&mut self) -> Result<Option<Chain>, Error> {
        let index = self.index;
        let size = self.size();
        let memory_error = |error| self.memory_error(error);
        let ring = self.avail()?;
        let avail: u16 = ring
            .load(AVAIL_INDEX, Ordering::Acquire)
            .map_err(memory_error)?;
        let next = self.ring.next_avail();
        let waiting = u16::from_le(avail).wrapping_sub(next);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > size {
            return Err(Error::Jumped { index });
        }
        let entry = RING_HEADER + AVAIL_ENTRY * usize::from(next & (size - 1));
        let head: u16 = ring.load(entry, Ordering::Relaxed).map_err(memory_error)?;
        let table = GuestAddress(self.ring.desc_table());
        let chain = Chain::read(&self.memory, table, size, u16::from_le(head))
            .map_err(|source| Error::Chain { index, source })?;
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Puts the request that was taken last back: it comes again.
    pub fn undo_pop(&mut self) {
        self.ring
            .set_next_avail(self.ring.next_avail().wrapping_sub(1));
    }

    /// Whether a request waits.
    pub fn has_next(&self) -> bool {
        self.ring
            .avail_idx(&*self.memory, Ordering::Acquire)
            .is_ok_and(|avail| avail.0 != self.ring.next_avail())
    }

    /// Returns the request `head` to the driver, with `written` bytes in its writable buffers.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), Error> {
        self.complete_all(&[(head, written)])
    }

    /// Returns several requests at once, with what was written to each: the driver sees all of them or
    /// none (section 5.1.6.4: the buffers of one frame).
    pub fn complete_all(&mut self, requests: &[(u16, u32)]) -> Result<(), Error> {
        let index = self.index;
        let size = self.size();
        let ring = self.used()?;
        let mut next = Wrapping(self.ring.next_used());
        for &(head, written) in requests {
            if head >= size {
                let source = virtio_queue::Error::InvalidDescriptorIndex;
                return Err(Error::Ring { index, source });
            }
            let entry = RING_HEADER + USED_ENTRY * usize::from(next.0 & (size - 1));
            let value = u64::from(written) << 32 | u64::from(head);
            let place = ring.get_ref::<u64>(entry);
            place
                .map_err(|error| self.memory_error(error))?
                .store(value.to_le());
            next += 1;
        }
        ring.store(next.0.to_le(), USED_INDEX, Ordering::Release)
            .map_err(|error| self.memory_error(error))?;
        self.ring.set_next_used(next.0);
        Ok(())
    }

    /// Interrupts, if the driver wants to know of what was completed since the last call.
    pub fn notify(&mut self) -> Result<(), Error> {
        let index = self.index;
        let used = self.ring.next_used();
        if used == self.notified {
            return Ok(());
        }
        // What was completed is to be seen before what the driver wants is looked at.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx() {
            // The last field of the available ring.
            let event = self.avail_field(RING_HEADER + AVAIL_ENTRY * usize::from(self.size()))?;
            // Whether the index has passed it since (section 2.7.10).
            let passed = Wrapping(used) - Wrapping(event) - Wrapping(1);
            passed < Wrapping(used) - Wrapping(self.notified)
        } else {
            self.avail_field(0)? & AVAIL_F_NO_INTERRUPT == 0
        };
        self.notified = used;
        if wanted {
            self.interrupt.used(index);
        }
        Ok(())
    }

    /// A field of the available ring, at `offset`.
    fn avail_field(&self, offset: usize) -> Result<u16, Error> {
        let field: u16 = self
            .avail()?
            .load(offset, Ordering::Relaxed)
            .map_err(|error| self.memory_error(error))?;
        Ok(u16::from_le(field))
    }

    /// The available ring, its event index included.
    fn avail(&self) -> Result<VolatileSlice<'_>, Error> {
        self.ring_at(self.ring.avail_ring(), avail_len(self.size()))
    }

    /// The used ring, its event index included.
    fn used(&self) -> Result<VolatileSlice<'_>, Error> {
        self.ring_at(self.ring.used_ring(), used_len(self.size()))
    }

    /// It was checked that this does not fail.
    fn ring_at(&self, gpa: u64, len: usize) -> Result<VolatileSlice<'_>, Error> {
        let gpa = GuestAddress(gpa);
        chain::slice_at(&self.memory, gpa, len).ok_or_else(|| {
            let source =
                virtio_queue::Error::GuestMemory(GuestMemoryError::InvalidGuestAddress(gpa));
            Error::Ring {
                index: self.index,
                source,
            }
        })
    }

    fn memory_error(&self, error: volatile_memory::Error) -> Error {
        Error::Ring {
            index: self.index,
            source: virtio_queue::Error::GuestMemory(error.into()),
        }
    }

    /// The driver need not kick: the queue is being looked at.
    pub fn disable_kicks(&mut self) -> Result<(), Error> {
        let index = self.index;
        self.ring
            .disable_notification(&*self.memory)
            .map_err(|source| Error::Ring { index, source })
    }

    /// The driver is to kick for the next request. True if one has come in the meantime, for which it
    /// may not.
    pub fn enable_kicks(&mut self) -> Result<bool, Error> {
        let index = self.index;
        self.ring
            .enable_notification(&*self.memory)
            .map_err(|source| Error::Ring { index, source })
    }

    /// The driver broke the rules: tells it that the device needs a reset, and the log why. The worker
    /// takes nothing more from this queue.
    pub fn fail(&self, error: &Error) {
        log::warn!("{}: the device needs a reset", crate::error::chain(error));
        self.interrupt.needs_reset();
    }
}

/// Bytes of an available ring.
fn avail_len(size: u16) -> usize {
    RING_HEADER + AVAIL_ENTRY * usize::from(size) + EVENT_FIELD
}

/// Bytes of a used ring.
fn used_len(size: u16) -> usize {
    RING_HEADER + USED_ENTRY * usize::from(size) + EVENT_FIELD
}

/// Whether each of the three rings is in one region of RAM, the event index fields included, and the
/// used ring where it can be written to.
fn rings_are_ram(memory: &GuestMemoryMmap, config: &QueueConfig) -> bool {
    [
        (config.desc, 16 * usize::from(config.size)),
        (config.avail, avail_len(config.size)),
        (config.used, used_len(config.size)),
    ]
    .into_iter()
    .all(|(gpa, len)| chain::slice_at(memory, GuestAddress(gpa), len).is_some())
        && chain::is_writable(memory, GuestAddress(config.used), used_len(config.size))
}
