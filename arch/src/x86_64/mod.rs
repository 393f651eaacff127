//! x86-64.

pub mod acpi;
pub mod boot;
pub mod cpu_config;
pub mod cpu_features;
pub mod cpuid;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod regs;
pub mod symbols;
pub mod vcpu_state;
