use std::sync::{Mutex, Weak};
use std::time::Instant;

use super::*;
use crate::bus::{Access, Bus};
use crate::interrupt::MsiMessage;
use crate::lock;
use crate::pci::hotplug::{EJECT, Hotplug};
use crate::pci::msix::test_support::Vectors;
use crate::pci::root::{ECAM_SIZE, Ecam, Full, Root, Slot};
use crate::virtio::rng::Rng;
use crate::virtio::test_support::{DEADLINE, Desc, GuestQueue, TestLoop, memory};

#[path = "pci_end_test.rs"]
mod ends;

const ECAM: u64 = 0xe000_0000;
const HOTPLUG: u64 = 0xf000_0000;
const ADDRESS: u32 = 0xc000_0000;

/// Moves the device on the bus, as a monitor does.
struct Mover {
    bus: Weak<Bus>,
    device: Weak<Mutex<PciDevice>>,
    placed: Mutex<Option<u32>>,
    calls: Arc<Mutex<Vec<Option<u32>>>>,
}

impl Window for Mover {
    fn place(&self, address: Option<u32>) {
        lock(&self.calls).push(address);
        let bus = self.bus.upgrade().unwrap();
        if let Some(old) = lock(&self.placed).take() {
            bus.remove(old.into()).unwrap();
        }
        if let Some(new) = address {
            let device = self.device.upgrade().unwrap();
            if bus.insert(new.into(), BAR_SIZE.into(), device).is_ok() {
                *lock(&self.placed) = address;
            }
        }
    }
}

/// A driver of the device in slot 1.
struct Guest {
    bus: Arc<Bus>,
    root: Arc<Root>,
    slot: Slot,
    memory: Arc<GuestMemoryMmap>,
    vectors: Arc<Vectors>,
    placed: Arc<Mutex<Vec<Option<u32>>>>,
    /// As found by [`Guest::find`].
    bar: u64,
    common: u64,
    isr: u64,
    notify: u64,
    table: u64,
    pending: u64,
    msix: u64,
    window: u64,
}

fn rng() -> Box<dyn VirtioDevice> {
    Box::new(Rng::new(TestLoop::start()).unwrap())
}

