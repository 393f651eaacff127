//! `/dev/kvm`: what it must be able to do, and the VM's file descriptor.
//!
//! The order of calls matters as much as the calls (docs/start-up.md): memory slots first, then the
//! split irqchip, then vCPUs; no PIT, no PIC, one GSI routing table.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use arch::cpu_config::CpuConfig;
use arch::layout;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Where KVM is on every Linux.
pub const DEFAULT_DEVICE: &str = "/dev/kvm";

/// The only API version there has been since 2007.
pub(crate) const API_VERSION: i32 = 12;

/// What mote cannot do without.
pub(crate) const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// Why KVM could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device.
    #[error(
        "{} does not exist: load the kvm-intel or kvm-amd module, or switch on virtualization in \
         the firmware or, in a VM, nested virtualization",
        path.display()
    )]
    Missing {
        /// The device.
        path: PathBuf,
    },
    /// The user may not open it.
    #[error(
        "No permission to use {}: add your user to the group that owns it (sudo usermod -aG kvm \
         $USER, then log in again)",
        path.display()
    )]
    Permission {
        /// The device.
        path: PathBuf,
    },
    /// Opening it failed otherwise.
    #[error("Cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is something else than KVM.
    #[error(
        "{} is not KVM's device but something else: remove it, and load the kvm-intel or kvm-amd \
         module, which makes it",
        path.display()
    )]
    NotKvm {
        /// The device.
        path: PathBuf,
    },
    /// A KVM from another age.
    #[error(
        "{} is not a KVM that mote knows: its API version is {version}, not {API_VERSION}; run \
         Linux 4.14 or later",
        path.display()
    )]
    Version {
        /// The device.
        path: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// A capability is missing.
    #[error(
        "This host's KVM lacks {name}, which mote needs: a newer kernel has it (4.14 or later)"
    )]
    Capability {
        /// Its name.
        name: &'static str,
    },
    /// More vCPUs than KVM makes.
    #[error("This host's KVM makes at most {max} vCPUs, {asked} were asked for")]
    TooManyCpus {
        /// What KVM allows.
        max: usize,
        /// What was asked for.
        asked: u32,
    },
    /// A call failed.
    #[error("KVM refused {call}")]
    Call {
        /// Which call.
        call: &'static str,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// `map_err` for a named call.
pub(crate) fn refused(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { call, source }
}

/// Opens the device and checks that it is a KVM.
pub(crate) fn open(path: &Path) -> Result<Kvm, Error> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { path: path.into() },
            io::ErrorKind::PermissionDenied => Error::Permission { path: path.into() },
            _ => Error::Open {
                path: path.into(),
                source,
            },
        })?;
    #[expect(
        unsafe_code,
        reason = "kvm-ioctls takes a raw descriptor when the path is not fixed"
    )]
    // SAFETY: the descriptor was just opened and nothing else owns it.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        // The call failed: nothing but KVM knows it.
        ..0 => Err(Error::NotKvm { path: path.into() }),
        version => Err(Error::Version {
            path: path.into(),
            version,
        }),
    }
}

/// Checks everything that [`REQUIRED`] lists, but for what `cpu_config` says is not needed, and the
/// number of vCPUs.
pub(crate) fn check_capabilities(
    kvm: &Kvm,
    cpus: u32,
    cpu_config: &CpuConfig,
) -> Result<(), Error> {
    for (cap, name) in REQUIRED {
        if !kvm.check_extension(cap) && !cpu_config.drops(cap as u32) {
            return Err(Error::Capability { name });
        }
    }
    let max = kvm.get_max_vcpus();
    if cpus as usize > max {
        return Err(Error::TooManyCpus { max, asked: cpus });
    }
    Ok(())
}

/// Creates the VM. A signal that arrives meanwhile makes KVM give up: then again.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(refused("KVM_CREATE_VM")),
        }
    }
}

/// Gives guest memory to the VM, one slot a region but for those that come later, and says how many. What
/// cannot be written to is read-only for the guest.
pub(crate) fn set_memory(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    is_later: impl Fn(u64) -> bool,
) -> Result<u32, Error> {
    let mut slot = 0;
    for region in memory.iter() {
        let start = region.start_addr().0;
        if is_later(start) {
            continue;
        }
        let flags = if region.prot() & libc::PROT_WRITE == 0 {
            KVM_MEM_READONLY
        } else {
            0
        };
        insert_slot(vm, memory, slot, start, region.len(), flags)
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        slot += 1;
    }
    Ok(slot)
}

/// Gives `len` bytes of guest memory at `start` to the VM, as slot `slot`.
pub(crate) fn insert_slot(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    slot: u32,
    start: u64,
    len: u64,
    flags: u32,
) -> Result<(), kvm_ioctls::Error> {
    let no_memory = |_| kvm_ioctls::Error::new(libc::EFAULT);
    let size = usize::try_from(len).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    let slice = memory
        .get_slice(GuestAddress(start), size)
        .map_err(no_memory)?;
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: start,
        memory_size: len,
        userspace_addr: slice.ptr_guard_mut().as_ptr() as u64,
        flags,
    };
    #[expect(unsafe_code, reason = "KVM is told of memory by its address")]
    // SAFETY: the range is in one mapping owned by `memory`, which the Vm keeps until after the VM's
    // descriptor is closed.
    unsafe {
        vm.set_user_memory_region(region)
    }
}

/// Takes a slot away from the VM: the guest finds nothing there any more.
pub(crate) fn remove_slot(vm: &VmFd, slot: u32) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        ..Default::default()
    };
    #[expect(unsafe_code, reason = "KVM is told of memory by its address")]
    // SAFETY: a slot of no memory.
    unsafe {
        vm.set_user_memory_region(region)
    }
}

/// Local APICs in KVM, the IOAPIC in mote, with a route reserved for each of its inputs.
pub(crate) fn split_irqchip(vm: &VmFd, pins: u32) -> Result<(), Error> {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [pins.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(refused("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))
}

/// What Intel hosts need before the first vCPU runs in real mode; a few bytes of the device hole.
pub(crate) fn set_intel_addresses(vm: &VmFd) -> Result<(), Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP_START)
        .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
    #[expect(clippy::cast_possible_truncation, reason = "64-bit only")]
    vm.set_tss_address(layout::KVM_TSS_START as usize)
        .map_err(refused("KVM_SET_TSS_ADDR"))
}

/// What KVM can show a guest of the host's CPU.
pub(crate) fn supported_cpuid(kvm: &Kvm) -> Result<kvm_bindings::CpuId, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
}
