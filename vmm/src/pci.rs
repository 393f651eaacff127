//! PCI: the bus with its ways to configuration space, devices in its slots, and their coming and going
//! while the guest runs.
//!
//! # Locks
//! What comes and goes does so on the thread of whoever calls a [`HotplugHandle`], or on the vCPU that
//! gives a function up; never on an event loop, for which a function's end waits. See
//! [`devices::bus`] for the order of locks; here one more comes after a function's, that of its
//! window.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arch::layout;
use devices::bus::{self, Bus};
use devices::legacy::ged::Ged;
use devices::legacy::pci_config::PciConfig;
use devices::lock;
use devices::pci::Function;
use devices::pci::hotplug::{Hotplug, HotplugState};
use devices::pci::msix::MsiVectors;
use devices::pci::root::{Ecam, Full, Occupant, Root, Slot, Taken};
use devices::virtio::transport::pci::{
    self as transport, BAR_SIZE, NOTIFY, NOTIFY_STRIDE, PciDevice, PciState, Window,
};
use devices::virtio::worker::EventLoop;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::above_ram::{self, Window as MemoryWindow};
use crate::builder::virtio;
use crate::config::Device;
use crate::controls::{Controls, DeviceId, Registered};
use crate::hardware;
use crate::interrupts::Interrupts;
use crate::msix::{self, Vectors};
use crate::snapshot::state::VirtioState;

