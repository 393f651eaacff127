//! vCPUs: from the configuration to file descriptors with CPUID and MSRs.

use arch::cpu_config::CpuConfig;
use arch::{cpuid, msr, regs};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::Error;
use crate::config::Config;
use crate::kvm;

/// Checks what the configuration of the CPU requires of KVM.
pub(super) fn check_capabilities(kvm: &Kvm, cpu_config: &CpuConfig) -> Result<(), Error> {
    cpu_config.check_capabilities(|number| kvm.check_extension_raw(number.into()) > 0)?;
    Ok(())
}

/// Creates the vCPUs. They have what all of them have in common; the boot vCPU's registers come later.
pub(super) fn create(
    config: &Config,
    vm: &VmFd,
    mut supported: CpuId,
) -> Result<Vec<VcpuFd>, Error> {
    config.cpu_config().change_cpuid(&mut supported)?;
    let mut vcpus = Vec::with_capacity(config.cpus() as usize);
    let mut template = None;
    for index in 0..config.cpus() {
        let vcpu = vm
            .create_vcpu(index.into())
            .map_err(kvm::refused("KVM_CREATE_VCPU"))?;
        let template = match &mut template {
            Some(template) => template,
            empty => empty.insert(cpuid::Template::new(
                &supported,
                &cpuid::Settings {
                    cpus: config.cpus(),
                    smt: config.smt(),
                    tsc_khz: vcpu.get_tsc_khz().ok(),
                },
            )),
        };
        vcpu.set_cpuid2(&template.for_vcpu(index)?)
            .map_err(kvm::refused("KVM_SET_CPUID2"))?;
        msr::set_up(&vcpu).map_err(kvm::refused("KVM_SET_MSRS"))?;
        config.cpu_config().change_msrs(&vcpu)?;
        regs::set_up_lapic(&vcpu)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
