use super::*;

/// Remembers the last access, and reads as its offset.
#[derive(Default)]
struct Probe {
    last: Option<(u64, Vec<u8>)>,
}

impl BusDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        put_register(data, u32::try_from(offset).unwrap());
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.last = Some((offset, data.to_vec()));
    }
}

fn probe() -> Arc<Mutex<Probe>> {
    Arc::default()
}

#[test]
fn an_access_goes_to_the_device_of_its_range() {
    let (a, b) = (probe(), probe());
    let bus = Bus::new();
    bus.insert(0x200, 0x10, b.clone()).unwrap();
    bus.insert(0x100, 0x10, a.clone()).unwrap();

    let mut data = [0; 4];
    assert_eq!(bus.read(0x10c, &mut data), Access::Handled);
    assert_eq!(data, [0xc, 0, 0, 0]);
    assert_eq!(bus.write(0x201, &[7, 8]), Access::Handled);
    assert_eq!(lock(&b).last, Some((1, vec![7, 8])));
    assert_eq!(lock(&a).last, None);
    assert_eq!(bus.unmapped(), Unmapped::default());
}

#[test]
fn unmapped_reads_are_all_ones_and_counted() {
    let device = probe();
    let bus = Bus::new();
    bus.insert(0x100, 0x10, device.clone()).unwrap();

    for (addr, len) in [
        (0, 1),
        (0xff, 1),
        (0xff, 2),
        (0x10f, 2),
        (0x110, 1),
        (u64::MAX, 8),
    ] {
        let mut data = vec![0; len];
        assert_eq!(bus.read(addr, &mut data), Access::Unmapped, "{addr:#x}");
        assert_eq!(data, vec![0xff; len]);
        assert_eq!(bus.write(addr, &data), Access::Unmapped, "{addr:#x}");
    }
    assert_eq!(lock(&device).last, None);
    assert_eq!(
        bus.unmapped(),
        Unmapped {
            reads: 6,
            writes: 6
        }
    );
}

#[test]
fn a_range_may_end_with_the_address_space() {
    let bus = Bus::new();
    bus.insert(u64::MAX - 3, 4, probe()).unwrap();
    let mut data = [0; 4];
    assert_eq!(bus.read(u64::MAX - 3, &mut data), Access::Handled);
    assert_eq!(bus.read(u64::MAX, &mut data[..1]), Access::Handled);
    assert_eq!(bus.read(u64::MAX, &mut data[..2]), Access::Unmapped);
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let bus = Bus::new();
    bus.insert(0x100, 0x10, probe()).unwrap();
    assert_eq!(bus.insert(5, 0, probe()), Err(Error::Empty { base: 5 }));
    let (base, len) = (u64::MAX, 2);
    assert_eq!(
        bus.insert(base, len, probe()),
        Err(Error::WrapAround { base, len })
    );
    for (base, len) in [
        (0x100, 0x10),
        (0x10f, 1),
        (0xff, 2),
        (0, u64::MAX),
        (0x104, 2),
    ] {
        let other = 0x100;
        assert_eq!(
            bus.insert(base, len, probe()),
            Err(Error::Overlap { base, len, other })
        );
    }
    bus.insert(0x110, 1, probe()).unwrap();
    bus.insert(0xff, 1, probe()).unwrap();
}

#[test]
fn a_poisoned_device_still_answers() {
    let device = probe();
    let poisoner = device.clone();
    let _ = std::thread::spawn(move || {
        let _guard = poisoner.lock();
        panic!("poisons the lock");
    })
    .join();
    assert!(device.is_poisoned());

    let bus = Bus::new();
    bus.insert(0, 8, device).unwrap();
    let mut data = [0; 1];
    assert_eq!(bus.read(3, &mut data), Access::Handled);
    assert_eq!(data, [3]);
}

#[test]
fn a_device_that_was_removed_answers_no_more() {
    let (a, b) = (probe(), probe());
    let bus = Bus::new();
    bus.insert(0x100, 0x10, a.clone()).unwrap();
    bus.insert(0x110, 0x10, b).unwrap();
    assert!(bus.remove(0x104).is_none());
    let removed = bus.remove(0x100).unwrap();
    assert!(bus.remove(0x100).is_none());
    assert_eq!(bus.write(0x100, &[1]), Access::Unmapped);
    assert_eq!(bus.write(0x110, &[1]), Access::Handled);
    bus.insert(0x200, 0x10, removed).unwrap();
    assert_eq!(bus.write(0x201, &[2]), Access::Handled);
    assert_eq!(lock(&a).last, Some((1, vec![2])));
}

/// Moves itself away when it is written to.
struct Mover {
    bus: std::sync::Weak<Bus>,
    base: u64,
    this: std::sync::Weak<Mutex<Mover>>,
}

impl BusDevice for Mover {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        put_register(data, u32::try_from(self.base + offset).unwrap());
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        let bus = self.bus.upgrade().unwrap();
        bus.remove(self.base).unwrap();
        self.base ^= 0x1000;
        bus.insert(self.base, 0x10, self.this.upgrade().unwrap())
            .unwrap();
    }
}

#[test]
fn a_device_moves_itself_while_others_look_for_it() {
    const BASE: u64 = 0x4000;
    let bus = Arc::new(Bus::new());
    let mover = Arc::new_cyclic(|this| {
        Mutex::new(Mover {
            bus: Arc::downgrade(&bus),
            base: BASE,
            this: this.clone(),
        })
    });
    bus.insert(BASE, 0x10, mover.clone()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let mut data = [0; 4];
                    for base in [BASE, BASE ^ 0x1000] {
                        if bus.read(base, &mut data) == Access::Unmapped {
                            assert_eq!(data, [0xff; 4]);
                        }
                    }
                }
            });
        }
        for _ in 0..1_000 {
            let base = lock(&mover).base;
            assert_eq!(bus.write(base, &[1]), Access::Handled);
        }
    });
    let base = lock(&mover).base;
    assert_eq!(base, BASE);
    let mut data = [0; 4];
    assert_eq!(bus.read(BASE + 4, &mut data), Access::Handled);
    assert_eq!(u64::from(u32::from_le_bytes(data)), BASE + 4);
}
