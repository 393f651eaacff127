//! The end of a machine, without a wait for KVM.
//!
//! Whoever closes the last descriptor of a VM sleeps in the kernel for several RCU grace periods, and
//! frees the guest's memory page by page; the exit status of a process comes after both. So the last
//! close is left to a reaper: a task that shares this process's descriptors and memory, does nothing,
//! and dies of this process's death. What holds on to memory that way is gone some milliseconds later
//! (docs/start-up.md). Everything that another guest might want, such as a tap, a file's lock or a
//! socket, is closed before.
#![expect(
    unsafe_code,
    reason = "closes descriptors and makes a task that shares memory"
)]

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

/// What is left of a machine whose vCPUs and devices are gone. Dropping it waits for KVM.
pub struct Remains {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
}

impl Remains {
    pub(crate) fn new(vm: Arc<VmFd>, memory: Arc<GuestMemoryMmap>) -> Self {
        Self { vm, memory }
    }

    /// Hands all over to a reaper. To be called last: **the process has no open descriptor
    /// afterwards**, standard streams included, and is to exit at once.
    ///
    /// Where the host allows no reaper, the exit of this process frees everything, as ever.
    pub fn leave_to_reaper(self) {
        let vm = self.vm.as_raw_fd();
        let _never_dropped = ManuallyDrop::new((self.vm, self.memory));
        if close_all_but(vm) {
            spawn_reaper();
        }
    }
}

/// Closes every descriptor but one; false where the kernel cannot (before 5.9).
fn close_all_but(keep: RawFd) -> bool {
    let close_range = |first: RawFd, last: libc::c_uint| {
        // SAFETY: nothing of this process uses its descriptors any more (`leave_to_reaper`).
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
    };
    #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
    let below = keep as libc::c_uint;
    (keep == 0 || close_range(0, below - 1)) && close_range(keep + 1, libc::c_uint::MAX)
}

fn spawn_reaper() {
    // Memory is shared, not copied: as with vfork(2) the new task must not touch what this one still
    // uses. A stack of its own comes from the C library, which wants one.
    const STACK_SIZE: usize = 16 << 10;
    let stack = vec![0_u128; STACK_SIZE / size_of::<u128>()].leak();
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is never freed, and 16-byte aligned; `reaper` only makes system calls and
    // ends without unwinding or running anything of this process.
    unsafe {
        // Without it the exit is slower and all else the same.
        libc::clone(
            reaper,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_FILES,
            std::ptr::with_exposed_provenance_mut(libc::getpid().cast_unsigned() as usize),
        );
    }
}

/// Lives as long as its parent, and a moment longer: whoever waits for the parent runs first, also where there is one
/// CPU, which the kernel's last close of a VM does not let go of for milliseconds.
extern "C" fn reaper(parent: *mut libc::c_void) -> libc::c_int {
    const SIGNAL: libc::c_int = libc::SIGTERM;
    let moment = libc::timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    // The kernel's sets of signals have 64 bits.
    let signals = 1_u64 << (SIGNAL - 1);
    let (set, size) = (&raw const signals, size_of::<u64>());
    let none = std::ptr::null::<u8>();
    // SAFETY: system calls that read what is on this task's own stack, or a constant.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, set, none, size);
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, SIGNAL);
        // The parent may have died before that.
        while libc::syscall(libc::SYS_getppid) == parent.expose_provenance() as libc::c_long {
            libc::syscall(libc::SYS_rt_sigtimedwait, set, none, none, size);
        }
        libc::syscall(libc::SYS_nanosleep, &raw const moment, none);
        libc::syscall(libc::SYS_exit, 0)
    };
    0
}
