//! From files to a machine: what the builder takes instead of a kernel.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
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
use rustix::fs::{Access, access};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::file::folder_of;
use super::format::{self, StateFile};
use super::hints::Pages;
use super::host;
use super::images;
use super::memory::{self, Id, RegionState};
use super::restored::Restored;
use super::state::{VirtioState, VmState};
use super::uffd::{self, Handler, Served};
use super::working_set::{self, Populating, PreFault, WorkingSet};
use crate::above_ram::AboveRamState;
use crate::config::{Config, ConsoleKind, HugePages};
use crate::controls::Registered;
use crate::events::Events;
use crate::first_reply::{Awaited, Error as NoteError, Start};
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
    /// What it is loaded for.
    pub purpose: Purpose,
}

/// What a snapshot is loaded for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Its guest goes on, which began then. What that takes is noted beside the memory file.
    Guest(Start),
    /// The guest is one of several, whose memory file may be gone later: nothing will be relative to it, and nothing is noted.
    Copy,
    /// A job in a guest of a template. Nothing is noted.
    Job,
    /// The first one of that template, which began then. What it takes until it ends is noted
    /// ([`Vm::note_status`](crate::Vm::note_status)).
    FirstJob(Start),
}

impl Purpose {
    /// What is waited for, if what it takes until then is to be noted.
    fn awaited(self) -> Option<(Start, Awaited)> {
        match self {
            Self::Guest(start) => Some((start, Awaited::Anything)),
            Self::FirstJob(start) => Some((start, Awaited::JobStatus)),
            Self::Copy | Self::Job => None,
        }
    }
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
    purpose: Purpose,
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
    /// The pages that have been brought in before the guest asks for them.
    working_set: Option<Pages>,
    /// Those that it touches are to be noted.
    notes_pages: bool,
    awaited: Option<(Start, Awaited)>,
}

impl MemoryFile {
    /// One beside which all is noted.
    #[cfg(test)]
    pub(crate) fn noting(
        path: PathBuf,
        id: Id,
        regions: Vec<RegionState>,
        awaited: (Start, Awaited),
    ) -> Self {
        Self {
            file: File::open(&path).unwrap(),
            bytes: memory::file_size(&regions),
            path,
            id,
            regions,
            working_set: None,
            notes_pages: true,
            awaited: Some(awaited),
        }
    }

    /// When the restore began, and what is waited for, if what it takes until then is to be noted.
    pub(crate) fn awaited(&self) -> Option<(Start, Awaited)> {
        self.awaited
    }

    pub(crate) fn id(&self) -> &Id {
        &self.id
    }

    pub(crate) fn working_set(&self) -> Option<Pages> {
        self.working_set
    }

    /// Notes beside the file what the guest has touched of its memory until now, if that is to be noted.
    pub(crate) fn note_working_set(&self, memory: &GuestMemoryMmap) -> Result<(), NoteError> {
        if self.notes_pages {
            self.check_place()?;
            let set = WorkingSet::of(memory, &self.id, &self.regions)?;
            set.write(&self.path).map_err(NoteError::WritePages)?;
        }
        Ok(())
    }

    /// Notes beside the file how it was restored.
    pub(crate) fn note_restored(&self, restored: &Restored) -> Result<(), NoteError> {
        self.check_place()?;
        restored.write(&self.path).map_err(NoteError::Write)
    }

    /// From now on, the host may read more of the file than what the guest asks for.
    pub(crate) fn read_on(&self, memory: &GuestMemoryMmap) {
        if self.notes_pages {
            working_set::read_singly(memory, &self.regions, false);
        }
    }

    /// Whether it is still where it was: beside another one nothing of this one is to be.
    fn check_place(&self) -> Result<(), NoteError> {
        let is_it = || -> std::io::Result<bool> {
            let (there, own) = (self.path.metadata()?, self.file.metadata()?);
            Ok((there.dev(), there.ino()) == (own.dev(), own.ino()))
        };
        match is_it() {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(NoteError::Gone),
        }
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
            purpose: request.purpose,
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
        (!matches!(self.purpose, Purpose::Copy)).then_some(self.state.memory_id)
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
    pub(crate) fn into_memory_file(self, huge_pages: HugePages) -> Option<MemoryFile> {
        let notes_pages = self.notes_pages(huge_pages);
        match self.memory {
            Memory::File(file) => Some(MemoryFile {
                bytes: memory::file_size(&self.state.memory),
                file,
                path: self.memory_path.unwrap_or_default(),
                id: self.state.memory_id,
                regions: self.state.memory,
                working_set: self.working_set.map(|set| set.pages()),
                notes_pages,
                awaited: self.purpose.awaited(),
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
        if self.notes_pages(huge_pages) {
            working_set::read_singly(memory, &self.state.memory, true);
        }
        Ok(None)
    }

    /// Whether it is to be noted which pages are touched: nobody has done so, it can be known, and it can be written. Where it
    /// cannot, no guest pays for it.
    fn notes_pages(&self, huge_pages: HugePages) -> bool {
        self.working_set.is_none()
            && huge_pages == HugePages::None
            && self.purpose.awaited().is_some()
            && self
                .memory_path
                .as_ref()
                .is_some_and(|path| access(folder_of(path), Access::WRITE_OK).is_ok())
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
