//! How devices are changed and looked at while the guest runs, and which there are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::backend::user_backend::UserNetControl;
use devices::pci::root::Slot;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::block::BlockControl;
use devices::virtio::console::ConsoleControl;
use devices::virtio::mem::MemControl;
use devices::virtio::net::NetControl;
use devices::virtio::pmem::PmemControl;
use devices::virtio::queue::Queue;
use devices::virtio::rng::RngControl;
use devices::virtio::{ActivateError, Kind, Resources, VirtioDevice};

use crate::config;

/// Which device of a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// The disk of this name.
    Disk(String),
    /// The network card of this name.
    Card(String),
    /// The balloon.
    Balloon,
    /// The entropy device.
    Entropy,
    /// The sockets between guest and host.
    Vsock,
    /// The virtio console.
    Console,
    /// The persistent memory of this name.
    Pmem(String),
    /// The device that memory is plugged by.
    MemoryHotplug,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(id) => write!(f, "disk '{id}'"),
            Self::Card(id) => write!(f, "network card '{id}'"),
            Self::Balloon => f.write_str("balloon"),
            Self::Entropy => f.write_str("entropy device"),
            Self::Vsock => f.write_str("vsock device"),
            Self::Console => f.write_str("virtio console"),
            Self::Pmem(id) => write!(f, "persistent memory '{id}'"),
            Self::MemoryHotplug => f.write_str("memory hot-plug device"),
        }
    }
}

/// What controls one device.
#[derive(Clone)]
pub(crate) enum Control {
    Disk(BlockControl),
    Card(NetControl, Option<UserNetControl>),
    Balloon(BalloonControl),
    Entropy(RngControl),
    /// There is nothing about it that can be changed.
    Vsock,
    Console(ConsoleControl),
    Pmem(PmemControl),
    Mem(MemControl),
}

/// What is known of a device: nothing at first, while it is made.
#[derive(Default)]
struct Entry {
    control: Option<Control>,
    slot: Option<Slot>,
}

type Entries = Arc<Mutex<BTreeMap<DeviceId, Entry>>>;

/// The controls of a machine's devices. A device that comes while the guest runs can be found here, and
/// one that has gone cannot. Clones are of the same devices.
#[derive(Clone)]
pub struct Controls {
    // Fixed configuration.
    /// Bytes of RAM.
    memory: u64,
    // Volatile state.
    /// Its lock is held for a moment only, and no other is taken meanwhile.
    entries: Entries,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controls {
    /// No devices, of a machine with `memory` bytes of RAM.
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            memory,
            entries: Entries::default(),
        }
    }

    /// All devices that there are.
    pub fn ids(&self) -> Vec<DeviceId> {
        let entries = lock(&self.entries);
        let made = entries.iter().filter(|(_, entry)| entry.control.is_some());
        made.map(|(id, _)| id.clone()).collect()
    }

    fn find(&self, id: &DeviceId) -> Option<Control> {
        lock(&self.entries).get(id)?.control.clone()
    }

    /// A disk.
    pub fn disk(&self, id: &str) -> Option<BlockControl> {
        match self.find(&DeviceId::Disk(id.into()))? {
            Control::Disk(control) => Some(control),
            _ => None,
        }
    }

    /// A network card.
    pub fn card(&self, id: &str) -> Option<NetControl> {
        match self.find(&DeviceId::Card(id.into()))? {
            Control::Card(control, _) => Some(control),
            _ => None,
        }
    }

    /// The user network that the network card of this name is connected to.
    pub fn user_network(&self, id: &str) -> Option<UserNetControl> {
        match self.find(&DeviceId::Card(id.into()))? {
            Control::Card(_, network) => network,
            _ => None,
        }
    }

    /// The balloon. Its target is better set by [`Controls::set_balloon`].
    pub fn balloon(&self) -> Option<BalloonControl> {
        match self.find(&DeviceId::Balloon)? {
            Control::Balloon(control) => Some(control),
            _ => None,
        }
    }

    /// Has the guest do without `target` bytes of its memory, what is plugged included, and says whether
    /// there is a balloon for that. It takes its time; a target that leaves it nothing is refused.
    pub fn set_balloon(&self, target: u64) -> Result<bool, config::Error> {
        let Some(balloon) = self.balloon() else {
            return Ok(false);
        };
        let plugged = self.memory_hotplug().map_or(0, |mem| mem.status().plugged);
        config::check_balloon(target, self.memory.saturating_add(plugged))?;
        balloon.set_target(target);
        Ok(true)
    }

    /// The entropy device.
    pub fn entropy(&self) -> Option<RngControl> {
        match self.find(&DeviceId::Entropy)? {
            Control::Entropy(control) => Some(control),
            _ => None,
        }
    }

    /// Persistent memory.
    pub fn pmem(&self, id: &str) -> Option<PmemControl> {
        match self.find(&DeviceId::Pmem(id.into()))? {
            Control::Pmem(control) => Some(control),
            _ => None,
        }
    }

    /// The device that memory is plugged by.
    pub fn memory_hotplug(&self) -> Option<MemControl> {
        match self.find(&DeviceId::MemoryHotplug)? {
            Control::Mem(control) => Some(control),
            _ => None,
        }
    }

    /// The virtio console.
    pub fn console(&self) -> Option<ConsoleControl> {
        match self.find(&DeviceId::Console)? {
            Control::Console(control) => Some(control),
            _ => None,
        }
    }

    /// The PCI slot that a device is in.
    pub(crate) fn slot(&self, id: &DeviceId) -> Option<Slot> {
        lock(&self.entries).get(id)?.slot
    }

    /// Takes a name for a device that is to be made. None: there is one of that name, or it is being
    /// made, or on its way out.
    pub(crate) fn register(&self, id: DeviceId) -> Option<Registration> {
        let mut entries = lock(&self.entries);
        if entries.contains_key(&id) {
            return None;
        }
        entries.insert(id.clone(), Entry::default());
        Some(Registration {
            entries: Arc::clone(&self.entries),
            id,
        })
    }
}

