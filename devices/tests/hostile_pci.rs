//! vCPUs that do anything to a PCI bus at once, while devices come and go: nothing may panic, hang, or
//! stay behind.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/event_loop.rs"]
mod event_loop;
#[path = "common/random.rs"]
mod random;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use devices::bus::{Access, Bus};
use devices::interrupt::MsiMessage;
use devices::legacy::pci_config::PciConfig;
use devices::pci::hotplug::{EJECT, Hotplug};
use devices::pci::msix::MsiVectors;
use devices::pci::root::{ECAM_SIZE, Ecam, Root, Slot};
use devices::state::BadState;
use devices::virtio::queue::Queue;
use devices::virtio::rng::Rng;
use devices::virtio::state::DeviceState;
use devices::virtio::transport::pci::{BAR_SIZE, Error, PciDevice, Window, vector_count};
use devices::virtio::worker::EventLoop;
use devices::virtio::{ActivateError, Kind, Resources, VirtioDevice};
use event_loop::TestLoop;
use random::Random;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ECAM: u64 = 0xe000_0000;
const PORTS: u64 = 0xcf8;
const HOTPLUG: u64 = 0x610;
/// Where functions' memory can be: few places, so that they get into each other's way.
const WINDOW: u64 = 0xc000_0000;
const PLACES: u64 = 12;

const VCPUS: u64 = 2;
const ACCESSES: u32 = 60_000;
/// How often the host puts a device in or asks one to leave, at least.
const COMINGS: u32 = 300;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Count {
    there: AtomicUsize,
    activated: AtomicUsize,
}

/// Counts those that are there, and how often any was activated.
struct Counted(Rng, Arc<Count>);

