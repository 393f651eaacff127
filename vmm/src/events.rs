//! What vCPUs and devices tell the event loop, and how anyone asks the machine to stop.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use devices::event::{EventSink, GuestEvent};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::crash::CrashReport;

/// Boot marks that wait to be printed; a guest that makes more of them loses the rest.
const MAX_QUEUED_MARKS: usize = 256;

/// Why a machine is to be stopped from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// The user quit.
    Quit,
    /// Its time was up.
    Timeout,
    /// The monitor got this signal.
    Signal(i32),
}

/// Why a machine stopped.
#[derive(Debug)]
pub enum StopReason {
    /// The guest powered off (ACPI S5).
    PowerOff,
    /// The guest asked for a restart.
    Reset,
    /// The guest's kernel reported a panic through pvpanic.
    Panicked,
    /// A vCPU took a fault while it handled a double fault.
    TripleFault {
        /// Index of the vCPU.
        cpu: u32,
    },
    /// KVM could not go on with a vCPU.
    Crashed(Box<CrashReport>),
    /// KVM_RUN itself failed.
    RunFailed {
        /// Index of the vCPU.
        cpu: u32,
        /// What KVM said.
        error: kvm_ioctls::Error,
    },
    /// The guest's first process waits for a job: it can be written as a template now.
    Waits,
    /// The guest's job has ended with this status.
    Done(u8),
    /// What serves its memory has ended.
    MemoryLost,
    /// Someone outside asked for it.
    Requested(StopRequest),
}

/// A point of its boot that the guest marked, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The byte it wrote.
    pub value: u8,
    /// When KVM handed it over.
    pub at: Instant,
}

/// Shared by vCPU threads, devices and the event loop.
pub(crate) struct Events {
    /// Readable when there is something in `pending`.
    pub(crate) wake: EventFd,
    pending: Mutex<Pending>,
    /// Set with the first reason to stop: vCPUs look at it after each exit.
    stopping: AtomicBool,
    first_run: OnceLock<Instant>,
    pre_faulted: OnceLock<Instant>,
    stopped: OnceLock<Instant>,
}

#[derive(Default)]
struct Pending {
    stop: Option<StopReason>,
    marks: VecDeque<Mark>,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            pending: Mutex::default(),
            stopping: AtomicBool::new(false),
            first_run: OnceLock::new(),
            pre_faulted: OnceLock::new(),
            stopped: OnceLock::new(),
        })
    }

    /// The first reason counts; what comes after it is a consequence.
    pub(crate) fn stop(&self, reason: StopReason) {
        // Before whoever waits for it is woken.
        self.stopped.get_or_init(Instant::now);
        self.lock().stop.get_or_insert(reason);
        self.stopping.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Called by the boot vCPU right before its first KVM_RUN.
    pub(crate) fn note_first_run(&self) {
        let _ = self.first_run.set(Instant::now());
    }

    pub(crate) fn first_run(&self) -> Option<Instant> {
        self.first_run.get().copied()
    }

    /// Called by the vCPU's thread that had KVM map pages, before that enters the guest.
    pub(crate) fn note_pre_faulted(&self) {
        let _ = self.pre_faulted.set(Instant::now());
    }

    pub(crate) fn pre_faulted(&self) -> Option<Instant> {
        self.pre_faulted.get().copied()
    }

    pub(crate) fn stopped(&self) -> Option<Instant> {
        self.stopped.get().copied()
    }

    pub(crate) fn take_stop(&self) -> Option<StopReason> {
        self.lock().stop.take()
    }

    pub(crate) fn take_mark(&self) -> Option<Mark> {
        self.lock().marks.pop_front()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the event loop.
    pub(crate) fn notify(&self) {
        // Fails only when the counter is at its maximum, and then the loop is being woken anyway.
        let _ = self.wake.write(1);
    }
}

impl EventSink for Events {
    fn event(&self, event: GuestEvent) {
        match event {
            GuestEvent::PowerOff => self.stop(StopReason::PowerOff),
            GuestEvent::Reset => self.stop(StopReason::Reset),
            GuestEvent::Panicked => self.stop(StopReason::Panicked),
            GuestEvent::Waits => self.stop(StopReason::Waits),
            GuestEvent::Done(status) => self.stop(StopReason::Done(status)),
            GuestEvent::BootTimer(value) => {
                let at = Instant::now();
                let mut pending = self.lock();
                if pending.marks.len() < MAX_QUEUED_MARKS {
                    pending.marks.push_back(Mark { value, at });
                    drop(pending);
                    self.notify();
                }
            }
        }
    }
}

/// Asks a machine to stop, from any thread or event handler.
#[derive(Clone)]
pub struct Stopper(pub(crate) Arc<Events>);

impl Stopper {
    /// Makes [`crate::Vm::run`] return with [`StopReason::Requested`], unless it already has a reason.
    pub fn stop(&self, request: StopRequest) {
        self.0.stop(StopReason::Requested(request));
    }
}
