//! The first thing that leaves a restored guest after it went on, and what is noted then beside its memory file: which pages it
//! has touched until then, if that is not known from an earlier one (`snapshot::working_set`), and what all of it took
//! (`snapshot::restored`).
//!
//! Nothing is added to what vCPUs and devices do: a thread looks at what they count, often at first, then ever less. It is made
//! when the vCPUs run, by a thread that nothing waits for, and ends with the reply, with the machine, or when there was
//! none for [`PATIENCE`].

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use devices::lock;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::faults::{self, Faults, MeterSlot, Unawaited};
use crate::insight::Insight;
use crate::snapshot::load::MemoryFile;
use crate::snapshot::memory;
use crate::snapshot::nanoseconds_since_1970;
use crate::snapshot::restored::{Reply, ReplyKind, Restored, Taken};

/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is until the next look: a part of the time since the first one, and not less or more than this.
const PART: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(100);
/// Stack of the thread in bytes.
const STACK_SIZE: usize = 256 << 10;

/// Why it was not noted. The guest goes on without.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host does not say which pages there are.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The list of pages.
    #[error("Cannot write the list of pages beside the memory file")]
    WritePages(#[source] std::io::Error),
    /// What it took.
    #[error("Cannot write beside the memory file what the restore took")]
    Write(#[source] std::io::Error),
    /// Nobody would find it.
    #[error("The memory file is gone, or another one is in its place")]
    Gone,
    /// The machine has ended, or is none whose first reply is waited for.
    #[error("There is nothing to be noted of this machine")]
    Nothing,
}

/// When a restore began, and what page faults the process had taken before.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    at: Instant,
    before: Faults,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self {
            at: Instant::now(),
            before: Faults::of_process(),
        }
    }

    /// With this process, whose `main` began at `main`: its faults are all for this.
    pub fn of_process(main: Instant) -> Self {
        Self {
            at: main,
            before: Faults::default(),
        }
    }

    /// In milliseconds, to the microsecond.
    fn ms_until(&self, then: Instant) -> f64 {
        let time = then.saturating_duration_since(self.at);
        (time.as_secs_f64() * 1e6).round() / 1e3
    }

    /// What was between is not counted: the guest was to stand still.
    fn leave_out(&mut self, stood: Self) {
        self.at += stood.at.elapsed();
        self.before = self.before + (Faults::of_process() - stood.before);
    }
}

/// Whose first reply it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A guest's that goes on: anything.
    Anything,
    /// The status of a job, which whoever runs it says ([`FirstReply::note_status`]).
    JobStatus,
}

/// What is known of the machine.
pub(crate) struct Subject {
    pub(crate) start: Start,
    pub(crate) awaited: Awaited,
    pub(crate) insight: Insight,
    pub(crate) memory: Weak<GuestMemoryMmap>,
    pub(crate) file: Arc<MemoryFile>,
    pub(crate) meters: Vec<MeterSlot>,
    /// Faults of the process that are not counted.
    pub(crate) unawaited: Arc<Unawaited>,
}

/// See the module. It is shared by all who let the vCPUs run.
pub(crate) struct FirstReply(Mutex<State>);

enum State {
    /// The vCPUs have not run yet; since when the guest was to stand still.
    Before(Box<Subject>, Option<Start>),
    /// They run, and nobody looks.
    Running(Box<Subject>, Taken),
    /// The thread that looks ends when the sender is dropped.
    Awaited(Sender<()>, JoinHandle<()>),
    /// It has been noted, or will not be.
    Over,
}

impl FirstReply {
    pub(crate) fn new(subject: Subject) -> Self {
        Self(Mutex::new(State::Before(Box::new(subject), None)))
    }

    /// The machine is there, and is to stand still as it was written.
    pub(crate) fn stand_still(&self) {
        if let State::Before(_, stands) = &mut *lock(&self.0) {
            *stands = Some(Start::now());
        }
    }

    /// The vCPUs have been told to run. What may take its time is left to [`FirstReply::look`].
    pub(crate) fn running(&self) {
        let mut state = lock(&self.0);
        *state = match std::mem::replace(&mut *state, State::Over) {
            State::Before(mut subject, stands) => {
                if let Some(stands) = stands {
                    subject.start.leave_out(stands);
                }
                let running = subject.taken();
                State::Running(subject, running)
            }
            other => other,
        };
    }

