//! `/fork`: copies of a guest, each a guest of its own. It is a snapshot that nobody keeps: its files are where copies
//! open them, and gone when they have.

use std::path::PathBuf;

use api::command::{Fault, State};
use api::types::{
    Backend, COPY_NUMBER, Fork, ForkedGuest, NetworkOverride, Overlay, Serial, VmConfig,
    VsockOverride,
};

use super::snapshot::{override_taps, override_vsock};
use super::writing::BeingWritten;
use super::{Control, Execution, chain};
use crate::snapshot::directory;

/// Starts copies, and waits until all have loaded. Fails with a sentence; then there is none.
pub type Starter = Box<dyn FnOnce(&Fork) -> Result<Vec<ForkedGuest>, String> + Send>;

/// What copies of a guest come from.
pub struct Copies {
    /// Where the files go that they begin with. They are gone with `start`.
    pub directory: PathBuf,
    /// What starts them.
    pub start: Starter,
    /// Those that `start` waits for are given up when it is dropped.
    pub leash: Box<dyn Send>,
}

pub(super) fn cannot_fork(why: impl std::fmt::Display) -> Fault {
    Fault::bad(format!("Cannot fork the guest: {why}"))
}

impl Control {
    /// Takes the machine's state, has it written, and copies started from it; what becomes of them is answered later.
    pub(super) fn fork(&mut self, fork: Fork) -> Result<Execution, Fault> {
        if self.writing.is_some() {
            return Err(cannot_fork(
                "a snapshot is being written: ask again when that has been answered",
            ));
        }
        let machine = self.machine()?;
        let document = self.document_to_save(machine).map_err(cannot_fork)?;
        // What can be known to fail does before anything stands still.
        check(&document, &fork).map_err(cannot_fork)?;
        let copies = self.face.copies().map_err(cannot_fork)?;
        let machine = self.machine()?;
        let memory = directory::new_memory(&copies.directory).map_err(cannot_fork)?;
        let runs = self.state == State::Running;
        let mut order = self
            .order_to_save(&document, directory::state(&copies.directory), memory)
            .map_err(cannot_fork)?;
        order.resumes = runs;
        order.is_passing = true;
        let failed = |error| cannot_fork(chain(&error));
        let writing = machine.snapshots().begin(&order).map_err(failed)?;
        let ticket = self.departures.ticket();
        let writing = BeingWritten::for_copies(ticket, writing, copies, fork).map_err(failed)?;
        self.writing = Some(writing);
        Ok(Execution::Later(ticket))
    }
}

/// Whether there can be such copies of this guest.
fn check(document: &VmConfig, fork: &Fork) -> Result<(), String> {
    let mut document = document.clone();
    let first = |name: &str| name.replace(COPY_NUMBER, "1");
    let taps: Vec<_> = (fork.network_overrides.iter())
        .map(|change| NetworkOverride {
            host_dev_name: first(&change.host_dev_name),
            ..change.clone()
        })
        .collect();
    override_taps(&mut document, &taps)?;
    if let Some(vsock) = &fork.vsock_override {
        let vsock = VsockOverride {
            uds_path: first(&vsock.uds_path),
        };
        override_vsock(&mut document, &vsock)?;
    }
    part(&mut document, &taps)
}

/// Takes from a copy what only one guest can have: ports of the host, files that are written. Fails with a sentence if it
/// could not do without.
pub(super) fn part(document: &mut VmConfig, taps: &[NetworkOverride]) -> Result<(), String> {
    for drive in &document.drives {
        if !drive.is_read_only && drive.overlay != Overlay::Temp {
            return Err(format!(
                "drive '{}' can be written to, and copies cannot share what they write: the guest has to have it with a \
                 temporary overlay (overlay=temp) or read-only",
                drive.drive_id
            ));
        }
    }
    for pmem in &document.pmem {
        if !pmem.read_only {
            return Err(format!(
                "persistent memory '{}' can be written to, and copies cannot share what they write: the guest has to \
                 have it read-only",
                pmem.id
            ));
        }
    }
    for interface in &mut document.network_interfaces {
        match interface.backend {
            Backend::User => interface.forwards.clear(),
            Backend::Tap => {
                if !taps.iter().any(|tap| tap.iface_id == interface.iface_id) {
                    return Err(format!(
                        "network interface '{}' has a tap, and a copy needs one of its own: name it (network_overrides, \
                         or --net {}=TAP)",
                        interface.iface_id, interface.iface_id
                    ));
                }
            }
        }
    }
    (document.logger, document.metrics) = (None, None);
    // Where its console leads to is the first one's.
    let iothread = document.serial.take().is_some_and(|serial| serial.iothread);
    document.serial = iothread.then(|| Serial {
        iothread,
        ..Serial::default()
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(card: &str) -> VmConfig {
        let text = format!(r#"{{"network-interfaces": [{card}], "serial": {{}}}}"#);
        VmConfig::read(text.as_bytes()).unwrap().0
    }

    #[test]
    fn each_copy_needs_a_tap_of_its_own() {
        let document = document(r#"{"iface_id": "e", "host_dev_name": "tap"}"#);
        let why = check(&document, &Fork::default()).unwrap_err();
        assert!(why.contains("'e'") && why.contains("--net e=TAP"), "{why}");
        let mut fork = Fork {
            count: Some(2),
            network_overrides: vec![NetworkOverride {
                iface_id: "e".into(),
                host_dev_name: "tap{}".into(),
                vhost: None,
            }],
            ..Fork::default()
        };
        check(&document, &fork).unwrap();
        fork.network_overrides[0].iface_id = "other".into();
        assert!(check(&document, &fork).is_err());
    }

    #[test]
    fn ports_and_files_of_the_host_are_left_to_the_first() {
        let mut document =
            document(r#"{"iface_id": "e", "backend": "user", "forwards": ["80:80"]}"#);
        part(&mut document, &[]).unwrap();
        assert!(document.network_interfaces[0].forwards.is_empty());
        assert_eq!(document.serial, None);
        document.serial = Some(Serial {
            serial_out_path: Some("out".into()),
            rate_limiter: None,
            iothread: true,
        });
        part(&mut document, &[]).unwrap();
        let serial = document.serial.unwrap();
        assert_eq!((serial.serial_out_path, serial.iothread), (None, true));
    }
}
