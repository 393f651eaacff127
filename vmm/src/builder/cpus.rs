//! vCPUs: from the configuration to file descriptors with CPUID and MSRs.

use arch::cpu_config::CpuConfig;
use arch::{cpuid, msr, regs};
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::Error;
use super::checked::Checked;
use crate::config::Config;
use crate::kvm;

/// Checks what the configuration of the CPU requires of KVM.
pub(super) fn check_capabilities(kvm: &Kvm, cpu_config: &CpuConfig) -> Result<(), Error> {
    cpu_config.check_capabilities(|number| kvm.check_extension_raw(number.into()) > 0)?;
    Ok(())
}

/// What KVM supports, for a guest that boots, and how many bits its physical addresses have. What one that was there
/// before has been told of its CPU it cannot be told again, so it has to be true here.
pub(super) fn known(
    config: &Config,
    kvm: &Kvm,
    origin: &Checked,
) -> Result<(Option<CpuId>, u32), Error> {
    match origin {
        Checked::Boot { .. } => {
            let supported = kvm::supported_cpuid(kvm)?;
            let bits = cpuid::physical_address_bits(supported.as_slice());
            Ok((Some(supported), bits))
        }
        Checked::Saved(saved) => {
            saved.check_host(kvm, config.cpu_config())?;
            Ok((None, cpuid::physical_address_bits(saved.cpuid())))
        }
    }
}

/// Creates the vCPUs, as they are after reset.
pub(super) fn create(config: &Config, vm: &VmFd) -> Result<Vec<VcpuFd>, Error> {
    let can_scale_tsc = vm.check_extension(Cap::TscControl);
    (0..config.cpus())
        .map(|index| {
            let vcpu = vm.create_vcpu(index.into());
            let vcpu = vcpu.map_err(kvm::refused("KVM_CREATE_VCPU"))?;
            if !can_scale_tsc {
                use_frequency_of_host(&vcpu);
            }
            Ok(vcpu)
        })
        .collect()
}

/// Gives a vCPU the frequency of the host's TSC as it is known now.
///
/// A new one has that which was known when KVM was loaded. Linux may have measured again since, and where
/// CPUs cannot scale TSCs, KVM (seen with Linux 6.12) then takes the guest's TSC for one that stands still: each of its
/// timers comes due after as long as the guest has run already.
fn use_frequency_of_host(vcpu: &VcpuFd) {
    const OF_HOST: u32 = 0;
    // What has no such call has no such error.
    let _ = vcpu.set_tsc_khz(OF_HOST);
}

/// Gives new vCPUs what all of them have in common at a boot; the boot vCPU's registers come later.
pub(super) fn set_up(config: &Config, vcpus: &[VcpuFd], mut supported: CpuId) -> Result<(), Error> {
    config.cpu_config().change_cpuid(&mut supported)?;
    let template = cpuid::Template::new(
        &supported,
        &cpuid::Settings {
            cpus: config.cpus(),
            smt: config.smt(),
            tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()),
        },
    );
    for (index, vcpu) in (0..).zip(vcpus) {
        vcpu.set_cpuid2(&template.for_vcpu(index)?)
            .map_err(kvm::refused("KVM_SET_CPUID2"))?;
        msr::set_up(vcpu).map_err(kvm::refused("KVM_SET_MSRS"))?;
        config.cpu_config().change_msrs(vcpu)?;
        regs::set_up_lapic(vcpu)?;
    }
    Ok(())
}
