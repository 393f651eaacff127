//! Which features of its CPU a guest was told of that another host does not have, by the names that Linux has for
//! them (`/proc/cpuinfo`) where it has some.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

/// A register whose bits are features.
struct Features {
    leaf: u32,
    index: u32,
    register: Register,
    /// Bits that are no feature of the CPU: what the guest has switched on, its topology, and what KVM gives to all
    /// guests whether it says so or not.
    ignored: u32,
    /// Of bit 0, 1, …; `-` for one without a name.
    names: &'static str,
}

/// All of them (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst).
const REGISTERS: [Features; 18] = [
    Features {
        leaf: 1,
        index: 0,
        register: Register::Ecx,
        // x2APIC, TSC deadline timer, OSXSAVE, hypervisor.
        ignored: 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        names: "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid \
                dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand",
    },
    Features {
        leaf: 1,
        index: 0,
        register: Register::Edx,
        // More than one logical CPU.
        ignored: 1 << 28,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi \
                mmx fxsr sse sse2 ss ht tm ia64 pbe",
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Ebx,
        ignored: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds \
                mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er \
                avx512cd sha_ni avx512bw avx512vl",
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Ecx,
        // OSPKE.
        ignored: 1 << 4,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri \
                movdir64b enqcmd sgx_lc pks",
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Edx,
        ignored: 0,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
                rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
                avx512_fp16 amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities core_capabilities ssbd",
    },
    Features {
        leaf: 7,
        index: 1,
        register: Register::Eax,
        ignored: 0,
        names: "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs - - amx_fp16 - avx_ifma",
    },
    Features {
        leaf: 7,
        index: 1,
        register: Register::Edx,
        ignored: 0,
        names: "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti - - - - avx10",
    },
    Features {
        leaf: 7,
        index: 2,
        register: Register::Edx,
        ignored: 0,
        names: "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    },
    Features {
        leaf: 0xd,
        index: 0,
        register: Register::Eax,
        ignored: 0,
        names: "state:x87 state:sse state:avx state:bndregs state:bndcsr state:opmask state:zmm state:zmm_high \
                state:pt state:pkru state:pasid state:cet_user state:cet_kernel - - - - state:tilecfg state:tiledata",
    },
    Features {
        leaf: 0xd,
        index: 1,
        register: Register::Eax,
        ignored: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Features {
        leaf: 0xd,
        index: 1,
        register: Register::Ecx,
        ignored: 0,
        names: "- - - - - - - - state:pt - state:pasid state:cet_user state:cet_kernel",
    },
    Features {
        leaf: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        ignored: 0,
        names: "kvm:clocksource kvm:nop_io_delay kvm:mmu_op kvm:clocksource2 kvm:async_pf kvm:steal_time kvm:pv_eoi \
                kvm:pv_unhalt - kvm:pv_tlb_flush kvm:async_pf_vmexit kvm:pv_send_ipi kvm:poll_control \
                kvm:pv_sched_yield kvm:async_pf_int kvm:msi_ext_dest_id kvm:hc_map_gpa_range kvm:migration_control \
                - - - - - - kvm:clocksource_stable",
    },
    Features {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        // Legacy multi-core, and the leaves of the topology.
        ignored: 1 << 1 | 1 << 22,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy lzcnt sse4a misalignsse 3dnowprefetch osvw ibs xop skinit \
                wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Features {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        ignored: 0,
        names: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext \
                3dnow",
    },
    Features {
        leaf: 0x8000_0007,
        index: 0,
        register: Register::Edx,
        ignored: 0,
        names: "- - - - - - - - invariant_tsc",
    },
    Features {
        leaf: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        ignored: 0,
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - \
                amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no",
    },
    Features {
        leaf: 0x8000_0021,
        index: 0,
        register: Register::Eax,
        ignored: 0,
        names: "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - - \
                prefetchi - - - - - - - - - sbpb ibpb_brtype srso_no",
    },
    Features {
        leaf: 0x8000_0021,
        index: 0,
        register: Register::Ecx,
        ignored: 0,
        names: "- tsa_sq_no tsa_l1_no",
    },
];

/// Bits of a physical address, in EAX of this leaf.
const LEAF_SIZES: u32 = 0x8000_0008;
const PHYSICAL_ADDRESS_BITS: u32 = 0xff;

/// What a guest with the CPUID `guest` has that is not in `host`, which is what KVM supports there.
pub fn missing(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for features in &REGISTERS {
        let bits = |entries| value(entries, features.leaf, features.index, features.register);
        let lost = bits(guest) & !bits(host) & !features.ignored;
        let mut names = features.names.split_ascii_whitespace();
        for bit in 0..u32::BITS {
            let name = names.next().filter(|name| *name != "-");
            if lost & 1 << bit != 0 {
                missing.push(name.map_or_else(|| features.nameless(bit), str::to_owned));
            }
        }
    }
    let address_bits =
        |entries| value(entries, LEAF_SIZES, 0, Register::Eax) & PHYSICAL_ADDRESS_BITS;
    let (wanted, had) = (address_bits(guest), address_bits(host));
    if wanted > had {
        missing.push(format!("physical addresses of {wanted} bits"));
    }
    missing
}

impl Features {
    fn nameless(&self, bit: u32) -> String {
        format!(
            "bit {bit} of {} in leaf {:#x}.{}",
            format!("{:?}", self.register).to_ascii_uppercase(),
            self.leaf,
            self.index
        )
    }
}

fn value(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32, register: Register) -> u32 {
    let mut entries = entries.iter();
    let found = entries.find(|entry| entry.function == leaf && entry.index == index);
    found.map_or(0, |entry| register.of(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn features_are_told_by_their_names() {
        let guest = [
            entry(1, 0, 1 << 30 | 1 << 12 | 1 << 27, 1 << 28 | 1 << 26),
            entry(7, 0, 0, 1 << 14),
            entry(7, 1, 0, 1 << 31),
        ];
        assert_eq!(missing(&guest, &guest), [""; 0]);
        let host = [entry(1, 0, 1 << 12, 0)];
        assert_eq!(
            missing(&guest, &host),
            ["rdrand", "sse2", "serialize", "bit 31 of EDX in leaf 0x7.1"]
        );
        assert_eq!(missing(&host, &guest), [""; 0], "more is no harm");
    }

    #[test]
    fn addresses_are_wide_enough() {
        let sizes = |eax| {
            [kvm_cpuid_entry2 {
                function: LEAF_SIZES,
                eax,
                ..Default::default()
            }]
        };
        assert_eq!(missing(&sizes(0x3030), &sizes(0x3034)), [""; 0]);
        assert_eq!(
            missing(&sizes(0x3034), &sizes(0x3030)),
            ["physical addresses of 52 bits"]
        );
    }

    #[test]
    fn no_register_has_more_than_32_names() {
        for features in &REGISTERS {
            let names = features.names.split_ascii_whitespace().count();
            assert!(names <= 32, "leaf {:#x}", features.leaf);
        }
    }
}
