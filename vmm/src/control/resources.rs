//! What has been configured: each resource as it was put, and what of the host has been opened for it.
//!
//! Drives, interfaces and sockets are made when they are put, so that whoever puts them hears at once what
//! is wrong, and finds the socket there. All else is made at the start.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use api::command::Fault;
use api::types::{
    Balloon, BootSource, CpuConfig, CpuConfigSource, Drive, Entropy, Logger, MachineConfig,
    MemoryHotplug, Metrics, MmdsConfig, NetworkInterface, Pmem, Serial, VmConfig, Vsock,
};
use devices::mmds::Mmds;

use super::{chain, convert};
use crate::config::Device;
use crate::controls::DeviceId;
use crate::stage::{Made, Maker};
use crate::vm::MachineHandle;

/// What a client matches: another root device would be the second.
const SECOND_ROOT: &str = "A root block device already exists!";

/// A resource with its device.
pub(super) struct Entry<T> {
    /// As it was put, and changed since.
    pub(super) wire: T,
    /// Its device, until it goes into a machine.
    pub(super) made: Option<Made>,
}

impl<T> Entry<T> {
    /// One whose device is in a machine.
    pub(super) fn in_machine(wire: T) -> Self {
        Self { wire, made: None }
    }
}

impl<T: Resource> Entry<T> {
    /// Makes the device, if it is not there and can be made.
    pub(super) fn make_again(&mut self, maker: &Maker) {
        if self.made.is_none() {
            self.made = make(&self.wire, maker).ok();
        }
    }
}

/// See the module. All is empty at first.
#[derive(Default)]
pub(super) struct Resources {
    pub(super) machine: MachineConfig,
    pub(super) boot_source: Option<BootSource>,
    pub(super) cpu_config: Option<CpuConfig>,
    pub(super) drives: Vec<Entry<Drive>>,
    pub(super) interfaces: Vec<Entry<Interface>>,
    pub(super) vsock: Option<Entry<Vsock>>,
    pub(super) balloon: Option<Balloon>,
    pub(super) pmem: Vec<Pmem>,
    pub(super) memory_hotplug: Option<MemoryHotplug>,
    pub(super) entropy: Option<Entropy>,
    pub(super) serial: Option<Serial>,
    pub(super) logger: Option<Logger>,
    pub(super) metrics: Option<Metrics>,
    pub(super) mmds_config: Option<MmdsConfig>,
    /// Something was put that a snapshot would bring along.
    configured: bool,
}

/// A network interface, and the metadata if it leads there.
#[derive(Clone)]
pub(super) struct Interface {
    pub(super) wire: NetworkInterface,
    pub(super) mmds: Option<Arc<Mmds>>,
}

/// A resource with a device that is made when it is put.
pub(super) trait Resource {
    fn id(&self) -> &str;
    /// What messages call it.
    fn describe(&self) -> String;
    fn device(&self) -> Result<Device, Fault>;
}

impl Resource for Drive {
    fn id(&self) -> &str {
        &self.drive_id
    }

    fn describe(&self) -> String {
        format!("drive '{}'", self.drive_id)
    }

    fn device(&self) -> Result<Device, Fault> {
        convert::drive(self)
    }
}

impl Resource for Interface {
    fn id(&self) -> &str {
        &self.wire.iface_id
    }

    fn describe(&self) -> String {
        format!("network interface '{}'", self.wire.iface_id)
    }

    fn device(&self) -> Result<Device, Fault> {
        convert::interface(&self.wire, self.mmds.clone())
    }
}

impl Resource for Pmem {
    fn id(&self) -> &str {
        &self.id
    }

    fn describe(&self) -> String {
        format!("persistent memory '{}'", self.id)
    }

    fn device(&self) -> Result<Device, Fault> {
        Ok(convert::pmem(self))
    }
}

impl Resource for Vsock {
    fn id(&self) -> &'static str {
        "vsock"
    }

    fn describe(&self) -> String {
        "the vsock device".into()
    }

    fn device(&self) -> Result<Device, Fault> {
        Ok(convert::vsock(self))
    }
}

