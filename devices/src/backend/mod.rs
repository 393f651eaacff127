//! Where devices keep or send what the guest gives them, on the host.

pub mod disk;
