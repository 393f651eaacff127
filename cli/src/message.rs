//! What mote itself says, on standard error.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use devices::error::chain;

/// A terminal in raw mode does not return the carriage by itself.
static RAW: AtomicBool = AtomicBool::new(false);

/// Tells whether the terminal is in raw mode now.
pub(crate) fn set_raw(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

/// KVM did not go on with a vCPU of a guest. Guest memory that the host cannot give is that of a file, most often.
pub(crate) fn run_failed(guest: &str, cpu: u32, error: &dyn Display, errno: i32) -> String {
    let hint = if errno == libc::EFAULT {
        ": memory of the guest is gone. Was a file that it is mapped from, such as the memory file of its snapshot, cut?"
    } else {
        ""
    };
    format!("KVM_RUN failed for vCPU {cpu} of {guest}: {error}{hint}")
}

/// The last that was said ([`say`]) in what a process has written.
pub(crate) fn last_said(text: &str) -> Option<&str> {
    text.lines()
        .rev()
        .find_map(|line| line.strip_prefix("mote: "))
}

/// Says one or more lines.
pub(crate) fn say(text: &dyn Display) {
    let text = format!("mote: {text}");
    let end = if RAW.load(Ordering::Relaxed) {
        "\r\n"
    } else {
        "\n"
    };
    let mut lines = String::new();
    for line in text.lines() {
        lines.push_str(line);
        lines.push_str(end);
    }
    // With standard error closed there is nobody to tell.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}
