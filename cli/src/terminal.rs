//! The user's terminal in raw mode, and back on every way out.
#![expect(unsafe_code, reason = "termios, and restoring it in a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use crate::message;

const STDIN: RawFd = 0;
/// Signals of a bug in mote: the terminal is restored before they end the process as they always do.
const FATAL: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];

/// What the terminal was before.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Puts standard input into raw mode while it lives.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Fails when standard input is not a terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure or fails.
        if unsafe { libc::tcgetattr(STDIN, before.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it did not fail.
        let before = *BEFORE.get_or_init(|| unsafe { before.assume_init() });
        restore_on_disaster();
        let mut raw = before;
        // SAFETY: both are valid termios structures.
        unsafe {
            libc::cfmakeraw(&raw mut raw);
            RAW.store(true, Ordering::SeqCst);
            if libc::tcsetattr(STDIN, libc::TCSANOW, &raw const raw) != 0 {
                RAW.store(false, Ordering::SeqCst);
                return Err(io::Error::last_os_error());
            }
        }
        message::set_raw(true);
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
        message::set_raw(false);
    }
}

/// Whether standard input is a terminal of which this process has the foreground. In the background a
/// read would stop the process.
pub(crate) fn is_foreground_terminal() -> bool {
    // SAFETY: these take plain numbers.
    unsafe { libc::isatty(STDIN) == 1 && libc::tcgetpgrp(STDIN) == libc::getpgrp() }
}

/// Whether standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    // SAFETY: takes a plain number.
    unsafe { libc::isatty(STDIN) == 1 }
}

/// Columns and rows of the terminal, if standard input is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: the call fills the structure or fails.
    let size = unsafe {
        if libc::ioctl(STDIN, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    Some((size.ws_col, size.ws_row))
}

/// Async-signal-safe.
fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(before) = BEFORE.get()
    {
        // SAFETY: the structure came from tcgetattr.
        unsafe {
            libc::tcsetattr(STDIN, libc::TCSANOW, before);
        }
    }
}

fn restore_on_disaster() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            default_hook(info);
        }));
        for signal in FATAL {
            // SAFETY: the handler is async-signal-safe; SA_RESETHAND lets the signal end the process
            // when the instruction that raised it is run again.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fatal as extern "C" fn(libc::c_int) as usize;
                action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    });
}

extern "C" fn on_fatal(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe, and the handler is the default one again.
    unsafe {
        libc::raise(signal);
    }
}
