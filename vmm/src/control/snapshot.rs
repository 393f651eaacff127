//! `/snapshot/create` and `/snapshot/load`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use api::command::{Fault, State};
use api::types::{
    Backend, MacAddress, MemBackendType, NetworkOverride, Overlay, SnapshotCreate, SnapshotLoad,
    SnapshotType, VmConfig, VsockOverride,
};

use devices::backend::disk;

use super::resources::Resources;
use super::writing::BeingWritten;
use super::{Control, Execution, chain, convert, fork, whole};
use crate::config::{Device, DeviceKind};
use crate::controls::DeviceId;
use crate::first_reply::Start;
use crate::snapshot::load::{MemoryFrom, Purpose, Request, Saved};
use crate::snapshot::{overlays, save};
use crate::stage::{Order, Origin};
use crate::vm::MachineHandle;

pub(super) fn cannot_create(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot create a snapshot: {why}"))
}

fn cannot_load(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot load the snapshot: {why}"))
}

impl Control {
    /// Takes the machine's state and has its files written; what becomes of them is answered later. If that fails, nothing of
    /// them is left.
    pub(super) fn create_snapshot(
        &mut self,
        snapshot: &SnapshotCreate,
    ) -> Result<Execution, Fault> {
        if self.writing.is_some() {
            return Err(cannot_create(
                "another one is being written: ask again when that has been answered",
            ));
        }
        let machine = self.machine()?;
        let document = self.document_to_save(machine).map_err(cannot_create)?;
        let (state, memory) = (&snapshot.snapshot_path, &snapshot.mem_file_path);
        for path in [state, memory] {
            if is_of_guest(&document, Path::new(path)) {
                return Err(cannot_create(format_args!(
                    "{path} is a file of the guest, which a snapshot would replace: name another one"
                )));
            }
        }
        let mut order = self
            .order_to_save(&document, state.into(), memory.into())
            .map_err(cannot_create)?;
        order.differential = snapshot.snapshot_type == SnapshotType::Diff;
        order.resumes = snapshot.resume_vm;
        let failed = |error| cannot_create(chain(&error));
        let writing = machine.snapshots().begin(&order).map_err(failed)?;
        if snapshot.resume_vm {
            self.set_state(State::Running);
        }
        let ticket = self.departures.ticket();
        self.writing = Some(BeingWritten::new(ticket, writing).map_err(failed)?);
        Ok(Execution::Later(ticket))
    }

    /// What describes the machine as it is now. Fails with a sentence.
    pub(super) fn document_to_save(&self, machine: &MachineHandle) -> Result<VmConfig, String> {
        let mut document = self.resources.document();
        Self::check_devices(&document, machine)?;
        for interface in &mut document.network_interfaces {
            // One that was made up is the guest's by now.
            let card = machine.controls().card(&interface.iface_id);
            interface.guest_mac = card.map(|card| MacAddress(card.mac().bytes()));
        }
        Ok(document)
    }

    /// All of it is to be written to these files. The vCPUs stay paused.
    pub(super) fn order_to_save(
        &self,
        document: &VmConfig,
        state: PathBuf,
        memory: PathBuf,
    ) -> serde_json::Result<save::Order> {
        let temporary = (document.drives.iter()).filter(|drive| drive.overlay == Overlay::Temp);
        Ok(save::Order {
            config: serde_json::to_string(document)?,
            images: images(document),
            overlays: temporary.map(|drive| drive.drive_id.clone()).collect(),
            state,
            memory,
            differential: false,
            is_passing: false,
            runs: self.state == State::Running,
            resumes: false,
        })
    }

    /// Whether the document has all devices that the guest has, and no others: one that was asked to go may go at any
    /// moment.
    fn check_devices(document: &VmConfig, machine: &MachineHandle) -> Result<(), String> {
        let described: BTreeSet<DeviceId> = whole::devices(document, None)
            .map_err(|fault| fault.message)?
            .iter()
            .map(Device::id)
            .collect();
        let there = machine.controls().ids();
        let there = there.into_iter().filter(|id| *id != DeviceId::Console);
        match there
            .collect::<BTreeSet<_>>()
            .symmetric_difference(&described)
            .next()
        {
            None => Ok(()),
            Some(id) => Err(format!("the {id} is about to come or to go: try again")),
        }
    }

    /// Builds the machine that a snapshot is of. If that fails, all is as before.
    pub(super) fn load_snapshot(&mut self, snapshot: &SnapshotLoad) -> Result<(), Fault> {
        let purpose = Purpose::Guest(Start::now());
        let (order, before) = self.order_to_load(snapshot, purpose)?;
        match self.orders.start(order) {
            Ok(machine) => {
                machine.resume_devices();
                if snapshot.resume_vm {
                    machine.resume();
                } else {
                    machine.stand_still();
                }
                self.has_loaded(machine, snapshot);
                Ok(())
            }
            Err(error) => {
                self.undo(before);
                Err(cannot_load(chain(&error)))
            }
        }
    }

