//! A guest made of the fuzzer's bytes: it writes to a device's registers and to its own memory, in any
//! order, and the device goes through its real activation, queues and reset.
//!
//! Everything runs on the fuzzer's thread, so that a crash can be repeated: the event loop is turned by
//! hand.

mod api_request;
mod block;
mod images;
mod memory;
mod merge;
mod mmds;
mod model;
mod net;
mod pci;
mod qcow2;
pub mod seeds;
mod snapshot;
pub mod targets;
mod vsock;
mod working_set;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::BusDevice;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::mmio::MmioDevice;
use devices::virtio::worker::{EventLoop, LoopGone, Subscriber, WorkerId};
use event_manager::{EventManager, SubscriberOps};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the rings of queue `n` are, from here on: descriptors, available ring, used ring, a page each.
const RINGS: u64 = 0x1_0000;
const RINGS_SIZE: u64 = 0x3000;
/// Of each queue, at most.
const ENTRIES: u16 = 64;
/// What the guest may write to itself.
const MEMORY_SIZE: usize = 0x20_0000;
/// Where writes to the configuration are none, but have the host do something.
const HOSTS: u64 = 0x1f0;
/// Operations of one run.
const MAX_OPERATIONS: usize = 256;
/// Rounds of the event loop after an operation that may cause work.
const TURNS: usize = 4;

/// An event loop that runs when it is told to.
pub struct ManualLoop(Mutex<EventManager<Subscriber>>);

impl ManualLoop {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(EventManager::new().unwrap())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, EventManager<Subscriber>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) {
        for _ in 0..TURNS {
            let _ = self.lock().run_with_timeout(0);
        }
    }

    /// Waits up to so many milliseconds for something to do.
    fn turn_for(&self, milliseconds: i32) {
        let _ = self.lock().run_with_timeout(milliseconds);
    }
}

impl EventLoop for ManualLoop {
    fn attach(&self, worker: Subscriber) -> Result<WorkerId, LoopGone> {
        Ok(self.lock().add_subscriber(worker))
    }

    fn detach(&self, id: WorkerId) -> Result<(), LoopGone> {
        drop(self.lock().remove_subscriber(id));
        Ok(())
    }
}

/// Takes the fuzzer's bytes apart; zeroes when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    fn bytes(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Guest {
    device: MmioDevice,
    memory: Arc<GuestMemoryMmap>,
    event_loop: Arc<ManualLoop>,
    queues: u16,
    avail: [u16; 8],
}

/// What the host does with a device meanwhile, by the fuzzer's choice.
type Host = Box<dyn FnMut(u8)>;

/// Runs one guest against the device that `make` makes.
fn run<D: VirtioDevice + 'static>(
    input: &[u8],
    make: impl FnOnce(Arc<dyn EventLoop>) -> (D, Host),
) {
    run_with_memory(input, |event_loop| {
        let (device, host) = make(event_loop);
        (device, host, Vec::new())
    });
}

/// The same for a device that brings guest memory of its own.
fn run_with_memory<D: VirtioDevice + 'static>(
    input: &[u8],
    make: impl FnOnce(Arc<dyn EventLoop>) -> (D, Host, Vec<GuestRegionMmap>),
) {
    let mut host = None;
    let guest = Guest::with_memory(|event_loop| {
        let (device, its_host, memory) = make(event_loop);
        host = Some(its_host);
        Ok::<_, Infallible>((device, memory))
    });
    let Ok(mut guest) = guest;
    let mut host = host.unwrap();
    let mut input = Input(input);
    // Most runs are of a driver that gets through the handshake.
    if input.u8() % 8 != 0 {
        guest.start(input.u8());
    }
    for _ in 0..MAX_OPERATIONS {
        if input.0.is_empty() {
            break;
        }
        guest.operate(&mut input, &mut host);
    }
    guest.event_loop.turn();
}

