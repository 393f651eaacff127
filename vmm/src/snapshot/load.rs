//! From files to a machine: what the builder takes instead of a kernel.

use std::fs::File;
use std::path::{Path, PathBuf};

use arch::boot::ram_ranges;
use arch::vcpu_state::{self, XsaveSize};
use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use super::format::{self, StateFile};
use super::images::{self, ImageState};
use super::memory;
use super::state::{VirtioState, VmState};
use crate::hardware::{self, Hardware};
use crate::kvm;

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
    /// A device.
    #[error(transparent)]
    Hardware(#[from] hardware::Error),
}

/// A snapshot whose files have been opened, and whose state has been decoded.
pub struct Saved {
    state: VmState,
    memory: File,
    /// What describes the machine, in JSON.
    pub config: String,
}

impl Saved {
    /// Opens a snapshot. `advance`: the guest's clock goes on as if it had run since; else it stood still.
    pub fn open(state_path: &Path, memory_path: &Path, advance: bool) -> Result<Self, Error> {
        let open = |path: &Path| {
            File::open(path).map_err(|error| Error::Open {
                path: path.to_owned(),
                error,
            })
        };
        let mut file = open(state_path)?;
        let file = StateFile::read(&mut file)?;
        let mut state: VmState = file.state()?;
        let memory = open(memory_path)?;
        if advance {
            let since = super::nanoseconds_since_1970().saturating_sub(state.taken);
            state.clock.clock = state.clock.clock.saturating_add(since);
        }
        Ok(Self {
            state,
            memory,
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

    /// Checks what the configuration of the machine has to agree with.
    pub(crate) fn check(&self, cpus: u32, ram: u64) -> Result<(), Error> {
        let (saved, configured) = (self.state.vcpus.len(), cpus as usize);
        if saved != configured {
            return Err(Error::Vcpus { saved, configured });
        }
        if self.state.memory_base.is_some() {
            return Err(memory::Error::Differential.into());
        }
        memory::check(
            &self.state.memory,
            ram_ranges(ram),
            &self.state.memory_id,
            &self.memory,
        )?;
        let mut images = self.state.images.iter();
        images.try_for_each(ImageState::check)?;
        Ok(())
    }

    /// Maps the memory file over guest memory, private: nothing is read that the guest does not touch, and the
    /// file never changes. Returns what that file is known by.
    pub(crate) fn map_memory(
        &self,
        memory: &GuestMemoryMmap,
    ) -> Result<memory::Id, crate::memory::Error> {
        for region in &self.state.memory {
            crate::memory::map_file(
                memory,
                region.gpa,
                region.bytes,
                &self.memory,
                region.offset,
            )?;
        }
        Ok(self.state.memory_id)
    }

    /// Gives their states to the vCPUs of a new VM, then to its devices, which interrupt them.
    pub(crate) fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        hardware: &Hardware,
    ) -> Result<(), Error> {
        let state = &self.state;
        let xsave = XsaveSize::of(vm);
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(kvm::refused("KVM_SET_CLOCK"))?;
        for (index, (vcpu, saved)) in vcpus.iter().zip(&state.vcpus).enumerate() {
            saved.restore(vcpu, index, xsave)?;
        }
        hardware.restore(&state.ioapic, &state.legacy, &state.virtio)?;
        Ok(())
    }
}
