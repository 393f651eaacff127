//! Whether the host is itself emulated.

use vmm::host::hypervisor;

/// What shows that the host's CPU is emulated, so that times on it are not those of hardware; None if nothing does.
pub(crate) fn emulated() -> Option<&'static str> {
    hypervisor()?.emulator?;
    Some("its CPU says that it is QEMU's TCG")
}