/// Makes the device of a resource.
pub(super) fn make(resource: &impl Resource, maker: &Maker) -> Result<Made, Fault> {
    maker.make(&resource.device()?).map_err(|error| {
        Fault::bad(format!(
            "Cannot make {}: {}",
            resource.describe(),
            chain(&error)
        ))
    })
}

fn take<T: Resource>(entries: &mut [Entry<T>], id: &str) -> Option<Made> {
    let mut entries = entries.iter_mut();
    entries.find(|entry| entry.wire.id() == id)?.made.take()
}

/// Puts a resource in the place of the one of its name, or at the end. The former has to let go of what
/// both may need, such as a file's lock; if the new one cannot be made, it comes back.
fn put<T: Resource>(entries: &mut Vec<Entry<T>>, wire: T, maker: &Maker) -> Result<usize, Fault> {
    let place = entries
        .iter()
        .position(|entry| entry.wire.id() == wire.id());
    if let Some(entry) = place.and_then(|place| entries.get_mut(place)) {
        entry.made = None;
    }
    match (make(&wire, maker), place) {
        (Ok(made), Some(place)) => {
            let made = Some(made);
            if let Some(entry) = entries.get_mut(place) {
                *entry = Entry { wire, made };
            }
            Ok(place)
        }
        (Ok(made), None) => {
            let made = Some(made);
            entries.push(Entry { wire, made });
            Ok(entries.len() - 1)
        }
        (Err(fault), place) => {
            if let Some(entry) = place.and_then(|place| entries.get_mut(place)) {
                // Otherwise it is made at the start.
                entry.made = make(&entry.wire, maker).ok();
            }
            Err(fault)
        }
    }
}

impl Resources {
    /// What a machine has that is there already.
    pub(super) fn of_document(document: VmConfig) -> Self {
        let VmConfig {
            balloon,
            drives,
            boot_source,
            cpu_config,
            logger,
            machine_config,
            metrics,
            mmds_config,
            network_interfaces,
            vsock,
            entropy,
            pmem,
            memory_hotplug,
            serial,
        } = document;
        Self {
            machine: machine_config,
            boot_source: Some(boot_source),
            cpu_config: cpu_config.and_then(|source| match source {
                CpuConfigSource::Inline(config) => Some(config),
                CpuConfigSource::File(_) => None,
            }),
            drives: drives.into_iter().map(Entry::in_machine).collect(),
            interfaces: (network_interfaces.into_iter())
                .map(|wire| Entry::in_machine(Interface { wire, mmds: None }))
                .collect(),
            vsock: vsock.map(Entry::in_machine),
            balloon,
            pmem,
            memory_hotplug,
            entropy,
            serial,
            logger,
            metrics,
            mmds_config,
            configured: true,
        }
    }

    /// All of it, as `GET /vm/config` gives it.
    pub(super) fn document(&self) -> VmConfig {
        VmConfig {
            balloon: self.balloon.clone(),
            drives: self.drives.iter().map(|entry| entry.wire.clone()).collect(),
            boot_source: self.boot_source.clone().unwrap_or_default(),
            cpu_config: self.cpu_config.clone().map(CpuConfigSource::Inline),
            logger: self.logger.clone(),
            machine_config: self.machine.clone(),
            metrics: self.metrics.clone(),
            mmds_config: self.mmds_config.clone(),
            network_interfaces: (self.interfaces.iter())
                .map(|entry| entry.wire.wire.clone())
                .collect(),
            vsock: self.vsock.as_ref().map(|entry| entry.wire.clone()),
            entropy: self.entropy.clone(),
            pmem: self.pmem.clone(),
            memory_hotplug: self.memory_hotplug.clone(),
            serial: self.serial.clone(),
        }
    }

    /// A device that was made when it was put, for a machine; None if it could not be made then, or is not made then.
    pub(super) fn take_made(&mut self, id: &DeviceId) -> Option<Made> {
        match id {
            DeviceId::Disk(id) => take(&mut self.drives, id),
            DeviceId::Card(id) => take(&mut self.interfaces, id),
            DeviceId::Vsock => self.vsock.as_mut()?.made.take(),
            DeviceId::Balloon
            | DeviceId::Entropy
            | DeviceId::Console
            | DeviceId::Pmem(_)
            | DeviceId::MemoryHotplug => None,
        }
    }

