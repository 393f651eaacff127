//! THE match on exits: what a vCPU does when KVM gives it back.
#![expect(unsafe_code, reason = "reads the union of exit details in kvm_run")]

use std::sync::PoisonError;

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuExit;

use super::Vcpu;
use crate::crash::{CrashCause, CrashReport};
use crate::events::StopReason;

/// What the vCPU thread does next.
pub(super) enum Next {
    /// Enters the guest again.
    Continue,
    /// Looks whether something else is wanted.
    Interrupted,
    /// Ends the machine.
    Stop(StopReason),
}

impl Vcpu {
    /// Runs guest code up to the next exit, and handles that.
    pub(super) fn run_once(&mut self) -> Next {
        let run: *const kvm_run = self.fd.get_kvm_run();
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return self.on_run_error(error),
        };
        match exit {
            VcpuExit::IoOut(port, data) => {
                self.exits.io_out.count();
                let size = io_size(run);
                for item in data.chunks(size) {
                    // Nobody there: the write vanishes, and the bus has counted it.
                    let _ = self.buses.io.write(port.into(), item);
                }
            }
            VcpuExit::IoIn(port, data) => {
                self.exits.io_in.count();
                let size = io_size(run);
                for item in data.chunks_mut(size) {
                    let _ = self.buses.io.read(port.into(), item);
                }
            }
            VcpuExit::MmioWrite(gpa, data) => {
                self.exits.mmio_write.count();
                let _ = self.buses.mmio.write(gpa, data);
            }
            VcpuExit::MmioRead(gpa, data) => {
                self.exits.mmio_read.count();
                let _ = self.buses.mmio.read(gpa, data);
            }
            VcpuExit::IoapicEoi(vector) => {
                self.exits.eoi.count();
                self.buses
                    .ioapic
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .eoi(vector);
            }
            // Interrupts are off or there would be no exit: the in-kernel APIC handles other halts.
            VcpuExit::Hlt => {
                self.exits.halt.count();
                return self.interrupted();
            }
            VcpuExit::IrqWindowOpen => {
                self.exits.irq_window.count();
                return self.interrupted();
            }
            VcpuExit::Intr => {
                self.exits.interrupted.count();
                return self.interrupted();
            }
            VcpuExit::Shutdown => {
                self.exits.system_event.count();
                return Next::Stop(StopReason::TripleFault { cpu: self.index });
            }
            VcpuExit::SystemEvent(kind, _) => {
                self.exits.system_event.count();
                match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => return Next::Stop(StopReason::PowerOff),
                    KVM_SYSTEM_EVENT_RESET => return Next::Stop(StopReason::Reset),
                    KVM_SYSTEM_EVENT_CRASH => return Next::Stop(StopReason::Panicked),
                    _ => {}
                }
            }
            VcpuExit::MemoryFault { .. } => {
                return self.on_run_error(kvm_ioctls::Error::new(libc::EFAULT));
            }
            VcpuExit::FailEntry(hardware_reason, _) => {
                return self.crash(CrashCause::FailedEntry { hardware_reason }, Vec::new());
            }
            VcpuExit::InternalError => {
                let (suberror, instruction) = internal_error(run);
                return self.crash(CrashCause::InternalError { suberror }, instruction);
            }
            _ => {
                // SAFETY: `run` points into the mapping that `self.fd` owns.
                let reason = unsafe { (*run).exit_reason };
                return self.crash(CrashCause::UnexpectedExit { reason }, Vec::new());
            }
        }
        if self.events.is_stopping() {
            self.finish_access();
            Next::Interrupted
        } else {
            Next::Continue
        }
    }

    /// Lets KVM finish the instruction whose access has been handled, and not begin another: what is saved of the
    /// vCPU then is behind it.
    fn finish_access(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // EINTR is what was asked for; all else comes again if the vCPU runs on.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn on_run_error(&mut self, error: kvm_ioctls::Error) -> Next {
        match error.errno() {
            // A file of persistent memory was cut.
            libc::EFAULT if self.lost_pages.is_new() => Next::Continue,
            // EAGAIN: an application processor that was woken without a start-up IPI.
            libc::EINTR | libc::EAGAIN => {
                self.exits.interrupted.count();
                self.interrupted()
            }
            _ => {
                self.exits.failure.count();
                Next::Stop(StopReason::RunFailed {
                    cpu: self.index,
                    error,
                })
            }
        }
    }

    /// V3 of the kick protocol.
    fn interrupted(&mut self) -> Next {
        self.fd.set_kvm_immediate_exit(0);
        Next::Interrupted
    }

    fn crash(&self, cause: CrashCause, instruction: Vec<u8>) -> Next {
        self.exits.failure.count();
        Next::Stop(StopReason::Crashed(CrashReport::gather(
            self.index,
            cause,
            &self.fd,
            &self.memory,
            instruction,
        )))
    }
}

/// Bytes of one item of a port access: string instructions hand over several at once.
fn io_size(run: *const kvm_run) -> usize {
    // SAFETY: the pointer is into the vCPU's kvm_run mapping, and the exit was KVM_EXIT_IO, for which
    // KVM has filled `io`.
    let size = unsafe { (*run).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// Suberror and, where KVM gives them, the instruction bytes.
fn internal_error(run: *const kvm_run) -> (u32, Vec<u8>) {
    /// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    const HAS_INSTRUCTION: u64 = 1 << 0;
    // SAFETY: the pointer is into the vCPU's kvm_run mapping, and the exit was
    // KVM_EXIT_INTERNAL_ERROR, for which KVM has filled `emulation_failure`.
    let failure = unsafe { (*run).__bindgen_anon_1.emulation_failure };
    let mut instruction = Vec::new();
    if failure.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & HAS_INSTRUCTION != 0
    {
        // SAFETY: the flag says that KVM filled these.
        let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        instruction.extend_from_slice(&bytes.insn_bytes[..size]);
    }
    (failure.suberror, instruction)
}
