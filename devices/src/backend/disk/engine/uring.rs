//! Operations by io_uring: one system call for a batch, on registered files; the kernel signals an
//! eventfd for what ends later.
//!
//! An operation is kept in a slot from its submission until its completion was reaped, and with it the
//! guest memory it uses. Dropping the engine waits for all of them.
//!
//! Writes go to the page cache by pwritev as long as that does not block: the kernel would hand each of
//! them to a thread of its own, as file systems like ext4 cannot promise that they do not wait, and that
//! costs more than the write. One that took long, as when too much is dirty, sends those that follow
//! through the ring for a hundred times that long: the loop stands still for a hundredth of the time
//! at most.
//!
//! What has ended by the time a batch was submitted, as reads from the page cache have, is reaped at
//! once: the eventfd is off while that happens, so that it costs no wake-up.

#![expect(unsafe_code, reason = "operations are given to the kernel by address")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::file::{HostFile, IOV_MAX};
use super::{Done, Engine, Op, OpKind, perform};

/// Operations that are in the kernel's hands at a time. More wait here.
const SLOTS: u16 = 256;
/// How long to wait when the kernel is out of memory for requests.
const BACK_OFF: Duration = Duration::from_millis(1);
/// How often to try before going on without the kernel.
const TRIES: u32 = 1000;

/// Larger writes always go through the ring: there the kernel does several of them at a time.
const INLINE_MAX: u64 = 1 << 20;
/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_millis(2);
/// For how many times as long the next ones are left to the ring.
const PATIENCE: u32 = 100;

pub(in super::super) struct Uring {
    // Runtime glue.
    ring: IoUring,
    event: EventFd,
    files: Vec<Arc<HostFile>>,
    // Volatile state.
    /// Operations in flight. Never moved: the kernel has the addresses of what is in them.
    slots: Box<[Option<Op>]>,
    free: Vec<u16>,
    /// Pushed when there was no slot.
    waiting: VecDeque<Op>,
    /// Ended without the kernel.
    done: Vec<Done>,
    /// The kernel refuses to work.
    broken: bool,
    /// Writes are left to the ring until then.
    ring_until: Option<Instant>,
}

impl Uring {
    /// Fails where the host has no io_uring, or forbids it.
    pub(in super::super) fn new(files: Vec<Arc<HostFile>>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_coop_taskrun()
            .build(SLOTS.into())
            .or_else(|_| IoUring::builder().dontfork().build(SLOTS.into()))?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        ring.submitter().register_files(&fds)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            event,
            files,
            slots: (0..SLOTS).map(|_| None).collect(),
            free: (0..SLOTS).rev().collect(),
            waiting: VecDeque::new(),
            done: Vec::new(),
            broken: false,
            ring_until: None,
        })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts an operation into the submission queue, if there is a slot for it.
    fn start(&mut self, op: Op) -> Result<(), Op> {
        let Some(slot) = self.free.pop() else {
            return Err(op);
        };
        let op = self.slots[usize::from(slot)].insert(op);
        let entry = entry(op).user_data(slot.into());
        // SAFETY: what the entry points to is in the slot, or is guest memory which the buffer in the
        // slot keeps mapped; the slot is emptied only when the operation has ended.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_ok() {
            return Ok(());
        }
        // As many entries as slots: does not happen.
        self.free.push(slot);
        match self.slots[usize::from(slot)].take() {
            Some(op) => Err(op),
            None => Ok(()),
        }
    }

    /// Takes what has ended from the completion queue.
    fn take_completions(&mut self, done: &mut Vec<Done>) {
        let slots = &mut self.slots;
        for completion in self.ring.completion() {
            let Ok(slot) = u16::try_from(completion.user_data()) else {
                continue;
            };
            let Some(op) = slots.get_mut(usize::from(slot)).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            let result = finish(&self.files, &op, completion.result());
            done.push((op.token, result));
        }
    }

    /// Has the kernel take all entries, and waits until `want` operations have ended. If the kernel
    /// does not do that, what is left is done without it from now on.
    fn enter(&mut self, want: usize) {
        for _ in 0..TRIES {
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => {
                    if self.ring.submission().is_empty() {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue has to be emptied, or memory is short.
                    Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {
                        let mut done = std::mem::take(&mut self.done);
                        self.take_completions(&mut done);
                        self.done = done;
                        if want > 0 && !self.done.is_empty() {
                            return;
                        }
                        thread::sleep(BACK_OFF);
                    }
                    _ => {
                        log::error!("io_uring fails: {error}");
                        break;
                    }
                },
            }
        }
        self.give_up();
    }

    /// The ring is of no use any more.
    fn give_up(&mut self) {
        log::error!("A disk goes on without io_uring");
        self.broken = true;
        let mut done = std::mem::take(&mut self.done);
        self.take_completions(&mut done);
        for (slot, op) in (0..).zip(&mut self.slots) {
            if let Some(op) = op.take() {
                done.push((op.token, Err(io::Error::from_raw_os_error(libc::EIO))));
                // The kernel may still use the memory.
                std::mem::forget(op);
                self.free.push(slot);
            }
        }
        self.done = done;
        for op in std::mem::take(&mut self.waiting) {
            self.push(op);
        }
    }

    /// Writes at once, unless that may block.
    fn write_inline(&mut self, op: &Op) -> bool {
        if op.kind != OpKind::Write || op.buffer.len() > INLINE_MAX {
            return false;
        }
        let start = Instant::now();
        match self.ring_until {
            Some(until) if start < until => return false,
            _ => self.ring_until = None,
        }
        self.done.push((op.token, perform(&self.files, op)));
        let took = start.elapsed();
        if took > SLOW {
            self.ring_until = start.checked_add(took.saturating_mul(PATIENCE));
        }
        true
    }

    fn start_waiting(&mut self) {
        while let Some(op) = self.waiting.pop_front() {
            if let Err(op) = self.start(op) {
                self.waiting.push_front(op);
                return;
            }
        }
    }
}

