//! Signals that ask mote to end, brought to the event loop.
#![expect(unsafe_code, reason = "a signal handler writes to an eventfd")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use devices::virtio::console::ConsoleControl;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, poll};
use vmm::{StopRequest, Stopper};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::terminal;

const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The descriptor the handler writes to; -1 before there is one.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// The first signal that arrived; 0 before that.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// Such signals, caught.
pub(crate) struct Signals {
    wake: EventFd,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
        for signal in ENDING {
            register_signal_handler(signal, on_signal)?;
        }
        Ok(Self { wake })
    }

    /// The first one that has arrived.
    pub(crate) fn first(&self) -> Option<i32> {
        let _ = self.wake.read();
        Some(FIRST.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl AsRawFd for Signals {
    /// What becomes readable with the first one.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open for as long as `self` is there.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        WAKE.store(-1, Ordering::SeqCst);
    }
}

/// Stops the machine when such a signal arrives.
pub(crate) struct SignalWatch {
    signals: Signals,
    stopper: Stopper,
}

impl SignalWatch {
    /// Catches the signals from now on.
    pub(crate) fn new(stopper: Stopper) -> io::Result<Self> {
        let signals = Signals::catch()?;
        Ok(Self { signals, stopper })
    }
}

impl MutEventSubscriber for SignalWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Some(signal) = self.signals.first() {
            self.stopper.stop(StopRequest::Signal(signal));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.signals, EventSet::IN));
    }
}

/// The descriptor that hears of changes of the terminal's size; -1 before there is one.
static RESIZED: AtomicI32 = AtomicI32::new(-1);

/// Changes of the terminal's size.
pub(crate) struct Resizes(EventFd);

impl Resizes {
    /// Hears of them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let resized = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        RESIZED.store(resized.as_raw_fd(), Ordering::SeqCst);
        register_signal_handler(libc::SIGWINCH, on_resize)?;
        Ok(Self(resized))
    }

    /// What has come has been heard of.
    pub(crate) fn clear(&self) {
        let _ = self.0.read();
    }

    /// Waits for the next one.
    pub(crate) fn wait(&self) {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        // Interrupted, or failed, is as good: whoever waits looks at the size itself.
        let _ = poll(&mut fds, None);
        self.clear();
    }
}

impl AsFd for Resizes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open for as long as `self` is there.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl Drop for Resizes {
    fn drop(&mut self) {
        RESIZED.store(-1, Ordering::SeqCst);
    }
}

/// Tells the guest's console of the size of the terminal whenever that changes.
pub(crate) struct WindowWatch {
    resizes: Resizes,
    console: ConsoleControl,
}

impl WindowWatch {
    /// Looks from now on.
    pub(crate) fn new(console: ConsoleControl) -> io::Result<Self> {
        let resizes = Resizes::catch()?;
        Ok(Self { resizes, console })
    }
}

impl MutEventSubscriber for WindowWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.resizes.clear();
        if let Some((columns, rows)) = terminal::size() {
            self.console.resize(columns, rows);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.resizes.0, EventSet::IN));
    }
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let _ = FIRST.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    wake(&WAKE);
}

extern "C" fn on_resize(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    wake(&RESIZED);
}

/// Async-signal-safe.
fn wake(target: &AtomicI32) {
    let wake: RawFd = target.load(Ordering::SeqCst);
    if wake >= 0 {
        let one = 1u64;
        // SAFETY: write(2) is async-signal-safe; the buffer is 8 bytes, as an eventfd takes them.
        // errno is put back, as the interrupted code may be about to read it.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wake, (&raw const one).cast(), size_of_val(&one));
            *libc::__errno_location() = errno;
        }
    }
}
