//! A state file of the fuzzer's bytes, and devices that are to become what it says.

use std::io;
use std::sync::{Arc, Mutex};

use devices::bus::BusDevice;
use devices::console_io::{InputFilter, Output};
use devices::event::{EventSink, GuestEvent};
use devices::interrupt::{InterruptLine, MsiMessage, MsiSink};
use devices::ioapic::{IoApic, Pin};
use devices::legacy::i8042::I8042;
use devices::legacy::serial::Serial;
use devices::rate_limiter::RateLimit;
use devices::virtio::VirtioDevice;
use devices::virtio::console::{self, Console};
use devices::virtio::mem::{Mem, MemConfig, MemorySlots};
use devices::virtio::rng::Rng;
use devices::virtio::state::{DeviceState, MmioState};
use devices::virtio::worker::EventLoop;
use vmm::snapshot::format::StateFile;
use vmm::snapshot::state::{VirtioState, VmState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Guest;

const PINS: u32 = 24;

/// Takes the bytes for a whole file, and for a state alone: then no checksum has to be right.
pub fn run(input: &[u8]) {
    let file = StateFile::read(&mut &*input);
    if let Ok(state) = file.and_then(|file| file.state::<VmState>()) {
        become_it(&state);
    }
    if let Ok((state, _)) = postcard::take_from_bytes::<VmState>(input) {
        become_it(&state);
    }
}

struct Sink;

impl MsiSink for Sink {
    fn signal(&self, message: MsiMessage) {
        assert_eq!(message.address >> 20, 0xfee);
    }
    fn route(&self, pin: u32, _: Option<MsiMessage>) {
        assert!(pin < PINS);
    }
}

impl EventSink for Sink {
    fn event(&self, _: GuestEvent) {}
}

fn become_it(state: &VmState) {
    let ioapic = Arc::new(Mutex::new(IoApic::new(Arc::new(Sink), PINS)));
    let line = |pin| -> Arc<dyn InterruptLine> { Arc::new(Pin::new(Arc::clone(&ioapic), pin)) };
    if ioapic.lock().unwrap().restore(&state.ioapic).is_ok() {
        exercise(&mut *ioapic.lock().unwrap());
    }
    if let Some(saved) = &state.legacy.serial {
        let mut serial = Serial::new(line(4), EventFd::new(EFD_NONBLOCK).unwrap());
        if serial.restore(saved).is_ok() {
            assert!(serial.input_room() <= 64);
            exercise(&mut serial);
        }
    }
    if let Some(saved) = &state.legacy.i8042 {
        let mut i8042 = I8042::new(line(1), Arc::new(Sink));
        if i8042.restore(saved).is_ok() {
            let _ = i8042.send_ctrl_alt_del();
            exercise(&mut i8042);
        }
    }
    if let VirtioState::Mmio(devices) = &state.virtio {
        for (_, saved) in devices.iter().take(4) {
            match &saved.core.device {
                DeviceState::Console(_) => virtio_becomes(saved, console),
                DeviceState::Mem(plugged) => {
                    let config = plugging();
                    if let Some(ranges) = plugged.accessible(&config) {
                        assert!(ranges.iter().all(|range| range.end <= config.total()));
                        assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
                    }
                    virtio_becomes(saved, mem);
                }
                _ => virtio_becomes(saved, entropy),
            }
        }
    }
}

pub(crate) fn entropy(event_loop: Arc<dyn EventLoop>) -> Rng {
    Rng::new(event_loop).unwrap()
}

/// A console of nobody.
pub(crate) fn console(event_loop: Arc<dyn EventLoop>) -> Console {
    let config = console::Config {
        input: None,
        output: Output::discard(),
        filter: Box::new(Everything),
        rate_limit: RateLimit::default(),
        size: (80, 25),
    };
    let mut console = Console::new(event_loop, config).unwrap();
    console.attach().unwrap();
    console
}

/// Eight slots of 64 blocks.
fn plugging() -> MemConfig {
    const BLOCK: u64 = 2 << 20;
    MemConfig::new(8 * BLOCK * 64, BLOCK, BLOCK * 64).unwrap()
}

/// Memory that can be plugged, and of which nothing is.
pub(crate) fn mem(event_loop: Arc<dyn EventLoop>) -> Mem {
    let mem = Mem::new(plugging(), event_loop);
    mem.control().set_place(1 << 40, Box::new(Slots));
    mem
}

/// A device is to become what a state says, and goes on.
fn virtio_becomes<D: VirtioDevice + 'static>(
    saved: &MmioState,
    make: impl FnOnce(Arc<dyn EventLoop>) -> D,
) {
    let mut guest = Guest::new(make);
    if guest.device.restore(saved).is_ok() {
        guest.device.resume();
        guest.event_loop.turn();
        guest.device.pause();
        let again = guest.device.save().unwrap();
        guest.device.resume();
        guest.start(0);
        drop(again);
    }
}

/// All that is typed is the guest's.
struct Everything;

impl InputFilter for Everything {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

/// Slots that the guest can always access.
struct Slots;

impl MemorySlots for Slots {
    fn insert(&self, index: usize) -> io::Result<()> {
        assert!(index < 8);
        Ok(())
    }
    fn remove(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Reads and writes all of a device's first addresses.
fn exercise(device: &mut dyn BusDevice) {
    for offset in 0..0x20 {
        for len in [1, 4] {
            let mut data = [0; 4];
            device.read(offset, &mut data[..len]);
            device.write(offset, &data[..len]);
        }
    }
}
