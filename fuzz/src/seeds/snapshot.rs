//! States of a small machine, as they are.

use std::sync::{Arc, Mutex};

use devices::event::{EventSink, GuestEvent};
use devices::interrupt::{MsiMessage, MsiSink};
use devices::ioapic::{IoApic, Pin};
use devices::legacy::i8042::I8042;
use devices::legacy::serial::Serial;
use devices::virtio::VirtioDevice;
use devices::virtio::state::MmioState;
use devices::virtio::worker::EventLoop;
use vmm::snapshot::format;
use vmm::snapshot::host::HostState;
use vmm::snapshot::memory::lay_out;
use vmm::snapshot::state::{AboveRamState, LegacyState, VirtioState, VmState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Seeds;
use crate::Guest;
use crate::snapshot::{console, entropy, mem};

struct Nobody;

impl MsiSink for Nobody {
    fn signal(&self, _: MsiMessage) {}
    fn route(&self, _: u32, _: Option<MsiMessage>) {}
}

impl EventSink for Nobody {
    fn event(&self, _: GuestEvent) {}
}

/// A file, and the state that is in it.
pub(super) fn snapshot() -> Seeds {
    let state = state();
    vec![
        ("file", format::encode("{}", &state).unwrap()),
        ("state", postcard::to_stdvec(&state).unwrap()),
    ]
}

/// A machine that there never was.
pub(crate) fn state() -> VmState {
    let ioapic = Arc::new(Mutex::new(IoApic::new(Arc::new(Nobody), 24)));
    let line = |pin| Arc::new(Pin::new(Arc::clone(&ioapic), pin));
    let mut serial = Serial::new(line(4), EventFd::new(EFD_NONBLOCK).unwrap());
    devices::bus::BusDevice::write(&mut serial, 1, &[1]);
    serial.receive(b"typed");
    let mut i8042 = I8042::new(line(1), Arc::new(Nobody));
    i8042.send_ctrl_alt_del().unwrap();
    let ioapic = ioapic.lock().unwrap().save();
    VmState {
        memory_id: *b"0123456789abcdef",
        memory_base: None,
        memory: lay_out([(0, 128 << 20)]),
        above_ram: AboveRamState::default(),
        images: Vec::new(),
        host: HostState::here(),
        taken: 1,
        clock: kvm_bindings::kvm_clock_data::default(),
        vcpus: Vec::new(),
        ioapic,
        legacy: LegacyState {
            serial: Some(serial.save()),
            i8042: Some(i8042.save()),
            ged: 1,
            acpi_pm: 0,
            pics: [(0xff, 0); 2],
            job_port: None,
            pci_address: 0,
            has_generation_id: true,
        },
        virtio: VirtioState::Mmio(vec![
            ("entropy device".into(), driven(entropy)),
            ("virtio console".into(), driven(console)),
            ("memory hot-plug device".into(), driven(mem)),
        ]),
    }
}

/// The state of a device that somebody drives.
fn driven<D: VirtioDevice + 'static>(make: impl FnOnce(Arc<dyn EventLoop>) -> D) -> MmioState {
    let mut guest = Guest::new(make);
    guest.start(0);
    guest.device.pause();
    guest.device.save().unwrap()
}
