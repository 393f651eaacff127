//! Who looks at a guest's accesses to devices, when somebody wants to know what the guest does and when
//! (`mote run --explain`).
//!
//! Exits are as they were: what is looked at is put on the buses around the devices that are there, and only where a machine
//! is asked for that. Devices that come later, and what moves on a PCI bus, are not seen.

use std::fmt;
use std::sync::{Arc, Mutex};

use arch::layout;
use devices::bus::BusDevice;
use devices::lock;

use crate::vcpu::Buses;

/// What a guest accesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The serial port.
    Serial,
    /// The keyboard controller, or the reset line that is all that is there of it.
    Keyboard,
    /// The port by which a guest tells of its panic.
    Panic,
    /// The old interrupt controllers.
    Pic,
    /// The interrupt controller.
    IoApic,
    /// What switches the machine off.
    Power,
    /// The device that tells of events.
    Events,
    /// Ports and memory by which PCI functions are configured.
    Pci,
    /// What a guest's first process is told what to run by.
    Job,
    /// The boot timer.
    BootTimer,
    /// A virtio device's registers, by its name.
    Virtio(String),
    /// Anything else.
    Other,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial port",
            Self::Keyboard => "keyboard controller",
            Self::Panic => "panic port",
            Self::Pic => "8259",
            Self::IoApic => "IOAPIC",
            Self::Power => "power registers",
            Self::Events => "event device",
            Self::Pci => "PCI configuration",
            Self::Job => "job port",
            Self::BootTimer => "boot timer",
            Self::Virtio(name) if name.starts_with("virtio") => name,
            Self::Virtio(name) => return write!(f, "virtio {name}"),
            Self::Other => "other device",
        })
    }
}

/// An access.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// In bytes from the start of the place.
    pub offset: u64,
    /// What the guest writes; None: it reads.
    pub written: Option<&'a [u8]>,
}

/// Hears of each access to one place, on the vCPU's thread and before the device does: it must not block.
pub type Witness = Box<dyn FnMut(Access<'_>) + Send>;

/// A device that somebody looks at. Its lock comes before the device's.
struct Watched {
    device: Arc<Mutex<dyn BusDevice>>,
    witness: Witness,
}

impl BusDevice for Watched {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        (self.witness)(Access {
            offset,
            written: None,
        });
        lock(&self.device).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        (self.witness)(Access {
            offset,
            written: Some(data),
        });
        lock(&self.device).write(offset, data);
    }
}

/// Puts a witness before each device on the buses. `virtio` has the names of what is in the slots of virtio-mmio.
pub(crate) fn watch(buses: &Buses, virtio: &[String], witness: &dyn Fn(&Place) -> Witness) {
    let watched = |place: &Place, device| -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(Watched {
            device,
            witness: witness(place),
        }))
    };
    buses
        .io
        .wrap_each(|base, device| watched(&port(base), device));
    buses
        .mmio
        .wrap_each(|base, device| watched(&memory(base, virtio), device));
}

/// What starts at this port.
fn port(base: u64) -> Place {
    match u16::try_from(base).unwrap_or(u16::MAX) {
        layout::SERIAL_PORT => Place::Serial,
        layout::I8042_DATA_PORT => Place::Keyboard,
        layout::PVPANIC_PORT => Place::Panic,
        layout::PIC_PRIMARY_PORT | layout::PIC_SECONDARY_PORT => Place::Pic,
        layout::ACPI_SLEEP_CONTROL_PORT => Place::Power,
        layout::GED_PORT => Place::Events,
        layout::PCI_CONFIG_PORT | layout::PCI_HOTPLUG_PORT => Place::Pci,
        layout::JOB_PORT => Place::Job,
        layout::BOOT_TIMER_PORT => Place::BootTimer,
        _ => Place::Other,
    }
}

/// What starts at this address.
fn memory(base: u64, virtio: &[String]) -> Place {
    match base {
        layout::IOAPIC_START => Place::IoApic,
        layout::PCI_ECAM_START => Place::Pci,
        _ => {
            let slot = base.checked_sub(layout::VIRTIO_MMIO_START);
            let index =
                slot.and_then(|bytes| usize::try_from(bytes / layout::VIRTIO_MMIO_SIZE).ok());
            match index.and_then(|index| virtio.get(index)) {
                Some(name) => Place::Virtio(name.clone()),
                None => Place::Other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::bus::{Access as Outcome, Bus};
    use devices::interrupt::{MsiMessage, MsiSink};
    use devices::ioapic::IoApic;
    use devices::legacy::pic::Pic;

    use super::*;

    /// Where, at which offset, and what was written.
    type Seen = (Place, u64, Option<Vec<u8>>);

    #[derive(Default)]
    struct Nowhere;

    impl MsiSink for Nowhere {
        fn signal(&self, _: MsiMessage) {}
        fn route(&self, _: u32, _: Option<MsiMessage>) {}
    }

    #[test]
    fn each_access_is_seen_and_goes_where_it_went() {
        let sink: Arc<dyn MsiSink> = Arc::new(Nowhere);
        let ioapic = Arc::new(Mutex::new(IoApic::new(sink, 24)));
        let buses = Buses {
            io: Bus::new(),
            mmio: Arc::new(Bus::new()),
            ioapic: Arc::clone(&ioapic),
        };
        let pic = Arc::new(Mutex::new(Pic::default()));
        let port_of_pic = u64::from(layout::PIC_PRIMARY_PORT);
        buses.io.insert(port_of_pic, 2, pic).unwrap();
        let second = layout::VIRTIO_MMIO_START + layout::VIRTIO_MMIO_SIZE;
        for base in [layout::IOAPIC_START, second] {
            buses.mmio.insert(base, 0x1000, ioapic.clone()).unwrap();
        }
        let mut before = [0; 4];
        let _ = buses.mmio.read(layout::IOAPIC_START + 0x10, &mut before);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let names = ["console".to_owned(), "disk".to_owned()];
        watch(&buses, &names, &|place| {
            let (seen, place) = (Arc::clone(&seen), place.clone());
            Box::new(move |access| {
                let written = access.written.map(<[u8]>::to_vec);
                lock(&seen).push((place.clone(), access.offset, written));
            })
        });
        let mut after = [0; 4];
        let read = buses.mmio.read(layout::IOAPIC_START + 0x10, &mut after);
        assert_eq!((read, after), (Outcome::Handled, before));
        let _ = buses.io.write(port_of_pic + 1, &[7]);
        let _ = buses.mmio.read(second, &mut after);
        assert_eq!(buses.io.write(0x1234, &[1]), Outcome::Unmapped);
        assert_eq!(
            *lock(&seen),
            [
                (Place::IoApic, 0x10, None),
                (Place::Pic, 1, Some(vec![7])),
                (Place::Virtio("disk".into()), 0, None),
            ]
        );
    }

    #[test]
    fn places_are_known_by_where_they_are() {
        assert_eq!(port(0x3f8), Place::Serial);
        assert_eq!(port(0x1_0000), Place::Other);
        assert_eq!(memory(0, &[]), Place::Other);
        assert_eq!(memory(layout::VIRTIO_MMIO_START, &[]), Place::Other);
        assert_eq!(Place::Virtio("vda".into()).to_string(), "virtio vda");
    }
}
