//! All that a vCPU knows, as plain values: taken from KVM, and given to another vCPU of it.
//!
//! The order matters both ways. To ask for the MP state makes KVM deliver INIT and SIPI that wait, so that comes
//! first. XCR0 decides what of the XSAVE area there is, the local APIC decides what the deadline MSR means, and
//! pending events are set when all that they refer to is there.
#![expect(
    unsafe_code,
    reason = "the size of an XSAVE area is a matter between KVM and its caller"
)]

use std::ffi::c_char;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// KVM takes and gives so many MSRs in one call (KVM_MAX_MSR_ENTRIES of its sources).
const MSRS_A_CALL: usize = 255;
/// Words of an XSAVE area that all versions of KVM know.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / size_of::<u32>();
/// The largest XSAVE area that is taken from a file, in words: AMX needs 11 KiB, and this leaves room.
const MAX_XSAVE_WORDS: usize = 64 << 10 >> 2;
/// More MSRs than any KVM has to save.
const MAX_MSRS: usize = 4096;

/// Intel SDM volume 4, table 2-2.
const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The timer's entry of the local vector table (Intel SDM volume 3, section 11.5.1).
const APIC_LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TSC_DEADLINE: u32 = 2 << 17;

/// Why a vCPU's state could not be taken or given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM refused.
    #[error("KVM refused {call} of vCPU {index}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// The vCPU.
        index: usize,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An MSR has a value that this host does not take.
    #[error("This host's KVM does not take {value:#x} for MSR {msr:#x} of vCPU {index}")]
    Msr {
        /// The vCPU.
        index: usize,
        /// The MSR.
        msr: u32,
        /// The value.
        value: u64,
    },
    /// A list is longer than KVM can have made it.
    #[error("The state of vCPU {index} has {count} {what}, which no KVM makes")]
    TooMany {
        /// The vCPU.
        index: usize,
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The host's clock has another frequency.
    #[error(
        "The guest's TSC has {saved} kHz, this host's {}, and its KVM cannot scale it: a guest whose clock it is \
         will tell the wrong time, if this is forced",
        host.map_or("another".into(), |khz| format!("{khz} kHz"))
    )]
    TscFrequency {
        /// Of the guest.
        saved: u32,
        /// Of the host, where KVM says.
        host: Option<u32>,
    },
    /// The host's CPU has other registers.
    #[error(
        "vCPU {index} has extended registers of {saved} bytes, this host's have {host}: another CPU"
    )]
    XsaveSize {
        /// The vCPU.
        index: usize,
        /// Bytes in the state.
        saved: usize,
        /// Bytes that KVM takes.
        host: usize,
    },
}

/// How large the extended registers of a VM's vCPUs are.
#[derive(Clone, Copy)]
pub struct XsaveSize {
    words: usize,
}

impl XsaveSize {
    /// Asks KVM.
    pub fn of(vm: &VmFd) -> Self {
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Self {
            // A KVM that does not say has the old size.
            words: XSAVE_WORDS.max(bytes.div_ceil(size_of::<u32>())),
        }
    }
}

/// How vCPUs of this host are to become what they were.
#[derive(Clone, Copy)]
pub struct Terms {
    /// How large their extended registers are.
    pub xsave: XsaveSize,
    /// Nanoseconds that have passed for the guest meanwhile: its TSC is as much further.
    pub passed: u64,
    /// A TSC of another frequency will do.
    pub force: bool,
}

/// What there is to save of all vCPUs of a VM.
pub struct Shape {
    msrs: Vec<u32>,
    xsave: XsaveSize,
}

impl Shape {
    /// Asks KVM what there is to save.
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            msrs: kvm.get_msr_index_list()?.as_slice().to_vec(),
            xsave: XsaveSize::of(vm),
        })
    }
}

/// A vCPU's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// Kilohertz; none if KVM does not say.
    tsc_khz: Option<u32>,
    cpuid: Vec<kvm_cpuid_entry2>,
    msrs: Vec<(u32, u64)>,
    /// As many words as KVM has.
    xsave: Vec<u32>,
}

/// Calls of one vCPU, with their names.
fn refused(call: &'static str, index: usize) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm {
        call,
        index,
        source,
    }
}

