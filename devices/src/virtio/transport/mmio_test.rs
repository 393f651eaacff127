use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::test_support::{Desc, GuestQueue, TestLoop, memory};

struct Guest {
    device: MmioDevice,
    memory: Arc<GuestMemoryMmap>,
    line: Arc<EventFd>,
}

impl Guest {
    fn new() -> Self {
        let memory = memory();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let rng = Box::new(Rng::new(TestLoop::start()).unwrap());
        let device = MmioDevice::new(rng, Arc::clone(&memory), Arc::clone(&line)).unwrap();
        Self {
            device,
            memory,
            line,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    /// Section 3.1.1, register by register.
    fn start(&mut self) -> GuestQueue {
        for value in [0, 1, 3] {
            self.write(STATUS, value);
        }
        for select in [0, 1] {
            self.write(DEVICE_FEATURES_SEL, select);
            let offered = self.read(DEVICE_FEATURES);
            self.write(DRIVER_FEATURES_SEL, select);
            self.write(DRIVER_FEATURES, offered);
        }
        self.write(STATUS, 11);
        assert_eq!(self.read(STATUS), 11);
        let queue = GuestQueue::new(Arc::clone(&self.memory), 0x10_0000, 16);
        let config = queue.config();
        self.write(QUEUE_SEL, 0);
        assert_eq!(self.read(QUEUE_NUM_MAX), 64);
        assert_eq!(self.read(QUEUE_READY), 0);
        self.write(QUEUE_NUM, config.size.into());
        for (offset, address) in [
            (QUEUE_DESC_LOW, config.desc),
            (QUEUE_DRIVER_LOW, config.avail),
            (QUEUE_DEVICE_LOW, config.used),
        ] {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        assert_eq!(self.read(QUEUE_READY), 1);
        self.write(STATUS, 15);
        assert_eq!(self.read(STATUS), 15);
        queue
    }

    /// Waits for an edge of the line.
    fn wait_interrupt(&self) {
        let deadline = std::time::Instant::now() + crate::virtio::test_support::DEADLINE;
        while self.line.read().is_err() {
            assert!(std::time::Instant::now() < deadline, "no interrupt");
            std::thread::yield_now();
        }
    }
}

#[test]
fn says_what_it_is() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(guest.read(VERSION), 2);
    assert_eq!(guest.read(DEVICE_ID), 4);
    assert_eq!(guest.read(VENDOR_ID), u32::from_le_bytes(*b"mote"));
    guest.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(guest.read(DEVICE_FEATURES) & 1, 1);
    guest.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(guest.read(DEVICE_FEATURES), 0);
    for offset in [SHM_LEN_LOW, SHM_LEN_LOW + 4, SHM_BASE_HIGH] {
        assert_eq!(guest.read(offset), u32::MAX);
    }
}

#[test]
fn a_request_goes_there_and_back() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    let head = queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.write(QUEUE_NOTIFY, 0);
    guest.wait_interrupt();
    assert_eq!(guest.read(INTERRUPT_STATUS), 1);
    assert_eq!(queue.take_used(), [(head, 32)]);
    guest.write(INTERRUPT_ACK, 1);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
}

#[test]
fn a_broken_driver_is_told_by_a_configuration_interrupt() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    queue.add(&[Desc::writable(u64::MAX - 1, 32)]);
    guest.write(QUEUE_NOTIFY, 0);
    guest.wait_interrupt();
    assert_eq!(guest.read(INTERRUPT_STATUS), 2);
    assert_eq!(guest.read(STATUS), 15 | 64);
    guest.write(STATUS, 0);
    assert_eq!(guest.read(STATUS), 0);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    guest.start();
}

#[test]
fn the_kernel_of_the_host_may_interrupt_for_used_buffers() {
    let mut guest = Guest::new();
    guest.start();
    let wire = Wire {
        causes: Arc::clone(&guest.device.interrupts),
        line: Arc::clone(&guest.line),
    };
    wire.used_fd(0).unwrap().write(1).unwrap();
    guest.wait_interrupt();
    assert_eq!(guest.read(INTERRUPT_STATUS), 1);
    guest.write(INTERRUPT_ACK, 1);
    assert_eq!(guest.read(INTERRUPT_STATUS), 1);
    guest.write(STATUS, 0);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
}

#[test]
fn odd_accesses_do_nothing() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    for offset in 0..0x120 {
        for len in [0, 1, 2, 3, 5, 8, 16] {
            let mut data = vec![0xaa; len];
            guest.device.read(offset, &mut data);
            if offset < CONFIG {
                assert_eq!(data, vec![0; len]);
            }
            guest.device.write(offset, &vec![0xff; len]);
        }
    }
    let head = queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.write(QUEUE_NOTIFY, 0);
    guest.wait_interrupt();
    assert_eq!(queue.take_used(), [(head, 32)]);
}

#[test]
fn registers_in_any_order_and_with_any_value() {
    let mut guest = Guest::new();
    let mut state = 1u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for _ in 0..20_000 {
        let offset = u64::from(random() % 0x48) * 4;
        let value = match random() % 4 {
            0 => random() % 4,
            1 => 1 << (random() % 32),
            2 => 0x10_0000 + random() % 0x1_0000,
            _ => random(),
        };
        guest.write(offset, value);
        guest.read(offset);
    }
    let mut queue = guest.start();
    let _ = guest.line.read();
    let head = queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.write(QUEUE_NOTIFY, 0);
    guest.wait_interrupt();
    assert_eq!(queue.take_used(), [(head, 32)]);
}
