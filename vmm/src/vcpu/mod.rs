//! A vCPU: one thread that runs guest code, paused until it is told to run.
//!
//! States: `Paused` (first), `Running`, `Stopped` (last). Only the handle changes what is wanted; the
//! thread follows, is fetched out of KVM_RUN by a kick, and says when it has come to rest.

mod counters;
mod exit;
mod kick;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::backend::lost_pages::Replaced;
use devices::bus::Bus;
use devices::ioapic::IoApic;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::events::Events;
use crate::faults::{Meter, MeterSlot};
use crate::snapshot::working_set::PreFault;
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

/// What the thread and its handle tell each other.
struct Status {
    wanted: Wanted,
    /// The thread is not in the guest, and does not go there before something else is wanted.
    at_rest: bool,
    /// What it is to do with its vCPU while it rests.
    task: Option<Task>,
    /// The thread has ended: it does nothing any more.
    ended: bool,
}

/// KVM wants a vCPU's calls to come from its own thread.
type Task = Box<dyn FnOnce(&VcpuFd) + Send>;

struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
    kick: Kick,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing else is wanted any more of a thread that is to end.
    fn want(&self, wanted: Wanted) {
        let mut status = self.lock();
        if status.wanted != Wanted::Stopped {
            status.wanted = wanted;
        }
        drop(status);
        self.changed.notify_all();
    }

    /// The thread: rests for as long as `rest` says so, doing what it is told with its vCPU meanwhile, and
    /// returns what is wanted then.
    fn rest_while(&self, vcpu: &VcpuFd, rest: impl Fn(Wanted) -> bool) -> Wanted {
        let mut status = self.lock();
        while rest(status.wanted) {
            if let Some(task) = status.task.take() {
                drop(status);
                task(vcpu);
                status = self.lock();
                continue;
            }
            if !status.at_rest {
                status.at_rest = true;
                self.changed.notify_all();
            }
            let waited = self.changed.wait(status);
            status = waited.unwrap_or_else(PoisonError::into_inner);
        }
        status.at_rest = false;
        status.wanted
    }

    /// Waits until the thread rests; false if it does not until `deadline`.
    fn wait_for_rest(&self, deadline: Instant) -> bool {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |status| !status.at_rest);
        let (status, _) = waited.unwrap_or_else(PoisonError::into_inner);
        status.at_rest
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
    /// What KVM is to map first.
    pub(crate) pre_fault: Option<PreFault>,
    /// Where somebody looks at its page faults.
    pub(crate) meter: Option<MeterSlot>,
    /// Of files that someone has cut.
    pub(crate) lost_pages: Replaced,
}

impl Vcpu {
    /// Gives the vCPU its thread, paused.
    pub(crate) fn spawn(self) -> io::Result<VcpuHandle> {
        let shared = Arc::new(Shared {
            status: Mutex::new(Status {
                wanted: Wanted::Paused,
                at_rest: false,
                task: None,
                ended: false,
            }),
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
            thread: Mutex::new(Some(thread)),
        })
    }

    fn thread_main(mut self, shared: &Shared) {
        shared.kick.arm(&mut self.fd);
        if let Some(slot) = self.meter.take() {
            // It is this thread's.
            let _ = slot.set(Meter::new(&self.fd));
        }
        if let Some(pre_fault) = self.pre_fault.take() {
            pre_fault.apply(&self.fd);
            self.events.note_pre_faulted();
        }
        let mut has_run = false;
        loop {
            match shared.rest_while(&self.fd, |wanted| wanted == Wanted::Paused) {
                Wanted::Stopped => break,
                Wanted::Paused | Wanted::Running => {}
            }
            if !std::mem::replace(&mut has_run, true) && self.index == 0 {
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
                shared.rest_while(&self.fd, |wanted| wanted != Wanted::Stopped);
            }
            if shared.lock().wanted == Wanted::Paused {
                // So that the guest's watchdogs do not count the pause. A guest without the clock of
                // KVM has none that could be told.
                let _ = self.fd.kvmclock_ctrl();
            }
        }
        shared.kick.disarm();
        let mut status = shared.lock();
        status.at_rest = true;
        status.ended = true;
        // Whoever waits for it hears that it will not be done.
        let task = status.task.take();
        drop(status);
        drop(task);
        shared.changed.notify_all();
    }
}

/// A vCPU's thread, seen from outside. Dropping it stops the thread and waits for it.
pub(crate) struct VcpuHandle {
    shared: Arc<Shared>,
    /// None: somebody has waited for its end.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VcpuHandle {
    fn run(&self) {
        self.shared.want(Wanted::Running);
    }

    fn want_pause(&self) {
        self.shared.want(Wanted::Paused);
        self.shared.kick.kick();
    }

    /// Has the thread do something with its vCPU, as it rests; what comes of it arrives at the receiver, or
    /// nothing does if the thread has ended.
    fn do_at_rest<R: Send + 'static>(
        &self,
        what: impl FnOnce(&VcpuFd) -> R + Send + 'static,
    ) -> mpsc::Receiver<R> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let mut status = self.shared.lock();
        if !status.ended {
            status.task = Some(Box::new(move |vcpu| {
                // Whoever asked may have gone.
                let _ = sender.send(what(vcpu));
            }));
        }
        drop(status);
        self.shared.changed.notify_all();
        receiver
    }

    /// Stops the thread for good, and waits for it.
    fn end(&self) {
        self.shared.want(Wanted::Stopped);
        self.shared.kick.kick();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A vCPU thread that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// All vCPUs of a machine.
pub(crate) struct Vcpus(Vec<VcpuHandle>);

impl Vcpus {
    pub(crate) fn new(handles: Vec<VcpuHandle>) -> Self {
        Self(handles)
    }

    /// Lets them run, or run on. Those that have ended stay where they are.
    pub(crate) fn run(&self) {
        for vcpu in &self.0 {
            vcpu.run();
        }
    }

    /// Pauses them, and returns when none is in the guest any more, or in the midst of an access to a
    /// device. If one does not get there within `timeout`, all run on, and this is false.
    pub(crate) fn pause(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        // All at once: they come out side by side.
        for vcpu in &self.0 {
            vcpu.want_pause();
        }
        let at_rest = self
            .0
            .iter()
            .all(|vcpu| vcpu.shared.wait_for_rest(deadline));
        if !at_rest {
            self.run();
        }
        at_rest
    }

    /// Has each paused vCPU's thread do the same with it, with its index, all at once. None if one of them
    /// has ended.
    pub(crate) fn do_at_rest<R: Send + 'static>(
        &self,
        what: impl Fn(usize, &VcpuFd) -> R + Send + Sync + 'static,
    ) -> Option<Vec<R>> {
        let what = Arc::new(what);
        let asked: Vec<_> = self
            .0
            .iter()
            .enumerate()
            .map(|(index, vcpu)| {
                let what = Arc::clone(&what);
                vcpu.do_at_rest(move |fd| what(index, fd))
            })
            .collect();
        asked.into_iter().map(|answer| answer.recv().ok()).collect()
    }

    /// Ends their threads, and waits for that.
    pub(crate) fn end(&self) {
        for vcpu in &self.0 {
            vcpu.shared.want(Wanted::Stopped);
            vcpu.shared.kick.kick();
        }
        for vcpu in &self.0 {
            vcpu.end();
        }
    }
}
