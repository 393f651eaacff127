//! Devices that go, that cannot be, and guests that do what nobody should.

use super::*;

#[test]
fn an_ejected_device_is_gone() {
    let mut guest = Guest::new();
    let mut queue = guest.start();
    guest.request(&mut queue);
    let stale = Arc::downgrade(&guest.root);
    guest.write(HOTPLUG + EJECT, guest.slot.bit().into(), 4);
    assert!(!guest.root.is_occupied(guest.slot));
    assert!(guest.vectors.is_released());
    assert_eq!(guest.config(0, 4), 0xffff_ffff);
    assert_eq!(guest.bus.read(guest.bar, &mut [0; 4]), Access::Unmapped);
    queue.add(&[Desc::writable(0x80_0000, 32)]);
    guest.kick();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(queue.take_used(), []);
    drop(guest);
    assert!(stale.upgrade().is_none(), "somebody holds on to the bus");
}

#[test]
fn accesses_that_come_too_late_do_nothing() {
    let vectors = Vectors::new(2);
    let mut device = PciDevice::new(rng(), memory(), vectors.clone(), ADDRESS).unwrap();
    device.unplug();
    device.unplug();
    device.write(DEVICE_STATUS as u64, &[3]);
    device.write_config(4, &[6]);
    let mut data = [0; 1];
    device.read(DEVICE_STATUS as u64, &mut data);
    assert_eq!(data, [0xff]);
    device.read_config(4, &mut data);
    assert_eq!(data, [0xff]);
    assert!(vectors.is_released());
}

/// Claims so many queues, and holds something.
struct Queues(Vec<u16>, Arc<()>);

impl Queues {
    fn new(count: usize) -> Self {
        Self(vec![256; count], Arc::new(()))
    }
}

#[test]
fn an_unplugged_device_ends_at_once() {
    let device = Queues::new(3);
    let held = Arc::downgrade(&device.1);
    let vectors = Vectors::new(4);
    let mut device = PciDevice::new(Box::new(device), memory(), vectors, ADDRESS).unwrap();
    assert_eq!(device.kick_fds().count(), 3);
    assert!(held.upgrade().is_some());
    device.unplug();
    assert!(held.upgrade().is_none());
    assert_eq!(device.kick_fds().count(), 0);
}

impl VirtioDevice for Queues {
    fn kind(&self) -> Kind {
        Kind::Net
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.0
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {}
    fn activate(
        &mut self,
        _: crate::virtio::Resources,
    ) -> Result<(), crate::virtio::ActivateError> {
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<crate::virtio::queue::Queue> {
        Vec::new()
    }
    fn save(&self) -> Result<crate::virtio::state::DeviceState, crate::state::BadState> {
        Ok(crate::virtio::state::DeviceState::Stateless)
    }
    fn restore(
        &mut self,
        state: &crate::virtio::state::DeviceState,
    ) -> Result<(), crate::state::BadState> {
        crate::virtio::restore_nothing(state)
    }
}

#[test]
fn a_vector_for_each_queue_or_no_device() {
    let guest = Guest::with(Box::new(Queues::new(127)));
    assert!(guest.root.is_occupied(guest.slot));
    let too_many = Queues::new(128);
    assert!(matches!(
        vector_count(&too_many),
        Err(Error::TooManyQueues { queues: 128 })
    ));
    let made = PciDevice::new(Box::new(too_many), memory(), Vectors::new(1), 0);
    assert!(made.is_err());
}

#[test]
fn registers_in_any_order_and_with_any_value() {
    let mut guest = Guest::new();
    let mut state = 1u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        u64::from(state)
    };
    guest.find();
    for _ in 0..50_000 {
        let len = [1, 2, 4, 8][random() as usize % 4];
        let value = match random() % 4 {
            0 => random() % 4,
            1 => 1 << (random() % 64),
            2 => 0x10_0000 + random() % 0x1_0000,
            _ => random() << 32 | random(),
        };
        let address = match random() % 8 {
            // Mostly registers that do something.
            0..4 => guest.bar + guest.common + random() % 0x40,
            4 => guest.bar + random() % u64::from(BAR_SIZE),
            5 => guest.bar + guest.table + random() % 0x40,
            6 => guest.config_address(random() % 0x100),
            _ => guest.config_address(guest.window + random() % 0x14),
        };
        // Mostly aligned.
        let address = if random() % 8 == 0 {
            address
        } else {
            address & !(len as u64 - 1)
        };
        guest.write(address, value, len);
        guest.read(address, len);
        if random() % 64 == 0 {
            guest.set_config(0x10, ADDRESS.into(), 4);
            guest.set_config(4, 6, 2);
        }
    }
    guest.set_config(0x10, ADDRESS.into(), 4);
    guest.set_config(4, 6, 2);
    guest.set(DEVICE_STATUS, 0, 1);
    guest.set_config(guest.msix + 2, 0, 2);
    let mut queue = guest.start();
    while guest.vectors.take(1).is_some() {}
    guest.request(&mut queue);
}

#[test]
fn odd_accesses_to_its_memory() {
    let vectors = Vectors::new(2);
    let mut device = PciDevice::new(rng(), memory(), vectors, ADDRESS).unwrap();
    for offset in (0..u64::from(BAR_SIZE)).chain([u64::from(u32::MAX), 1 << 32, u64::MAX]) {
        for len in [0, 1, 2, 3, 4, 5, 8, 16] {
            let mut data = vec![0xaa; len];
            device.read(offset, &mut data);
            device.write(offset, &vec![0xff; len]);
        }
    }
}
