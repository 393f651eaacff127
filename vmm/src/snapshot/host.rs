//! The host that a snapshot was taken on, and whether a guest from there can go on here.
//!
//! To ask KVM what it can show a guest of the CPU is the dearest call of a restore. It would say the same as it did
//! where the snapshot was taken if the host is the same: the same boot of the same kernel, with the same KVM modules
//! loaded, on a CPU that says the same of itself. A host that is itself a virtual machine, and has been moved to another
//! one, differs in the last.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use arch::cpu_features;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kvm;

/// What the kernel calls this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const KERNEL: &str = "/proc/sys/kernel/osrelease";
/// Modules that KVM consists of, one kind of host or another. A module that is loaded again has another inode here.
const MODULES: [&str; 4] = [
    "/sys/module/kvm",
    "/sys/module/kvm_amd",
    "/sys/module/kvm_intel",
    "/sys/module/kvm_pvm",
];

/// The last leaf of the CPU's name.
const LEAF_NAME_END: u32 = 0x8000_0004;
/// In leaf 1: the number of the CPU that this thread runs on.
const EBX1_APIC_ID: u32 = 0xff << 24;

/// Why a guest cannot go on here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM does not say.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The guest knows of features that are not there.
    #[error(
        "The guest was told of features of its CPU, {saved}, that this host, {found}, does not have: {}",
        features.join(", ")
    )]
    Features {
        /// The CPU that it was on.
        saved: String,
        /// The CPU here.
        found: String,
        /// The features.
        features: Vec<String>,
    },
    /// It would see that it is on another CPU.
    #[error(
        "The guest was on another CPU, {saved}, than this host's, {found}: what it does because of that can be wrong \
         here, if this is forced"
    )]
    OtherCpu {
        /// The CPU that it was on.
        saved: String,
        /// The CPU here.
        found: String,
    },
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The release of its kernel.
    pub kernel: String,
    /// Its CPU.
    pub cpu: CpuName,
    /// What makes sure that it is this one.
    identity: Identity,
}

/// What a CPU is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuName {
    /// As it calls itself.
    name: String,
    vendor: [u8; 12],
    /// Family, model and stepping, as leaf 1 has them in EAX.
    signature: u32,
}

/// What a host differs by from any other, and from itself after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    boot: String,
    modules: [u64; MODULES.len()],
    leaves: Vec<[u32; 4]>,
}

impl Identity {
    /// Of this host; a few system calls, and as many leaves as there have to be: in a virtual machine, each is an exit.
    fn here() -> Self {
        let inode = |path| fs::metadata(path).map_or(0, |metadata| metadata.ino());
        let mut features = __cpuid(1);
        features.ebx &= !EBX1_APIC_ID;
        let registers = |CpuidResult { eax, ebx, ecx, edx }| [eax, ebx, ecx, edx];
        Self {
            boot: line(BOOT_ID),
            modules: MODULES.map(inode),
            leaves: vec![
                registers(__cpuid(0)),
                registers(features),
                registers(__cpuid_count(7, 0)),
                registers(__cpuid_count(0xd, 1)),
                registers(__cpuid(0x8000_0001)),
            ],
        }
    }
}

/// The first line of a small file of the kernel's; empty if there is none.
fn line(path: &str) -> String {
    let mut buffer = [0; 128];
    let read = File::open(path).and_then(|mut file| file.read(&mut buffer));
    let text = String::from_utf8_lossy(&buffer[..read.unwrap_or(0)]);
    text.lines().next().unwrap_or_default().to_owned()
}

impl CpuName {
    fn here() -> Self {
        let first = __cpuid(0);
        let mut vendor = [0; 12];
        for (to, from) in vendor.chunks_mut(4).zip([first.ebx, first.edx, first.ecx]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let has_name = __cpuid(0x8000_0000).eax >= LEAF_NAME_END;
        let name: Vec<u8> = (LEAF_NAME_END - 2..=LEAF_NAME_END)
            .filter(|_| has_name)
            .map(__cpuid)
            .flat_map(|CpuidResult { eax, ebx, ecx, edx }| [eax, ebx, ecx, edx])
            .flat_map(u32::to_le_bytes)
            .take_while(|byte| *byte != 0)
            .collect();
        Self {
            name: String::from_utf8_lossy(&name).trim().to_owned(),
            vendor,
            signature: __cpuid(1).eax,
        }
    }

    fn family(&self) -> u32 {
        let (base, extended) = (self.signature >> 8 & 0xf, self.signature >> 20 & 0xff);
        if base == 0xf { base + extended } else { base }
    }

    fn model(&self) -> u32 {
        let (base, extended) = (self.signature >> 4 & 0xf, self.signature >> 16 & 0xf);
        if matches!(self.family(), 6 | 0xf..) {
            extended << 4 | base
        } else {
            base
        }
    }

    /// Whether software takes them for the same: steppings differ in errata only.
    fn is_alike(&self, other: &Self) -> bool {
        let kind = |cpu: &Self| (cpu.vendor, cpu.family(), cpu.model());
        kind(self) == kind(other)
    }
}

impl fmt::Display for CpuName {
    /// A state file may have anything in its place: nothing that a terminal would take for a command is put out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vendor = String::from_utf8_lossy(&self.vendor);
        let (family, model, stepping) = (self.family(), self.model(), self.signature & 0xf);
        write!(
            f,
            "{} ({} family {family}, model {model}, stepping {stepping})",
            self.name.escape_debug(),
            vendor.escape_debug()
        )
    }
}

