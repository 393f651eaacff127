//! Whether the host is itself emulated.

use core::arch::x86_64::__cpuid;

/// The leaf with which a hypervisor says who it is.
const HYPERVISOR: u32 = 0x4000_0000;
/// QEMU's own CPU emulator.
const TCG: [&[u8; 4]; 3] = [b"TCGT", b"CGTC", b"GTCG"];

/// What shows that the host's CPU is emulated, so that times on it are not those of hardware; None if nothing does.
pub(crate) fn emulated() -> Option<&'static str> {
    let has_hypervisor = __cpuid(1).ecx & 1 << 31 != 0;
    let leaf = __cpuid(HYPERVISOR);
    let name = [leaf.ebx, leaf.ecx, leaf.edx];
    let is_tcg = name == TCG.map(|word| u32::from_le_bytes(*word));
    (has_hypervisor && is_tcg).then_some("its CPU says that it is QEMU's TCG")
}
