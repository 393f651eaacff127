//! What CPUID tells a guest: what KVM can show of the host, without what mote cannot give, completed
//! by the guest's own topology and clock frequencies.
//!
//! Topology: one package of cores with one thread each, or with two; APIC ids are 0, 1, …, and the two
//! threads of a core have an even one and the next.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use thiserror::Error;

/// Leaf 1 ECX.
const ECX1_MONITOR: u32 = 1 << 3;
const ECX1_VMX: u32 = 1 << 5;
const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const EDX1_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX.
const EXT_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT_ECX_SVM: u32 = 1 << 2;
const EXT_ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

const LEAF_MONITOR: u32 = 5;
const LEAF_CACHES: u32 = 4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
const LEAF_EXT_FEATURES: u32 = 0x8000_0001;
const LEAF_EXT_SIZES: u32 = 0x8000_0008;
const LEAF_SVM: u32 = 0x8000_000a;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

/// Level types of the topology leaves.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// KVM's APIC timer counts nanoseconds: 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Why the guest's CPUID could not be made up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// More entries than KVM takes.
    #[error("The guest's CPUID has {entries} entries, more than KVM takes")]
    TooManyEntries {
        /// How many.
        entries: usize,
    },
}

/// What the guest's CPUs have in common.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Each core has two of them, if there are two. Their number is 1 or even then.
    pub smt: bool,
    /// Frequency of the guest's TSC in kHz, where KVM tells it.
    pub tsc_khz: Option<u32>,
}

/// One package of cores.
#[derive(Clone, Copy, Debug)]
struct Topology {
    /// Logical CPUs.
    cpus: u32,
    /// Bits of an APIC id that say which thread of a core it is.
    thread_bits: u32,
}

impl Topology {
    fn new(settings: &Settings) -> Self {
        Self {
            cpus: settings.cpus,
            thread_bits: u32::from(settings.smt && settings.cpus > 1),
        }
    }

    fn threads(self) -> u32 {
        1 << self.thread_bits
    }

    /// Bits that an APIC id needs.
    fn apic_id_bits(self) -> u32 {
        u32::BITS - self.cpus.saturating_sub(1).leading_zeros()
    }

    /// How far the APIC ids of the package reach, minus 1.
    fn id_span(self) -> u32 {
        (1 << self.apic_id_bits()) - 1
    }

    /// How far the core ids of the package reach, minus 1.
    fn core_span(self) -> u32 {
        (1 << (self.apic_id_bits() - self.thread_bits)) - 1
    }

    /// Logical CPUs that share the cache that EAX describes, minus 1: the last level is shared by all,
    /// the others belong to a core.
    fn cache_sharing(self, eax: u32) -> u32 {
        let level = (eax >> 5) & 0x7;
        if level >= 3 {
            self.id_span()
        } else {
            self.threads() - 1
        }
    }
}

/// The CPUID of all vCPUs of a guest, but for what differs between them.
#[derive(Clone, Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
}

impl Template {
    /// Made from what KVM supports (KVM_GET_SUPPORTED_CPUID).
    pub fn new(supported: &CpuId, settings: &Settings) -> Self {
        let amd = is_amd(supported.as_slice());
        let topology = Topology::new(settings);
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .filter(|entry| !is_replaced(entry.function, amd))
            .copied()
            .collect();
        for entry in &mut entries {
            adapt(entry, topology, amd);
        }
        entries.extend(levels(LEAF_TOPOLOGY, topology));
        if amd {
            entries.extend(amd_topology());
        } else {
            entries.extend(levels(LEAF_TOPOLOGY_V2, topology));
        }
        if let Some(tsc_khz) = settings.tsc_khz {
            entries.push(kvm_cpuid_entry2 {
                function: LEAF_HYPERVISOR_FREQUENCIES,
                eax: tsc_khz,
                ebx: APIC_BUS_KHZ,
                ..Default::default()
            });
        }
        Self { entries, topology }
    }

