//! `/snapshot/create` and `/snapshot/load`.

use std::path::Path;
use std::time::Instant;

use api::command::{Fault, State};
use api::types::{
    Backend, MacAddress, MemBackendType, Overlay, SnapshotCreate, SnapshotLoad, SnapshotType,
    VmConfig,
};

use devices::pci::root::Slot;

use super::resources::Resources;
use super::{Control, chain, convert, whole};
use crate::snapshot::load::{MemoryFrom, Request, Saved};
use crate::stage::{Order, Origin};
use crate::vm::MachineHandle;

fn cannot_create(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot create a snapshot: {why}"))
}

fn cannot_load(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot load the snapshot: {why}"))
}

impl Control {
    /// Writes the machine, which is paused, to files. If that fails, nothing of them is left.
    pub(super) fn create_snapshot(&self, snapshot: &SnapshotCreate) -> Result<(), Fault> {
        if snapshot.snapshot_type == SnapshotType::Diff {
            return Err(cannot_create(
                "there are no differential ones (snapshot_type) in this version of mote",
            ));
        }
        let machine = self.machine()?;
        let mut document = self.resources.document();
        self.check_places(&document, machine)?;
        for interface in &mut document.network_interfaces {
            // One that was made up is the guest's by now.
            let card = machine.controls().card(&interface.iface_id);
            interface.guest_mac = card.map(|card| MacAddress(card.mac().bytes()));
        }
        let config = serde_json::to_string(&document).map_err(cannot_create)?;
        machine
            .snapshots()
            .write(
                &config,
                &images(&document),
                Path::new(&snapshot.snapshot_path),
                Path::new(&snapshot.mem_file_path),
            )
            .map_err(|error| cannot_create(chain(&error)))?;
        Ok(())
    }

    /// Whether all of the guest is where it would be if it was built like this.
    fn check_places(&self, document: &VmConfig, machine: &MachineHandle) -> Result<(), Fault> {
        let controls = machine.controls();
        let plugged = controls
            .memory_hotplug()
            .map(|memory| memory.status().plugged);
        if plugged.is_some_and(|bytes| bytes > 0) {
            return Err(cannot_create(
                "memory has been plugged (/hotplug/memory): this version of mote has no snapshots of that",
            ));
        }
        if controls.console().is_some() {
            return Err(cannot_create(
                "the guest's console is a virtio console: this version of mote has snapshots with serial ports only",
            ));
        }
        if let Some(drive) = (document.drives.iter()).find(|drive| drive.overlay == Overlay::Temp) {
            return Err(cannot_create(format!(
                "what the guest has written to drive '{}' ends with this monitor (overlay temp)",
                drive.drive_id
            )));
        }
        let devices = whole::devices(document, None)?;
        let moved = self.resources.plugged_pmem
            || self.settings.pci
                && (1..).zip(&devices).any(|(slot, device)| {
                    controls.slot(&device.id()).map(Slot::number) != Some(slot)
                });
        if moved {
            return Err(cannot_create(
                "devices have come or gone while the guest ran: this version of mote has no snapshots of that",
            ));
        }
        Ok(())
    }

    /// Builds the machine that a snapshot is of. If that fails, all is as before.
    pub(super) fn load_snapshot(&mut self, snapshot: &SnapshotLoad) -> Result<(), Fault> {
        let asked = Instant::now();
        if self.resources.has_any() {
            return Err(cannot_load("the microVM has been configured already"));
        }
        let memory = match (&snapshot.mem_backend, &snapshot.mem_file_path) {
            (Some(backend), _) => {
                let path = Path::new(&backend.backend_path);
                match backend.backend_type {
                    MemBackendType::File => MemoryFrom::File(path),
                    MemBackendType::Uffd => MemoryFrom::Handler(path),
                }
            }
            (None, Some(path)) => MemoryFrom::File(Path::new(path)),
            (None, None) => return Err(cannot_load("there is no memory (mem_backend)")),
        };
        let saved = Saved::open(&Request {
            state: Path::new(&snapshot.snapshot_path),
            memory,
            advance: snapshot.clock_realtime,
            force: snapshot.force,
        })
        .map_err(|error| cannot_load(chain(&error)))?;
        let (mut document, _) =
            VmConfig::read(saved.config.as_bytes()).map_err(|error| cannot_load(chain(&error)))?;
        change(&mut document, snapshot)?;
        let resources = Resources::of_document(document);
        let before = (
            std::mem::replace(&mut self.resources, resources),
            std::mem::replace(&mut self.settings.pci, saved.has_pci()),
        );
        if let Err(why) = self.restore(asked, saved) {
            (self.resources, self.settings.pci) = before;
            return Err(cannot_load(why));
        }
        if snapshot.resume_vm
            && let Some(machine) = &self.machine
        {
            machine.resume();
            self.set_state(State::Running);
        } else {
            self.set_state(State::Paused);
        }
        Ok(())
    }

    fn restore(&mut self, asked: Instant, saved: Saved) -> Result<(), String> {
        let console = self.face.console(self.resources.serial.as_ref())?;
        let (config, devices) = self.collect()?;
        let config = config.with_keyboard(saved.has_keyboard());
        let order = Order {
            asked,
            config,
            origin: Origin::Saved(Box::new(saved)),
            console,
            devices,
        };
        let machine = self.orders.start(order).map_err(|error| chain(&error))?;
        if let Some(config) = &self.resources.mmds_config {
            self.settings
                .mmds
                .set_config(convert::metadata_config(config));
        }
        machine.resume_devices();
        self.machine = Some(machine);
        Ok(())
    }
}

/// The files that a machine uses.
fn images(document: &VmConfig) -> Vec<String> {
    let drives = document.drives.iter().flat_map(|drive| {
        let overlay = match &drive.overlay {
            Overlay::File(path) => Some(path.clone()),
            Overlay::None | Overlay::Temp => None,
        };
        std::iter::once(drive.path_on_host.clone()).chain(overlay)
    });
    let pmem = document.pmem.iter().map(|pmem| pmem.path_on_host.clone());
    drives.chain(pmem).collect()
}

/// What is to be otherwise than it was when the snapshot was taken.
fn change(document: &mut VmConfig, snapshot: &SnapshotLoad) -> Result<(), Fault> {
    if snapshot.track_dirty_pages || snapshot.enable_diff_snapshots {
        document.machine_config.track_dirty_pages = true;
    }
    for change in &snapshot.network_overrides {
        let found = (document.network_interfaces.iter_mut())
            .find(|interface| interface.iface_id == change.iface_id);
        let Some(interface) = found else {
            return Err(cannot_load(format!(
                "it has no network interface '{}' (network_overrides)",
                change.iface_id
            )));
        };
        if interface.backend == Backend::User {
            return Err(cannot_load(format!(
                "network interface '{}' has no tap that another could take the place of (network_overrides)",
                change.iface_id
            )));
        }
        interface.host_dev_name = Some(change.host_dev_name.clone());
    }
    if let Some(change) = &snapshot.vsock_override {
        let Some(vsock) = &mut document.vsock else {
            return Err(cannot_load("it has no vsock device (vsock_override)"));
        };
        vsock.uds_path.clone_from(&change.uds_path);
    }
    Ok(())
}
