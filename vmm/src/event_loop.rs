//! The event loops that device workers live on: the machine's own, which [`crate::Vm::run`] serves, and
//! one with a thread for each device that asks for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::virtio::worker::{EventLoop, LoopGone, Subscriber, WorkerId};
use event_manager::{EventManager, RemoteEndpoint, SubscriberOps};

/// How often someone who waits for a loop looks whether it still runs.
const PATIENCE: Duration = Duration::from_millis(10);
/// Stack of an I/O thread in bytes.
const STACK_SIZE: usize = 256 << 10;

/// What loops run.
pub(crate) type Manager = EventManager<Subscriber>;

/// A way to a loop for other threads.
pub(crate) struct Remote {
    endpoint: RemoteEndpoint<Subscriber>,
    /// Nobody serves it any more.
    ended: Arc<AtomicBool>,
}

impl Remote {
    pub(crate) fn new(manager: &Manager, ended: Arc<AtomicBool>) -> Self {
        Self {
            endpoint: manager.remote_endpoint(),
            ended,
        }
    }

    /// Has the loop do something, and waits for its answer.
    fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Subscriber>, SyncSender<T>)
        + Send
        + 'static,
    ) -> Result<T, LoopGone> {
        let (sender, answer) = sync_channel(1);
        if self.ended.load(Ordering::Acquire) {
            return Err(LoopGone);
        }
        self.endpoint
            .fire(move |ops| what(ops, sender))
            .map_err(|_| LoopGone)?;
        loop {
            match answer.recv_timeout(PATIENCE) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(LoopGone),
                Err(RecvTimeoutError::Timeout) if self.ended.load(Ordering::Acquire) => {
                    return Err(LoopGone);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl EventLoop for Remote {
    fn attach(&self, worker: Subscriber) -> Result<WorkerId, LoopGone> {
        // The channel has room for the answer of the one who waits, who may have gone.
        self.call(move |ops, answer| _ = answer.try_send(ops.add_subscriber(worker)))
    }

    fn detach(&self, id: WorkerId) -> Result<(), LoopGone> {
        self.call(move |ops, answer| {
            drop(ops.remove_subscriber(id));
            let _ = answer.try_send(());
        })
    }
}

/// Says that a loop is served from now on, and no more when it is dropped: before anyone waits for the
/// loop in vain.
pub(crate) struct EndOnDrop(Arc<AtomicBool>);

impl EndOnDrop {
    /// For the loop of which `ended` says whether it is served.
    pub(crate) fn new(ended: Arc<AtomicBool>) -> Self {
        ended.store(false, Ordering::Release);
        Self(ended)
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A loop with a thread of its own, which ends when the last one who uses it is gone.
pub(crate) struct IoThread {
    remote: Remote,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts it; `name` is the thread's.
    pub(crate) fn start(name: String) -> io::Result<Arc<dyn EventLoop>> {
        let mut manager = Manager::new().map_err(io::Error::other)?;
        let ended = Arc::new(AtomicBool::new(false));
        let remote = Remote::new(&manager, Arc::clone(&ended));
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(STACK_SIZE)
            .spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    // Interrupted by a signal: once more. Nothing else can happen to an epoll.
                    let _ = manager.run();
                }
            })?;
        Ok(Arc::new(Self {
            remote,
            thread: Some(thread),
        }))
    }
}

impl EventLoop for IoThread {
    fn attach(&self, worker: Subscriber) -> Result<WorkerId, LoopGone> {
        self.remote.attach(worker)
    }

    fn detach(&self, id: WorkerId) -> Result<(), LoopGone> {
        self.remote.detach(id)
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.remote.ended.store(true, Ordering::Release);
        let _ = self.remote.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // One that panicked has printed why.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "event_loop_test.rs"]
mod tests;
