use super::*;
use crate::bus::Bus;
use crate::legacy::pci_config::PciConfig;

/// A function that remembers.
struct Probe {
    space: Space,
    unplugged: Arc<Mutex<bool>>,
}

impl Function for Probe {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.space.write(offset, data);
    }

    fn unplug(&mut self) {
        *lock(&self.unplugged) = true;
    }
}

fn probe(device: u16) -> (SharedFunction, Arc<Mutex<bool>>) {
    let mut space = Space::new(&Identity {
        vendor: 0x1234,
        device,
        revision: 0,
        class: 0,
        subsystem: (0, 0),
    });
    space.add_bar(0, 4096);
    let unplugged = Arc::default();
    let probe = Probe {
        space,
        unplugged: Arc::clone(&unplugged),
    };
    (Arc::new(Mutex::new(probe)), unplugged)
}

fn insert(root: &Root, device: u16) -> Result<Slot, Full> {
    root.insert(|_| Ok(probe(device).0))
}

/// A guest with both ways to configuration space.
struct Guest {
    root: Arc<Root>,
    bus: Bus,
}

const ECAM: u64 = 0xe000_0000;
const PORT: u64 = 0xcf8;

impl Guest {
    fn new() -> Self {
        let root = Arc::new(Root::new());
        let bus = Bus::new();
        let ecam = Arc::new(Mutex::new(Ecam(Arc::clone(&root))));
        bus.insert(ECAM, ECAM_SIZE, ecam).unwrap();
        let ports = Arc::new(Mutex::new(PciConfig::new(Arc::clone(&root))));
        bus.insert(PORT, 8, ports).unwrap();
        Self { root, bus }
    }

    fn ecam<const LEN: usize>(&self, slot: u64, function: u64, offset: u64) -> [u8; LEN] {
        let mut data = [0xaa; LEN];
        let _ = self
            .bus
            .read(ECAM + (slot << 15) + (function << 12) + offset, &mut data);
        data
    }

    fn select(&self, bus: u32, slot: u32, function: u32, offset: u32) {
        let address = 1 << 31 | bus << 16 | slot << 11 | function << 8 | offset & !3;
        let _ = self.bus.write(PORT, &address.to_le_bytes());
    }

    fn port<const LEN: usize>(&self, bus: u32, slot: u32, function: u32, offset: u32) -> [u8; LEN] {
        self.select(bus, slot, function, offset);
        let mut data = [0xaa; LEN];
        let _ = self.bus.read(PORT + 4 + u64::from(offset & 3), &mut data);
        data
    }
}

#[test]
fn the_host_bridge_is_there_both_ways() {
    let guest = Guest::new();
    assert_eq!(guest.ecam(0, 0, 0), [0x36, 0x1b, 0x08, 0x00]);
    assert_eq!(guest.port(0, 0, 0, 0), [0x36, 0x1b, 0x08, 0x00]);
    // As Linux looks for it: a class of 2 bytes.
    assert_eq!(guest.ecam(0, 0, 0x0a), [0x00, 0x06]);
    assert_eq!(guest.port(0, 0, 0, 0x0a), [0x00, 0x06]);
    assert_eq!(guest.ecam(0, 0, 0), [0x36, 0x1b, 0x08, 0, 0, 0, 0, 0]);
}

#[test]
fn nobody_else_is() {
    let guest = Guest::new();
    insert(&guest.root, 1).unwrap();
    for (bus, slot, function) in [
        (0, 0, 1),
        (0, 1, 7),
        (0, 2, 0),
        (0, 31, 0),
        (1, 0, 0),
        (255, 1, 0),
    ] {
        assert_eq!(guest.port(bus, slot, function, 0), [NOBODY; 4]);
        if bus == 0 {
            assert_eq!(guest.ecam(slot.into(), function.into(), 0), [NOBODY; 4]);
        }
    }
    assert_eq!(guest.ecam(1, 0, 0), [0x34, 0x12, 1, 0]);
    // No extended capabilities.
    assert_eq!(guest.ecam(1, 0, 0x100), [0; 4]);
    assert_eq!(guest.ecam(1, 0, 0xffc), [0; 4]);
    // Not enabled.
    let _ = guest.bus.write(PORT, &(1_u32 << 11).to_le_bytes());
    let mut data = [0; 4];
    let _ = guest.bus.read(PORT + 4, &mut data);
    assert_eq!(data, [NOBODY; 4]);
}

