//! From a machine to files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Weak;

use arch::boot::ram_ranges;
use arch::vcpu_state::{self, Shape, VcpuState};
use devices::random::random;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::file::NewFile;
use super::format;
use super::host::HostState;
use super::images::{self, ImageState};
use super::memory::{self, RegionState};
use super::state::VmState;
use crate::hardware::{self, Hardware};
use crate::kvm;
use crate::vcpu::Vcpus;

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
    pub(crate) vcpus: std::sync::Arc<Vcpus>,
    pub(crate) vm: Weak<VmFd>,
    pub(crate) memory: Weak<GuestMemoryMmap>,
    pub(crate) kvm_device: PathBuf,
    /// Another process serves its memory.
    pub(crate) is_served: bool,
    /// Bytes of RAM.
    pub(crate) ram: u64,
}

/// What a snapshot has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of guest memory in the file, those left out that are zero.
    pub memory: u64,
    /// Bytes of the state file.
    pub state: u64,
}

impl Source {
    /// Writes a snapshot of the machine, whose vCPUs are paused and stay so: its memory to one file, all else
    /// to another, with `config`, which describes it, in JSON, and how the files are by then that it uses, `images`.
    /// Its virtio devices stand still meanwhile.
    pub fn write(
        &self,
        config: &str,
        images: &[String],
        state_path: &Path,
        memory_path: &Path,
    ) -> Result<Taken, Error> {
        let of = |path: &Path| {
            let path = path.to_owned();
            |source| Error::File { path, source }
        };
        if state_path == memory_path {
            return Err(Error::SamePath);
        }
        // What can be known to fail fails before anything stands still.
        let memory_file = NewFile::create(memory_path).map_err(of(memory_path))?;
        let state_file = NewFile::create(state_path).map_err(of(state_path))?;
        let hardware = self.hardware.upgrade().ok_or(Error::Ended)?;
        let guest_memory = self.memory.upgrade().ok_or(Error::Ended)?;
        hardware.pause();
        let regions = memory::lay_out(ram_ranges(self.ram));
        let taken = self.state(&hardware, &regions, images).and_then(|state| {
            let bytes = memory::write(
                &guest_memory,
                &regions,
                &state.memory_id,
                memory_file.file(),
                self.is_served,
            )?;
            Ok((state, bytes))
        });
        hardware.resume();
        let (state, memory) = taken?;
        let bytes = format::encode(config, &state)?;
        state_file
            .file()
            .write_all(&bytes)
            .map_err(of(state_path))?;
        memory_file.commit().map_err(of(memory_path))?;
        // Last: with it the snapshot is there.
        state_file.commit().map_err(of(state_path))?;
        Ok(Taken {
            memory,
            state: bytes.len() as u64,
        })
    }

    fn state(
        &self,
        hardware: &Hardware,
        regions: &[RegionState],
        images: &[String],
    ) -> Result<VmState, Error> {
        let vm = self.vm.upgrade().ok_or(Error::Ended)?;
        let kvm = kvm::open(&self.kvm_device)?;
        let shape = Shape::of(&kvm, &vm).map_err(kvm::refused("KVM_GET_MSR_INDEX_LIST"))?;
        let vcpus = self
            .vcpus
            .do_at_rest(move |index, vcpu| VcpuState::save(vcpu, index, &shape))
            .ok_or(Error::Ended)?
            .into_iter()
            .collect::<Result<_, _>>()?;
        let (ioapic, legacy, virtio) = hardware.save()?;
        Ok(VmState {
            memory_id: random().map_err(Error::Random)?,
            memory: regions.to_vec(),
            images: images
                .iter()
                .map(|path| ImageState::of(path))
                .collect::<Result<_, _>>()?,
            host: HostState::here(),
            taken: super::nanoseconds_since_1970(),
            clock: vm.get_clock().map_err(kvm::refused("KVM_GET_CLOCK"))?,
            vcpus,
            ioapic,
            legacy,
            virtio,
        })
    }
}
