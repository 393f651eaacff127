//! How another thread gets a vCPU thread out of KVM_RUN.
//!
//! ```text
//! kicker                                  vCPU thread
//! K1 changes what is wanted (under lock)  V1 looks at what is wanted (under lock): go on
//! K2 sets kvm_run.immediate_exit          V2 enters KVM_RUN: guest code, or EINTR if K2 came first
//! K3 sends the signal                     V3 EINTR: clears immediate_exit
//!                                         V4 back to V1
//! ```
//! K1 before K2 and V3 before V4: a kick is never lost. If K2 falls between V3 and V4, the next
//! KVM_RUN returns at once and V1 finds nothing new: harmless. Without K2 a signal that arrives
//! between V1 and V2 would be swallowed by the handler and the vCPU would stay in the guest.
#![expect(
    unsafe_code,
    reason = "shares one byte of the kvm_run page with another thread"
)]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Way to one vCPU thread.
pub(crate) struct Kick(Mutex<Option<Target>>);

struct Target {
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer is used only under the mutex, and taken out of it before the page that it
// points to is unmapped (`disarm`).
unsafe impl Send for Target {}

impl Kick {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// To be called by the vCPU's own thread, before its first KVM_RUN. The caller calls `disarm`
    /// before it drops `vcpu` or ends.
    pub(crate) fn arm(&self, vcpu: &mut VcpuFd) {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // Can fail only for a number that is no signal.
            let _ = register_signal_handler(SIGRTMIN(), on_kick);
        });
        let immediate_exit: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        // SAFETY: pthread_self has no conditions.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target {
            immediate_exit: immediate_exit.cast(),
            thread,
        });
    }

    pub(crate) fn disarm(&self) {
        *self.lock() = None;
    }

    /// K2 and K3.
    pub(crate) fn kick(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: while the target is in place, the kvm_run page is mapped and its thread runs
            // (`arm`); the kernel and this crate access the byte atomically.
            unsafe {
                (*target.immediate_exit).store(1, Ordering::SeqCst);
                libc::pthread_kill(target.thread, SIGRTMIN());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signal does its work by interrupting KVM_RUN.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