    /// Whether anything was put that comes with a snapshot.
    pub(super) fn has_any(&self) -> bool {
        self.configured
    }

    pub(super) fn put_machine(&mut self, machine: MachineConfig) -> Result<(), Fault> {
        self.configured = true;
        if let Some(balloon) = &self.balloon {
            check_balloon(balloon, &machine)?;
        }
        self.machine = machine;
        Ok(())
    }

    pub(super) fn put_balloon(&mut self, balloon: Balloon) -> Result<(), Fault> {
        self.configured = true;
        check_balloon(&balloon, &self.machine)?;
        self.balloon = Some(balloon);
        Ok(())
    }

    pub(super) fn put_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        self.configured = true;
        if pmem.root_device {
            if self.drives.iter().any(|entry| entry.wire.is_root_device) {
                return Err(Fault::bad(
                    "Attempt to add pmem as a root device while the root device defined as a block device",
                ));
            }
            if (self.pmem.iter()).any(|other| other.root_device && other.id != pmem.id) {
                return Err(Fault::bad("A root pmem device already exist"));
            }
        }
        match self.pmem.iter_mut().find(|other| other.id == pmem.id) {
            Some(other) => *other = pmem,
            None => self.pmem.push(pmem),
        }
        Ok(())
    }

    pub(super) fn put_memory_hotplug(&mut self, memory: MemoryHotplug) {
        self.configured = true;
        self.memory_hotplug = Some(memory);
    }

    pub(super) fn put_entropy(&mut self, entropy: Entropy) {
        self.configured = true;
        self.entropy = Some(entropy);
    }

    pub(super) fn put_boot_source(&mut self, source: BootSource) -> Result<(), Fault> {
        self.configured = true;
        check_file("kernel", &source.kernel_image_path)?;
        if let Some(initrd) = &source.initrd_path {
            check_file("initrd", initrd)?;
        }
        if let Some(words) = &source.boot_args {
            arch::boot::check_cmdline(words).map_err(|error| {
                Fault::bad(format!(
                    "Cannot use boot_args as the kernel's command line: {}",
                    chain(&error)
                ))
            })?;
        }
        self.boot_source = Some(source);
        Ok(())
    }

    pub(super) fn put_cpu_config(&mut self, config: CpuConfig) {
        self.cpu_config = Some(config);
        self.machine.cpu_template = None;
    }

    pub(super) fn put_drive(&mut self, drive: Drive, maker: &Maker) -> Result<(), Fault> {
        self.configured = true;
        let is_other_root = |entry: &Entry<Drive>| {
            entry.wire.is_root_device && entry.wire.drive_id != drive.drive_id
        };
        let is_root = |pmem: &Pmem| pmem.root_device;
        if drive.is_root_device
            && (self.drives.iter().any(is_other_root) || self.pmem.iter().any(is_root))
        {
            return Err(Fault::bad(SECOND_ROOT));
        }
        let is_root = drive.is_root_device;
        let place = put(&mut self.drives, drive, maker)?;
        if is_root {
            // The guest's first disk is its root.
            if let Some(before) = self.drives.get_mut(..=place) {
                before.rotate_right(1);
            }
        }
        Ok(())
    }

    pub(super) fn put_interface(
        &mut self,
        interface: NetworkInterface,
        mmds: &Arc<Mmds>,
        maker: &Maker,
    ) -> Result<(), Fault> {
        self.configured = true;
        self.check_mac(&interface)?;
        let leads = self
            .mmds_config
            .as_ref()
            .is_some_and(|config| config.network_interfaces.contains(&interface.iface_id));
        let interface = Interface {
            wire: interface,
            mmds: leads.then(|| Arc::clone(mmds)),
        };
        put(&mut self.interfaces, interface, maker).map(|_| ())
    }

    fn check_mac(&self, interface: &NetworkInterface) -> Result<(), Fault> {
        let Some(mac) = interface.guest_mac else {
            return Ok(());
        };
        let has_it = |entry: &Entry<Interface>| {
            let other = &entry.wire.wire;
            other.guest_mac == Some(mac) && other.iface_id != interface.iface_id
        };
        if self.interfaces.iter().any(has_it) {
            return Err(Fault::bad(format!(
                "The MAC address is already in use: {mac}"
            )));
        }
        Ok(())
    }

    pub(super) fn put_vsock(&mut self, vsock: Vsock, maker: &Maker) -> Result<(), Fault> {
        self.configured = true;
        let mut entries: Vec<_> = self.vsock.take().into_iter().collect();
        let put = put(&mut entries, vsock, maker);
        self.vsock = entries.pop();
        put.map(|_| ())
    }

    /// Brings a drive into a machine.
    pub(super) fn plug_drive(
        &mut self,
        drive: Drive,
        machine: &MachineHandle,
    ) -> Result<(), Fault> {
        if drive.is_root_device {
            return Err(Fault::bad(SECOND_ROOT));
        }
        check_free(self.drives.iter().map(|entry| &entry.wire), &drive)?;
        plug(&drive, machine)?;
        self.drives.push(Entry::in_machine(drive));
        Ok(())
    }

    /// Brings persistent memory into a machine.
    pub(super) fn plug_pmem(&mut self, pmem: Pmem, machine: &MachineHandle) -> Result<(), Fault> {
        if pmem.root_device {
            return Err(Fault::bad(format!(
                "Persistent memory '{}' cannot become the root device: not supported after starting the microVM",
                pmem.id
            )));
        }
        check_free(self.pmem.iter(), &pmem)?;
        plug(&pmem, machine)?;
        self.pmem.push(pmem);
        Ok(())
    }

    /// Brings an interface into a machine.
    pub(super) fn plug_interface(
        &mut self,
        interface: NetworkInterface,
        machine: &MachineHandle,
    ) -> Result<(), Fault> {
        self.check_mac(&interface)?;
        let interface = Interface {
            wire: interface,
            mmds: None,
        };
        check_free(self.interfaces.iter().map(|entry| &entry.wire), &interface)?;
        plug(&interface, machine)?;
        self.interfaces.push(Entry::in_machine(interface));
        Ok(())
    }
}

