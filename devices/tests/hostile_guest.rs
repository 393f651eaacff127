//! A guest that does anything, to every device at once: no access may panic, hang or take memory
//! without end. What the accesses mean is left to the devices' own tests.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/random.rs"]
mod random;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::bus::{Access, Bus, BusDevice};
use devices::event::{EventSink, GuestEvent};
use devices::interrupt::{InterruptLine, MsiMessage, MsiSink};
use devices::ioapic::{IoApic, MAX_PINS, Pin};
use devices::legacy::acpi_pm::AcpiPm;
use devices::legacy::boot_timer::BootTimer;
use devices::legacy::ged::Ged;
use devices::legacy::i8042::I8042;
use devices::legacy::pic::Pic;
use devices::legacy::pvpanic::PvPanic;
use devices::legacy::reset_line::ResetLine;
use devices::legacy::serial::{OUTPUT_MAX, Serial};
use random::Random;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ACCESSES: u32 = 1_000_000;
/// Devices are this far apart, and their ranges shorter: there are gaps to hit.
const SPACING: u64 = 0x4000;

/// Mostly bits that mean something, sometimes all or none of them.
fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    let fill = random.pick(&[None, None, None, Some(0x00), Some(0xff)]);
    (0..len)
        .map(|_| fill.unwrap_or(random.next().to_le_bytes()[7]))
        .collect()
}

#[derive(Default)]
struct Sink {
    messages: AtomicU64,
    routes: AtomicU64,
    events: AtomicU64,
}

impl MsiSink for Sink {
    fn signal(&self, message: MsiMessage) {
        assert_eq!(message.address & !0xf_fffc, 0xfee0_0000);
        assert_eq!(message.data & !0xc7ff, 0);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    fn route(&self, pin: u32, _: Option<MsiMessage>) {
        assert!(pin < MAX_PINS);
        self.routes.fetch_add(1, Ordering::Relaxed);
    }
}

impl EventSink for Sink {
    fn event(&self, _: GuestEvent) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }
}

struct Machine {
    sink: Arc<Sink>,
    devices: Vec<(u64, Arc<Mutex<dyn BusDevice>>)>,
    bus: Bus,
    serial: Arc<Mutex<Serial>>,
    ioapic: Arc<Mutex<IoApic>>,
    ged: Arc<Mutex<Ged>>,
    lines: Vec<Pin>,
}

impl Machine {
    fn new() -> Self {
        let sink = Arc::new(Sink::default());
        let ioapic = Arc::new(Mutex::new(IoApic::new(sink.clone(), MAX_PINS)));
        let line = |pin| Pin::new(ioapic.clone(), pin);
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Arc::new(Mutex::new(Serial::new(Arc::new(line(4)), wake)));
        let ged = Arc::new(Mutex::new(Ged::new(Arc::new(line(3)))));
        let devices: Vec<(u64, Arc<Mutex<dyn BusDevice>>)> = vec![
            (8, serial.clone()),
            (0x1000, ioapic.clone()),
            (4, ged.clone()),
            (2, Arc::new(Mutex::new(Pic::default()))),
            (5, Arc::new(Mutex::new(ResetLine::new(sink.clone())))),
            (
                5,
                Arc::new(Mutex::new(I8042::new(Arc::new(line(1)), sink.clone()))),
            ),
            (3, Arc::new(Mutex::new(AcpiPm::new(sink.clone())))),
            (1, Arc::new(Mutex::new(PvPanic::new(sink.clone())))),
            (1, Arc::new(Mutex::new(BootTimer::new(sink.clone())))),
        ];
        let bus = Bus::new();
        for ((len, device), base) in devices.iter().zip((0..).step_by(0x4000)) {
            bus.insert(base, *len, device.clone()).unwrap();
        }
        let lines = (5..MAX_PINS).map(line).collect();
        Self {
            sink,
            devices,
            bus,
            serial,
            ioapic,
            ged,
            lines,
        }
    }