/// Why a device cannot come or go.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No slot is left.
    #[error(transparent)]
    Full(#[from] Full),
    /// The slot that it had is another one's.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] virtio::Error),
    /// The device does not fit the transport, or the host refused something.
    #[error(transparent)]
    Device(#[from] transport::Error),
    /// Its interrupts.
    #[error(transparent)]
    Vectors(#[from] msix::Error),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] above_ram::Error),
    /// Two devices at one address: a mistake in the layout.
    #[error("Cannot put the PCI bus into the machine")]
    Bus(#[from] bus::Error),
    /// There is nothing to go.
    #[error("There is no {id}")]
    Unknown {
        /// What was to go.
        id: DeviceId,
    },
    /// It comes with the machine and goes with it.
    #[error(
        "The {id} cannot come or go while the guest runs: only disks, network cards and persistent memory can"
    )]
    Fixed {
        /// What was to come or go.
        id: DeviceId,
    },
    /// The devices are where they cannot come and go.
    #[error("No device can come or go while the guest runs: the guest has no PCI bus")]
    NoBus,
    /// The machine has ended.
    #[error("The guest has ended")]
    Ended,
}

/// Where the devices of the machine come from and go to.
pub(crate) struct Pci {
    // Runtime glue.
    root: Arc<Root>,
    hotplug: Arc<Mutex<Hotplug>>,
    ged: Arc<Mutex<Ged>>,
    mmio: Arc<Bus>,
    interrupts: Arc<Interrupts>,
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    /// Where persistent memory comes.
    window: Option<Arc<MemoryWindow>>,
    /// The address register of the ports.
    ports: Arc<Mutex<PciConfig>>,
    // Volatile state.
    /// The devices by slot, those included that have gone; none is kept by this.
    devices: Mutex<BTreeMap<Slot, Named>>,
}

/// A device with its name.
type Named = (String, Weak<Mutex<PciDevice>>);

impl Pci {
    /// A bus with a host bridge, on the machine's buses.
    pub(crate) fn new(
        io: &Bus,
        mmio: &Arc<Bus>,
        ged: &Arc<Mutex<Ged>>,
        interrupts: &Arc<Interrupts>,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        window: Option<&Arc<MemoryWindow>>,
    ) -> Result<Self, Error> {
        let root = Arc::new(Root::new());
        let ecam = Arc::new(Mutex::new(Ecam(Arc::clone(&root))));
        mmio.insert(layout::PCI_ECAM_START, layout::PCI_ECAM_SIZE, ecam)?;
        let ports = Arc::new(Mutex::new(PciConfig::new(Arc::clone(&root))));
        let (start, size) = (layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_SIZE);
        io.insert(start.into(), size.into(), ports.clone())?;
        let hotplug = Arc::new(Mutex::new(Hotplug::new(Arc::clone(&root))));
        let (start, size) = (layout::PCI_HOTPLUG_PORT, layout::PCI_HOTPLUG_SIZE);
        io.insert(start.into(), size.into(), hotplug.clone())?;
        Ok(Self {
            root,
            hotplug,
            ged: Arc::clone(ged),
            mmio: Arc::clone(mmio),
            interrupts: Arc::clone(interrupts),
            vm: Arc::clone(vm),
            memory: Arc::clone(memory),
            window: window.cloned(),
            ports,
            devices: Mutex::default(),
        })
    }

    /// Where persistent memory comes.
    pub(crate) fn window(&self) -> Option<&Arc<MemoryWindow>> {
        self.window.as_ref()
    }

    /// The ports by which configuration space is reached.
    pub(crate) fn ports(&self) -> Arc<Mutex<PciConfig>> {
        Arc::clone(&self.ports)
    }

    /// The devices that there are, with the slot and the name of each.
    fn devices(&self) -> Vec<(Slot, String, Arc<Mutex<PciDevice>>)> {
        let devices = lock(&self.devices);
        let there = devices
            .iter()
            .filter_map(|(slot, (name, device))| Some((*slot, name.clone(), device.upgrade()?)));
        there.collect()
    }

    /// Does something with every device.
    pub(crate) fn each(&self, what: impl Fn(&mut PciDevice)) {
        for (_, _, device) in self.devices() {
            what(&mut lock(&device));
        }
    }

    /// The state of the bus and of its devices, which stand still.
    pub(crate) fn save(&self) -> Result<VirtioState, hardware::Error> {
        let mut functions = Vec::new();
        for (slot, name, device) in self.devices() {
            let state = lock(&device).save();
            if let Some(state) = state.map_err(hardware::Error::of(name.as_str()))? {
                functions.push((name, slot.number(), state));
            }
        }
        Ok(VirtioState::Pci {
            hotplug: lock(&self.hotplug).save(),
            functions,
        })
    }

    /// Gives their states to the devices of a new machine.
    pub(crate) fn restore(
        &self,
        hotplug: &HotplugState,
        functions: &[(String, u8, PciState)],
    ) -> Result<(), hardware::Error> {
        let devices = self.devices();
        let place = |name: &str, slot: u8| format!("{name} in slot {slot}");
        let saved: Vec<_> = functions
            .iter()
            .map(|(name, slot, _)| place(name, *slot))
            .collect();
        let made: Vec<_> = devices
            .iter()
            .map(|(slot, name, _)| place(name, slot.number()))
            .collect();
        hardware::check_names(saved.iter(), made.iter())?;
        for ((_, name, device), (_, _, state)) in devices.iter().zip(functions) {
            lock(device)
                .restore(state)
                .map_err(hardware::Error::of(name.as_str()))?;
        }
        lock(&self.hotplug).restore(hotplug);
        Ok(())
    }

    /// Puts a device into this slot, or else into the lowest one that is free. A guest that runs already is not told.
    pub(crate) fn insert(&self, device: Registered, slot: Option<Slot>) -> Result<Slot, Error> {
        let count = transport::vector_count(&device)?;
        let vectors = Arc::new(Vectors::new(&self.interrupts, count)?);
        let name = device.id().to_string();
        let make = |slot| {
            // Before the guest can find it, and give it up.
            device.set_slot(slot);
            let device = PciDevice::new(
                Box::new(device),
                Arc::clone(&self.memory),
                Arc::clone(&vectors) as Arc<dyn MsiVectors>,
                first_address(slot),
            )?;
            let device = self.with_window(device);
            lock(&self.devices).insert(slot, (name, Arc::downgrade(&device)));
            let device: Arc<Mutex<dyn Function>> = device;
            Ok(device)
        };
        let made = match slot {
            Some(slot) => self.root.insert_at(slot, make),
            None => self.root.insert(make),
        };
        if made.is_err() {
            vectors.release();
        }
        made
    }

    /// The same, with its memory if it is persistent memory, and the guest is told.
    fn plug(&self, mut device: Registered) -> Result<Slot, Error> {
        device.try_set_place(|id, control| match &self.window {
            Some(window) => window.place(id, control),
            None => Err(above_ram::Error::WindowFull {
                bytes: control.size(),
                room: 0,
            }),
        })?;
        let slot = self.insert(device, None)?;
        lock(&self.hotplug).inserted(slot);
        lock(&self.ged).announce_pci_hotplug();
        Ok(slot)
    }

    /// Asks the guest to let go of what is in `slot`.
    fn ask_to_leave(&self, slot: Slot) {
        lock(&self.hotplug).ask_to_leave(slot);
        lock(&self.ged).announce_pci_hotplug();
    }

    fn with_window(&self, device: PciDevice) -> Arc<Mutex<PciDevice>> {
        let kicks = device.kick_fds().cloned().collect();
        let device = Arc::new(Mutex::new(device));
        let window = BusWindow {
            bus: Arc::downgrade(&self.mmio),
            device: Arc::downgrade(&device),
            vm: Arc::clone(&self.vm),
            kicks,
            placed: Mutex::new(None),
        };
        lock(&device).set_window(Box::new(window));
        device
    }
}

impl Drop for Pci {
    /// Whoever waits for a device to go holds the bus.
    fn drop(&mut self) {
        self.root.clear();
    }
}

/// Where the memory of the function in `slot` is, if the guest leaves it there.
#[expect(clippy::cast_possible_truncation, reason = "below 4 GiB")]
fn first_address(slot: Slot) -> u32 {
    layout::PCI_MMIO_START as u32 + u32::from(slot.number()) * BAR_SIZE
}

/// A function's memory on the bus, and its kicks in KVM.
struct BusWindow {
    // Runtime glue. Neither the bus nor the device is owned: both own this.
    bus: Weak<Bus>,
    device: Weak<Mutex<PciDevice>>,
    vm: Arc<VmFd>,
    kicks: Vec<Arc<EventFd>>,
    // Volatile state.
    placed: Mutex<Option<u64>>,
}

impl BusWindow {
    fn kicks_at(&self, address: u64) -> impl Iterator<Item = (&EventFd, IoEventAddress)> {
        let first = address + u64::from(NOTIFY);
        let addresses = (first..).step_by(NOTIFY_STRIDE as usize);
        let addresses = addresses.map(IoEventAddress::Mmio);
        self.kicks.iter().map(|kick| &**kick).zip(addresses)
    }

    fn take_away(&self, bus: &Bus, address: u64) {
        bus.remove(address);
        for (kick, address) in self.kicks_at(address) {
            // Fails only for one that could not be registered.
            let _ = self.vm.unregister_ioevent(kick, &address, NoDatamatch);
        }
    }

    /// Whether the memory could be put there.
    fn put(&self, bus: &Bus, address: u64) -> bool {
        let Some(device) = self.device.upgrade() else {
            return false;
        };
        let end = address + u64::from(BAR_SIZE);
        let window_end = layout::PCI_MMIO_START + layout::PCI_MMIO_SIZE;
        if address < layout::PCI_MMIO_START || end > window_end {
            return false;
        }
        if bus.insert(address, BAR_SIZE.into(), device).is_err() {
            return false;
        }
        for (kick, address) in self.kicks_at(address) {
            // Without it the kick passes through the vCPU and the device.
            let _ = self.vm.register_ioevent(kick, &address, NoDatamatch);
        }
        true
    }
}

impl Window for BusWindow {
    fn place(&self, address: Option<u32>) {
        let Some(bus) = self.bus.upgrade() else {
            return;
        };
        let mut placed = lock(&self.placed);
        if let Some(old) = placed.take() {
            self.take_away(&bus, old);
        }
        // Outside the window, or on another function's memory: the guest has put it where nothing can
        // be, and finds nothing there.
        *placed = address
            .map(u64::from)
            .filter(|address| self.put(&bus, *address));
    }
}

/// A way to bring disks, network cards and persistent memory into a running guest and out of it again, from any thread but
/// those of event loops.
///
/// The guest has to play along: it needs ACPI and PCI hot-plug (Linux: `CONFIG_HOTPLUG_PCI_ACPI`).
#[derive(Clone)]
pub struct HotplugHandle {
    /// None: there is no bus.
    pci: Option<Weak<Pci>>,
    event_loop: Weak<dyn EventLoop>,
    controls: Controls,
}

impl HotplugHandle {
    pub(crate) fn new(
        pci: Option<&Arc<Pci>>,
        event_loop: &Arc<dyn EventLoop>,
        controls: &Controls,
    ) -> Self {
        Self {
            pci: pci.map(Arc::downgrade),
            event_loop: Arc::downgrade(event_loop),
            controls: controls.clone(),
        }
    }

    /// Whether there is a bus for that.
    pub fn has_bus(&self) -> bool {
        self.pci.is_some()
    }

    fn pci(&self) -> Result<Arc<Pci>, Error> {
        let pci = self.pci.as_ref().ok_or(Error::NoBus)?;
        pci.upgrade().ok_or(Error::Ended)
    }

    /// Makes a device, as one that is there from the start is made, puts it into the lowest slot that
    /// is free, and tells the guest. If that fails, nothing of it is left.
    pub fn add(&self, device: &Device) -> Result<Slot, Error> {
        let pci = self.pci()?;
        let event_loop = self.event_loop.upgrade().ok_or(Error::Ended)?;
        let id = device.id();
        check_mobile(&id)?;
        let slot = pci.plug(virtio::make(device, &event_loop, &self.controls)?)?;
        self.controls.plugged(&id);
        Ok(slot)
    }

    /// Asks the guest to let go of a device. It may take its time, or never do it: see
    /// [`Removal::wait`]. A guest that has not done it may be asked again.
    pub fn remove(&self, id: &DeviceId) -> Result<Removal, Error> {
        let pci = self.pci()?;
        check_mobile(id)?;
        let found = self.controls.slot(id).and_then(|slot| {
            let occupant = pci.root.occupant(slot)?;
            Some((slot, occupant))
        });
        let (slot, occupant) = found.ok_or_else(|| Error::Unknown { id: id.clone() })?;
        pci.ask_to_leave(slot);
        Ok(Removal {
            root: Arc::clone(&pci.root),
            occupant,
        })
    }
}

fn check_mobile(id: &DeviceId) -> Result<(), Error> {
    match id {
        DeviceId::Disk(_) | DeviceId::Card(_) | DeviceId::Pmem(_) => Ok(()),
        DeviceId::Balloon
        | DeviceId::Entropy
        | DeviceId::Vsock
        | DeviceId::Console
        | DeviceId::MemoryHotplug => Err(Error::Fixed { id: id.clone() }),
    }
}

/// A device that the guest was asked to let go of.
pub struct Removal {
    // Only the bus: a machine that ends meanwhile takes its devices along.
    root: Arc<Root>,
    occupant: Occupant,
}

impl Removal {
    /// Waits until the guest has let go of the device, or has ended, at most for `timeout`; whether it
    /// has. The device is gone then, with all that it held of the host.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.root.wait_removed(&self.occupant, timeout)
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