impl Engine for Uring {
    fn push(&mut self, op: Op) {
        if self.broken || op.buffer.iovecs().len() > IOV_MAX {
            // More pieces than the kernel takes at once: only odd drivers send such.
            self.done.push((op.token, perform(&self.files, &op)));
        } else if self.write_inline(&op) {
            // It is over.
        } else if !self.waiting.is_empty() {
            self.waiting.push_back(op);
        } else if let Err(op) = self.start(op) {
            self.waiting.push_back(op);
        }
    }

    fn submit(&mut self) {
        if self.broken || self.ring.submission().is_empty() {
            return;
        }
        self.ring.completion().disable_eventfd();
        self.enter(0);
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        loop {
            done.append(&mut self.done);
            self.take_completions(done);
            self.start_waiting();
            if self.broken || self.ring.submission().is_empty() {
                done.append(&mut self.done);
                break;
            }
            self.submit();
        }
        // What ends from here on is signalled; what ended just before was not.
        self.ring.completion().enable_eventfd();
        self.take_completions(done);
        if !self.waiting.is_empty() && !self.free.is_empty() {
            // Fails only when the counter is at its maximum: it is readable then too.
            let _ = self.event.write(1);
        }
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        loop {
            self.take_completions(done);
            done.append(&mut self.done);
            // In this order: if there is anything to wait for, it is in the kernel's hands.
            self.start_waiting();
            if self.in_flight() == 0 && self.waiting.is_empty() {
                return;
            }
            self.enter(1);
        }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn clear_event(&mut self) {
        // Fails if it is empty.
        let _ = self.event.read();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain(&mut Vec::new());
        // The kernel takes its time with a ring that was closed, and would keep the files open.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// What the kernel is told of an operation.
fn entry(op: &Op) -> squeue::Entry {
    #[expect(clippy::cast_possible_truncation, reason = "one of a few files")]
    let file = types::Fixed(op.file as u32);
    let iovecs = op.buffer.iovecs();
    // At most IOV_MAX.
    let count = u32::try_from(iovecs.len()).unwrap_or(0);
    // More than the kernel does at once is done when it has ended.
    let single = match iovecs {
        [only] => u32::try_from(only.iov_len)
            .ok()
            .map(|len| (only.iov_base, len)),
        _ => None,
    };
    match (op.kind, single) {
        (OpKind::Read, Some((base, len))) => opcode::Read::new(file, base.cast(), len)
            .offset(op.offset)
            .build(),
        (OpKind::Read, None) => opcode::Readv::new(file, iovecs.as_ptr(), count)
            .offset(op.offset)
            .build(),
        (OpKind::Write, Some((base, len))) => opcode::Write::new(file, base.cast(), len)
            .offset(op.offset)
            .build(),
        (OpKind::Write, None) => opcode::Writev::new(file, iovecs.as_ptr(), count)
            .offset(op.offset)
            .build(),
        (OpKind::Sync, _) => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

/// The result of an operation; the rest of one that the kernel has done in part is done now.
fn finish(files: &[Arc<HostFile>], op: &Op, result: i32) -> io::Result<()> {
    let done = match u64::try_from(result) {
        Ok(done) => done,
        Err(_) if matches!(result.saturating_neg(), libc::EINTR | libc::EAGAIN) => {
            return perform(files, op);
        }
        Err(_) => return Err(io::Error::from_raw_os_error(result.saturating_neg())),
    };
    if op.kind == OpKind::Sync || done == op.buffer.len() {
        return Ok(());
    }
    let rest = Op {
        offset: op.offset + done,
        buffer: op.buffer.slice(done, op.buffer.len()),
        ..*op
    };
    perform(files, &rest)
}
