//! Everything the CPU architecture decides: where things lie in guest physical memory, how
//! a kernel is entered, what the firmware tables say, and what a vCPU looks like before its first
//! instruction.
//!
//! Knows KVM's structures, because they are the architecture's registers under other names, but
//! no devices, no threads, and no files other than kernel images.
//!
//! Reading order: `layout`, `kernel`, `boot`, `acpi`, `mptable`, `cpuid`, `cpu_config`, `cpu_features`, `msr`, `regs`,
//! `vcpu_state`.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
