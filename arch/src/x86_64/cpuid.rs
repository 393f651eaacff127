//! What CPUID tells a guest: what KVM can show of the host, without what mote cannot give, completed
//! by the guest's own topology and clock frequencies.
//!
//! Topology: one package of `cpus` cores with one thread each; APIC ids are 0, 1, ….

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
    /// Frequency of the guest's TSC in kHz, where KVM tells it.
    pub tsc_khz: Option<u32>,
}

/// The CPUID of all vCPUs of a guest, but for what differs between them.
#[derive(Clone, Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl Template {
    /// Made from what KVM supports (KVM_GET_SUPPORTED_CPUID).
    pub fn new(supported: &CpuId, settings: &Settings) -> Self {
        let amd = is_amd(supported.as_slice());
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .filter(|entry| !is_replaced(entry.function, amd))
            .copied()
            .collect();
        for entry in &mut entries {
            adapt(entry, settings.cpus, amd);
        }
        entries.extend(topology(LEAF_TOPOLOGY, settings.cpus));
        if amd {
            entries.extend(amd_topology());
        } else {
            entries.extend(topology(LEAF_TOPOLOGY_V2, settings.cpus));
        }
        if let Some(tsc_khz) = settings.tsc_khz {
            entries.push(kvm_cpuid_entry2 {
                function: LEAF_HYPERVISOR_FREQUENCIES,
                eax: tsc_khz,
                ebx: APIC_BUS_KHZ,
                ..Default::default()
            });
        }
        Self {
            entries,
            cpus: settings.cpus,
        }
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
                    entry.ebx |= index << 24 | self.cpus.min(255) << 16;
                }
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => entry.edx = index,
                LEAF_AMD_TOPOLOGY => {
                    entry.eax = index;
                    // One thread a core: core id in EBX bits 7:0, threads a core minus 1 above.
                    entry.ebx = index & 0xff;
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
pub fn physical_address_bits(cpuid: &CpuId) -> u32 {
    /// What a CPU has that does not say.
    const DEFAULT: u32 = 36;
    let mut entries = cpuid.as_slice().iter();
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

/// Bits that an APIC id needs for `cpus` CPUs.
fn apic_id_bits(cpus: u32) -> u32 {
    u32::BITS - cpus.saturating_sub(1).leading_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, cpus: u32, amd: bool) {
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
                let sharing = cache_sharing(entry.eax, cpus);
                entry.eax |= sharing << 14 | (id_span(cpus) & 0x3f) << 26;
            }
        LEAF_AMD_CACHES
            if entry.eax & 0x1f != 0 => {
                entry.eax &= 0x0000_3fff;
                entry.eax |= cache_sharing(entry.eax, cpus) << 14;
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
            // Bits 15:12: width of the APIC id; bits 7:0: cores minus 1. Intel has them reserved.
            entry.ecx &= !0xf0ff;
            if amd {
                entry.ecx |= apic_id_bits(cpus) << 12 | (cpus - 1) & 0xff;
            }
        }
        _ => {}
    }
}

/// How far the APIC ids of a package reach, minus 1.
fn id_span(cpus: u32) -> u32 {
    (1 << apic_id_bits(cpus)) - 1
}

/// Logical CPUs that share the cache that EAX describes, minus 1: the last level is shared by all,
/// the others belong to a core.
fn cache_sharing(eax: u32, cpus: u32) -> u32 {
    let level = (eax >> 5) & 0x7;
    if level >= 3 { id_span(cpus) } else { 0 }
}

