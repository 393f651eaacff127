//! A driver that knows what all drivers know.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{DEADLINE, Desc, GuestQueue, Interrupts, memory};
use crate::virtio::VirtioDevice;
use crate::virtio::transport::core::{Core, Half, Ring, feature, status};

/// Where queue `n` is in guest memory: at `QUEUES + n * GuestQueue::SPACE`.
const QUEUES: u64 = 0x10_0000;
/// Where buffers of requests are: from here to the hole.
const SCRATCH: u64 = 0x80_0000;

/// A place in guest memory for a test's buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScratchBuffer {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
}

impl ScratchBuffer {
    pub(crate) fn readable(self) -> Desc {
        Desc::readable(self.gpa, self.len)
    }

    pub(crate) fn writable(self) -> Desc {
        Desc::writable(self.gpa, self.len)
    }
}

/// A driver, and the device behind a transport's core.
pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) interrupts: Interrupts,
    /// Made by [`Driver::start`].
    pub(crate) queues: Vec<GuestQueue>,
    next_scratch: u64,
}

impl Driver {
    /// A device after reset, with a driver that has done nothing yet.
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::in_memory(device, memory())
    }

    /// The same, in memory that another one has used.
    pub(crate) fn in_memory(
        device: impl VirtioDevice + 'static,
        memory: Arc<GuestMemoryMmap>,
    ) -> Self {
        let interrupts = Interrupts::new();
        let deliver = Box::new(interrupts.clone());
        let core = Core::new(Box::new(device), Arc::clone(&memory), deliver).unwrap();
        Self {
            core,
            memory,
            interrupts,
            queues: Vec::new(),
            next_scratch: SCRATCH,
        }
    }

    /// A device that is driven with all features it offers.
    pub(crate) fn started(device: impl VirtioDevice + 'static) -> Self {
        let mut driver = Self::new(device);
        driver.start(u64::MAX);
        driver
    }

    /// Goes through section 3.1.1 with those of the offered features that are in `features`, and all
    /// queues at their largest size.
    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.queues.clear();
        for index in 0..self.core.queue_count() {
            let base = QUEUES + index as u64 * GuestQueue::SPACE;
            let size = self.core.queue_max_size(index).min(1024);
            self.queues
                .push(GuestQueue::new(Arc::clone(&self.memory), base, size));
            self.set_up_queue(index);
        }
        self.core.set_status(self.core.status() | status::DRIVER_OK);
    }

    /// Up to FEATURES_OK.
    pub(crate) fn negotiate(&mut self, features: u64) {
        self.core.set_status(0);
        self.core.set_status(status::ACKNOWLEDGE);
        self.core.set_status(status::ACKNOWLEDGE | status::DRIVER);
        for (half, shift) in [(Half::Low, 0), (Half::High, 32)] {
            let offered = self.core.offered_features(half);
            self.core
                .accept_features(half, offered & (features >> shift) as u32);
        }
        self.core
            .set_status(self.core.status() | status::FEATURES_OK);
        assert_ne!(self.core.status() & status::FEATURES_OK, 0);
    }

    /// Tells the device of queue `index`.
    pub(crate) fn set_up_queue(&mut self, index: usize) {
        let config = self.queues[index].config();
        self.core.set_queue_size(index, config.size);
        for (ring, address) in [
            (Ring::Desc, config.desc),
            (Ring::Avail, config.avail),
            (Ring::Used, config.used),
        ] {
            self.core
                .set_queue_address(index, ring, Half::Low, address as u32);
            self.core
                .set_queue_address(index, ring, Half::High, (address >> 32) as u32);
        }
        self.core.set_queue_ready(index, true);
    }

    /// A buffer of `len` bytes that no other is in, filled with 0xaa.
    pub(crate) fn buffer(&mut self, len: u32) -> ScratchBuffer {
        let gpa = self.next_scratch;
        self.next_scratch += u64::from(len).next_multiple_of(4096);
        self.write(gpa, &vec![0xaa; len as usize]);
        ScratchBuffer { gpa, len }
    }

    /// A buffer with these bytes.
    #[allow(dead_code, reason = "for the devices that read")]
    pub(crate) fn buffer_with(&mut self, bytes: &[u8]) -> ScratchBuffer {
        let buffer = self.buffer(bytes.len() as u32);
        self.write(buffer.gpa, bytes);
        buffer
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub(crate) fn read(&self, gpa: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(gpa))
            .unwrap();
        bytes
    }

    /// What is in a buffer.
    pub(crate) fn contents(&self, buffer: ScratchBuffer) -> Vec<u8> {
        self.read(buffer.gpa, buffer.len)
    }

    /// Makes a request available, and kicks if the device wants that.
    pub(crate) fn submit(&mut self, queue: usize, descs: &[Desc]) -> u16 {
        let head = self.queues[queue].add(descs);
        let event_idx = self.core.accepted_features(Half::Low) & 1 << feature::EVENT_IDX != 0;
        if self.queues[queue].is_kick_wanted(event_idx) {
            self.kick(queue);
        }
        head
    }

    pub(crate) fn kick(&self, queue: usize) {
        self.core.kick(queue);
    }

    /// Waits until the device has returned `count` requests.
    #[track_caller]
    pub(crate) fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        self.wait_until("used buffers", |driver| {
            used.extend(driver.queues[queue].take_used());
            used.len() >= count
        });
        used
    }

    /// Makes a request and waits until the device has returned it; returns the length it tells.
    #[track_caller]
    pub(crate) fn request(&mut self, queue: usize, descs: &[Desc]) -> u32 {
        let head = self.submit(queue, descs);
        let used = self.wait_used(queue, 1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        used[0].1
    }

    /// Waits until something is so.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "no {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the device says that it needs a reset.
    #[track_caller]
    pub(crate) fn wait_broken(&mut self) {
        self.wait_until("DEVICE_NEEDS_RESET", |driver| driver.is_broken());
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.core.status() & status::DEVICE_NEEDS_RESET != 0
    }

    pub(crate) fn reset(&mut self) {
        self.core.set_status(0);
        assert_eq!(self.core.status(), 0);
    }
}