impl VcpuState {
    /// Takes the state of vCPU `index`, which is not in the guest.
    pub fn save(vcpu: &VcpuFd, index: usize, shape: &Shape) -> Result<Self, Error> {
        let refused = |call| refused(call, index);
        Ok(Self {
            mp_state: vcpu.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?,
            regs: vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?,
            xcrs: vcpu.get_xcrs().map_err(refused("KVM_GET_XCRS"))?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(refused("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?,
            tsc_khz: vcpu.get_tsc_khz().ok(),
            cpuid: vcpu
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .map_err(refused("KVM_GET_CPUID2"))?
                .as_slice()
                .to_vec(),
            xsave: get_xsave(vcpu, shape.xsave.words).map_err(refused("KVM_GET_XSAVE2"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(refused("KVM_GET_VCPU_EVENTS"))?,
            msrs: {
                let msrs = get_msrs(vcpu, &shape.msrs).map_err(refused("KVM_GET_MSRS"))?;
                // Once more: all the others take their time.
                let time = get_msrs(vcpu, &[MSR_IA32_TSC]).unwrap_or_default();
                let latest = |(msr, value): (u32, u64)| {
                    let again = time.iter().find(|(other, _)| *other == msr);
                    again.copied().unwrap_or((msr, value))
                };
                msrs.into_iter().map(latest).collect()
            },
        })
    }

    /// The state of so many nanoseconds later, in which nothing has gone on but the TSC.
    pub fn advance(&mut self, nanoseconds: u64) {
        let ticks = self.ticks(nanoseconds);
        let mut msrs = self.msrs.iter_mut();
        if let Some((_, tsc)) = msrs.find(|(msr, _)| *msr == MSR_IA32_TSC) {
            *tsc = tsc.wrapping_add(ticks);
        }
    }

    /// Gives the state to vCPU `index` of a new VM, which has not been in the guest. The state may come from
    /// anywhere: KVM checks the registers, and what it does not is checked here.
    pub fn restore(&self, vcpu: &VcpuFd, index: usize, terms: Terms) -> Result<(), Error> {
        let refused = |call| refused(call, index);
        self.check(index, terms.xsave)?;
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| Error::TooMany {
            index,
            what: "CPUID entries",
            count: self.cpuid.len(),
        })?;
        vcpu.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        self.set_frequency(vcpu, terms.force)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(refused("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(refused("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(refused("KVM_SET_SREGS"))?;
        // A CPU without XSAVE has none, and its KVM takes none.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(refused("KVM_SET_XCRS"))?;
        }
        set_xsave(vcpu, &self.xsave).map_err(refused("KVM_SET_XSAVE"))?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(refused("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(refused("KVM_SET_LAPIC"))?;
        self.set_msrs(vcpu, index, terms.passed)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("KVM_SET_VCPU_EVENTS"))?;
        // So that the guest's watchdogs do not count the time that it did not run. A guest without the clock of KVM
        // has none that could be told.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }

    /// The frequency of the guest's TSC, if it is not what it would be.
    fn set_frequency(&self, vcpu: &VcpuFd, force: bool) -> Result<(), Error> {
        let host = vcpu.get_tsc_khz().ok();
        match self.tsc_khz {
            Some(saved) if host != Some(saved) && vcpu.set_tsc_khz(saved).is_err() && !force => {
                Err(Error::TscFrequency { saved, host })
            }
            _ => Ok(()),
        }
    }

    /// What a TSC counts in so many nanoseconds.
    fn ticks(&self, nanoseconds: u64) -> u64 {
        let khz = u128::from(self.tsc_khz.unwrap_or(0));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a counter that wraps; the file may say anything"
        )]
        let ticks = (u128::from(nanoseconds) * khz / 1_000_000) as u64;
        ticks
    }

    fn check(&self, index: usize, xsave: XsaveSize) -> Result<(), Error> {
        if self.msrs.len() > MAX_MSRS {
            return Err(Error::TooMany {
                index,
                what: "MSRs",
                count: self.msrs.len(),
            });
        }
        // KVM reads as much as its own size, whatever is there.
        if self.xsave.len() != xsave.words || self.xsave.len() > MAX_XSAVE_WORDS {
            return Err(Error::XsaveSize {
                index,
                saved: self.xsave.len() * size_of::<u32>(),
                host: xsave.words * size_of::<u32>(),
            });
        }
        Ok(())
    }

    fn set_msrs(&self, vcpu: &VcpuFd, index: usize, passed: u64) -> Result<(), Error> {
        // Times come last: the others are slow.
        let late = |msr: u32| msr == MSR_IA32_TSC || msr == MSR_IA32_TSC_DEADLINE;
        let mut entries: Vec<_> = self
            .msrs
            .iter()
            .filter(|(msr, _)| !late(*msr))
            .map(|&(msr, value)| entry(msr, value))
            .collect();
        let value_of = |wanted| self.msrs.iter().find(|(msr, _)| *msr == wanted);
        if let Some(&(msr, tsc)) = value_of(MSR_IA32_TSC) {
            // KVM keeps the TSCs of vCPUs the same that are written within a second and differ by less.
            let tsc = tsc.wrapping_add(self.ticks(passed));
            entries.push(entry(msr, tsc));
            if let Some(&(msr, deadline)) = value_of(MSR_IA32_TSC_DEADLINE) {
                entries.push(entry(msr, self.deadline(deadline, tsc)));
            }
        }
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(MSRS_A_CALL)];
            let msrs = Msrs::from_entries(some).map_err(|_| Error::TooMany {
                index,
                what: "MSRs",
                count: self.msrs.len(),
            })?;
            let set = vcpu
                .set_msrs(&msrs)
                .map_err(refused("KVM_SET_MSRS", index))?;
            rest = &rest[set.min(some.len())..];
            // KVM stops at the one that it refuses. There are some that it only takes as they are.
            if set < some.len() {
                let kvm_msr_entry {
                    index: msr, data, ..
                } = rest[0];
                if get_msrs(vcpu, &[msr]).ok() != Some(vec![(msr, data)]) {
                    return Err(Error::Msr {
                        index,
                        msr,
                        value: data,
                    });
                }
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    /// A timer that had run out, but whose interrupt KVM still had to deliver, has no deadline any more: it
    /// runs out again at once. A guest takes one interrupt too many, and misses one for ever.
    fn deadline(&self, deadline: u64, tsc: u64) -> u64 {
        let mut register = [0; 4];
        for (byte, from) in register
            .iter_mut()
            .zip(&self.lapic.regs[APIC_LVT_TIMER..APIC_LVT_TIMER + 4])
        {
            *byte = from.cast_unsigned();
        }
        let timer = u32::from_le_bytes(register);
        let armed = timer & LVT_MASKED == 0 && timer & LVT_TIMER_MODE == LVT_TSC_DEADLINE;
        if deadline == 0 && armed {
            tsc.max(1)
        } else {
            deadline
        }
    }

    /// What the guest was told of its CPU.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// All of these MSRs that can be read.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, kvm_ioctls::Error> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(MSRS_A_CALL)];
        let entries: Vec<_> = some.iter().map(|&index| entry(index, 0)).collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let got = vcpu.get_msrs(&mut msrs)?.min(some.len());
        let read = msrs.as_slice()[..got].iter();
        values.extend(read.map(|entry| (entry.index, entry.data)));
        // KVM stops at one that this guest does not have: it is left out.
        let skipped = usize::from(got < some.len());
        rest = &rest[got + skipped..];
    }
    Ok(values)
}

fn get_xsave(vcpu: &VcpuFd, words: usize) -> Result<Vec<u32>, kvm_ioctls::Error> {
    if words == XSAVE_WORDS {
        return Ok(vcpu.get_xsave()?.region.to_vec());
    }
    let mut area =
        Xsave::new(words - XSAVE_WORDS).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    // SAFETY: the area has the size that KVM said it writes, and no dynamic feature is asked for meanwhile.
    unsafe { vcpu.get_xsave2(&mut area)? };
    let mut all = area.as_fam_struct_ref().xsave.region.to_vec();
    all.extend_from_slice(area.as_slice());
    Ok(all)
}

/// `words` has the size that KVM says ([`VcpuState::check`]).
fn set_xsave(vcpu: &VcpuFd, words: &[u32]) -> Result<(), kvm_ioctls::Error> {
    let (region, extra) = words.split_at(XSAVE_WORDS.min(words.len()));
    let mut area = Xsave::new(extra.len()).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    area.as_mut_slice().copy_from_slice(extra);
    // SAFETY: the length of the area, which is what must not be changed, stays as it is.
    let fixed = unsafe { &mut area.as_mut_fam_struct().xsave.region };
    for (to, from) in fixed.iter_mut().zip(region) {
        *to = *from;
    }
    // SAFETY: the area has the size that KVM said it reads.
    unsafe { vcpu.set_xsave2(&area) }
}

const _: () = assert!(size_of::<c_char>() == 1);

#[cfg(test)]
#[path = "vcpu_state_test.rs"]
mod tests;
