//! Changes to what a guest is shown of the host's CPU: bits of CPUID and of model-specific registers, and
//! the capabilities of KVM that this needs. All vCPUs get the same.
//!
//! CPUID is changed as KVM supports it, before mote makes the guest's topology and the like of it; an
//! MSR as a vCPU has it before its first instruction.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

/// All changes, in the order in which they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// Capabilities of KVM.
    pub capabilities: Vec<CapabilityModifier>,
    /// Bits of CPUID.
    pub cpuid: Vec<CpuidModifier>,
    /// Bits of MSRs.
    pub msrs: Vec<MsrModifier>,
}

/// A change to the list of capabilities that a host's KVM has to have, by their numbers (`KVM_CAP_…` in
/// Linux's `include/uapi/linux/kvm.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityModifier {
    /// It has to be there.
    Require(u32),
    /// It need not be there, though mote asks for it.
    Drop(u32),
}

/// A register that CPUID gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuidRegister {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

impl CpuidRegister {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// Changes bits of one register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidModifier {
    /// EAX that CPUID is called with.
    pub leaf: u32,
    /// ECX that it is called with.
    pub subleaf: u32,
    /// Flags of KVM's entry (`KVM_CPUID_FLAG_…`), in the place of those it has: 1 says that the subleaf
    /// matters.
    pub flags: u32,
    /// Where the bits are.
    pub register: CpuidRegister,
    /// The bits that are changed.
    pub mask: u32,
    /// What they become. Bits that `mask` has not are ignored.
    pub value: u32,
}

/// Changes bits of a model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrModifier {
    /// Its number.
    pub index: u32,
    /// The bits that are changed.
    pub mask: u64,
    /// What they become. Bits that `mask` has not are ignored.
    pub value: u64,
}

