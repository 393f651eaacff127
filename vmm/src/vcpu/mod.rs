//! A vCPU: one thread that runs guest code, paused until it is told to run.
//!
//! States: `Paused` (first), `Running`, `Stopped` (last). Only the handle changes them; the thread
//! follows, and is fetched out of KVM_RUN by a kick.

mod counters;
mod exit;
mod kick;

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::bus::Bus;
use devices::ioapic::IoApic;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::events::Events;
pub(crate) use counters::ExitCounters;
pub use counters::{ExitCounts, Exits};
use exit::Next;
use kick::Kick;

/// Stack of a vCPU thread in bytes: exits and device models are shallow.
const STACK_SIZE: usize = 256 << 10;

/// What the handle wants of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Paused,
    Running,
    Stopped,
}

struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    kick: Kick,
}

impl Shared {
    fn want(&self, wanted: Wanted) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        self.changed.notify_all();
    }

    /// Waits until there is something to do; false when that is to end.
    fn wait_to_run(&self) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self
            .changed
            .wait_while(wanted, |wanted| *wanted == Wanted::Paused)
            .unwrap_or_else(PoisonError::into_inner);
        *wanted == Wanted::Running
    }

    fn wait_for_stop(&self) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_while(wanted, |wanted| *wanted != Wanted::Stopped)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

/// Where a vCPU's accesses go.
pub(crate) struct Buses {
    pub(crate) io: Bus,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) ioapic: Arc<Mutex<IoApic>>,
}

/// A vCPU that has its registers, before it has a thread.
pub(crate) struct Vcpu {
    pub(crate) index: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) buses: Arc<Buses>,
    pub(crate) events: Arc<Events>,
    /// Only to read the instruction at which KVM gave up.
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) exits: Arc<ExitCounters>,
}

impl Vcpu {
    /// Gives the vCPU its thread, paused.
    pub(crate) fn spawn(self) -> io::Result<VcpuHandle> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted::Paused),
            changed: Condvar::new(),
            kick: Kick::new(),
        });
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .stack_size(STACK_SIZE)
            .spawn({
                let shared = Arc::clone(&shared);
                move || self.thread_main(&shared)
            })?;
        Ok(VcpuHandle {
            shared,
            thread: Some(thread),
        })
    }

    fn thread_main(mut self, shared: &Shared) {
        shared.kick.arm(&mut self.fd);
        let mut first = self.index == 0;
        while shared.wait_to_run() {
            if std::mem::take(&mut first) {
                self.events.note_first_run();
            }
            let stop = loop {
                match self.run_once() {
                    Next::Continue => {}
                    Next::Interrupted => break None,
                    Next::Stop(reason) => break Some(reason),
                }
            };
            if let Some(reason) = stop {
                self.events.stop(reason);
            }
            if self.events.is_stopping() {
                shared.wait_for_stop();
            }
        }
        shared.kick.disarm();
    }
}

/// A vCPU's thread, seen from outside. Dropping it stops the thread and waits for it.
pub(crate) struct VcpuHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    pub(crate) fn run(&self) {
        self.shared.want(Wanted::Running);
    }

    /// Asks the thread to end; `drop` waits for it.
    pub(crate) fn stop(&self) {
        self.shared.want(Wanted::Stopped);
        self.shared.kick.kick();
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A vCPU thread that panicked has printed why.
            let _ = thread.join();
        }
    }
}