impl Counted {
    fn new(event_loop: &Arc<dyn EventLoop>, count: &Arc<Count>) -> Self {
        count.there.fetch_add(1, Ordering::SeqCst);
        Self(Rng::new(Arc::clone(event_loop)).unwrap(), Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.there.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for Counted {
    fn kind(&self) -> Kind {
        self.0.kind()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
    fn activate(&mut self, resources: Resources) -> Result<(), ActivateError> {
        self.1.activated.fetch_add(1, Ordering::SeqCst);
        self.0.activate(resources)
    }
    fn deactivate(&mut self) -> Vec<Queue> {
        self.0.deactivate()
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.0.pause()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        self.0.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        self.0.restore(state)
    }
}

/// Vectors that know when they may not be used any more.
struct Vectors {
    fds: Vec<Arc<EventFd>>,
    released: Mutex<bool>,
}

impl MsiVectors for Vectors {
    fn set(&self, vector: usize, message: Option<MsiMessage>) {
        assert!(vector < self.fds.len());
        assert!(!*lock(&self.released));
        if let Some(message) = message {
            assert_eq!(message.address >> 20, 0xfee);
        }
    }
    fn fd(&self, vector: usize) -> Option<&Arc<EventFd>> {
        self.fds.get(vector)
    }
    fn release(&self) {
        assert!(!std::mem::replace(&mut *lock(&self.released), true));
    }
}

struct Mover {
    bus: Weak<Bus>,
    device: Weak<Mutex<PciDevice>>,
    placed: Mutex<Option<u64>>,
}

impl Window for Mover {
    fn place(&self, address: Option<u32>) {
        let bus = self.bus.upgrade().unwrap();
        let mut placed = lock(&self.placed);
        if let Some(old) = placed.take() {
            bus.remove(old).unwrap();
        }
        let range = WINDOW..WINDOW + (PLACES + 1) * u64::from(BAR_SIZE);
        let address = address.map(u64::from).filter(|at| range.contains(at));
        if let (Some(address), Some(device)) = (address, self.device.upgrade())
            && bus.insert(address, BAR_SIZE.into(), device).is_ok()
        {
            *placed = Some(address);
        }
    }
}

struct Machine {
    bus: Arc<Bus>,
    root: Arc<Root>,
    hotplug: Arc<Mutex<Hotplug>>,
    memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    fn new() -> Self {
        let (bus, root) = (Arc::new(Bus::new()), Arc::new(Root::new()));
        let hotplug = Arc::new(Mutex::new(Hotplug::new(Arc::clone(&root))));
        bus.insert(HOTPLUG, 12, hotplug.clone()).unwrap();
        let ecam = Arc::new(Mutex::new(Ecam(Arc::clone(&root))));
        bus.insert(ECAM, ECAM_SIZE, ecam).unwrap();
        let ports = Arc::new(Mutex::new(PciConfig::new(Arc::clone(&root))));
        bus.insert(PORTS, 8, ports).unwrap();
        let ranges = [(GuestAddress(0), 4 << 20)];
        Self {
            bus,
            root,
            hotplug,
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()),
        }
    }

    fn insert(&self, device: impl VirtioDevice + 'static) -> Result<Slot, Error> {
        let fd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let vectors = Arc::new(Vectors {
            fds: (0..vector_count(&device)?).map(|_| fd()).collect(),
            released: Mutex::new(false),
        });
        let made: Result<Slot, Box<dyn std::error::Error>> = self.root.insert(|slot| {
            let address = WINDOW + u64::from(slot.number()) % PLACES * u64::from(BAR_SIZE);
            let device = PciDevice::new(
                Box::new(device),
                Arc::clone(&self.memory),
                vectors,
                u32::try_from(address).unwrap(),
            )?;
            let device = Arc::new(Mutex::new(device));
            let window = Mover {
                bus: Arc::downgrade(&self.bus),
                device: Arc::downgrade(&device),
                placed: Mutex::default(),
            };
            lock(&device).set_window(Box::new(window));
            Ok(device as Arc<Mutex<dyn devices::pci::Function>>)
        });
        Ok(made.unwrap())
    }

    /// What a driver does, if nobody disturbs it.
    fn handshake(&self, random: &mut Random) {
        let place = WINDOW + random.below(PLACES) * u64::from(BAR_SIZE);
        let write = |offset: u64, value: u64, len: usize| {
            let _ = self.bus.write(place + offset, &value.to_le_bytes()[..len]);
        };
        for (offset, value, len) in [
            (0x14, 0, 1),
            (0x14, 1, 1),
            (0x14, 3, 1),
            (0x08, 1, 4),
            (0x0c, 1, 4),
            (0x14, 11, 1),
            (0x16, 0, 2),
            (0x18, 16, 2),
            (0x1a, 1, 2),
            (0x20, 0x10_0000, 8),
            (0x28, 0x10_8000, 8),
            (0x30, 0x10_a000, 8),
            (0x1c, 1, 2),
            (0x14, 15, 1),
            (0x2000, 0, 2),
        ] {
            write(offset, value, len);
        }
    }

    fn access(&self, random: &mut Random) {
        let len = random.pick(&[1, 2, 4, 4, 8]);
        let slot = random.below(10);
        let place = WINDOW + random.below(PLACES) * u64::from(BAR_SIZE);
        let (address, value) = match random.below(16) {
            0 => (HOTPLUG + random.below(12), 1 << random.below(32)),
            1 => (PORTS, 1 << 31 | slot << 11 | random.below(0x100)),
            2 => (PORTS + 4 + random.below(4), random.next()),
            // Memory on, off and elsewhere.
            3 | 4 => (ECAM + (slot << 15) + 4, random.pick(&[6, 6, 2, 0])),
            5 => (ECAM + (slot << 15) + 0x10, place),
            6 => (ECAM + (slot << 15) + random.below(0x100), random.next()),
            // The common configuration: the handshake, and what it does not expect.
            7..12 => {
                let value = random.pick(&[0, 1, 3, 11, 15, 0x10_0000, u64::MAX]);
                (place + random.below(0x3c), value)
            }
            12 => (place + 0x2000, 0),
            13 => (
                place + 0x3000 + random.below(0x40),
                random.pick(&[0, 1, 0xfee0_0000]),
            ),
            14 => (place + random.below(BAR_SIZE.into()), random.next()),
            _ => (random.next(), random.next()),
        };
        let address = if random.below(4) == 0 {
            address
        } else {
            address & !(len as u64 - 1)
        };
        if random.below(3) == 0 {
            let _ = self.bus.read(address, &mut [0; 8][..len]);
        } else {
            let _ = self.bus.write(address, &value.to_le_bytes()[..len]);
        }
    }
}

#[test]
fn vcpus_storm_a_bus_on_which_devices_come_and_go() {
    let machine = Machine::new();
    let event_loop = TestLoop::start();
    let count = Arc::<Count>::default();
    thread::scope(|scope| {
        let vcpus = (1..=VCPUS).map(|seed| {
            let machine = &machine;
            scope.spawn(move || {
                let mut random = Random(seed);
                for number in 0..ACCESSES {
                    machine.access(&mut random);
                    if number % 32 == 0 {
                        machine.handshake(&mut random);
                    }
                }
            })
        });
        let vcpus: Vec<_> = vcpus.collect();
        let mut random = Random(0x6d6f_7465);
        let mut comings = 0;
        // As long as the storm lasts, however fast either side is.
        while comings < COMINGS || vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
            comings += 1;
            // The host has not more than a few in at a time.
            if count.there.load(Ordering::SeqCst) < 8 {
                let slot = machine.insert(Counted::new(&event_loop, &count)).unwrap();
                lock(&machine.hotplug).inserted(slot);
            } else {
                let slot = Slot::new(random.pick(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
                lock(&machine.hotplug).ask_to_leave(slot);
                machine.root.remove(slot);
            }
            thread::yield_now();
        }
    });
    let _ = machine.bus.write(HOTPLUG + EJECT, &[0xff; 4]);
    for slot in Slot::all() {
        assert!(!machine.root.is_occupied(slot));
    }
    for place in 0..=PLACES {
        let address = WINDOW + place * u64::from(BAR_SIZE);
        assert_eq!(machine.bus.read(address, &mut [0]), Access::Unmapped);
    }
    let there = count.there.load(Ordering::SeqCst);
    assert_eq!(there, 0, "devices stayed behind");
    let activated = count.activated.load(Ordering::SeqCst);
    assert!(activated > 100, "the storm was too wild: {activated}");
    assert_eq!(Arc::strong_count(&machine.bus), 1);
}
