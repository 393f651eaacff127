//! Model-specific registers that a firmware would have set. All others keep what a CPU has after reset,
//! which KVM gives them; each one set here costs start-up time and says why it is worth it.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// Intel SDM volume 4, table 2-2.
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations: Linux picks its memory copies by it.
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// Memory type range registers: default type.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back by default. Disabled MTRRs mean uncached memory, to the guest's kernel and to KVM.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets them for one vCPU.
pub fn set_up(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    // Two entries are far below the limit of the structure.
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    match vcpu.set_msrs(&msrs)? {
        count if count == entries.len() => Ok(()),
        // KVM stops at the first one it refuses.
        _ => Err(kvm_ioctls::Error::new(libc::EINVAL)),
    }
}