/// Leaves 0xb and 0x1f: a level of threads, a level of cores, and the end.
fn topology(function: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
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
        level(0, 0, 1, LEVEL_SMT),
        level(1, apic_id_bits(cpus), cpus, LEVEL_CORE),
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
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    /// A supported CPUID with everything in it that mote changes.
    fn supported(vendor: &[u8; 12]) -> CpuId {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let plain = |function| kvm_cpuid_entry2 {
            function,
            ..Default::default()
        };
        let entries = [
            kvm_cpuid_entry2 {
                eax: 0x1f,
                ebx: word(0),
                edx: word(4),
                ecx: word(8),
                ..plain(0)
            },
            kvm_cpuid_entry2 {
                ebx: 0x0708_0900,
                ecx: !ECX1_HYPERVISOR,
                edx: !0,
                ..plain(1)
            },
            kvm_cpuid_entry2 {
                eax: 0xfc00_0163,
                flags: 1,
                index: 3,
                ..plain(LEAF_CACHES)
            },
            kvm_cpuid_entry2 {
                eax: 0xffff_ffff,
                ..plain(LEAF_PERFORMANCE)
            },
            kvm_cpuid_entry2 {
                eax: 1,
                edx: 77,
                ..plain(LEAF_TOPOLOGY)
            },
            kvm_cpuid_entry2 {
                eax: 0x4000_0001,
                ..plain(LEAF_HYPERVISOR)
            },
            kvm_cpuid_entry2 {
                ecx: !0,
                ..plain(LEAF_EXT_FEATURES)
            },
            kvm_cpuid_entry2 {
                ecx: !0,
                ..plain(LEAF_EXT_SIZES)
            },
            kvm_cpuid_entry2 {
                eax: 1,
                ..plain(LEAF_SVM)
            },
            kvm_cpuid_entry2 {
                eax: 99,
                ebx: 0xffff,
                ..plain(LEAF_AMD_TOPOLOGY)
            },
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn every_count_of_cpus_is_one_package_of_single_thread_cores() {
        for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
            for cpus in 1..=64 {
                let settings = Settings {
                    cpus,
                    tsc_khz: Some(2_400_000),
                };
                let template = Template::new(&supported(vendor), &settings);
                for index in 0..cpus {
                    let cpuid = template.for_vcpu(index).unwrap();
                    let basic = leaf(&cpuid, 1, 0);
                    assert_eq!(basic.ebx >> 24, index);
                    assert_eq!((basic.ebx >> 16) & 0xff, cpus);
                    assert_eq!(basic.ebx & 0xffff, 0x0900, "CLFLUSH size stays");
                    let cores = leaf(&cpuid, LEAF_TOPOLOGY, 1);
                    assert_eq!((cores.ebx, cores.edx), (cpus, index));
                    assert!(index >> cores.eax == 0, "all in one package");
                    assert!(
                        cpus == 1 || (cpus - 1) >> (cores.eax - 1) == 1,
                        "no wider than needed"
                    );
                    assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 0).eax, 0, "one thread a core");
                    assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 2).ecx >> 8, 0);
                }
            }
        }
    }

    #[test]
    fn what_mote_cannot_give_is_not_shown() {
        let settings = Settings {
            cpus: 3,
            tsc_khz: Some(2_400_000),
        };
        let cpuid = Template::new(&supported(b"AuthenticAMD"), &settings)
            .for_vcpu(2)
            .unwrap();
        let ecx = leaf(&cpuid, 1, 0).ecx;
        assert_eq!(ecx & (ECX1_MONITOR | ECX1_VMX), 0);
        assert_ne!(ecx & ECX1_HYPERVISOR, 0);
        assert_eq!(leaf(&cpuid, LEAF_EXT_FEATURES, 0).ecx & EXT_ECX_SVM, 0);
        assert_eq!(leaf(&cpuid, LEAF_PERFORMANCE, 0).eax, 0);
        assert!(
            cpuid
                .as_slice()
                .iter()
                .all(|entry| entry.function != LEAF_SVM)
        );
        assert_eq!(leaf(&cpuid, LEAF_EXT_SIZES, 0).ecx & 0xf0ff, 2 << 12 | 2);
        assert_eq!(leaf(&cpuid, LEAF_AMD_TOPOLOGY, 0).eax, 2);
        assert_eq!(
            leaf(&cpuid, LEAF_HYPERVISOR, 0).eax,
            LEAF_HYPERVISOR_FREQUENCIES
        );
        let frequencies = leaf(&cpuid, LEAF_HYPERVISOR_FREQUENCIES, 0);
        assert_eq!(
            (frequencies.eax, frequencies.ebx),
            (2_400_000, APIC_BUS_KHZ)
        );
        let cache = leaf(&cpuid, LEAF_CACHES, 3).eax;
        assert_eq!(
            (cache >> 14) & 0xfff,
            3,
            "the last level is shared by all ids of the package"
        );
        assert_eq!(cache >> 26, 3);
    }

    #[test]
    fn the_width_of_an_address_is_what_the_cpu_says() {
        let bits = |entries: &[kvm_cpuid_entry2]| {
            physical_address_bits(&CpuId::from_entries(entries).unwrap())
        };
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        assert_eq!(bits(&[leaf(1, 99), leaf(LEAF_EXT_SIZES, 0x3028)]), 40);
        assert_eq!(bits(&[leaf(LEAF_EXT_SIZES, 0)]), 36);
        assert_eq!(bits(&[leaf(1, 99)]), 36);
    }
}
