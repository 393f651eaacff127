//! How devices are changed and looked at while the guest runs, and which there are.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::backend::user_backend::UserNetControl;
use devices::lock;
use devices::pci::root::Slot;
use devices::state::BadState;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::block::BlockControl;
use devices::virtio::console::ConsoleControl;
use devices::virtio::mem::MemControl;
use devices::virtio::net::NetControl;
use devices::virtio::pmem::PmemControl;
use devices::virtio::queue::Queue;
use devices::virtio::rng::RngControl;
use devices::virtio::state::DeviceState;
use devices::virtio::vsock::VsockControl;
use devices::virtio::{ActivateError, Kind, Resources, VirtioDevice};

use crate::above_ram::Placed;
use crate::config;
use crate::snapshot::restored::ReplyKind;

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
    Vsock(VsockControl),
    Console(ConsoleControl),
    Pmem(PmemControl),
    Mem(MemControl),
}

/// What is known of a device: nothing at first, while it is made.
#[derive(Default)]
struct Entry {
    /// No two devices of a machine have the same.
    number: u64,
    control: Option<Control>,
    slot: Option<Slot>,
    /// When its driver was ready for the first time.
    activated: Option<Instant>,
}

type Entries = Arc<Mutex<BTreeMap<DeviceId, Entry>>>;

