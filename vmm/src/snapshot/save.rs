//! From a machine to files.
//!
//! The machine stands still for as long as its state is taken and a process is forked off ([`Source::begin`]). Then it may go on, while
//! that process writes its memory ([`Writing::finish`]).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arch::boot::ram_ranges;
use arch::vcpu_state::{self, Shape, VcpuState};
use devices::lock;
use devices::random::random;
use devices::virtio::mem::MemConfig;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::collapse::collapse;
use super::file::NewFile;
use super::fork::Child;
pub use super::fork::Killer;
use super::format;
use super::hints;
use super::history::History;
use super::host::HostState;
use super::images::{self, ImageState};
use super::memory::{self, Id, RegionState};
use super::overlays::Overlays;
use super::state::VmState;
use super::writer::{Job, What};
use crate::above_ram::AboveRamState;
use crate::controls::Controls;
use crate::hardware::{self, Hardware};
use crate::kvm;
use crate::vcpu::Vcpus;

/// An access to a device ends in much less, however busy the host is.
pub(crate) const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no snapshot could be taken. Nothing of it is left, and the guest is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has ended.
    #[error("The guest has ended")]
    Ended,
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] vcpu_state::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The state file's contents.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// A device.
    #[error(transparent)]
    Hardware(#[from] hardware::Error),
    /// A file that the guest uses.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// A file could not be made or written.
    #[error("Cannot write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// A vCPU goes on.
    #[error("The guest cannot be paused: a vCPU does not come to rest. It runs on")]
    NoRest,
    /// A process or a thread could not be made.
    #[error("Cannot start what writes the files")]
    Start(#[source] std::io::Error),
    /// One file cannot be both.
    #[error("The state file and the memory file cannot be the same")]
    SamePath,
    /// The host has no randomness.
    #[error("Cannot make an id for the memory file")]
    Random(#[source] std::io::Error),
}

/// What of a machine is in its snapshots. It may be kept for longer than the machine.
#[derive(Clone)]
pub struct Source {
    pub(crate) hardware: Weak<Hardware>,
    pub(crate) vcpus: Arc<Vcpus>,
    pub(crate) vm: Weak<VmFd>,
    pub(crate) memory: Weak<GuestMemoryMmap>,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) kvm_device: PathBuf,
    pub(crate) controls: Controls,
    /// Another process serves its memory.
    pub(crate) is_served: bool,
    /// Bytes of RAM.
    pub(crate) ram: u64,
}

/// A snapshot that is to be taken.
#[derive(Clone, Debug)]
pub struct Order {
    /// What describes the machine, in JSON.
    pub config: String,
    /// The files that it uses.
    pub images: Vec<String>,
    /// The drives whose overlays are temporary.
    pub overlays: Vec<String>,
    /// Where the state goes.
    pub state: PathBuf,
    /// Where memory goes.
    pub memory: PathBuf,
    /// Only what changed since the last one, if that is known; all of it otherwise.
    pub differential: bool,
    /// Nobody keeps it: a later one is not relative to it.
    pub is_passing: bool,
    /// The vCPUs run, and have to be paused for it. Otherwise they are paused.
    pub runs: bool,
    /// They run as soon as they may.
    pub resumes: bool,
}

/// What a snapshot has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of guest memory in the file, those left out that are zero.
    pub memory: u64,
    /// Bytes of the state file.
    pub state: u64,
    /// It has only what changed since another one.
    pub is_differential: bool,
    /// How long nothing of the guest went on.
    pub pause: Duration,
    /// Writes were to be tracked, and the host cannot: what it says.
    pub untracked: Option<String>,
}

/// A snapshot whose state has been taken, and whose files are being written.
pub struct Writing {
    state: VmState,
    config: String,
    memory: Memory,
    memory_file: NewFile,
    state_file: NewFile,
    overlays: Overlays,
    paths: (PathBuf, PathBuf),
    pause: Duration,
    untracked: Option<String>,
    pending: Pending,
}

