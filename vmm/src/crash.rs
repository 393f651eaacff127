//! What is known of a vCPU that KVM could not go on with.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Longest x86 instruction, in bytes.
const MAX_INSTRUCTION: usize = 15;

/// A vCPU's state at the moment KVM gave up.
#[derive(Debug)]
pub struct CrashReport {
    /// Index of the vCPU.
    pub cpu: u32,
    /// What KVM said.
    pub cause: CrashCause,
    /// General registers, where KVM still gave them.
    pub regs: Option<kvm_regs>,
    /// Special registers, where KVM still gave them.
    pub sregs: Option<kvm_sregs>,
    /// The bytes at RIP; empty where they could not be read.
    pub instruction: Vec<u8>,
}

/// Why KVM gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashCause {
    /// KVM_EXIT_INTERNAL_ERROR with this suberror.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
    },
    /// KVM_EXIT_FAIL_ENTRY: the CPU refused the guest's state.
    FailedEntry {
        /// What the hardware said.
        hardware_reason: u64,
    },
    /// An exit that mote does not know.
    UnexpectedExit {
        /// KVM_EXIT_*.
        reason: u32,
    },
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::InternalError { suberror } => {
                let name = match suberror {
                    1 => "it cannot emulate this instruction",
                    2 => "two exceptions at once",
                    3 => "an exit in the middle of event delivery",
                    4 => "an exit it does not expect",
                    _ => "unknown",
                };
                write!(f, "KVM internal error {suberror} ({name})")
            }
            Self::FailedEntry { hardware_reason } => {
                write!(
                    f,
                    "the CPU refused to enter the guest (hardware reason {hardware_reason:#x})"
                )
            }
            Self::UnexpectedExit { reason } => write!(f, "unexpected KVM exit {reason}"),
        }
    }
}

impl CrashReport {
    /// Gathers what `vcpu` still gives. `reported` are instruction bytes that came with the exit.
    pub(crate) fn gather(
        cpu: u32,
        cause: CrashCause,
        vcpu: &VcpuFd,
        memory: &GuestMemoryMmap,
        reported: Vec<u8>,
    ) -> Box<Self> {
        let regs = vcpu.get_regs().ok();
        let sregs = vcpu.get_sregs().ok();
        let instruction = match (reported.is_empty(), &regs, &sregs) {
            (true, Some(regs), Some(sregs)) => read_instruction(vcpu, memory, regs, sregs),
            _ => reported,
        };
        Box::new(Self {
            cpu,
            cause,
            regs,
            sregs,
            instruction,
        })
    }
}

fn read_instruction(
    vcpu: &VcpuFd,
    memory: &GuestMemoryMmap,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
) -> Vec<u8> {
    let linear = sregs.cs.base.wrapping_add(regs.rip);
    let gpa = match vcpu.translate_gva(linear) {
        Ok(translation) if translation.valid != 0 => translation.physical_address,
        _ => return Vec::new(),
    };
    // The next page may be mapped anywhere: stop at the end of this one.
    #[expect(clippy::cast_possible_truncation, reason = "less than a page")]
    let left_in_page = (4096 - gpa % 4096) as usize;
    let mut bytes = vec![0; MAX_INSTRUCTION.min(left_in_page)];
    match memory.read_slice(&mut bytes, GuestAddress(gpa)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on vCPU {}", self.cause, self.cpu)?;
        if let Some(regs) = &self.regs {
            writeln!(f, "  RIP {:016x}  RFLAGS {:016x}", regs.rip, regs.rflags)?;
        }
        write!(f, "  instruction:")?;
        if self.instruction.is_empty() {
            write!(f, " (cannot be read)")?;
        }
        for byte in &self.instruction {
            write!(f, " {byte:02x}")?;
        }
        writeln!(f)?;
        if let Some(r) = &self.regs {
            writeln!(
                f,
                "  RAX {:016x}  RBX {:016x}  RCX {:016x}  RDX {:016x}",
                r.rax, r.rbx, r.rcx, r.rdx
            )?;
            writeln!(
                f,
                "  RSI {:016x}  RDI {:016x}  RBP {:016x}  RSP {:016x}",
                r.rsi, r.rdi, r.rbp, r.rsp
            )?;
            writeln!(
                f,
                "  R8  {:016x}  R9  {:016x}  R10 {:016x}  R11 {:016x}",
                r.r8, r.r9, r.r10, r.r11
            )?;
            writeln!(
                f,
                "  R12 {:016x}  R13 {:016x}  R14 {:016x}  R15 {:016x}",
                r.r12, r.r13, r.r14, r.r15
            )?;
        }
        if let Some(s) = &self.sregs {
            writeln!(
                f,
                "  CR0 {:016x}  CR2 {:016x}  CR3 {:016x}  CR4 {:016x}",
                s.cr0, s.cr2, s.cr3, s.cr4
            )?;
            writeln!(
                f,
                "  EFER {:015x}  CS {:04x} base {:x}",
                s.efer, s.cs.selector, s.cs.base
            )?;
        }
        Ok(())
    }
}
