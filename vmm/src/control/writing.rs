//! A snapshot that is being written, while the guest and the API go on.

use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};

use api::command::{Fault, Response};

use super::leaving::Ticket;
use super::snapshot::cannot_create;
use super::{Control, chain};
use crate::snapshot::save::{Error, Killer, Taken, Writing};

/// Stack of the thread that waits for it in bytes.
const STACK_SIZE: usize = 256 << 10;

/// It, and the thread that waits for it. Dropping it gives it up.
pub(super) struct BeingWritten {
    ticket: Ticket,
    result: Receiver<Result<Taken, Error>>,
    killer: Option<Killer>,
    thread: Option<JoinHandle<()>>,
}

impl BeingWritten {
    /// Has a thread write what has been begun.
    pub(super) fn new(ticket: Ticket, writing: Writing) -> Result<Self, Error> {
        let killer = writing.killer()?;
        let (sender, result) = sync_channel(1);
        let thread = Builder::new()
            .name("snapshot".into())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                // Whoever asked may have gone.
                let _ = sender.send(writing.finish());
            })
            .map_err(Error::Start)?;
        Ok(Self {
            ticket,
            result,
            killer,
            thread: Some(thread),
        })
    }
}

impl Drop for BeingWritten {
    fn drop(&mut self) {
        if let Some(killer) = &self.killer {
            killer.kill();
        }
        if let Some(thread) = self.thread.take() {
            // One that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Control {
    /// The answer to whoever asked for a snapshot, if it has been written, or could not be.
    pub(super) fn take_written(&mut self) -> Option<(Ticket, Result<Response, Fault>)> {
        let writing = self.writing.as_ref()?;
        let result = match writing.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(Error::Ended),
        };
        let ticket = writing.ticket;
        self.writing = None;
        let answer = match result {
            Ok(taken) => {
                self.face.snapshot_taken(&taken);
                Ok(Response::Empty)
            }
            Err(error) => Err(cannot_create(chain(&error))),
        };
        Some((ticket, answer))
    }
}
