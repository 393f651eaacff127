//! Signals that end the process at once, because of a mistake in it or of its host: the terminal is put back, and
//! whoever has asked for that may say something last. Others, which it survives, are counted.
//!
//! A handler of signals can do next to nothing. What can be done is a thread's, which waits for nothing else; the
//! thread that was hit waits until it is done, for a moment at most, as it may hold what that one needs. Then the
//! process ends as if nobody had handled the signal.
#![expect(unsafe_code, reason = "handles signals")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::Builder;

use devices::backend::lost_pages;
use telemetry::SignalCounts;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::terminal;

/// Stack of the thread, in bytes: what is said is made on the heap.
const STACK_SIZE: usize = 128 << 10;
/// How often, and how many times, whoever was hit looks whether all is said: half a second.
const LOOK_NANOSECONDS: libc::c_long = 5_000_000;
const LOOKS: usize = 100;

const FATAL: [libc::c_int; 7] = [
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGXCPU,
];
/// What the instruction brings about that is to blame: it does so again.
const FAULTS: [libc::c_int; 4] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE];
/// What is said of a page of memory that the host does not have.
const MEMORY_IS_GONE: &[u8] =
    b"mote: memory is gone: a file that it is mapped from, such as the memory file of a snapshot, was cut or cannot be \
read (SIGBUS)\n";
const SURVIVED: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

/// How often each signal has come.
static COUNTS: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
/// The descriptor that wakes the thread; -1 before there is one.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// The thread.
static SPEAKER: AtomicI32 = AtomicI32::new(0);
/// The signal that ends the process; 0 before that.
static FIRST: AtomicI32 = AtomicI32::new(0);
static IS_DONE: AtomicBool = AtomicBool::new(false);

/// What has come so far.
pub(crate) fn counts() -> SignalCounts {
    let count = |signal: libc::c_int| {
        usize::try_from(signal)
            .ok()
            .and_then(|signal| COUNTS.get(signal))
            .map_or(0, |count| count.load(Ordering::Relaxed))
    };
    SignalCounts {
        bus: count(libc::SIGBUS),
        segv: count(libc::SIGSEGV),
        xfsz: count(libc::SIGXFSZ),
        xcpu: count(libc::SIGXCPU),
        pipe: count(libc::SIGPIPE),
        ill: count(libc::SIGILL),
    }
}

/// Handles them from now on.
pub(crate) fn handle() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in FATAL {
            handle_fatal(signal);
        }
    });
}

/// Counts signals that are survived, from now on.
pub(crate) fn count_survived() -> io::Result<()> {
    for signal in SURVIVED {
        register_signal_handler(signal, on_survived)?;
    }
    Ok(())
}

/// Has `words` called, once, when a signal ends the process; it hears which.
pub(crate) fn say_last(words: impl FnOnce(i32) + Send + 'static) -> io::Result<()> {
    let wake = EventFd::new(EFD_CLOEXEC)?;
    WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
    Builder::new()
        .name("last-words".into())
        .stack_size(STACK_SIZE)
        .spawn(move || {
            // SAFETY: it only asks.
            SPEAKER.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            while FIRST.load(Ordering::SeqCst) == 0 {
                match wake.read() {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                    _ => {}
                }
            }
            words(FIRST.load(Ordering::SeqCst));
            IS_DONE.store(true, Ordering::SeqCst);
            // The descriptor is there until the end.
            loop {
                std::thread::park();
            }
        })?;
    handle();
    Ok(())
}

/// On the stack for signals, as that of the thread may be what is at its end.
fn handle_fatal(signal: libc::c_int) {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fatal;
    // SAFETY: the action is complete, and its handler does nothing that a handler may not do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

fn count(signal: libc::c_int) {
    let count = usize::try_from(signal)
        .ok()
        .and_then(|signal| COUNTS.get(signal));
    if let Some(count) = count {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

extern "C" fn on_survived(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    count(signal);
}

extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo, which is there for as long as this runs.
    let info = unsafe { &*info };
    if signal == libc::SIGBUS && lost_pages::has_replaced(info) {
        return;
    }
    count(signal);
    terminal::restore();
    // SAFETY: it only asks.
    let is_speaker = unsafe { libc::gettid() } == SPEAKER.load(Ordering::SeqCst);
    if FIRST
        .compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok()
    {
        if signal == libc::SIGBUS && info.si_code > 0 {
            // SAFETY: write(2) is for handlers too, and reads its buffer only.
            unsafe {
                libc::write(
                    libc::STDERR_FILENO,
                    MEMORY_IS_GONE.as_ptr().cast(),
                    MEMORY_IS_GONE.len(),
                )
            };
        }
        wake();
    }
    if !is_speaker && WAKE.load(Ordering::SeqCst) >= 0 {
        wait();
    }
    let comes_again = info.si_code > 0 && FAULTS.contains(&signal);
    // SAFETY: signal(2) and raise(3) are for handlers too. The signal that is raised comes when this returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if !comes_again {
            libc::raise(signal);
        }
    }
}

fn wake() {
    let wake: RawFd = WAKE.load(Ordering::SeqCst);
    let one = 1u64;
    if wake >= 0 {
        // SAFETY: write(2) is for handlers too; the buffer is 8 bytes, as an eventfd takes them.
        unsafe { libc::write(wake, (&raw const one).cast(), size_of_val(&one)) };
    }
}

fn wait() {
    for _ in 0..LOOKS {
        if IS_DONE.load(Ordering::SeqCst) {
            return;
        }
        let time = libc::timespec {
            tv_sec: 0,
            tv_nsec: LOOK_NANOSECONDS,
        };
        // SAFETY: nanosleep(2) is for handlers too, and reads its argument only.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }
}
