//! Devices that go: the guest is asked to let go of one, and takes its time, or never does it. Nothing else waits for
//! that: whoever asked is answered when it has happened, or when it took too long.

use std::time::{Duration, Instant};

use api::command::{Command, Fault, Response};

use super::running::hotplug_error;
use super::{Control, Execution};
use crate::controls::{Controls, DeviceId};
use crate::pci::Removal;

/// How long a guest may take to let go of a device before whoever asked hears that it has not. It may do so
/// later.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is answered later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// A device that the guest was asked to let go of.
struct Leaving {
    ticket: Ticket,
    id: DeviceId,
    removal: Removal,
    deadline: Instant,
}

/// All of them.
#[derive(Default)]
pub(super) struct Departures {
    leaving: Vec<Leaving>,
    tickets: u64,
}

impl Departures {
    /// One that nobody has yet.
    pub(super) fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        ticket
    }

    fn add(&mut self, id: DeviceId, removal: Removal) -> Ticket {
        let ticket = self.ticket();
        self.leaving.push(Leaving {
            ticket,
            id,
            removal,
            deadline: Instant::now() + TIMEOUT,
        });
        ticket
    }
}

/// The device that a command is about, if it is about one that can go.
fn named(command: &Command) -> Option<DeviceId> {
    Some(match command {
        Command::PutDrive(drive) => DeviceId::Disk(drive.drive_id.clone()),
        Command::PatchDrive(patch) => DeviceId::Disk(patch.drive_id.clone()),
        Command::DeleteDrive(id) => DeviceId::Disk(id.clone()),
        Command::PutInterface(interface) => DeviceId::Card(interface.iface_id.clone()),
        Command::PatchInterface(patch) => DeviceId::Card(patch.iface_id.clone()),
        Command::DeleteInterface(id) => DeviceId::Card(id.clone()),
        Command::PutPmem(pmem) => DeviceId::Pmem(pmem.id.clone()),
        Command::PatchPmem(patch) => DeviceId::Pmem(patch.id.clone()),
        Command::DeletePmem(id) => DeviceId::Pmem(id.clone()),
        _ => return None,
    })
}

impl Control {
    /// Whether nothing is wrong with a command because of a device that is about to go.
    pub(super) fn check_departures(&self, command: &Command) -> Result<(), Fault> {
        let Some(id) = named(command) else {
            return Ok(());
        };
        if self.departures.leaving.iter().any(|other| other.id == id) {
            return Err(Fault::bad(format!(
                "The {id} is being unplugged: the guest was asked to let go of it, and has not answered yet"
            )));
        }
        Ok(())
    }

    /// Forgets what has gone unasked, or later than anyone has waited for.
    pub(super) fn forget_gone(&mut self) {
        if let Some(machine) = &self.machine
            && self.settings.pci
        {
            self.resources.forget_gone(machine.controls());
        }
    }

    /// Asks the guest to let go of a device.
    pub(super) fn unplug(&mut self, id: DeviceId) -> Result<Execution, Fault> {
        let removal = self.machine()?.hotplug().remove(&id);
        let removal = removal.map_err(|error| Fault::bad(hotplug_error(&error)))?;
        Ok(Execution::Later(self.departures.add(id, removal)))
    }

    /// Whether anything is to be answered later: then [`Control::take_answer`] is to be called now and then.
    pub fn has_later(&self) -> bool {
        !self.departures.leaving.is_empty() || self.writing.is_some()
    }

    /// The next answer, if there is one by now.
    pub fn take_answer(&mut self) -> Option<(Ticket, Result<Response, Fault>)> {
        if let Some(written) = self.take_written() {
            return Some(written);
        }
        let now = Instant::now();
        let index =
            self.departures.leaving.iter().position(|leaving| {
                leaving.removal.wait(Duration::ZERO) || now >= leaving.deadline
            })?;
        let Leaving {
            ticket,
            id,
            removal,
            deadline: _,
        } = self.departures.leaving.remove(index);
        if removal.wait(Duration::ZERO) {
            self.resources.forget(&id);
            return Some((ticket, Ok(Response::Empty)));
        }
        let fault = Fault::bad(format!(
            "The guest has not let go of the {id} within {} s; it may still do so: ask again",
            TIMEOUT.as_secs()
        ));
        Some((ticket, Err(fault)))
    }
}

impl super::resources::Resources {
    /// A device has gone.
    fn forget(&mut self, id: &DeviceId) {
        match id {
            DeviceId::Disk(id) => self.drives.retain(|entry| entry.wire.drive_id != *id),
            DeviceId::Card(id) => {
                self.interfaces
                    .retain(|entry| entry.wire.wire.iface_id != *id);
            }
            DeviceId::Pmem(id) => self.pmem.retain(|pmem| pmem.id != *id),
            // They stay.
            DeviceId::Balloon
            | DeviceId::Entropy
            | DeviceId::Vsock
            | DeviceId::Console
            | DeviceId::MemoryHotplug => {}
        }
    }

    /// Forgets those that are not among a machine's devices.
    fn forget_gone(&mut self, controls: &Controls) {
        let is_there = |id| controls.number(&id).is_some();
        self.drives
            .retain(|entry| is_there(DeviceId::Disk(entry.wire.drive_id.clone())));
        self.interfaces
            .retain(|entry| is_there(DeviceId::Card(entry.wire.wire.iface_id.clone())));
        self.pmem
            .retain(|pmem| is_there(DeviceId::Pmem(pmem.id.clone())));
    }
}
