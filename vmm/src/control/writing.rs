//! A snapshot that is being written, while the guest and the API go on.

use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};

use api::command::{Fault, Response};
use api::types::{Fork, ForkedGuest, ForkedGuests};

use super::fork::{Copies, cannot_fork};
use super::leaving::Ticket;
use super::snapshot::cannot_create;
use super::{Control, chain};
use crate::snapshot::save::{Error, Killer, Taken, Writing};

/// Stack of the thread that waits for it in bytes.
const STACK_SIZE: usize = 256 << 10;

/// What became of it, and of copies that were to be started from it, if there were to be any.
struct Written {
    snapshot: Result<Taken, Error>,
    copies: Option<Result<Vec<ForkedGuest>, String>>,
}

/// It, and the thread that waits for it. Dropping it gives it up.
pub(super) struct BeingWritten {
    ticket: Ticket,
    result: Receiver<Written>,
    killer: Option<Killer>,
    leash: Option<Box<dyn Send>>,
    thread: Option<JoinHandle<()>>,
}

impl BeingWritten {
    /// Has a thread write what has been begun.
    pub(super) fn new(ticket: Ticket, writing: Writing) -> Result<Self, Error> {
        Self::begin(ticket, writing, None, |_| None)
    }

    /// The same, and then has copies started from it.
    pub(super) fn for_copies(
        ticket: Ticket,
        writing: Writing,
        copies: Copies,
        fork: Fork,
    ) -> Result<Self, Error> {
        let Copies { start, leash, .. } = copies;
        Self::begin(ticket, writing, Some(leash), move |is_written| {
            // Dropped, if it is not.
            let start = start;
            Some(if is_written {
                start(&fork)
            } else {
                Ok(Vec::new())
            })
        })
    }

    fn begin(
        ticket: Ticket,
        writing: Writing,
        leash: Option<Box<dyn Send>>,
        then: impl FnOnce(bool) -> Option<Result<Vec<ForkedGuest>, String>> + Send + 'static,
    ) -> Result<Self, Error> {
        let killer = writing.killer()?;
        let (sender, result) = sync_channel(1);
        let thread = Builder::new()
            .name("snapshot".into())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let snapshot = writing.finish();
                let copies = then(snapshot.is_ok());
                // Whoever asked may have gone.
                let _ = sender.send(Written { snapshot, copies });
            })
            .map_err(Error::Start)?;
        Ok(Self {
            ticket,
            result,
            killer,
            leash,
            thread: Some(thread),
        })
    }
}

impl Drop for BeingWritten {
    fn drop(&mut self) {
        if let Some(killer) = &self.killer {
            killer.kill();
        }
        self.leash = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Control {
    /// The answer to whoever asked for a snapshot, or for copies, if it has been written, or could not be.
    pub(super) fn take_written(&mut self) -> Option<(Ticket, Result<Response, Fault>)> {
        let writing = self.writing.as_ref()?;
        let result = match writing.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Written {
                snapshot: Err(Error::Ended),
                copies: None,
            },
        };
        let ticket = writing.ticket;
        self.writing = None;
        if let Ok(taken) = &result.snapshot {
            self.face.snapshot_taken(taken);
        }
        let answer = match (result.snapshot, result.copies) {
            (Ok(_), None) => Ok(Response::Empty),
            (Ok(_), Some(Ok(copies))) => Ok(Response::Forked(ForkedGuests(copies))),
            (Ok(_), Some(Err(why))) => Err(cannot_fork(why)),
            (Err(error), None) => Err(cannot_create(chain(&error))),
            (Err(error), Some(_)) => Err(cannot_fork(chain(&error))),
        };
        Some((ticket, answer))
    }
}
