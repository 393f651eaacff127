//! x86-64.

pub mod layout;
pub mod boot;
pub mod kernel;
pub mod regs;
pub mod symbols;
pub mod acpi;
pub mod mptable;
pub mod msr;
pub mod cpuid;
