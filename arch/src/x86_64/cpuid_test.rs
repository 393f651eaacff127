//! What guests are told of their CPUs.

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
            eax: 0xfc00_4121,
            flags: 1,
            ..plain(LEAF_CACHES)
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
                smt: false,
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
        smt: false,
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
fn two_threads_are_a_core() {
    for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
        let amd = vendor == b"AuthenticAMD";
        for cpus in [2, 4, 6, 32, 62, 64] {
            let settings = Settings {
                cpus,
                smt: true,
                tsc_khz: None,
            };
            let template = Template::new(&supported(vendor), &settings);
            for index in 0..cpus {
                let cpuid = template.for_vcpu(index).unwrap();
                let basic = leaf(&cpuid, 1, 0);
                assert_eq!((basic.ebx >> 24, (basic.ebx >> 16) & 0xff), (index, cpus));
                assert_ne!(basic.edx & EDX1_HTT, 0);
                let threads = leaf(&cpuid, LEAF_TOPOLOGY, 0);
                assert_eq!((threads.eax, threads.ebx, threads.edx), (1, 2, index));
                let cores = leaf(&cpuid, LEAF_TOPOLOGY, 1);
                assert_eq!((cores.ebx, cores.edx), (cpus, index));
                assert!(index >> cores.eax == 0, "all in one package");
                if amd {
                    let core = leaf(&cpuid, LEAF_AMD_TOPOLOGY, 0);
                    assert_eq!((core.eax, core.ebx), (index, 1 << 8 | index >> 1));
                    let sizes = leaf(&cpuid, LEAF_EXT_SIZES, 0).ecx;
                    assert_eq!(sizes & 0xff, cpus - 1, "threads, not cores");
                } else {
                    assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY_V2, 0).ebx, 2);
                }
            }
            let cpuid = template.for_vcpu(0).unwrap();
            let span = cpus.next_power_of_two() - 1;
            let last_level = leaf(&cpuid, LEAF_CACHES, 3).eax;
            assert_eq!((last_level >> 14) & 0xfff, span);
            assert_eq!(last_level >> 26, span >> 1, "cores");
            let first_level = leaf(&cpuid, LEAF_CACHES, 0).eax;
            assert_eq!((first_level >> 14) & 0xfff, 1, "of a core");
        }
    }
}

#[test]
fn a_single_cpu_has_no_sibling() {
    let settings = Settings {
        cpus: 1,
        smt: true,
        tsc_khz: None,
    };
    let cpuid = Template::new(&supported(b"AuthenticAMD"), &settings)
        .for_vcpu(0)
        .unwrap();
    assert_eq!(leaf(&cpuid, 1, 0).edx & EDX1_HTT, 0);
    assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 0).ebx, 1);
    assert_eq!(leaf(&cpuid, LEAF_AMD_TOPOLOGY, 0).ebx, 0);
    assert_eq!((leaf(&cpuid, LEAF_CACHES, 3).eax >> 14) & 0xfff, 0);
}

#[test]
fn the_width_of_an_address_is_what_the_cpu_says() {
    let bits = |entries: &[kvm_cpuid_entry2]| physical_address_bits(entries);
    let leaf = |function, eax| kvm_cpuid_entry2 {
        function,
        eax,
        ..Default::default()
    };
    assert_eq!(bits(&[leaf(1, 99), leaf(LEAF_EXT_SIZES, 0x3028)]), 40);
    assert_eq!(bits(&[leaf(LEAF_EXT_SIZES, 0)]), 36);
    assert_eq!(bits(&[leaf(1, 99)]), 36);
}