/// What happens to devices of a guest that runs.
#[derive(Debug)]
pub enum DeviceEvent<'a> {
    /// It was brought into the guest, which was told.
    Plugged(&'a DeviceId),
    /// It has gone, and its name is free.
    Gone(&'a DeviceId),
    /// The host failed it: once for each kind of error.
    Failed {
        /// The device.
        id: &'a DeviceId,
        /// What it could not do.
        what: &'static str,
        /// What the host said.
        error: &'a io::Error,
    },
}

/// Hears of [`DeviceEvent`]s, on whatever thread they happen, which it must not keep waiting.
pub type DeviceListener = Arc<dyn Fn(&DeviceEvent<'_>) + Send + Sync>;
type Listening = Arc<Mutex<Option<DeviceListener>>>;

fn tell(listening: &Listening, event: &DeviceEvent<'_>) {
    // Called without the lock.
    let listener = lock(listening).clone();
    if let Some(listener) = listener {
        listener(event);
    }
}

/// The controls of a machine's devices. A device that comes while the guest runs can be found here, and
/// one that has gone cannot. Clones are of the same devices.
#[derive(Clone)]
pub struct Controls {
    // Volatile state.
    /// Bytes of RAM, as soon as there is any.
    memory: Arc<AtomicU64>,
    /// How many devices have been registered.
    registered: Arc<AtomicU64>,
    /// Its lock is held for a moment only, and no other is taken meanwhile.
    entries: Entries,
    listening: Listening,
}

impl Controls {
    /// No devices, of a machine without RAM as yet.
    pub(crate) fn new() -> Self {
        Self {
            memory: Arc::default(),
            registered: Arc::default(),
            entries: Entries::default(),
            listening: Listening::default(),
        }
    }

    /// Has `listener` hear of what happens to devices; None: nobody. It is called by vCPUs, event loops and
    /// others, and must not wait for any of them.
    pub fn listen(&self, listener: Option<DeviceListener>) {
        let old = std::mem::replace(&mut *lock(&self.listening), listener);
        drop(old);
    }

    pub(crate) fn plugged(&self, id: &DeviceId) {
        tell(&self.listening, &DeviceEvent::Plugged(id));
    }

    /// Bytes of RAM; 0 before there is any.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// The machine has so many bytes of RAM.
    pub(crate) fn set_memory(&self, bytes: u64) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    /// All devices that there are.
    pub fn ids(&self) -> Vec<DeviceId> {
        let entries = lock(&self.entries);
        let made = entries.iter().filter(|(_, entry)| entry.control.is_some());
        made.map(|(id, _)| id.clone()).collect()
    }

    /// Devices whose drivers have been ready (DRIVER_OK), each with when its was for the first time. Of a machine that was
    /// saved: since it goes on.
    pub fn activated(&self) -> Vec<(DeviceId, Instant)> {
        let entries = lock(&self.entries);
        let activated = entries
            .iter()
            .filter_map(|(id, entry)| Some((id, entry.activated?)));
        activated.map(|(id, at)| (id.clone(), at)).collect()
    }

    /// By which device the guest was heard of since it was made.
    pub(crate) fn first_reply(&self) -> Option<ReplyKind> {
        let entries = lock(&self.entries);
        let mut controls = entries.values().filter_map(|entry| entry.control.as_ref());
        // They count without locks.
        controls.find_map(|control| match control {
            Control::Console(console) if console.has_printed() => Some(ReplyKind::Console),
            Control::Card(card, _) if card.counters().tx.frames > 0 => Some(ReplyKind::Network),
            Control::Vsock(vsock) if vsock.counters().tx_bytes > 0 => Some(ReplyKind::Vsock),
            _ => None,
        })
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
        let memory = self.memory.load(Ordering::Relaxed);
        config::check_balloon(target, memory.saturating_add(plugged))?;
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

    /// The sockets between guest and host.
    pub fn vsock(&self) -> Option<VsockControl> {
        match self.find(&DeviceId::Vsock)? {
            Control::Vsock(control) => Some(control),
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

    /// Tells a device from others that had its name before.
    pub fn number(&self, id: &DeviceId) -> Option<u64> {
        Some(lock(&self.entries).get(id)?.number)
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
        let entry = Entry {
            number: self.registered.fetch_add(1, Ordering::Relaxed),
            ..Entry::default()
        };
        entries.insert(id.clone(), entry);
        Some(Registration {
            entries: Arc::clone(&self.entries),
            listening: Arc::clone(&self.listening),
            id,
        })
    }
}

/// That a device is known by its name. Dropped, it is not, and the name is free.
pub(crate) struct Registration {
    entries: Entries,
    listening: Listening,
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
        if let Control::Disk(disk) = &control {
            let (listening, id) = (Arc::clone(&self.listening), self.id.clone());
            disk.on_error(Box::new(move |what, error| {
                let id = &id;
                tell(&listening, &DeviceEvent::Failed { id, what, error });
            }));
        }
        self.change(|entry| entry.control = Some(control));
    }

    /// The device is in this slot.
    pub(crate) fn set_slot(&self, slot: Slot) {
        self.change(|entry| entry.slot = Some(slot));
    }

    /// The device's driver is ready.
    fn activated(&self) {
        self.change(|entry| {
            entry.activated.get_or_insert_with(Instant::now);
        });
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let entry = lock(&self.entries).remove(&self.id);
        // Dropping a control may close descriptors: not with the lock held.
        if entry.is_some_and(|entry| entry.slot.is_some()) {
            tell(&self.listening, &DeviceEvent::Gone(&self.id));
        }
    }
}

/// A device that is known for as long as it lives.
pub(crate) struct Registered {
    // In this order: what the device holds of the host is free before its name is.
    device: Box<dyn VirtioDevice>,
    /// Of persistent memory, on a machine that it can leave.
    place: Option<Placed>,
    registration: Registration,
}

impl Registered {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, registration: Registration) -> Self {
        Self {
            device,
            place: None,
            registration,
        }
    }

    /// If it is persistent memory, finds its place by its name, and keeps it for as long as the device lives.
    pub(crate) fn set_place(&mut self, find: impl FnOnce(&str, &PmemControl) -> Option<Placed>) {
        if let Some((id, control)) = self.pmem() {
            self.place = find(&id, &control);
        }
    }

    /// The same for a place that may not be had.
    pub(crate) fn try_set_place<E>(
        &mut self,
        find: impl FnOnce(&str, &PmemControl) -> Result<Placed, E>,
    ) -> Result<(), E> {
        if let Some((id, control)) = self.pmem() {
            self.place = Some(find(&id, &control)?);
        }
        Ok(())
    }

    fn pmem(&self) -> Option<(String, PmemControl)> {
        let Registration { entries, id, .. } = &self.registration;
        let control = lock(entries).get(id)?.control.clone();
        match (id, control) {
            (DeviceId::Pmem(name), Some(Control::Pmem(control))) => Some((name.clone(), control)),
            _ => None,
        }
    }

    /// The device is in this slot.
    pub(crate) fn set_slot(&self, slot: Slot) {
        self.registration.set_slot(slot);
    }

    /// Its name.
    pub(crate) fn id(&self) -> &DeviceId {
        &self.registration.id
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
        self.device.activate(resources)?;
        self.registration.activated();
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.device.deactivate()
    }

    fn pause(&mut self) -> Vec<Queue> {
        self.device.pause()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        self.device.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        self.device.restore(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What controls some device.
    fn any() -> Control {
        Control::Vsock(VsockControl::default())
    }

    #[test]
    fn who_listens_hears_of_devices_that_come_and_go() {
        let controls = Controls::new();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let id = DeviceId::Disk("a".into());
        let told = Arc::clone(&heard);
        controls.listen(Some(Arc::new(move |event| {
            lock(&told).push(format!("{event:?}"));
        })));
        // One that never was in the guest is nobody's business.
        drop(controls.register(id.clone()));
        let disk = controls.register(id.clone()).unwrap();
        disk.set_control(any());
        disk.set_slot(Slot::new(3).unwrap());
        controls.plugged(&id);
        drop(disk);
        controls.listen(None);
        controls.plugged(&id);
        assert_eq!(*lock(&heard), ["Plugged(Disk(\"a\"))", "Gone(Disk(\"a\"))"]);
    }

    #[test]
    fn a_name_is_one_devices_until_it_has_gone() {
        let controls = Controls::new();
        let id = || DeviceId::Disk("a".into());
        let first = controls.register(id()).unwrap();
        assert!(controls.register(id()).is_none());
        // It is not there before it has been made.
        assert_eq!(controls.ids(), []);
        first.set_control(any());
        first.set_slot(Slot::new(3).unwrap());
        assert_eq!(controls.clone().ids(), [id()]);
        assert_eq!(controls.slot(&id()), Slot::new(3));
        let card = controls.register(DeviceId::Card("a".into()));
        assert!(card.is_some());
        let number = controls.number(&id());
        assert!(number.is_some());
        drop(first);
        assert_eq!(controls.ids(), []);
        assert_eq!(controls.slot(&id()), None);
        assert_eq!(controls.number(&id()), None);
        let second = controls.register(id());
        assert!(second.is_some());
        assert_ne!(controls.number(&id()), number);
    }

    #[test]
    fn what_controls_another_device_is_not_found() {
        let controls = Controls::new();
        let entropy = controls.register(DeviceId::Entropy).unwrap();
        assert!(controls.entropy().is_none());
        entropy.set_control(any());
        assert!(controls.entropy().is_none());
        assert!(controls.balloon().is_none() && controls.console().is_none());
        assert!(controls.disk("x").is_none() && controls.card("x").is_none());
        assert!(controls.user_network("x").is_none());
        assert!(controls.pmem("x").is_none() && controls.memory_hotplug().is_none());
    }
}
