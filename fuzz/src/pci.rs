//! A guest made of the fuzzer's bytes on a PCI bus: configuration space both ways, memory that moves,
//! MSI-X, and devices that come and go.

use std::sync::{Arc, Mutex, Weak};

use devices::bus::Bus;
use devices::interrupt::MsiMessage;
use devices::legacy::pci_config::PciConfig;
use devices::pci::Function;
use devices::pci::hotplug::Hotplug;
use devices::pci::msix::MsiVectors;
use devices::pci::root::{ECAM_SIZE, Ecam, Full, Root, Slot};
use devices::virtio::rng::Rng;
use devices::virtio::transport::pci::{BAR_SIZE, PciDevice, Window, vector_count};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Input, MAX_OPERATIONS, ManualLoop};

const ECAM: u64 = 0xe000_0000;
const PORTS: u64 = 0xcf8;
const HOTPLUG: u64 = 0x610;
/// Where the memory of slot `n` is, from here on, if the guest leaves it there.
const WINDOW: u64 = 0xc000_0000;
const SLOTS: u8 = 4;
const MEMORY_SIZE: usize = 0x20_0000;

struct Vectors(Vec<Arc<EventFd>>);

impl MsiVectors for Vectors {
    fn set(&self, vector: usize, message: Option<MsiMessage>) {
        assert!(vector < self.0.len());
        assert!(message.is_none_or(|message| message.address >> 20 == 0xfee));
    }
    fn fd(&self, vector: usize) -> Option<&Arc<EventFd>> {
        self.0.get(vector)
    }
    fn release(&self) {}
}

struct Mover {
    bus: Weak<Bus>,
    device: Weak<Mutex<PciDevice>>,
    placed: Mutex<Option<u64>>,
}

impl Window for Mover {
    fn place(&self, address: Option<u32>) {
        let (Some(bus), Ok(mut placed)) = (self.bus.upgrade(), self.placed.lock()) else {
            return;
        };
        if let Some(old) = placed.take() {
            bus.remove(old).unwrap();
        }
        if let (Some(address), Some(device)) = (address, self.device.upgrade())
            && bus.insert(address.into(), BAR_SIZE.into(), device).is_ok()
        {
            *placed = Some(address.into());
        }
    }
}

struct Guest {
    bus: Arc<Bus>,
    root: Arc<Root>,
    hotplug: Arc<Mutex<Hotplug>>,
    memory: Arc<GuestMemoryMmap>,
    event_loop: Arc<ManualLoop>,
}

/// Runs one guest.
pub fn run(input: &[u8]) {
    let ranges = [(GuestAddress(0), MEMORY_SIZE)];
    let (bus, root) = (Arc::new(Bus::new()), Arc::new(Root::new()));
    let hotplug = Arc::new(Mutex::new(Hotplug::new(root.clone())));
    bus.insert(HOTPLUG, 12, hotplug.clone()).unwrap();
    let ecam = Arc::new(Mutex::new(Ecam(root.clone())));
    bus.insert(ECAM, ECAM_SIZE, ecam).unwrap();
    let ports = Arc::new(Mutex::new(PciConfig::new(root.clone())));
    bus.insert(PORTS, 8, ports).unwrap();
    let guest = Guest {
        bus,
        root,
        hotplug,
        memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()),
        event_loop: ManualLoop::new(),
    };
    let mut input = Input(input);
    guest.insert();
    // Most runs are of a driver that gets through the handshake.
    if input.u8() % 8 != 0 {
        guest.start(1);
    }
    for _ in 0..MAX_OPERATIONS {
        if input.0.is_empty() {
            break;
        }
        guest.operate(&mut input);
    }
    guest.event_loop.turn();
    for slot in Slot::all() {
        guest.root.remove(slot);
    }
    assert_eq!(Arc::strong_count(&guest.bus), 1);
}

impl Guest {
    fn insert(&self) {
        let device = Rng::new(self.event_loop.clone()).unwrap();
        let count = vector_count(&device).unwrap();
        let fd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let vectors = Arc::new(Vectors((0..count).map(|_| fd()).collect()));
        let slot = self.root.insert(|slot| {
            let address = WINDOW as u32 + u32::from(slot.number()) * BAR_SIZE;
            let device = PciDevice::new(Box::new(device), self.memory.clone(), vectors, address);
            let device = Arc::new(Mutex::new(device.unwrap()));
            let window = Mover {
                bus: Arc::downgrade(&self.bus),
                device: Arc::downgrade(&device),
                placed: Mutex::default(),
            };
            device.lock().unwrap().set_window(Box::new(window));
            Ok::<_, Full>(device as Arc<Mutex<dyn Function>>)
        });
        if let Ok(slot) = slot {
            self.hotplug.lock().unwrap().inserted(slot);
        }
    }

    fn write(&self, address: u64, value: u64, len: usize) {
        let _ = self.bus.write(address, &value.to_le_bytes()[..len]);
    }

    fn start(&self, slot: u8) {
        let config = ECAM + (u64::from(slot) << 15);
        let place = WINDOW + u64::from(slot) * u64::from(BAR_SIZE);
        self.write(config + 0x10, place, 4);
        self.write(config + 4, 6, 2);
        for (offset, value, len) in [
            (0x14, 0, 1),
            (0x14, 3, 1),
            (0x08, 1, 4),
            // VERSION_1 and RING_RESET.
            (0x0c, 0x101, 4),
            (0x14, 11, 1),
            (0x3000, 0xfee0_0000, 8),
            (0x3008, 0x40, 8),
            (0x10, 0, 2),
            (0x16, 0, 2),
            (0x18, 16, 2),
            (0x1a, 1, 2),
            (0x20, 0x1_0000, 8),
            (0x28, 0x1_1000, 8),
            (0x30, 0x1_2000, 8),
            (0x1c, 1, 2),
            (0x14, 15, 1),
        ] {
            self.write(place + offset, value, len);
        }
        self.event_loop.turn();
    }

    fn operate(&self, input: &mut Input<'_>) {
        let slot = input.u8() % SLOTS;
        let place = WINDOW + u64::from(slot) * u64::from(BAR_SIZE);
        let (address, len) = match input.u8() % 10 {
            0 | 1 => (ECAM + (u64::from(slot) << 15) + u64::from(input.u8()), 8),
            2 => (PORTS + u64::from(input.u8() % 8), 4),
            3 => (HOTPLUG + u64::from(input.u8() % 12), 4),
            4 | 5 => (place + u64::from(input.u8() % 0x40), 8),
            6 => (place + u64::from(input.u16() % 0x4000), 8),
            7 => return self.start(slot),
            8 => {
                self.insert();
                if let Some(slot) = Slot::new(slot) {
                    self.hotplug.lock().unwrap().ask_to_leave(slot);
                }
                return;
            }
            _ => {
                let gpa = 0x1_0000 + u64::from(input.u16() % 0x3000);
                let count = usize::from(input.u8());
                let data = input.bytes(count).to_vec();
                let _ = self.memory.write_slice(&data, GuestAddress(gpa));
                self.write(place + 0x2000, 0, 2);
                return self.event_loop.turn();
            }
        };
        let shape = input.u8();
        let len = len.min([1, 2, 4, 8][usize::from(shape & 3)]);
        let address = if shape & 4 == 0 {
            address & !(len as u64 - 1)
        } else {
            address
        };
        if shape & 8 == 0 {
            let value = u64::from(input.u32()) << (shape & 0x30);
            self.write(address, value, len);
        } else {
            let _ = self.bus.read(address, &mut [0; 8][..len]);
        }
    }
}