/// Its memory.
enum Memory {
    /// It is being written.
    Begun(Child),
    /// So much has been written.
    Written(u64),
}

/// What is to be known of a file that is being written, whatever becomes of it.
struct Pending(Option<Arc<Mutex<History>>>);

impl Pending {
    fn done(mut self) {
        if let Some(history) = self.0.take() {
            lock(&history).settle(true);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(history) = self.0.take() {
            lock(&history).settle(false);
        }
    }
}

fn of(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

impl Source {
    /// Takes the state of the machine, and begins to write its memory. Nothing of it goes on meanwhile; then it does, if it is to,
    /// or if this fails and it ran before. The thread that calls this has to be there until all is written.
    pub fn begin(&self, order: &Order) -> Result<Writing, Error> {
        if order.state == order.memory {
            return Err(Error::SamePath);
        }
        // What can be known to fail fails before anything stands still, and what takes its time is done.
        let memory_file = NewFile::create(&order.memory).map_err(of(&order.memory))?;
        let state_file = NewFile::create(&order.state).map_err(of(&order.state))?;
        let hardware = self.hardware.upgrade().ok_or(Error::Ended)?;
        let vm = self.vm.upgrade().ok_or(Error::Ended)?;
        let guest_memory = self.memory.upgrade().ok_or(Error::Ended)?;
        let kvm = kvm::open(&self.kvm_device)?;
        let shape = Shape::of(&kvm, &vm).map_err(kvm::refused("KVM_GET_MSR_INDEX_LIST"))?;
        let id = random().map_err(Error::Random)?;
        let overlays = Overlays::begin(&self.controls, &order.overlays, &order.state, &id)?;
        let (mut job, mut untracked) = (None, None);
        // What can be plugged may be plugged until the guest stands still.
        if self.plugging().is_none() {
            let regions = memory::lay_out(ram_ranges(self.ram));
            let (prepared, why) = self.prepare(&guest_memory, &regions, id, order)?;
            if order.runs && order.resumes && prepared.map().can_be_forked {
                collapse(prepared.map())?;
            }
            if !order.is_passing {
                lock(&self.history).approach(prepared.map());
            }
            (job, untracked) = (Some(prepared), why);
        }

        let host = HostState::here();

        let began = Instant::now();
        if order.runs && !self.vcpus.pause(PAUSE_TIMEOUT) {
            return Err(Error::NoRest);
        }
        hardware.pause();
        let taken = self
            .state(&hardware, &vm, shape, id, host, &order.images)
            .and_then(|state| {
                let job = match job {
                    Some(job) => job,
                    None => {
                        let (prepared, why) =
                            self.prepare(&guest_memory, &state.memory, id, order)?;
                        untracked = why;
                        prepared
                    }
                };
                self.memory(job, id, order, &memory_file, state)
            });
        hardware.resume();
        if order.runs && (order.resumes || taken.is_err()) || order.resumes && taken.is_ok() {
            self.vcpus.run();
        }
        let pause = began.elapsed();
        let (state, memory, pending) = taken?;
        Ok(Writing {
            state,
            config: order.config.clone(),
            memory,
            memory_file,
            state_file,
            overlays,
            paths: (order.state.clone(), order.memory.clone()),
            pause,
            untracked: untracked.map(|error| error.to_string()),
            pending,
        })
    }

    /// All that can be done about memory of these regions while the guest runs; and why its writes cannot be tracked, if they
    /// are to be.
    fn prepare(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        regions: &[RegionState],
        id: Id,
        order: &Order,
    ) -> Result<(Job, Option<std::io::Error>), Error> {
        let mut job = Job::new(Arc::clone(memory), regions, id)?;
        if self.is_served {
            job.is_served();
        }
        if order.is_passing {
            return Ok((job, None));
        }
        let untracked = lock(&self.history).prepare(job.map()).err();
        Ok((job, untracked))
    }

    /// Begins to write memory, and notes in the state what that is.
    fn memory(
        &self,
        mut job: Job,
        id: Id,
        order: &Order,
        file: &NewFile,
        mut state: VmState,
    ) -> Result<(VmState, Memory, Pending), Error> {
        let (what, pending) = if order.is_passing {
            (What::All, Pending(None))
        } else {
            let what = lock(&self.history).turn(job.map(), id, order.differential);
            (what, Pending(Some(Arc::clone(&self.history))))
        };
        state.memory_base = match &what {
            What::All => None,
            What::Diff { base, .. } => Some(*base),
        };
        job.choose(what);
        if job.map().can_be_forked {
            let shared = job.map().shared.clone();
            // Where there is no room for a process, the guest stands still until its memory is written.
            if let Ok(child) = Child::fork(file.file(), &shared, |file| job.run(file)) {
                return Ok((state, Memory::Begun(child), pending));
            }
        }
        let written = job.run(file.file())?;
        Ok((state, Memory::Written(written), pending))
    }

    fn state(
        &self,
        hardware: &Hardware,
        vm: &VmFd,
        shape: Shape,
        memory_id: Id,
        host: HostState,
        images: &[String],
    ) -> Result<VmState, Error> {
        let saved = self
            .vcpus
            .do_at_rest(move |index, vcpu| {
                let state = VcpuState::save(vcpu, index, &shape);
                (state, Instant::now())
            })
            .ok_or(Error::Ended)?;
        // All clocks show the same moment: a guest compares them.
        let taken = super::nanoseconds_since_1970();
        let clock = vm.get_clock().map_err(kvm::refused("KVM_GET_CLOCK"))?;
        let now = Instant::now();
        let vcpus = saved.into_iter().map(|(state, at)| {
            let mut state = state?;
            let later = now.saturating_duration_since(at).as_nanos();
            state.advance(u64::try_from(later).unwrap_or(0));
            Ok::<_, Error>(state)
        });
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let (ioapic, legacy, virtio) = hardware.save()?;
        let window = hardware.pci().and_then(|pci| pci.window());
        let mut state = VmState {
            memory_id,
            memory_base: None,
            memory: Vec::new(),
            above_ram: AboveRamState::of(&self.controls, window.map(|window| &**window)),
            images: images
                .iter()
                .map(|path| ImageState::of(path))
                .collect::<Result<_, _>>()?,
            host,
            taken,
            clock,
            vcpus,
            ioapic,
            legacy,
            virtio,
        };
        let ranges = state.memory_ranges(self.ram, self.plugging())?;
        state.memory = memory::lay_out(ranges);
        Ok(state)
    }

    /// How memory is plugged.
    fn plugging(&self) -> Option<MemConfig> {
        Some(*self.controls.memory_hotplug()?.config())
    }
}

impl Writing {
    /// What gives it up, from another thread, if it is not written yet: then [`Writing::finish`] fails.
    pub fn killer(&self) -> Result<Option<Killer>, Error> {
        match &self.memory {
            Memory::Begun(child) => child.killer().map(Some).map_err(Error::Start),
            Memory::Written(_) => Ok(None),
        }
    }

    /// Waits until the memory is written, and writes the rest. With that the snapshot is there; if it fails, nothing of it is left.
    pub fn finish(self) -> Result<Taken, Error> {
        let Self {
            state,
            config,
            memory,
            memory_file,
            state_file,
            overlays,
            paths: (state_path, memory_path),
            pause,
            untracked,
            pending,
        } = self;
        let memory = match memory {
            Memory::Begun(child) => child.wait()?,
            Memory::Written(bytes) => bytes,
        };
        let bytes = format::encode(&config, &state)?;
        state_file
            .file()
            .write_all(&bytes)
            .map_err(of(&state_path))?;
        overlays.commit()?;
        memory_file.commit().map_err(of(&memory_path))?;
        // Last: with it the snapshot is there.
        state_file.commit().map_err(of(&state_path))?;
        hints::remove(&memory_path);
        pending.done();
        Ok(Taken {
            memory,
            state: bytes.len() as u64,
            is_differential: state.memory_base.is_some(),
            pause,
            untracked,
        })
    }
}