#[test]
fn writes_arrive_both_ways() {
    let guest = Guest::new();
    insert(&guest.root, 1).unwrap();
    let _ = guest.bus.write(ECAM + (1 << 15) + 0x3c, &[0x55]);
    assert_eq!(guest.port(0, 1, 0, 0x3c), [0x55]);
    guest.select(0, 1, 0, 0x10);
    let _ = guest.bus.write(PORT + 6, &[0xcd, 0xab]);
    assert_eq!(guest.ecam(1, 0, 0x10), [0, 0, 0xcd, 0xab]);
    assert_eq!(guest.port(0, 1, 0, 0x12), [0xcd, 0xab]);
}

#[test]
fn odd_accesses_find_nobody() {
    let guest = Guest::new();
    assert_eq!(guest.ecam(0, 0, 1), [NOBODY; 2]);
    assert_eq!(guest.ecam(0, 0, 0), [NOBODY; 3]);
    assert_eq!(guest.ecam(0, 0, 4), [NOBODY; 8]);
    assert_eq!(guest.ecam(0, 0, 0), [NOBODY; 16]);
    assert_eq!(guest.port(0, 0, 0, 3), [NOBODY; 2]);
    assert_eq!(guest.ecam(31, 7, 0xffd), [NOBODY; 4]);
    guest.root.read_config(usize::MAX, 0, 0, &mut [0; 4]);
    guest.root.write_config(0, 0, usize::MAX, &[0]);
}

#[test]
fn slots_are_taken_from_the_lowest_up_and_given_back() {
    let root = Root::new();
    for number in 1..32 {
        assert_eq!(insert(&root, 1).unwrap().number(), number);
    }
    assert_eq!(insert(&root, 1), Err(Full));
    let seven = Slot::new(7).unwrap();
    assert!(root.remove(seven));
    assert!(!root.remove(seven));
    assert!(!root.is_occupied(seven));
    assert_eq!(insert(&root, 1), Ok(seven));
    assert_eq!(Slot::new(0), None);
    assert_eq!(Slot::new(32), None);
    assert_eq!(Slot::all().count(), 31);
}

#[test]
fn what_is_removed_is_unplugged() {
    let root = Arc::new(Root::new());
    let (function, unplugged) = probe(1);
    let slot = root.insert(|_| Ok::<_, Full>(function)).unwrap();
    let occupant = root.occupant(slot).unwrap();
    assert!(!root.wait_removed(&occupant, Duration::ZERO));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| root.wait_removed(&occupant, Duration::from_secs(60)));
        assert!(root.remove(slot));
        assert!(waiter.join().unwrap());
    });
    assert!(*lock(&unplugged));
    assert!(root.wait_removed(&occupant, Duration::ZERO));
    assert!(root.occupant(slot).is_none());
    // Who waits for one does not wait for the next one.
    assert_eq!(insert(&root, 1), Ok(slot));
    assert!(root.wait_removed(&occupant, Duration::ZERO));
}

#[test]
fn what_cannot_be_made_takes_no_slot() {
    #[derive(Debug, PartialEq)]
    struct No;
    impl From<Full> for No {
        fn from(_: Full) -> Self {
            No
        }
    }
    let root = Root::new();
    assert_eq!(root.insert(|_| Err(No)), Err(No));
    assert_eq!(insert(&root, 1).unwrap().number(), 1);
}

#[test]
fn whoever_waits_does_not_keep_what_ends() {
    let root = Arc::new(Root::new());
    let (function, unplugged) = probe(1);
    let gone = Arc::downgrade(&function);
    let slot = root.insert(|_| Ok::<_, Full>(function)).unwrap();
    let occupant = root.occupant(slot).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| root.wait_removed(&occupant, Duration::from_secs(60)));
        root.clear();
        assert!(waiter.join().unwrap());
    });
    assert!(gone.upgrade().is_none());
    assert!(!*lock(&unplugged), "KVM has not to be told");
}