    /// The machine that a snapshot is of, for whoever builds it ([`Stage::build`](crate::Stage::build)), and then says so
    /// by [`Control::has_loaded`].
    pub fn load(&mut self, snapshot: &SnapshotLoad, purpose: Purpose) -> Result<Order, Fault> {
        let (order, _) = self.order_to_load(snapshot, purpose)?;
        Ok(order)
    }

    /// The machine of a snapshot has been built.
    pub fn has_loaded(&mut self, machine: MachineHandle, snapshot: &SnapshotLoad) {
        if let Some(config) = &self.resources.mmds_config {
            self.settings
                .mmds
                .set_config(convert::metadata_config(config));
        }
        self.machine = Some(machine);
        self.set_state(if snapshot.resume_vm {
            State::Running
        } else {
            State::Paused
        });
    }

    fn order_to_load(
        &mut self,
        snapshot: &SnapshotLoad,
        purpose: Purpose,
    ) -> Result<(Order, Before), Fault> {
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
            purpose,
        })
        .map_err(|error| cannot_load(chain(&error)))?;
        let (mut document, _) =
            VmConfig::read(saved.config.as_bytes()).map_err(|error| cannot_load(chain(&error)))?;
        change(&mut document, snapshot).map_err(cannot_load)?;
        if matches!(purpose, Purpose::Copy) {
            fork::part(&mut document, &snapshot.network_overrides).map_err(cannot_load)?;
        }
        let resources = Resources::of_document(document);
        let before = Before {
            resources: std::mem::replace(&mut self.resources, resources),
            pci: std::mem::replace(&mut self.settings.pci, saved.has_pci()),
        };
        match self.order_of(asked, saved, Path::new(&snapshot.snapshot_path)) {
            Ok(order) => Ok((order, before)),
            Err(why) => {
                self.undo(before);
                Err(cannot_load(why))
            }
        }
    }

    fn undo(&mut self, before: Before) {
        (self.resources, self.settings.pci) = (before.resources, before.pci);
    }

    fn order_of(
        &mut self,
        asked: Instant,
        saved: Saved,
        state_path: &Path,
    ) -> Result<Order, String> {
        let console = self.face.console(self.resources.serial.as_ref())?;
        let id = saved.id();
        let (config, devices) = self.collect(|device| {
            if let DeviceKind::Block(disk) = &mut device.kind
                && disk.overlay == disk::Overlay::Temporary
            {
                let path = overlays::path(state_path, &disk.id);
                disk.overlay = disk::Overlay::Saved { path, id };
            }
        })?;
        let config = config
            .with_keyboard(saved.has_keyboard())
            .with_job_port(saved.has_job_port())
            .with_console(saved.console())
            .map_err(|error| error.to_string())?;
        Ok(Order {
            asked,
            config,
            origin: Origin::Saved(Box::new(saved)),
            console,
            devices,
        })
    }
}

/// What there was before a snapshot was loaded.
struct Before {
    resources: Resources,
    pci: bool,
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

/// Whether the guest boots from this file or uses it, by this name or another one.
fn is_of_guest(document: &VmConfig, path: &Path) -> bool {
    let file = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    // What is not there yet is nobody's.
    let Some(wanted) = file(path) else {
        return false;
    };
    let boot = &document.boot_source;
    let booted = std::iter::once(&boot.kernel_image_path).chain(&boot.initrd_path);
    booted
        .cloned()
        .chain(images(document))
        .any(|path| file(Path::new(&path)) == Some(wanted))
}

/// What is to be otherwise than it was when the snapshot was taken.
fn change(document: &mut VmConfig, snapshot: &SnapshotLoad) -> Result<(), String> {
    if snapshot.track_dirty_pages || snapshot.enable_diff_snapshots {
        document.machine_config.track_dirty_pages = true;
    }
    override_taps(document, &snapshot.network_overrides)?;
    match &snapshot.vsock_override {
        Some(change) => override_vsock(document, change),
        None => Ok(()),
    }
}

/// Other taps.
pub(super) fn override_taps(
    document: &mut VmConfig,
    changes: &[NetworkOverride],
) -> Result<(), String> {
    for change in changes {
        let found = (document.network_interfaces.iter_mut())
            .find(|interface| interface.iface_id == change.iface_id);
        let Some(interface) = found else {
            return Err(format!(
                "it has no network interface '{}' (network_overrides)",
                change.iface_id
            ));
        };
        if interface.backend == Backend::User {
            return Err(format!(
                "network interface '{}' has no tap that another could take the place of (network_overrides)",
                change.iface_id
            ));
        }
        interface.host_dev_name = Some(change.host_dev_name.clone());
        interface.vhost = change.vhost.unwrap_or(interface.vhost);
    }
    Ok(())
}

/// Another socket.
pub(super) fn override_vsock(
    document: &mut VmConfig,
    change: &VsockOverride,
) -> Result<(), String> {
    let Some(vsock) = &mut document.vsock else {
        return Err("it has no vsock device (vsock_override)".into());
    };
    vsock.uds_path.clone_from(&change.uds_path);
    Ok(())
}