impl Guest {
    fn new<D: VirtioDevice + 'static>(make: impl FnOnce(Arc<dyn EventLoop>) -> D) -> Self {
        match Self::try_new(|event_loop| Ok::<_, Infallible>(make(event_loop))) {
            Ok(guest) => guest,
        }
    }

    fn try_new<D: VirtioDevice + 'static, E>(
        make: impl FnOnce(Arc<dyn EventLoop>) -> Result<D, E>,
    ) -> Result<Self, E> {
        Self::with_memory(|event_loop| Ok((make(event_loop)?, Vec::new())))
    }

    fn with_memory<D: VirtioDevice + 'static, E>(
        make: impl FnOnce(Arc<dyn EventLoop>) -> Result<(D, Vec<GuestRegionMmap>), E>,
    ) -> Result<Self, E> {
        let event_loop = ManualLoop::new();
        let (device, more) = make(event_loop.clone())?;
        let ranges = [
            (GuestAddress(0), MEMORY_SIZE),
            (GuestAddress(0x1000_0000), MEMORY_SIZE),
        ];
        let mut memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        for region in more {
            memory = memory.insert_region(Arc::new(region)).unwrap();
        }
        let memory: Arc<GuestMemoryMmap> = Arc::new(memory);
        let queues = device.queue_sizes().len() as u16;
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let device = MmioDevice::new(Box::new(device), memory.clone(), line).unwrap();
        Ok(Self {
            device,
            memory,
            event_loop,
            queues,
            avail: [0; 8],
        })
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn start(&mut self, features: u8) {
        self.write(0x70, 0);
        self.write(0x70, 3);
        for select in [0, 1] {
            self.write(0x14, select);
            let offered = self.read(0x10);
            self.write(0x24, select);
            // VERSION_1 always; the rest all, or some.
            let mask = if features & 1 == 0 {
                u32::MAX
            } else {
                u32::from(features) << 24 | 1
            };
            self.write(0x20, offered & mask);
        }
        self.write(0x70, 11);
        for queue in 0..self.queues {
            let base = RINGS + u64::from(queue) * RINGS_SIZE;
            self.write(0x30, queue.into());
            let max = self.read(0x34);
            self.write(0x38, max.min(ENTRIES.into()));
            for (offset, address) in [(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
                self.write(offset, address as u32);
                self.write(offset + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.avail = [0; 8];
        self.write(0x70, 15);
        self.event_loop.turn();
    }

    fn operate(&mut self, input: &mut Input<'_>, host: &mut Host) {
        match input.u8() % 10 {
            0 => {
                let offset = u64::from(input.u16() % 0x200);
                let value = input.u32();
                self.write(offset, value);
            }
            1 => {
                let offset = u64::from(input.u16() % 0x200);
                self.read(offset);
            }
            2 => {
                let offset = 0x100 + u64::from(input.u8());
                let count = usize::from(input.u8() % 16);
                let data = input.bytes(count).to_vec();
                // No device has that much configuration: this is the host's.
                if offset >= HOSTS {
                    data.iter().for_each(|&byte| host(byte));
                    return self.event_loop.turn();
                }
                self.device.write(offset, &data);
            }
            3 => {
                let gpa = u64::from(input.u32()) % (MEMORY_SIZE as u64);
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let _ = self.memory.write_slice(&data, GuestAddress(gpa));
            }
            4 => self.start(0),
            5 => self.event_loop.turn(),
            // A request, most often a plausible one.
            _ => self.request(input),
        }
    }

    /// Offers a request: buffers with their GPAs, lengths, and whether the device may write to them.
    fn submit(&mut self, queue: u16, head: u16, buffers: &[(u64, u32, bool)]) {
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let memory = &self.memory;
        for (index, &(gpa, len, writable)) in (head..).zip(buffers) {
            let is_last = usize::from(index - head) + 1 == buffers.len();
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&gpa.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12] = u8::from(!is_last) | u8::from(writable) << 1;
            descriptor[14..].copy_from_slice(&(index + 1).to_le_bytes());
            let at = GuestAddress(base + 16 * u64::from(index));
            memory.write_slice(&descriptor, at).unwrap();
        }
        let avail = &mut self.avail[usize::from(queue)];
        let slot = base + 0x1000 + 4 + 2 * u64::from(*avail % ENTRIES);
        *avail = avail.wrapping_add(1);
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        memory
            .write_obj(*avail, GuestAddress(base + 0x1002))
            .unwrap();
    }

    /// The guest writes to its memory: where it can only be read, nothing comes of it.
    fn put(&self, gpa: u64, data: &[u8]) {
        let start = GuestAddress(gpa);
        let is_read_only = self.memory.iter().any(|region| {
            let (first, last) = (region.start_addr(), region.last_addr());
            let is_within = start <= last && gpa.saturating_add(data.len() as u64) > first.0;
            region.prot() & libc::PROT_WRITE == 0 && is_within
        });
        if !is_read_only {
            let _ = self.memory.write_slice(data, start);
        }
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let queue = u16::from(input.u8()) % self.queues.max(1);
        let base = RINGS + u64::from(queue) * RINGS_SIZE;
        let buffers = 1 + u16::from(input.u8() % 4);
        let head = u16::from(input.u8() % 60);
        for number in 0..buffers {
            let shape = input.u8();
            let length = if shape & 1 == 0 {
                u32::from(input.u8())
            } else {
                input.u32()
            };
            let gpa = match shape >> 1 & 3 {
                0 | 1 => 0x8_0000 + u64::from(number) * 0x1_0000,
                2 => u64::from(input.u32()),
                _ => u64::from(input.u32()) << 32 | u64::from(input.u32()),
            };
            let mut flags = u16::from(number + 1 < buffers);
            flags |= u16::from(shape >> 3 & 1) << 1;
            if shape & 0xf0 == 0xf0 {
                flags |= 4;
            }
            if shape & 2 == 0 {
                let count = length.min(64) as usize;
                let data = input.bytes(count).to_vec();
                self.put(gpa, &data);
            }
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&gpa.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&(head + number + 1).to_le_bytes());
            let at = base + 16 * u64::from(head + number);
            let _ = self.memory.write_slice(&descriptor, GuestAddress(at));
        }
        let Some(avail) = self.avail.get_mut(usize::from(queue)) else {
            return;
        };
        let slot = base + 0x1000 + 4 + 2 * u64::from(*avail % ENTRIES);
        *avail = avail.wrapping_add(1);
        let _ = self.memory.write_obj(head, GuestAddress(slot));
        let _ = self.memory.write_obj(*avail, GuestAddress(base + 0x1002));
        self.write(0x50, queue.into());
        self.event_loop.turn();
    }
}