/// That a device is known by its name. Dropped, it is not, and the name is free.
pub(crate) struct Registration {
    entries: Entries,
    id: DeviceId,
}

impl Registration {
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = lock(&self.entries).get_mut(&self.id) {
            change(entry);
        }
    }

    /// The device has been made, and this controls it.
    pub(crate) fn set_control(&self, control: Control) {
        self.change(|entry| entry.control = Some(control));
    }

    /// The device is in this slot.
    pub(crate) fn set_slot(&self, slot: Slot) {
        self.change(|entry| entry.slot = Some(slot));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let entry = lock(&self.entries).remove(&self.id);
        // Dropping a control may close descriptors: not with the lock held.
        drop(entry);
    }
}

/// A device that is known for as long as it lives.
pub(crate) struct Registered {
    // In this order: what the device holds of the host is free before its name is.
    device: Box<dyn VirtioDevice>,
    registration: Registration,
}

impl Registered {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, registration: Registration) -> Self {
        Self {
            device,
            registration,
        }
    }

    /// The device is in this slot.
    pub(crate) fn set_slot(&self, slot: Slot) {
        self.registration.set_slot(slot);
    }
}

impl VirtioDevice for Registered {
    fn kind(&self) -> Kind {
        self.device.kind()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.device.queue_sizes()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn activate(&mut self, resources: Resources) -> Result<(), ActivateError> {
        self.device.activate(resources)
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.device.deactivate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_devices_until_it_has_gone() {
        let controls = Controls::new(128 << 20);
        let id = || DeviceId::Disk("a".into());
        let first = controls.register(id()).unwrap();
        assert!(controls.register(id()).is_none());
        // It is not there before it has been made.
        assert_eq!(controls.ids(), []);
        first.set_control(Control::Vsock);
        first.set_slot(Slot::new(3).unwrap());
        assert_eq!(controls.clone().ids(), [id()]);
        assert_eq!(controls.slot(&id()), Slot::new(3));
        let card = controls.register(DeviceId::Card("a".into()));
        assert!(card.is_some());
        drop(first);
        assert_eq!(controls.ids(), []);
        assert_eq!(controls.slot(&id()), None);
        assert!(controls.register(id()).is_some());
    }

    #[test]
    fn what_controls_another_device_is_not_found() {
        let controls = Controls::new(128 << 20);
        let entropy = controls.register(DeviceId::Entropy).unwrap();
        assert!(controls.entropy().is_none());
        entropy.set_control(Control::Vsock);
        assert!(controls.entropy().is_none());
        assert!(controls.balloon().is_none() && controls.console().is_none());
        assert!(controls.disk("x").is_none() && controls.card("x").is_none());
        assert!(controls.user_network("x").is_none());
        assert!(controls.pmem("x").is_none() && controls.memory_hotplug().is_none());
    }
}
