//! Snapshots of a machine that there never was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use devices::interrupt::{MsiMessage, MsiSink};
use devices::ioapic::IoApic;

use super::host::HostState;
use super::memory::{Id, RegionState, diff_trailer, end_of, lay_out};
use super::state::{LegacyState, VirtioState, VmState};
use super::{directory, format};
use crate::above_ram::AboveRamState;

const MIB: u64 = 1 << 20;

struct Nobody;

impl MsiSink for Nobody {
    fn signal(&self, _: MsiMessage) {}
    fn route(&self, _: u32, _: Option<MsiMessage>) {}
}

/// Two regions, as around the device hole.
pub(super) fn regions() -> Vec<RegionState> {
    lay_out([(0, 5 * MIB), (1 << 32, 3 * MIB)])
}

pub(super) fn state(memory_id: Id, memory_base: Option<Id>) -> VmState {
    VmState {
        memory_id,
        memory_base,
        above_ram: AboveRamState::default(),
        memory: regions(),
        images: Vec::new(),
        host: HostState::here(),
        taken: 1,
        clock: kvm_bindings::kvm_clock_data::default(),
        vcpus: Vec::new(),
        ioapic: IoApic::new(Arc::new(Nobody), 24).save(),
        legacy: LegacyState {
            serial: None,
            i8042: None,
            ged: 0,
            acpi_pm: 0,
            pics: [(0, 0); 2],
            job_port: None,
            has_generation_id: false,
            pci_address: 0,
        },
        virtio: VirtioState::Mmio(Vec::new()),
    }
}

pub(super) fn write_state(directory: &Path, state: &VmState) {
    let bytes = format::encode("{}", state).unwrap();
    fs::write(directory::state(directory), bytes).unwrap();
}

/// A memory file with these bytes at these places; with `changes`, a differential one that is about these.
pub(super) fn write_memory(
    path: &Path,
    id: Id,
    contents: &[(u64, &[u8])],
    changes: Option<(Id, &[(u64, u64)])>,
) {
    let file = File::create(path).unwrap();
    let end = end_of(&regions());
    file.set_len(end).unwrap();
    for (at, bytes) in contents {
        file.write_all_at(bytes, *at).unwrap();
    }
    let Some((base, ranges)) = changes else {
        file.write_all_at(&id, end).unwrap();
        return;
    };
    let table: Vec<u8> = ranges
        .iter()
        .flat_map(|(start, bytes)| [start.to_le_bytes(), bytes.to_le_bytes()].concat())
        .collect();
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&table);
    let trailer = diff_trailer(&id, &base, ranges.len() as u64, checksum);
    file.write_all_at(&[&trailer[..], &table].concat(), end)
        .unwrap();
}