/// Whether none of those that are there has the new one's name.
fn check_free<'r, T: Resource + 'r>(
    mut there: impl Iterator<Item = &'r T>,
    new: &T,
) -> Result<(), Fault> {
    if there.any(|other| other.id() == new.id()) {
        return Err(Fault::bad(format!(
            "Device ID in use: there is {} already",
            new.describe()
        )));
    }
    Ok(())
}

fn plug(new: &impl Resource, machine: &MachineHandle) -> Result<(), Fault> {
    let plugged = machine.hotplug().add(&new.device()?);
    plugged.map(|_| ()).map_err(|error| {
        Fault::bad(format!(
            "Cannot plug {}: {}",
            new.describe(),
            super::running::hotplug_error(&error)
        ))
    })
}

fn check_balloon(balloon: &Balloon, machine: &MachineConfig) -> Result<(), Fault> {
    let (amount, memory) = (u64::from(balloon.amount_mib), machine.mem_size_mib);
    if amount >= memory {
        return Err(Fault::bad(format!(
            "A balloon of {amount} MiB (amount_mib) leaves the guest nothing of its {memory} MiB of memory \
             (mem_size_mib)"
        )));
    }
    Ok(())
}

/// Whether a file that the start will need is there.
fn check_file(what: &str, path: &str) -> Result<(), Fault> {
    let wrong = |error: &dyn std::fmt::Display| {
        Fault::bad(format!("The {what} file cannot be opened: {error} {path}"))
    };
    // Opening something else than a file can wait for ever, or do something.
    let metadata = std::fs::metadata(path).map_err(|error| wrong(&error))?;
    if !metadata.is_file() {
        return Err(wrong(&"it is no regular file:"));
    }
    File::open(Path::new(path)).map_err(|error| wrong(&error))?;
    Ok(())
}