impl Guest {
    fn new() -> Self {
        Self::with(rng())
    }

    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let (bus, root) = (Arc::new(Bus::new()), Arc::new(Root::new()));
        let ecam = Ecam(Arc::clone(&root));
        bus.insert(ECAM, ECAM_SIZE, Arc::new(Mutex::new(ecam)))
            .unwrap();
        let hotplug = Hotplug::new(Arc::clone(&root));
        bus.insert(HOTPLUG, 12, Arc::new(Mutex::new(hotplug)))
            .unwrap();
        let memory = memory();
        let vectors = Vectors::new(vector_count(&*device).unwrap());
        let device = PciDevice::new(device, Arc::clone(&memory), vectors.clone(), ADDRESS).unwrap();
        let device = Arc::new(Mutex::new(device));
        let placed = Arc::default();
        let mover = Mover {
            bus: Arc::downgrade(&bus),
            device: Arc::downgrade(&device),
            placed: Mutex::default(),
            calls: Arc::clone(&placed),
        };
        lock(&device).set_window(Box::new(mover));
        let slot = root.insert(|_| Ok::<_, Full>(device)).unwrap();
        Self {
            bus,
            root,
            slot,
            memory,
            vectors,
            placed,
            bar: 0,
            common: 0,
            isr: 0,
            notify: 0,
            table: 0,
            pending: 0,
            msix: 0,
            window: 0,
        }
    }

    fn read(&self, address: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        let _ = self.bus.read(address, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, address: u64, value: u64, len: usize) {
        let _ = self.bus.write(address, &value.to_le_bytes()[..len]);
    }

    fn config_address(&self, offset: u64) -> u64 {
        ECAM + (u64::from(self.slot.number()) << 15) + offset
    }

    fn config(&self, offset: u64, len: usize) -> u64 {
        self.read(self.config_address(offset), len)
    }

    fn set_config(&self, offset: u64, value: u64, len: usize) {
        self.write(self.config_address(offset), value, len);
    }

    /// Walks the list of capabilities, as a driver does that knows nothing else.
    fn find(&mut self) {
        assert_ne!(self.config(0x06, 2) & 0x10, 0);
        self.bar = self.config(0x10, 4);
        assert_eq!(self.bar & 0xf, 0);
        let mut next = self.config(0x34, 1);
        let mut seen = 0;
        while next != 0 {
            assert!(seen < 16, "a loop");
            seen += 1;
            if self.config(next, 1) == 0x11 {
                self.msix = next;
                assert_eq!(self.config(next + 4, 4) & 7, 0);
                self.table = self.config(next + 4, 4);
                self.pending = self.config(next + 8, 4);
            } else {
                assert_eq!(self.config(next, 1), 9);
                let (offset, length) = (self.config(next + 8, 4), self.config(next + 12, 4));
                let (size, kind) = (self.config(next + 2, 1), self.config(next + 3, 1));
                if kind != 5 {
                    assert_eq!(self.config(next + 4, 1), 0, "BAR");
                    assert!(offset + length <= u64::from(BAR_SIZE));
                }
                match (kind, size) {
                    (1, 16) => {
                        self.common = offset;
                        assert!(length >= 0x3c);
                    }
                    (2, 20) => {
                        self.notify = offset;
                        assert_eq!(self.config(next + 16, 4), 4);
                    }
                    (3, 16) => self.isr = offset,
                    (4, 16) => assert_eq!(offset % 4, 0),
                    (5, 20) => self.window = next,
                    other => panic!("{other:?}"),
                }
            }
            next = self.config(next + 1, 1);
        }
        assert_eq!(seen, 6);
    }

    fn get(&self, offset: usize, len: usize) -> u64 {
        self.read(self.bar + self.common + offset as u64, len)
    }

    fn set(&self, offset: usize, value: u64, len: usize) {
        self.write(self.bar + self.common + offset as u64, value, len);
    }

    fn set_up_vector(&self, vector: u64, data: u64) {
        let entry = self.bar + self.table + 16 * vector;
        self.write(entry, 0xfee0_0000, 8);
        self.write(entry + 8, data, 4);
        self.write(entry + 12, 0, 4);
    }

    /// Section 3.1.1, with vector 0 for the configuration and 1 for queue 0.
    fn start(&mut self) -> GuestQueue {
        self.find();
        self.set_config(4, 6, 2);
        self.set(DEVICE_STATUS, 0, 1);
        assert_eq!(self.get(DEVICE_STATUS, 1), 0);
        for value in [1, 3] {
            self.set(DEVICE_STATUS, value, 1);
        }
        for select in [0, 1] {
            self.set(DEVICE_FEATURE_SELECT, select, 4);
            let offered = self.get(DEVICE_FEATURE, 4);
            self.set(DRIVER_FEATURE_SELECT, select, 4);
            self.set(DRIVER_FEATURE, offered, 4);
            assert_eq!(self.get(DRIVER_FEATURE, 4), offered);
        }
        self.set(DEVICE_STATUS, 11, 1);
        assert_eq!(self.get(DEVICE_STATUS, 1), 11);

        self.set_config(self.msix + 2, 0xc000, 2);
        self.set_up_vector(0, 0x40);
        self.set_up_vector(1, 0x41);
        self.set_config(self.msix + 2, 0x8000, 2);
        self.set(CONFIG_MSIX_VECTOR, 0, 2);
        assert_eq!(self.get(CONFIG_MSIX_VECTOR, 2), 0);
        self.set_up_queue()
    }

    fn set_up_queue(&self) -> GuestQueue {
        self.set(QUEUE_SELECT, 0, 2);
        assert_eq!(self.get(QUEUE_SIZE, 2), 64);
        assert_eq!(self.get(QUEUE_ENABLE, 2), 0);
        let queue = GuestQueue::new(Arc::clone(&self.memory), 0x10_0000, 16);
        let config = queue.config();
        self.set(QUEUE_SIZE, config.size.into(), 2);
        self.set(QUEUE_DESC, config.desc, 8);
        self.set(QUEUE_DRIVER, config.avail & 0xffff_ffff, 4);
        self.set(QUEUE_DRIVER + 4, config.avail >> 32, 4);
        self.set(QUEUE_DEVICE, config.used, 8);
        for (offset, address) in [
            (QUEUE_DESC, config.desc),
            (QUEUE_DRIVER, config.avail),
            (QUEUE_DEVICE, config.used),
        ] {
            assert_eq!(self.get(offset, 8), address);
        }
        self.set(QUEUE_MSIX_VECTOR, 1, 2);
        assert_eq!(self.get(QUEUE_MSIX_VECTOR, 2), 1);
        self.set(QUEUE_ENABLE, 1, 2);
        assert_eq!(self.get(QUEUE_ENABLE, 2), 1);
        self.set(DEVICE_STATUS, 15, 1);
        assert_eq!(self.get(DEVICE_STATUS, 1), 15);
        queue
    }

    fn kick(&self) {
        let offset = self.get(QUEUE_NOTIFY_OFF, 2);
        self.write(self.bar + self.notify + 4 * offset, 0, 2);
    }

    fn wait_vector(&self, vector: usize) -> MsiMessage {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(message) = self.vectors.take(vector) {
                return message;
            }
            assert!(Instant::now() < deadline, "no interrupt");
            std::thread::yield_now();
        }
    }

    fn request(&self, queue: &mut GuestQueue) {
        let head = queue.add(&[Desc::writable(0x80_0000, 32)]);
        self.kick();
        assert_eq!(self.wait_vector(1).data, 0x41);
        assert_eq!(queue.take_used(), [(head, 32)]);
    }
}