    /// Has a thread look for it, unless somebody will say when it has come.
    pub(crate) fn look(&self) {
        let mut state = lock(&self.0);
        *state = match std::mem::replace(&mut *state, State::Over) {
            State::Running(subject, running) if subject.awaited == Awaited::Anything => {
                let (sender, end) = channel();
                let thread = Builder::new()
                    .name("first-reply".into())
                    .stack_size(STACK_SIZE)
                    .spawn(move || {
                        let reply = subject.await_reply(&end);
                        subject.note_or_log(running, reply);
                    });
                match thread {
                    Ok(thread) => State::Awaited(sender, thread),
                    Err(error) => {
                        log::debug!("Nobody looks for the guest's first reply: {error}");
                        State::Over
                    }
                }
            }
            other => other,
        };
    }

    /// The status of a job has come: notes what there is to be noted.
    pub(crate) fn note_status(&self) -> Result<(), Error> {
        let state = std::mem::replace(&mut *lock(&self.0), State::Over);
        match state {
            State::Running(subject, running) if subject.awaited == Awaited::JobStatus => {
                subject.note(running, Some(subject.reply(ReplyKind::JobStatus)))
            }
            _ => Err(Error::Nothing),
        }
    }

    /// Before the machine ends: has what has come by now be noted, and waits for that.
    pub(crate) fn end(&self) {
        let state = std::mem::replace(&mut *lock(&self.0), State::Over);
        match state {
            State::Awaited(sender, thread) => {
                drop(sender);
                // One that panicked has printed why.
                let _ = thread.join();
            }
            State::Running(subject, running) if subject.awaited == Awaited::Anything => {
                let reply = subject.insight.first_reply();
                subject.note_or_log(running, reply.map(|kind| subject.reply(kind)));
            }
            State::Before(..) | State::Running(..) | State::Over => {}
        }
    }
}

/// Ends it when it is dropped.
pub(crate) struct EndFirstReplyOnDrop(pub(crate) Option<Arc<FirstReply>>);

impl Drop for EndFirstReplyOnDrop {
    fn drop(&mut self) {
        if let Some(first_reply) = &self.0 {
            first_reply.end();
        }
    }
}

impl Subject {
    /// Looks until there is one, or none for too long, or `end` is hung up.
    fn await_reply(&self, end: &Receiver<()>) -> Option<Reply> {
        let began = Instant::now();
        loop {
            let since = began.elapsed();
            let pause = (since / PART).clamp(SHORTEST, LONGEST);
            let is_last = end.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected);
            if let Some(kind) = self.insight.first_reply() {
                return Some(self.reply(kind));
            }
            if is_last || since >= PATIENCE {
                return None;
            }
        }
    }

    /// What has been taken by now.
    fn taken(&self) -> Taken {
        let all = Faults::of_process() - self.start.before;
        Taken {
            ms: self.start.ms_until(Instant::now()),
            faults: all - self.unawaited.faults(),
        }
    }

    /// There is one now.
    fn reply(&self, kind: ReplyKind) -> Reply {
        Reply {
            kind,
            taken: self.taken(),
            vcpus: faults::of_vcpus(&self.meters),
        }
    }

    fn note_or_log(&self, running: Taken, reply: Option<Reply>) {
        if let Err(error) = self.note(running, reply) {
            log::debug!(
                "What the restore took is not noted: {}",
                devices::error::chain(&error)
            );
        }
    }

    fn note(&self, mut running: Taken, reply: Option<Reply>) -> Result<(), Error> {
        if let Some(first_run) = self.insight.first_run() {
            running.ms = self.start.ms_until(first_run);
        }
        let noted = match (self.memory.upgrade(), &reply) {
            (Some(memory), Some(_)) => self.file.note_working_set(&memory),
            _ => Ok(()),
        };
        if let Some(memory) = self.memory.upgrade() {
            self.file.read_on(&memory);
        }
        let passed = self.start.at.elapsed().as_nanos();
        let began =
            nanoseconds_since_1970().saturating_sub(u64::try_from(passed).unwrap_or(u64::MAX));
        let mut restored = Restored::new(self.file.id(), began, self.file.working_set());
        (restored.running, restored.reply) = (running, reply);
        self.file.note_restored(&restored)?;
        noted
    }
}

#[cfg(test)]
#[path = "first_reply_test.rs"]
mod tests;
