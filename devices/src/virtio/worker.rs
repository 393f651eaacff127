//! Where the running half of a device lives: on an event loop, the one of the whole machine or one of
//! its own.

use std::sync::{Arc, Mutex};

use event_manager::MutEventSubscriber;
use thiserror::Error;

use crate::lock;

/// The loop has ended, as its machine has.
#[derive(Clone, Copy, Debug, Error)]
#[error("The event loop has ended")]
pub struct LoopGone;

/// What a loop calls a worker.
pub type WorkerId = event_manager::SubscriberId;

/// What a loop takes.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// An event loop that takes workers from other threads.
///
/// Both calls wait for the loop's thread, so neither may be made on it, nor with a lock held that a
/// worker takes.
pub trait EventLoop: Send + Sync {
    /// Adds a worker: its `init` has run when this returns.
    fn attach(&self, worker: Subscriber) -> Result<WorkerId, LoopGone>;

    /// Removes it: none of its code runs any more when this returns.
    fn detach(&self, id: WorkerId) -> Result<(), LoopGone>;
}

/// A worker on its loop.
///
/// The lock is the loop's while the worker works, and nobody else's but for [`Attached::with`].
pub struct Attached<W> {
    worker: Arc<Mutex<W>>,
    event_loop: Arc<dyn EventLoop>,
    id: WorkerId,
}

impl<W: MutEventSubscriber + Send + 'static> Attached<W> {
    /// Puts `worker` on `event_loop`.
    pub fn new(event_loop: &Arc<dyn EventLoop>, worker: W) -> Result<Self, LoopGone> {
        let worker = Arc::new(Mutex::new(worker));
        let id = event_loop.attach(Box::new(Arc::clone(&worker)))?;
        Ok(Self {
            worker,
            event_loop: Arc::clone(event_loop),
            id,
        })
    }

    /// Does something with the worker, between two of its events.
    pub fn with<R>(&self, what: impl FnOnce(&mut W) -> R) -> R {
        what(&mut lock(&self.worker))
    }

    /// Takes the worker back. None if the loop has ended and keeps it, as the machine goes down.
    pub fn detach(self) -> Option<W> {
        self.event_loop.detach(self.id).ok()?;
        let worker = Arc::into_inner(self.worker)?;
        Some(
            worker
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}