#[test]
fn says_what_it_is() {
    let guest = Guest::new();
    assert_eq!(guest.config(0, 4), 0x1044_1af4);
    assert_eq!(guest.config(8, 4), 0xff00_0001);
    assert_eq!(guest.config(0x3d, 1), 0, "no interrupt pin");
    assert_eq!(identity(Kind::Block).device, 0x1042);
    assert_eq!(identity(Kind::Vsock).device, 0x1053);
}

#[test]
fn a_request_goes_there_and_back() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    for _ in 0..100 {
        guest.request(&mut queue);
    }
    // With MSI-X there is no reason to read why.
    assert_eq!(guest.read(guest.bar + guest.isr, 1), 0);
    guest.set(DEVICE_STATUS, 0, 1);
    assert_eq!(guest.get(QUEUE_MSIX_VECTOR, 2), 0xffff);
    let mut queue = guest.start();
    guest.request(&mut queue);
}

#[test]
fn a_driver_without_msix_may_poll() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    guest.set_config(guest.msix + 2, 0, 2);
    let head = queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.kick();
    let isr = guest.bar + guest.isr;
    let deadline = Instant::now() + DEADLINE;
    while guest.read(isr, 1) != 1 {
        assert!(Instant::now() < deadline, "no interrupt");
    }
    assert_eq!(queue.take_used(), [(head, 32)]);
    assert_eq!(guest.read(isr, 1), 0, "it is cleared by reading");
    assert_eq!(guest.vectors.take(1), None);
}

#[test]
fn a_broken_driver_is_told_by_the_configuration_vector() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    queue.add(&[Desc::writable(u64::MAX - 1, 32)]);
    guest.kick();
    assert_eq!(guest.wait_vector(0).data, 0x40);
    assert_eq!(guest.get(DEVICE_STATUS, 1), 15 | 64);
    assert_eq!(guest.read(guest.bar + guest.isr, 1), 2);
    let mut queue = guest.start();
    guest.request(&mut queue);
}

#[test]
fn what_is_masked_comes_when_it_is_unmasked() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    let control = guest.bar + guest.table + 16 + 12;
    guest.write(control, 1, 4);
    queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.kick();
    let deadline = Instant::now() + DEADLINE;
    while guest.read(guest.bar + guest.pending, 8) != 2 {
        assert!(Instant::now() < deadline, "not pending");
    }
    assert_eq!(guest.vectors.take(1), None);
    guest.write(control, 0, 4);
    assert_eq!(guest.wait_vector(1).data, 0x41);
    assert_eq!(guest.read(guest.bar + guest.pending, 8), 0);
    assert_eq!(queue.take_used().len(), 1);
}

#[test]
fn vectors_that_are_not_there_cannot_be_had() {
    let mut guest = Guest::new();
    guest.start();
    for vector in [2, 0x7fff, 0xfffe, 0xffff] {
        guest.set(CONFIG_MSIX_VECTOR, vector, 2);
        assert_eq!(guest.get(CONFIG_MSIX_VECTOR, 2), 0xffff);
        guest.set(QUEUE_MSIX_VECTOR, vector, 2);
        assert_eq!(guest.get(QUEUE_MSIX_VECTOR, 2), 0xffff);
    }
    guest.set(QUEUE_SELECT, 1, 2);
    guest.set(QUEUE_MSIX_VECTOR, 0, 2);
    assert_eq!(guest.get(QUEUE_MSIX_VECTOR, 2), 0xffff);
    assert_eq!(guest.get(QUEUE_SIZE, 2), 0);
    assert_eq!(guest.get(NUM_QUEUES, 2), 1);
    assert_eq!(guest.config(guest.msix + 2, 2) & 0x7ff, 1, "two vectors");
}

