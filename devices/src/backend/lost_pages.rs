//! Mappings of files whose pages may go: because someone cuts the file, or because the host has no room for
//! a page that the guest is the first to write to.
//!
//! Whoever touches such a page gets SIGBUS, and with it the end of the process, from which nobody can keep a
//! guest that names it as a buffer; or, in the guest itself, KVM_RUN fails. Here the page is
//! replaced by one of zeroes that is nobody else's, and whoever touched it goes on. What is behind the end of
//! a file that was cut is replaced at once. The mapping is not what it was then, and says so
//! ([`Guard::is_whole`]); the file is as its host left it.
//!
//! # Races
//! 1. A guard's end clears its entry, then waits until no handler runs: none that starts later finds the
//!    entry, so that the descriptor can be closed.
//! 2. Two threads may replace the same page: what the first has written there in between is lost, as would
//!    be all the rest.
//! 3. Two vCPUs may find the same pages lost: the second one has nothing to replace, or does it again, and goes on as
//!    well, as something was replaced since it was last told so ([`Replaced`]).
#![expect(
    unsafe_code,
    reason = "handles a signal, and maps memory over lost pages"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

/// More than a guest has devices.
const MAX_GUARDS: usize = 64;
const PAGE: usize = 4096;
/// Pages of a mapping that are replaced one by one. After these its rest goes: the kernel has no room for
/// any number of pieces.
const MAX_PIECES: usize = 1024;

static ENTRIES: [Entry; MAX_GUARDS] = [const { Entry::new() }; MAX_GUARDS];
/// Threads in [`on_signal`].
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// How often pages were replaced, of whatever mapping.
static REPLACED: AtomicUsize = AtomicUsize::new(0);

/// A mapping that is looked after. All of it is read by a handler of signals.
struct Entry {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0 as long as nothing is looked after.
    end: AtomicUsize,
    fd: AtomicI32,
    is_writable: AtomicBool,
    /// Pages that were replaced; something is lost if it is not 0.
    pieces: AtomicUsize,
    /// What is behind this is lost.
    cut: AtomicUsize,
}

impl Entry {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            fd: AtomicI32::new(-1),
            is_writable: AtomicBool::new(false),
            pieces: AtomicUsize::new(0),
            cut: AtomicUsize::new(usize::MAX),
        }
    }

    fn contains(&self, address: usize) -> bool {
        (self.start.load(Ordering::Acquire)..self.end.load(Ordering::Acquire)).contains(&address)
    }

    /// Where in memory the file ends now; None if it has not been cut.
    fn cut(&self) -> Option<usize> {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        // SAFETY: a structure of numbers.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: fstat writes a stat, which lives during the call.
        let result = unsafe { libc::fstat(self.fd.load(Ordering::Acquire), &raw mut stat) };
        if result != 0 || stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return None;
        }
        let size = usize::try_from(stat.st_size).ok()?;
        let cut = start.checked_add(size.checked_next_multiple_of(PAGE)?)?;
        (cut < end).then_some(cut)
    }

    /// Replaces what is behind the end of a file that was cut; whether there was anything to replace.
    fn replace_cut(&self) -> bool {
        let Some(cut) = self.cut() else {
            return false;
        };
        let known = self.cut.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire).min(known);
        // Known only when it is done: race 3.
        let is_replaced = cut < end && self.replace(cut, end);
        self.cut.fetch_min(cut, Ordering::AcqRel);
        is_replaced
    }

    /// Replaces the page at `address`, in which a handler of a signal finds itself.
    fn replace_at(&self, address: usize) -> bool {
        let page = address / PAGE * PAGE;
        if self.replace_cut() {
            // If that was not all, the signal comes again.
            return true;
        }
        let end = self.end.load(Ordering::Acquire);
        if self.pieces.load(Ordering::Acquire) >= MAX_PIECES {
            return self.replace(page, end);
        }
        self.replace(page, page + PAGE)
    }

    fn replace(&self, from: usize, to: usize) -> bool {
        let protection = if self.is_writable.load(Ordering::Acquire) {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: the range is whole pages of a mapping of guest memory that its guard's owner keeps, and
        // that is only ever accessed as volatile memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(from),
                to - from,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        self.pieces.fetch_add(1, Ordering::AcqRel);
        let is_replaced = address != libc::MAP_FAILED;
        if is_replaced {
            REPLACED.fetch_add(1, Ordering::AcqRel);
        }
        is_replaced
    }
}

