//! The user's terminal in raw mode, and back on every way out.
#![expect(unsafe_code, reason = "termios, and restoring it in a signal handler")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use crate::{disaster, message};

const STDIN: RawFd = 0;

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

/// As it was before, if it was changed. Async-signal-safe.
pub(crate) fn restore() {
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
        disaster::handle();
    });
}