#[test]
fn a_queue_is_reset_alone() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    guest.request(&mut queue);
    // Only a reset takes a queue away.
    guest.set(QUEUE_ENABLE, 0, 2);
    assert_eq!(guest.get(QUEUE_ENABLE, 2), 1);
    guest.set(QUEUE_RESET, 1, 2);
    assert_eq!(guest.get(QUEUE_RESET, 2), 0);
    assert_eq!(guest.get(QUEUE_ENABLE, 2), 0);
    let mut queue = guest.set_up_queue();
    guest.request(&mut queue);
}

#[test]
fn the_memory_is_where_the_guest_puts_it() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.bus.read(ADDRESS.into(), &mut [0; 4]),
        Access::Unmapped
    );
    let mut queue = guest.start();
    // Sizing, with the memory switched off as it has to be.
    guest.set_config(4, 4, 2);
    guest.set_config(0x10, 0xffff_ffff, 4);
    assert_eq!(guest.config(0x10, 4), u64::from(!(BAR_SIZE - 1)));
    let moved = u64::from(ADDRESS + 5 * BAR_SIZE);
    guest.set_config(0x10, moved, 4);
    guest.set_config(4, 6, 2);
    assert_eq!(
        guest.bus.read(ADDRESS.into(), &mut [0; 4]),
        Access::Unmapped
    );
    assert_eq!(guest.read(guest.bar, 4), 0xffff_ffff);
    guest.bar = moved;
    assert_eq!(guest.get(DEVICE_STATUS, 1), 15);
    guest.request(&mut queue);
    // And with the memory on: it moves at once.
    guest.set_config(0x10, ADDRESS.into(), 4);
    guest.bar = ADDRESS.into();
    guest.request(&mut queue);
    let moved = u32::try_from(moved).unwrap();
    let calls = [Some(ADDRESS), None, Some(moved), Some(ADDRESS)];
    assert_eq!(*lock(&guest.placed), calls);
}

#[test]
fn the_memory_may_be_put_where_another_device_is() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    for address in [ECAM, HOTPLUG & !0x3fff, 0xffff_c000] {
        guest.set_config(0x10, address, 4);
        assert_eq!(guest.config(0, 4), 0x1044_1af4);
    }
    guest.set_config(0x10, ADDRESS.into(), 4);
    guest.request(&mut queue);
}

#[test]
fn the_memory_is_accessed_through_configuration_space_too() {
    let mut guest = Guest::new();
    guest.find();
    // The memory is not even switched on.
    let window = guest.window;
    let access = |guest: &Guest, offset: u64, len: u64| {
        guest.set_config(window + 4, 0, 1);
        guest.set_config(window + 8, offset, 4);
        guest.set_config(window + 12, len, 4);
    };
    let status = guest.common + DEVICE_STATUS as u64;
    access(&guest, status, 1);
    guest.set_config(window + 16, 1, 1);
    guest.set_config(window + 16, 3, 4);
    assert_eq!(guest.config(window + 16, 1), 3);
    access(&guest, guest.common + NUM_QUEUES as u64, 2);
    assert_eq!(guest.config(window + 16, 2), 1);
    access(&guest, guest.common, 4);
    guest.set_config(window + 16, 1, 4);
    access(&guest, guest.common + 4, 4);
    assert_eq!(guest.config(window + 16, 4) & 1, 1, "VERSION_1");
    // No such bar, no such place, no such length.
    access(&guest, status, 1);
    guest.set_config(window + 4, 1, 1);
    guest.set_config(window + 16, 0, 4);
    for (offset, len) in [
        (status, 3),
        (status, 0),
        (1, 4),
        (BAR_SIZE.into(), 4),
        (0xffff_fffc, 4),
    ] {
        access(&guest, offset, len);
        guest.set_config(window + 16, 0, 4);
        guest.config(window + 16, 4);
    }
    access(&guest, status, 1);
    assert_eq!(guest.config(window + 16, 1), 3);
}
