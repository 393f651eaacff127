//! From files to a machine: what the builder takes instead of a kernel.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arch::cpu_config::CpuConfig;
use arch::layout;
use arch::vcpu_state::{self, Terms, XsaveSize};
use devices::lock;
use devices::pci::root::Slot;
use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::format::{self, StateFile};
use super::host;
use super::images;
use super::memory::{self, Id, RegionState};
use super::state::{VirtioState, VmState};
use super::uffd::{self, Handler, Served};
use super::working_set::{self, Populating, PreFault, WorkingSet};
use crate::above_ram::AboveRamState;
use crate::config::{Config, ConsoleKind, HugePages};
use crate::controls::Registered;
use crate::events::Events;
use crate::hardware::{self, Hardware};
use crate::{generation, kvm};

/// Why a snapshot cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened. The text is one that clients know.
    #[error("{error} {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the host said.
        error: std::io::Error,
    },
    /// The state file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// The memory file.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Memory that another process is to serve.
    #[error(transparent)]
    Uffd(#[from] uffd::Error),
    /// The host.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The memory file cannot be mapped.
    #[error(transparent)]
    Map(crate::memory::Error),
    /// The vCPUs are not those of the configuration.
    #[error("The state has {saved} vCPUs, the configuration {configured}")]
    Vcpus {
        /// In the state.
        saved: usize,
        /// In the configuration.
        configured: usize,
    },
    /// A file that the guest uses.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] vcpu_state::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The VM generation ID.
    #[error(transparent)]
    Generation(#[from] generation::Error),
    /// A device.
    #[error(transparent)]
    Hardware(#[from] hardware::Error),
}

/// Where the memory of a snapshot comes from.
#[derive(Clone, Copy, Debug)]
pub enum MemoryFrom<'a> {
    /// The memory file.
    File(&'a Path),
    /// A process that serves page faults, by its Unix socket.
    Handler(&'a Path),
}

/// A snapshot, and how it is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The state file.
    pub state: &'a Path,
    /// Its memory.
    pub memory: MemoryFrom<'a>,
    /// The guest's clocks go on as if it had run since; else they stood still.
    pub advance: bool,
    /// What is merely risky is let pass.
    pub force: bool,
    /// The guest is one of several, whose memory file may be gone later: nothing will be relative to it.
    pub is_copy: bool,
}

/// A snapshot whose files have been opened, and whose state has been decoded.
pub struct Saved {
    state: VmState,
    memory: Memory,
    /// Of a file: where it is, and what guests that came from it have touched at first.
    working_set: Option<Arc<WorkingSet>>,
    memory_path: Option<PathBuf>,
    advance: bool,
    force: bool,
    is_copy: bool,
    /// What describes the machine, in JSON.
    pub config: String,
}

enum Memory {
    File(File),
    /// Until it has taken over.
    Handler(Handler),
}

/// The file that a guest's memory is mapped from, for as long as that runs.
pub(crate) struct MemoryFile {
    file: File,
    bytes: u64,
    path: PathBuf,
    id: Id,
    regions: Vec<RegionState>,
    has_working_set: bool,
}

impl MemoryFile {
    /// Has what comes into memory be what the guest touches, and not what is next to that: for whom notes that.
    pub(crate) fn read_singly(&self, memory: &GuestMemoryMmap) {
        working_set::read_singly(memory, &self.regions);
    }

    /// Notes beside the file what the guest has touched of its memory until now, unless that is known from another one;
    /// says how many pages these are, and how many of them it has written to.
    pub(crate) fn note_working_set(
        &self,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<(u64, u64)>, working_set::Error> {
        if self.has_working_set {
            return Ok(None);
        }
        let set = WorkingSet::of(memory, &self.id, &self.regions)?;
        set.write(&self.path)?;
        Ok(Some(set.pages()))
    }

    /// Whether somebody has cut it: memory of the guest is gone then.
    pub(crate) fn is_cut(&self) -> bool {
        let now = self.file.metadata();
        now.is_ok_and(|now| now.len() < self.bytes)
    }
}

impl Saved {
    /// Opens a snapshot.
    pub fn open(request: &Request<'_>) -> Result<Self, Error> {
        let open = |path: &Path| {
            File::open(path).map_err(|error| Error::Open {
                path: path.to_owned(),
                error,
            })
        };
        let mut file = open(request.state)?;
        let file = StateFile::read(&mut file)?;
        let state: VmState = file.state()?;
        let memory_path = match request.memory {
            MemoryFrom::File(path) => Some(path.to_owned()),
            MemoryFrom::Handler(_) => None,
        };
        let working_set = memory_path
            .as_ref()
            .and_then(|path| WorkingSet::find(path, &state.memory_id, &state.memory));
        Ok(Self {
            working_set: working_set.map(Arc::new),
            memory_path,
            state,
            memory: match request.memory {
                MemoryFrom::File(path) => Memory::File(open(path)?),
                MemoryFrom::Handler(path) => Memory::Handler(Handler::connect(path)?),
            },
            advance: request.advance,
            force: request.force,
            is_copy: request.is_copy,
            config: file.config,
        })
    }

    /// Whether its machine has a PCI bus.
    pub fn has_pci(&self) -> bool {
        matches!(self.state.virtio, VirtioState::Pci { .. })
    }

    /// Whether its machine has a keyboard.
    pub fn has_keyboard(&self) -> bool {
        self.state.legacy.i8042.is_some()
    }

    /// Whether its machine was made to run commands.
    pub fn has_job_port(&self) -> bool {
        self.state.legacy.job_port.is_some()
    }

    /// What the files of the snapshot have in common.
    pub(crate) fn id(&self) -> Id {
        self.state.memory_id
    }

    /// The memory file that a later snapshot may be relative to.
    pub(crate) fn base(&self) -> Option<Id> {
        (!self.is_copy).then_some(self.state.memory_id)
    }

    /// Where its machine has its console.
    pub fn console(&self) -> ConsoleKind {
        self.state.virtio.console()
    }

    /// Where memory above RAM is.
    pub(crate) fn above_ram(&self) -> &AboveRamState {
        &self.state.above_ram
    }

    /// Puts devices where they were.
    pub(crate) fn place(
        &self,
        devices: Vec<Registered>,
    ) -> Result<Vec<(Registered, Option<Slot>)>, Error> {
        Ok(self.state.virtio.place(devices)?)
    }

    /// Whether its guest has been told where its VM generation ID is.
    pub(crate) fn has_generation_id(&self) -> bool {
        self.state.legacy.has_generation_id
    }

    /// What its guest has been told of its CPU.
    pub(crate) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        cpuid_of(&self.state)
    }

    /// Checks what the configuration of the machine has to agree with.
    pub(crate) fn check(&self, config: &Config) -> Result<(), Error> {
        let (saved, configured) = (self.state.vcpus.len(), config.cpus() as usize);
        if saved != configured {
            return Err(Error::Vcpus { saved, configured });
        }
        if self.state.memory_base.is_some() {
            return Err(memory::Error::Differential.into());
        }
        let (ram, plugging) = (config.memory(), config.memory_hotplug());
        let wanted = self.state.memory_ranges(ram, plugging)?;
        memory::check_regions(&self.state.memory, wanted)?;
        if let Memory::File(file) = &self.memory {
            memory::check_file(&self.state.memory, &self.state.memory_id, file)?;
        }
        let mut images = self.state.images.iter();
        images.try_for_each(|image| image.check(self.force))?;
        Ok(())
    }

    /// What is left of it when all has been made, if its memory is a file's.
    pub(crate) fn into_memory_file(self) -> Option<MemoryFile> {
        match self.memory {
            Memory::File(file) => Some(MemoryFile {
                bytes: memory::file_size(&self.state.memory),
                file,
                path: self.memory_path.unwrap_or_default(),
                id: self.state.memory_id,
                regions: self.state.memory,
                has_working_set: self.working_set.is_some(),
            }),
            Memory::Handler(_) => None,
        }
    }

    /// Checks that the guest can go on on this host, with a CPU that was told to be like `cpu_config`.
    pub(crate) fn check_host(&self, kvm: &Kvm, cpu_config: &CpuConfig) -> Result<(), Error> {
        let is_custom = *cpu_config != CpuConfig::default();
        let host = &self.state.host;
        Ok(host.check(self.cpuid(), kvm, is_custom, self.force)?)
    }

    /// Has what guests have touched at first mapped by another thread, if it is known and if memory is not of huge pages.
    pub(crate) fn populate(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        huge_pages: HugePages,
    ) -> Populating {
        match &self.working_set {
            Some(set) if huge_pages == HugePages::None => set.populate(memory, &self.state.memory),
            _ => Populating::default(),
        }
    }

    /// The same for KVM, to be done by a vCPU's thread before it enters the guest.
    pub(crate) fn pre_fault(&self) -> Option<PreFault> {
        let set = self.working_set.as_ref()?;
        Some(set.pre_fault(&self.state.memory))
    }

    /// Has guest memory come from where it is: nothing is read that the guest does not touch. The memory file is mapped
    /// private, and never changes. Huge pages are read.
    pub(crate) fn map_memory(
        &self,
        memory: &GuestMemoryMmap,
        huge_pages: HugePages,
        events: &Arc<Events>,
    ) -> Result<Option<Served>, Error> {
        let file = match &self.memory {
            Memory::File(file) => file,
            Memory::Handler(handler) => {
                let (regions, own) = (&self.state.memory, layout::GENERATION_ID_START);
                let served = handler.take_over(memory, regions, huge_pages, own, events)?;
                return Ok(Some(served));
            }
        };
        for region in &self.state.memory {
            crate::memory::put_file(memory, region.gpa, region.bytes, file, region.offset)
                .map_err(Error::Map)?;
        }
        Ok(None)
    }

    /// Gives their states to the vCPUs of a new VM, then to its devices, which interrupt them. Last, the guest is told
    /// that it is another one.
    pub(crate) fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        hardware: &Hardware,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Error> {
        let state = &self.state;
        let passed = if self.advance {
            super::nanoseconds_since_1970().saturating_sub(state.taken)
        } else {
            0
        };
        let terms = Terms {
            xsave: XsaveSize::of(vm),
            passed,
            force: self.force,
        };
        let mut tsc_goes = None;
        for (index, (vcpu, saved)) in vcpus.iter().zip(&state.vcpus).enumerate() {
            saved.restore(vcpu, index, terms)?;
            // All TSCs go by the first one's.
            tsc_goes.get_or_insert_with(Instant::now);
        }
        let since = tsc_goes.map_or(0, |at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(0));
        let clock = kvm_clock_data {
            clock: state
                .clock
                .clock
                .saturating_add(passed)
                .saturating_add(since),
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(kvm::refused("KVM_SET_CLOCK"))?;
        hardware.restore(&state.ioapic, &state.legacy, &state.virtio)?;
        if hardware.has_generation_id {
            generation::renew(memory)?;
            lock(&hardware.ged).announce_generation();
        }
        Ok(())
    }
}

fn cpuid_of(state: &VmState) -> &[kvm_cpuid_entry2] {
    let first = state.vcpus.first();
    first.map_or(&[], |vcpu| vcpu.cpuid())
}

/// Why a snapshot could not be loaded here, as far as that can be known without loading it.
#[derive(Debug)]
pub struct Obstacle {
    /// What is wrong.
    pub why: Error,
    /// It can be let pass.
    pub is_risky: bool,
}

/// All that is in the way of a snapshot with this state, whose memory file is at `memory`. `is_custom`: its CPU was told
/// to be another than the host's.
pub fn obstacles(
    state: &VmState,
    memory: &Path,
    kvm_device: &Path,
    is_custom: bool,
) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    let mut note = |check: &dyn Fn(bool) -> Result<(), Error>| {
        if let Err(why) = check(false) {
            let is_risky = check(true).is_ok();
            obstacles.push(Obstacle { why, is_risky });
        }
    };
    note(&|_| {
        if state.memory_base.is_some() {
            return Err(memory::Error::Differential.into());
        }
        let file = File::open(memory).map_err(|error| Error::Open {
            path: memory.to_owned(),
            error,
        })?;
        Ok(memory::check_file(&state.memory, &state.memory_id, &file)?)
    });
    for image in &state.images {
        note(&|force| Ok(image.check(force)?));
    }
    note(&|force| {
        let host = &state.host;
        Ok(host.check_with(cpuid_of(state), kvm_device, is_custom, force)?)
    });
    obstacles
}