/// Why a host's CPU cannot be changed so.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM does not support it.
    #[error("This host's KVM has no CPUID leaf {leaf:#x}, subleaf {subleaf:#x} for guests")]
    NoLeaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// KVM does not know it, or not in a vCPU.
    #[error("This host's KVM cannot read MSR {index:#x} of a guest")]
    UnreadableMsr {
        /// Its number.
        index: u32,
    },
    /// KVM does not take that value.
    #[error("This host's KVM does not take the value {value:#x} for MSR {index:#x} of a guest")]
    RefusedMsr {
        /// Its number.
        index: u32,
        /// The value.
        value: u64,
    },
    /// KVM lacks it.
    #[error(
        "This host's KVM lacks the capability {number:#x} ({number}) that the CPU configuration requires"
    )]
    NoCapability {
        /// Its number.
        number: u32,
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

impl CpuConfig {
    /// Changes what KVM supports.
    pub fn change_cpuid(&self, supported: &mut CpuId) -> Result<(), Error> {
        for modifier in &self.cpuid {
            let CpuidModifier {
                leaf,
                subleaf,
                flags,
                register,
                mask,
                value,
            } = *modifier;
            let entry = supported
                .as_mut_slice()
                .iter_mut()
                .find(|entry| entry.function == leaf && entry.index == subleaf)
                .ok_or(Error::NoLeaf { leaf, subleaf })?;
            entry.flags = flags;
            let register = register.of(entry);
            *register = *register & !mask | value & mask;
        }
        Ok(())
    }

    /// Changes the MSRs of a vCPU that has not run.
    pub fn change_msrs(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        for modifier in &self.msrs {
            let index = modifier.index;
            let now = read_msr(vcpu, index)?;
            let value = now & !modifier.mask | modifier.value & modifier.mask;
            write_msr(vcpu, index, value)?;
        }
        Ok(())
    }

    /// Whether KVM need not have a capability, though mote asks for it.
    pub fn drops(&self, number: u32) -> bool {
        self.capabilities
            .iter()
            .rev()
            .find_map(|modifier| match *modifier {
                CapabilityModifier::Require(other) if other == number => Some(false),
                CapabilityModifier::Drop(other) if other == number => Some(true),
                _ => None,
            })
            .unwrap_or(false)
    }

    /// Checks that those capabilities are there that are required besides mote's own. `has` says whether
    /// KVM has one.
    pub fn check_capabilities(&self, has: impl Fn(u32) -> bool) -> Result<(), Error> {
        for modifier in &self.capabilities {
            if let CapabilityModifier::Require(number) = *modifier
                && !self.drops(number)
                && !has(number)
            {
                return Err(Error::NoCapability { number });
            }
        }
        Ok(())
    }
}

fn one_msr(index: u32, data: u64) -> Result<Msrs, Error> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    // One entry is below the limit of the structure.
    Msrs::from_entries(&[entry]).map_err(|_| Error::UnreadableMsr { index })
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, Error> {
    let mut msrs = one_msr(index, 0)?;
    let read = vcpu.get_msrs(&mut msrs).map_err(|source| Error::Call {
        call: "KVM_GET_MSRS",
        source,
    })?;
    match msrs.as_slice() {
        [entry] if read == 1 => Ok(entry.data),
        _ => Err(Error::UnreadableMsr { index }),
    }
}

fn write_msr(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), Error> {
    let written = vcpu
        .set_msrs(&one_msr(index, value)?)
        .map_err(|source| Error::Call {
            call: "KVM_SET_MSRS",
            source,
        })?;
    if written == 1 {
        Ok(())
    } else {
        Err(Error::RefusedMsr { index, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, index, value| kvm_cpuid_entry2 {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        };
        CpuId::from_entries(&[entry(1, 0, 0xff00), entry(7, 0, 0xff00), entry(7, 1, 0)]).unwrap()
    }

    fn modifier(leaf: u32, subleaf: u32, register: CpuidRegister) -> CpuidModifier {
        CpuidModifier {
            leaf,
            subleaf,
            flags: 1,
            register,
            mask: 0x0ff0,
            value: 0xf0f0,
        }
    }

    #[test]
    fn bits_of_the_mask_are_changed_and_no_others() {
        use CpuidRegister::{Eax, Ebx, Ecx, Edx};
        for register in [Eax, Ebx, Ecx, Edx] {
            let config = CpuConfig {
                cpuid: vec![modifier(7, 0, register)],
                ..CpuConfig::default()
            };
            let mut cpuid = supported();
            config.change_cpuid(&mut cpuid).unwrap();
            let before = supported();
            assert_eq!(cpuid.as_slice()[0], before.as_slice()[0]);
            assert_eq!(cpuid.as_slice()[2], before.as_slice()[2]);
            let mut changed = cpuid.as_slice()[1];
            assert_eq!(changed.flags, 1);
            assert_eq!(
                *register.of(&mut changed),
                0xf0f0 & 0x0ff0 | 0xff00 & 0xf00f
            );
            *register.of(&mut changed) = 0xff00;
            changed.flags = 0;
            assert_eq!(changed, before.as_slice()[1]);
        }
    }

    #[test]
    fn later_ones_change_what_earlier_ones_made() {
        let later = CpuidModifier {
            mask: 0xff,
            value: 0x0f,
            ..modifier(1, 0, CpuidRegister::Ecx)
        };
        let config = CpuConfig {
            cpuid: vec![modifier(1, 0, CpuidRegister::Ecx), later],
            ..CpuConfig::default()
        };
        let mut cpuid = supported();
        config.change_cpuid(&mut cpuid).unwrap();
        assert_eq!(cpuid.as_slice()[0].ecx, 0xf00f);
    }

    #[test]
    fn a_leaf_that_is_not_there_is_named_in_hex() {
        let config = CpuConfig {
            cpuid: vec![modifier(0x8000_0099, 0x1b, CpuidRegister::Eax)],
            ..CpuConfig::default()
        };
        let error = config.change_cpuid(&mut supported()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("0x80000099"), "{text}");
        assert!(text.contains("0x1b"), "{text}");
    }

    #[test]
    fn capabilities_are_required_or_not() {
        use CapabilityModifier::{Drop, Require};
        let of = |capabilities: &[CapabilityModifier]| CpuConfig {
            capabilities: capabilities.to_vec(),
            ..CpuConfig::default()
        };
        let has = |number| number < 100;
        of(&[Require(3), Require(99)])
            .check_capabilities(has)
            .unwrap();
        let error = of(&[Require(171)]).check_capabilities(has).unwrap_err();
        assert!(error.to_string().contains("0xab"), "{error}");
        of(&[Require(171), Drop(171)])
            .check_capabilities(has)
            .unwrap();
        assert!(of(&[Drop(5)]).drops(5));
        assert!(!of(&[Drop(5)]).drops(6));
        assert!(!of(&[Drop(5), Require(5)]).drops(5));
    }
}