    /// The CPUID of vCPU `index`.
    pub fn for_vcpu(&self, index: u32) -> Result<CpuId, Error> {
        let too_many = |_| Error::TooManyEntries {
            entries: self.entries.len(),
        };
        let mut cpuid = CpuId::from_entries(&self.entries).map_err(too_many)?;
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                1 => {
                    entry.ebx &= 0x0000_ffff;
                    entry.ebx |= index << 24 | self.topology.cpus.min(255) << 16;
                }
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => entry.edx = index,
                LEAF_AMD_TOPOLOGY => {
                    entry.eax = index;
                    // Core id in EBX bits 7:0, threads a core minus 1 above.
                    let threads = self.topology.threads();
                    entry.ebx = (index >> self.topology.thread_bits) & 0xff | (threads - 1) << 8;
                    // Node 0 of 1.
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        Ok(cpuid)
    }
}

/// Bits of a physical address, as a guest with this CPUID sees them.
pub fn physical_address_bits(cpuid: &[kvm_cpuid_entry2]) -> u32 {
    /// What a CPU has that does not say.
    const DEFAULT: u32 = 36;
    let mut entries = cpuid.iter();
    let sizes = entries.find(|entry| entry.function == LEAF_EXT_SIZES);
    sizes
        .map(|entry| entry.eax & 0xff)
        .filter(|bits| *bits > 0)
        .unwrap_or(DEFAULT)
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
    entries
        .iter()
        .any(|entry| entry.function == 0 && matches!(entry.ebx, 0x6874_7541 | 0x6f67_7948))
}

/// Leaves that are made anew, or that stay out.
fn is_replaced(function: u32, amd: bool) -> bool {
    match function {
        LEAF_TOPOLOGY
        | LEAF_TOPOLOGY_V2
        | LEAF_HYPERVISOR_FREQUENCIES
        // Multi-die processors; the guest's is not one, and leaf 0xb says all.
        | LEAF_AMD_TOPOLOGY_V2
        | LEAF_MONITOR
        | LEAF_SVM => true,
        LEAF_AMD_TOPOLOGY => amd,
        _ => false,
    }
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, amd: bool) {
    let cpus = topology.cpus;
    match entry.function {
        1 => {
            entry.ecx &= !(ECX1_MONITOR | ECX1_VMX);
            entry.ecx |= ECX1_X2APIC | ECX1_TSC_DEADLINE | ECX1_HYPERVISOR;
            entry.edx &= !EDX1_HTT;
            if cpus > 1 {
                entry.edx |= EDX1_HTT;
            }
        }
        LEAF_CACHES
            // No more caches after the one of type 0.
            if entry.eax & 0x1f != 0 => {
                entry.eax &= 0x0000_3fff;
                let sharing = topology.cache_sharing(entry.eax);
                entry.eax |= sharing << 14 | (topology.core_span() & 0x3f) << 26;
            }
        LEAF_AMD_CACHES
            if entry.eax & 0x1f != 0 => {
                entry.eax &= 0x0000_3fff;
                entry.eax |= topology.cache_sharing(entry.eax) << 14;
            }
        // No virtual PMU.
        LEAF_PERFORMANCE => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        LEAF_HYPERVISOR => entry.eax = LEAF_HYPERVISOR_FREQUENCIES,
        LEAF_EXT_FEATURES => {
            entry.ecx &= !(EXT_ECX_SVM | EXT_ECX_CMP_LEGACY);
            if amd {
                entry.ecx |= EXT_ECX_TOPOLOGY_EXTENSIONS;
                if cpus > 1 {
                    entry.ecx |= EXT_ECX_CMP_LEGACY;
                }
            }
        }
        LEAF_EXT_SIZES => {
            // Bits 15:12: width of the APIC id; bits 7:0: threads minus 1. Intel has them reserved.
            entry.ecx &= !0xf0ff;
            if amd {
                entry.ecx |= topology.apic_id_bits() << 12 | (cpus - 1) & 0xff;
            }
        }
        _ => {}
    }
}

/// Leaves 0xb and 0x1f: a level of threads, a level of cores, and the end.
fn levels(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let cpus = topology.cpus;
    let level = |index: u32, shift: u32, logical: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, topology.thread_bits, topology.threads(), LEVEL_SMT),
        level(1, topology.apic_id_bits(), cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

fn amd_topology() -> [kvm_cpuid_entry2; 1] {
    [kvm_cpuid_entry2 {
        function: LEAF_AMD_TOPOLOGY,
        ..Default::default()
    }]
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
