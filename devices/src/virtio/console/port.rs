//! What vCPUs and the worker of a console have in common.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Bytes that wait in the emergency register; more are thrown away.
pub(super) const EMERGENCY_MAX: usize = 4096;

/// What a vCPU can do without waiting for the worker.
pub(super) struct Port {
    pub(super) wake: EventFd,
    /// The driver has looked at the size since it came.
    pub(super) looked: AtomicBool,
    /// Something has come from the guest since the console was made.
    pub(super) has_printed: AtomicBool,
    pub(super) emergency: Mutex<VecDeque<u8>>,
}

impl Port {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            looked: AtomicBool::new(false),
            has_printed: AtomicBool::new(false),
            emergency: Mutex::default(),
        })
    }

    /// Takes a character that is to be printed in whatever state the guest is.
    pub(super) fn emergency_write(&self, byte: u8) {
        self.has_printed.store(true, Ordering::Relaxed);
        let mut emergency = lock(&self.emergency);
        if emergency.len() < EMERGENCY_MAX {
            emergency.push_back(byte);
            self.wake();
        }
    }

    /// The driver looks at the size of the window.
    pub(super) fn size_read(&self) {
        if !self.looked.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        // Fails only when the counter is at its maximum: it is readable then too.
        let _ = self.wake.write(1);
    }
}
