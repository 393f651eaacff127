//! The devices of a PC that a microVM keeps, each as small as its guests allow.
//!
//! The byte-wide ones take an access of several bytes as one to each of the registers it covers, in
//! order, as a PC's 8-bit devices see it.

pub mod acpi_pm;
pub mod boot_timer;
pub mod ged;
pub mod i8042;
pub mod job_port;
pub mod keyboard;
pub mod pci_config;
pub mod pic;
pub mod pvpanic;
pub mod reset_line;
pub mod serial;
pub mod serial_worker;

#[cfg(test)]
pub(crate) mod test_support;
