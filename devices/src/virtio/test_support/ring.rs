//! A queue as its driver has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::queue::QueueConfig;

/// A descriptor, to be written as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;

    /// What the device reads.
    pub(crate) fn readable(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            ..Self::default()
        }
    }

    /// What the device writes.
    pub(crate) fn writable(addr: u64, len: u32) -> Self {
        Self {
            flags: Self::WRITE,
            ..Self::readable(addr, len)
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A split ring in guest memory. Descriptors are used round robin: a test that needs more than there
/// are waits for the device in between.
pub(crate) struct GuestQueue {
    memory: Arc<GuestMemoryMmap>,
    size: u16,
    base: u64,
    next_desc: u16,
    avail: u16,
    used: u16,
    /// The available index when it was last decided whether to kick.
    kicked: u16,
}

impl GuestQueue {
    /// Bytes that a queue of the largest usual size takes.
    pub(crate) const SPACE: u64 = 0x1_0000;

    /// An empty queue at `base`.
    pub(crate) fn new(memory: Arc<GuestMemoryMmap>, base: u64, size: u16) -> Self {
        let zeroes = vec![0; Self::SPACE as usize];
        memory.write_slice(&zeroes, GuestAddress(base)).unwrap();
        Self {
            memory,
            size,
            base,
            next_desc: 0,
            avail: 0,
            used: 0,
            kicked: 0,
        }
    }

    /// Whether the device wants a kick for what was made available since the last call (sections 2.7.7
    /// and 2.7.10).
    pub(crate) fn is_kick_wanted(&mut self, event_idx: bool) -> bool {
        let (old, new) = (self.kicked, self.avail);
        self.kicked = new;
        std::sync::atomic::fence(Ordering::SeqCst);
        let ring = self.config().used;
        let at = if event_idx {
            ring + 4 + 8 * u64::from(self.size)
        } else {
            ring
        };
        let word: u16 = self
            .memory
            .load(GuestAddress(at), Ordering::Acquire)
            .unwrap();
        if event_idx {
            new.wrapping_sub(word).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            word & 1 == 0
        }
    }

    /// As it is told to the device.
    pub(crate) fn config(&self) -> QueueConfig {
        QueueConfig {
            size: self.size,
            desc: self.base,
            avail: self.base + 0x8000,
            used: self.base + 0xa000,
            ready: true,
        }
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Writes descriptor `index`.
    pub(crate) fn set_desc(&self, index: u16, desc: Desc) {
        let at = self.base + 16 * u64::from(index);
        self.memory
            .write_slice(&desc.to_bytes(), GuestAddress(at))
            .unwrap();
    }

    /// Writes a table for an indirect descriptor at `gpa`, its descriptors chained.
    pub(crate) fn write_table(&self, gpa: u64, descs: &[Desc]) {
        for (index, desc) in (0u16..).zip(descs) {
            let mut desc = *desc;
            if usize::from(index) + 1 < descs.len() {
                desc.flags |= Desc::NEXT;
                desc.next = index + 1;
            }
            let at = gpa + 16 * u64::from(index);
            self.memory
                .write_slice(&desc.to_bytes(), GuestAddress(at))
                .unwrap();
        }
    }

    /// Makes a chain of these available; returns its head.
    pub(crate) fn add(&mut self, descs: &[Desc]) -> u16 {
        let head = self.next_desc;
        for (offset, desc) in (0u16..).zip(descs) {
            let index = (head + offset) % self.size;
            let mut desc = *desc;
            if usize::from(offset) + 1 < descs.len() {
                desc.flags |= Desc::NEXT;
                desc.next = (index + 1) % self.size;
            }
            self.set_desc(index, desc);
        }
        self.next_desc = (head + descs.len() as u16) % self.size;
        self.make_available(head);
        head
    }

    /// Makes the chain at `head` available.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = self.config().avail + 4 + 2 * u64::from(self.avail % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    /// Writes the available index.
    pub(crate) fn set_avail_index(&self, index: u16) {
        self.memory
            .store(
                index,
                GuestAddress(self.config().avail + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// What the device has returned since the last call: heads and lengths.
    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        let ring = self.config().used;
        let index: u16 = self
            .memory
            .load(GuestAddress(ring + 2), Ordering::Acquire)
            .unwrap();
        let mut taken = Vec::new();
        while self.used != index {
            let at = ring + 4 + 8 * u64::from(self.used % self.size);
            let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            taken.push((u16::try_from(id).unwrap(), len));
            self.used = self.used.wrapping_add(1);
            // With the event index the driver says which interrupt it waits for next.
            self.memory
                .write_obj(
                    self.used,
                    GuestAddress(self.config().avail + 4 + 2 * u64::from(self.size)),
                )
                .unwrap();
        }
        taken
    }
}