impl HostState {
    /// This one.
    pub fn here() -> Self {
        Self {
            kernel: line(KERNEL),
            cpu: CpuName::here(),
            identity: Identity::here(),
        }
    }

    /// Whether that is certain to be this one, and its KVM the same.
    pub fn is_here(&self) -> bool {
        self.identity == Identity::here()
    }

    /// Whether a guest from there, which was told `guest` of its CPU, can go on here. `is_custom`: what it was told
    /// was asked for, whatever KVM supports. What may go wrong is not let pass unless it is `force`d; what is sure
    /// to never is.
    pub(crate) fn check(
        &self,
        guest: &[kvm_cpuid_entry2],
        kvm: &Kvm,
        is_custom: bool,
        force: bool,
    ) -> Result<(), Error> {
        if self.is_here() {
            return Ok(());
        }
        let here = CpuName::here();
        let supported = kvm::supported_cpuid(kvm)?;
        let features = cpu_features::missing(guest, supported.as_slice());
        if !(features.is_empty() || is_custom && force) {
            return Err(Error::Features {
                saved: self.cpu.to_string(),
                found: here.to_string(),
                features,
            });
        }
        if !self.cpu.is_alike(&here) && !force {
            return Err(Error::OtherCpu {
                saved: self.cpu.to_string(),
                found: here.to_string(),
            });
        }
        Ok(())
    }

    /// The same, of the KVM at this path.
    pub(crate) fn check_with(
        &self,
        guest: &[kvm_cpuid_entry2],
        kvm_device: &Path,
        is_custom: bool,
        force: bool,
    ) -> Result<(), Error> {
        if self.is_here() {
            return Ok(());
        }
        self.check(guest, &kvm::open(kvm_device)?, is_custom, force)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amd() -> CpuName {
        CpuName {
            name: "AMD EPYC".into(),
            vendor: *b"AuthenticAMD",
            signature: 0x00a0_0f11,
        }
    }

    #[test]
    fn this_host_is_this_one() {
        let here = HostState::here();
        assert!(here.is_here());
        assert!(!here.kernel.is_empty() && here.identity.boot.len() == 36);
        let mut other = here.clone();
        other.identity.boot.replace_range(..1, "x");
        assert!(!other.is_here(), "another boot");
        let mut other = here.clone();
        other.identity.modules[0] ^= 1;
        assert!(!other.is_here(), "another load of the module");
        let mut other = here;
        other.identity.leaves[2][1] ^= 1;
        assert!(!other.is_here(), "another CPU");
    }

    #[test]
    fn it_is_the_same_wherever_the_thread_runs() {
        let first = Identity::here();
        for _ in 0..100 {
            std::thread::yield_now();
            assert_eq!(Identity::here(), first);
        }
    }

    #[test]
    fn a_cpu_says_what_it_is() {
        let cpu = amd();
        assert_eq!(
            cpu.to_string(),
            "AMD EPYC (AuthenticAMD family 25, model 1, stepping 1)"
        );
        let mut other = amd();
        other.signature += 1;
        assert!(cpu.is_alike(&other), "a stepping");
        other.signature += 0x10;
        assert!(!cpu.is_alike(&other), "a model");
        other = amd();
        other.name = "\x1b]0;x".into();
        other.vendor = *b"\x1bAAAAAAAAAAA";
        assert!(!other.to_string().contains('\x1b'), "{other}");
        assert!(CpuName::here().is_alike(&CpuName::here()));
    }

    #[test]
    fn what_is_risky_can_be_forced_and_what_is_missing_cannot() {
        let Ok(kvm) = kvm::open(Path::new(crate::DEFAULT_DEVICE)) else {
            return;
        };
        let supported = kvm::supported_cpuid(&kvm).unwrap();
        let mut host = HostState::here();
        host.identity.boot.clear();
        let check = |host: &HostState, guest: &[_], force| host.check(guest, &kvm, false, force);
        check(&host, supported.as_slice(), false).unwrap();
        host.cpu.signature ^= 0x20;
        let refused = check(&host, supported.as_slice(), false).unwrap_err();
        assert!(matches!(refused, Error::OtherCpu { .. }), "{refused}");
        check(&host, supported.as_slice(), true).unwrap();
        let more = [kvm_cpuid_entry2 {
            function: 7,
            ebx: u32::MAX,
            ..Default::default()
        }];
        for force in [false, true] {
            let refused = check(&host, &more, force).unwrap_err();
            assert!(matches!(refused, Error::Features { .. }), "{refused}");
            assert!(refused.to_string().contains("avx512pf"), "{refused}");
        }
        host.check(&more, &kvm, true, true).unwrap();
        // Where all is as it was, nobody is asked.
        HostState::here().check(&more, &kvm, false, false).unwrap();
    }
}