    fn access(&self, random: &mut Random) {
        let len = random.pick(&[1, 1, 1, 1, 2, 4, 4, 4, 8, 0, 3, 5, 7, 16, 300]);
        let device = random.below(self.devices.len() as u64);
        let offset = match random.below(4) {
            0 => random.below(SPACING),
            1 => random.pick(&[0x10, 0x40, 0xfff, 0x1000]),
            _ => random.below(9),
        };
        let addr = (device * SPACING + offset).wrapping_sub(random.pick(&[0, 0, 0, 1]));
        if random.below(2) == 0 {
            let mut data = vec![0x5a; len];
            if self.bus.read(addr, &mut data) == Access::Unmapped {
                assert_eq!(data, vec![0xff; len]);
            }
        } else {
            let _ = self.bus.write(addr, &bytes(random, len));
        }
    }

    /// Selects an IOAPIC register and writes it, which random accesses seldom do.
    fn program_ioapic(&self, random: &mut Random) {
        let (register, value) = (random.below(0x48), random.next());
        let mut ioapic = self.ioapic.lock().unwrap();
        ioapic.write(0x00, &register.to_le_bytes()[..4]);
        ioapic.write(0x10, &value.to_le_bytes()[..4]);
    }

    /// What the host does meanwhile.
    fn host(&self, random: &mut Random) {
        let mut serial = self.serial.lock().unwrap();
        match random.below(6) {
            0 => {
                let room = serial.input_room();
                assert!(room <= 16);
                assert_eq!(serial.receive(&[b'x'; 100]), room);
            }
            1 => serial.consume_output(usize::try_from(random.below(100)).unwrap()),
            2 => {
                serial.rest();
            }
            3 => {
                drop(serial);
                self.ged.lock().unwrap().press_power_button();
            }
            4 => {
                drop(serial);
                let line = usize::try_from(random.below(self.lines.len() as u64)).unwrap();
                self.lines[line].set(random.below(2) == 0);
            }
            _ => {
                drop(serial);
                self.ioapic
                    .lock()
                    .unwrap()
                    .eoi(random.next().to_le_bytes()[0]);
            }
        }
    }
}

#[test]
fn no_access_does_any_harm() {
    let machine = Machine::new();
    let mut random = Random(0x6d6f_7465);
    for _ in 0..ACCESSES {
        match random.below(16) {
            0 => machine.host(&mut random),
            1 => machine.program_ioapic(&mut random),
            _ => machine.access(&mut random),
        }
        let serial = machine.serial.lock().unwrap();
        let (front, back) = serial.output();
        assert!(front.len() + back.len() <= OUTPUT_MAX);
    }
    // It was not all misses.
    let (sink, unmapped) = (&machine.sink, machine.bus.unmapped());
    assert!(unmapped.reads > 0 && unmapped.writes > 0);
    assert!(unmapped.reads + unmapped.writes < u64::from(ACCESSES));
    for counter in [&sink.messages, &sink.routes, &sink.events] {
        assert!(counter.load(Ordering::Relaxed) > 100);
    }
}

#[test]
fn no_offset_does_any_harm_even_without_a_bus() {
    let machine = Machine::new();
    let mut random = Random(1);
    for (_, device) in &machine.devices {
        for offset in [
            0,
            1,
            0x10,
            0xfff,
            u64::from(u32::MAX),
            u64::MAX / 2,
            u64::MAX - 1,
            u64::MAX,
        ] {
            for len in (0..20).chain([4096]) {
                let mut device = device.lock().unwrap();
                device.read(offset, &mut vec![0; len]);
                device.write(offset, &bytes(&mut random, len));
            }
        }
    }
}

#[test]
fn a_guest_that_only_prints_fills_a_bounded_buffer() {
    let machine = Machine::new();
    for _ in 0..OUTPUT_MAX * 2 {
        let _ = machine.bus.write(0, b"x");
    }
    let serial = machine.serial.lock().unwrap();
    let (front, back) = serial.output();
    assert_eq!(front.len() + back.len(), OUTPUT_MAX);
    assert_eq!(serial.counters().missed_writes, OUTPUT_MAX as u64);
}
