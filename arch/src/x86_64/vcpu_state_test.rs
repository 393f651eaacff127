use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

use super::*;

/// A vCPU of a VM of its own, with all that this host's KVM has.
struct Machine {
    shape: Shape,
    vcpu: VcpuFd,
    // Last: the vCPU is its.
    _vm: VmFd,
}

impl Machine {
    fn new() -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let cap = kvm_bindings::kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP,
            args: [24, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        Self {
            shape: Shape::of(&kvm, &vm).unwrap(),
            vcpu,
            _vm: vm,
        }
    }

    fn save(&self) -> VcpuState {
        VcpuState::save(&self.vcpu, 0, &self.shape).unwrap()
    }

    fn restore(&self, state: &VcpuState) -> Result<(), Error> {
        self.restore_after(state, 0)
    }

    fn restore_after(&self, state: &VcpuState, passed: u64) -> Result<(), Error> {
        let terms = Terms {
            xsave: self.shape.xsave,
            passed,
            force: false,
        };
        state.restore(&self.vcpu, 0, terms)
    }
}

/// With what goes on by itself left out.
fn still(mut state: VcpuState) -> VcpuState {
    state
        .msrs
        .retain(|(msr, _)| ![MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE].contains(msr));
    state
}

fn lived_in() -> VcpuState {
    let machine = Machine::new();
    let mut regs = machine.vcpu.get_regs().unwrap();
    regs.rax = 0x1234_5678_9abc_def0;
    regs.r15 = 15;
    regs.rip = 0x7c00;
    machine.vcpu.set_regs(&regs).unwrap();
    let mut state = machine.save();
    // The legacy area: XMM3, and a header that says that SSE state is there.
    state.xsave[(160 + 3 * 16) / 4] = 0xdead_beef;
    state.xsave[512 / 4] |= 0b11;
    state
}

#[test]
fn another_vcpu_is_as_the_first_one_was() {
    let state = lived_in();
    let other = Machine::new();
    other.restore(&state).unwrap();
    let restored = other.save();
    assert_eq!(restored.regs.rax, 0x1234_5678_9abc_def0);
    assert_eq!(restored.xsave[(160 + 3 * 16) / 4], 0xdead_beef);
    assert_eq!(still(restored), still(state));
}

#[test]
fn the_state_goes_through_bytes() {
    let state = lived_in();
    let bytes = postcard::to_stdvec(&state).unwrap();
    let again: VcpuState = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(again, state);
}

#[test]
fn registers_of_another_size_are_refused() {
    let mut state = lived_in();
    state.xsave.pop();
    let refused = Machine::new().restore(&state).unwrap_err();
    assert!(matches!(refused, Error::XsaveSize { .. }), "{refused}");
    state.xsave.clear();
    let refused = Machine::new().restore(&state).unwrap_err();
    assert!(
        matches!(refused, Error::XsaveSize { saved: 0, .. }),
        "{refused}"
    );
}

#[test]
fn more_msrs_than_any_kvm_has_are_refused() {
    let mut state = lived_in();
    state.msrs = vec![(0x10, 0); MAX_MSRS + 1];
    let refused = Machine::new().restore(&state).unwrap_err();
    assert!(matches!(refused, Error::TooMany { .. }), "{refused}");
}

#[test]
fn more_msrs_than_go_into_a_call_are_set() {
    let mut state = lived_in();
    let some = state.msrs[0];
    state.msrs.splice(0..0, vec![some; MSRS_A_CALL + 3]);
    Machine::new().restore(&state).unwrap();
}

#[test]
fn an_msr_that_there_is_not_is_named() {
    let mut state = lived_in();
    state.msrs.insert(0, (0xdead_0000, 7));
    let refused = Machine::new().restore(&state).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Msr {
                msr: 0xdead_0000,
                value: 7,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_timer_that_has_run_out_runs_out_again() {
    let mut state = lived_in();
    let timer = |state: &mut VcpuState, value: u32| {
        for (to, from) in state.lapic.regs[APIC_LVT_TIMER..]
            .iter_mut()
            .zip(value.to_le_bytes())
        {
            *to = from.cast_signed();
        }
    };
    timer(&mut state, LVT_TSC_DEADLINE | 0xec);
    assert_eq!(state.deadline(0, 1000), 1000);
    assert_eq!(state.deadline(5000, 1000), 5000);
    timer(&mut state, LVT_TSC_DEADLINE | LVT_MASKED | 0xec);
    assert_eq!(state.deadline(0, 1000), 0);
    timer(&mut state, 0xec);
    assert_eq!(state.deadline(0, 1000), 0);
}

#[test]
fn the_tsc_goes_on_by_the_time_that_has_passed() {
    const HOUR: u64 = 3600 * 1_000_000_000;
    let state = lived_in();
    let tsc = |state: &VcpuState| {
        let mut msrs = state.msrs.iter();
        let found = msrs.find(|(msr, _)| *msr == MSR_IA32_TSC);
        found.unwrap().1
    };
    let Some(khz) = state.tsc_khz else { return };
    assert_eq!(state.ticks(1_000_000), u64::from(khz));
    let other = Machine::new();
    let far = Msrs::from_entries(&[entry(MSR_IA32_TSC, 1 << 60)]).unwrap();
    other.vcpu.set_msrs(&far).unwrap();
    if tsc(&other.save()) < 1 << 60 {
        // This KVM gives its guests the host's TSC as it is.
        return;
    }
    let other = Machine::new();
    other.restore_after(&state, HOUR).unwrap();
    let passed = tsc(&other.save()) - tsc(&state);
    let hour = u64::from(khz) * 3_600_000;
    assert!(
        (hour..hour + hour / 60).contains(&passed),
        "{passed} of {hour}"
    );
}