/// That a mapping is looked after. Dropped, it is not.
pub(crate) struct Guard(&'static Entry);

impl Guard {
    /// Looks after the mapping of `file` from its first byte on, `len` bytes at `address`, both multiples
    /// of the page size. The file stays open and the mapping in place for as long as the guard is there.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        address: usize,
        len: usize,
        is_writable: bool,
    ) -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(handle_signal);
        let is_free = |entry: &&Entry| !entry.taken.swap(true, Ordering::AcqRel);
        let entry = ENTRIES.iter().find(is_free);
        let entry = entry.ok_or_else(|| io::Error::other("there are too many mapped files"))?;
        entry.fd.store(file.as_raw_fd(), Ordering::Release);
        entry.is_writable.store(is_writable, Ordering::Release);
        entry.pieces.store(0, Ordering::Release);
        entry.cut.store(usize::MAX, Ordering::Release);
        entry.start.store(address, Ordering::Release);
        entry.end.store(address + len, Ordering::Release);
        Ok(Self(entry))
    }

    /// Replaces what was lost because the file was cut, if it was.
    pub(crate) fn look_again(&self) {
        self.0.replace_cut();
    }

    /// Whether no page was lost.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.pieces.load(Ordering::Acquire) == 0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Race 1. In this order, so that no address is in between.
        self.0.end.store(0, Ordering::SeqCst);
        while BUSY.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.0.taken.store(false, Ordering::Release);
    }
}

/// What a vCPU knows of pages that were replaced.
#[derive(Debug, Default)]
pub struct Replaced(usize);

impl Replaced {
    /// Replaces what was lost because a file was cut, for a vCPU that cannot go on: whether it is to try again, as anything was
    /// replaced since the last time, by this call or by anyone.
    pub fn is_new(&mut self) -> bool {
        BUSY.fetch_add(1, Ordering::SeqCst);
        let is_used = |entry: &&Entry| entry.end.load(Ordering::SeqCst) != 0;
        for entry in ENTRIES.iter().filter(is_used) {
            entry.replace_cut();
        }
        BUSY.fetch_sub(1, Ordering::SeqCst);
        let now = REPLACED.load(Ordering::Acquire);
        std::mem::replace(&mut self.0, now) != now
    }
}

/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn handle_signal() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
    // SAFETY: the actions are complete, and the handler does nothing that a handler may not do: it
    // reads and writes atomics and makes system calls. It has the stack for signals that each
    // thread of Rust's has.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
        let _ = BEFORE.set(before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// For a handler of SIGBUS: whether it was about such a page, which is replaced now.
pub fn has_replaced(info: &libc::siginfo_t) -> bool {
    BUSY.fetch_add(1, Ordering::SeqCst);
    // SAFETY: a siginfo of a fault has its address; errno is this thread's, and whoever was interrupted finds it
    // as it was.
    let is_replaced = unsafe {
        let errno = *libc::__errno_location();
        let is_replaced = info.si_code == libc::BUS_ADRERR
            && ENTRIES
                .iter()
                .find(|entry| entry.contains(info.si_addr().addr()))
                .is_some_and(|entry| entry.replace_at(info.si_addr().addr()));
        *libc::__errno_location() = errno;
        is_replaced
    };
    BUSY.fetch_sub(1, Ordering::SeqCst);
    is_replaced
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo, which is there for as long as this runs.
    let info = unsafe { &*info };
    if has_replaced(info) {
        return;
    }
    // It comes again, and is handled as it would have been without this.
    // SAFETY: sigaction(2) and raise(3) are for handlers too; the action is one that was in force.
    unsafe {
        match BEFORE.get() {
            Some(before) => libc::sigaction(signal, before, std::ptr::null_mut()),
            None => 0,
        };
        if info.si_code <= 0 {
            // Nobody who was sent it by someone else brings it about by going on.
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
#[path = "lost_pages_test.rs"]
mod tests;
