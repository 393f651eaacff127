//! HTTP/1.1 on a Unix socket, for many clients, by one thread that never waits for a guest.
//!
//! Reading order: this file (starting, accepting, stopping), `connection` (one client from its first byte to its
//! last), `link` (its socket, as the HTTP library sees it), `service` (a request becomes an answer), `body` (what is
//! answered, at once or as a stream), `console` (the socket after a change of protocol).
//!
//! The protocol itself is hyper's. What a request means is [`crate::route`]'s, and what is done about it a
//! [`Handler`]'s, on another thread: here a client waits for its answer, and no client waits for another's.

mod body;
mod connection;
mod console;
mod link;
mod service;

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Resource;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::LocalSet;
use tokio::time;

use crate::handler::Handler;

pub use service::CONSOLE_PROTOCOL;

/// How long nothing is accepted after a failure to accept, such as for want of descriptors. The client
/// waits in the kernel's queue meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Clients beyond the bound that are told so with patience at a time. The others are told, and cut off.
const MAX_REFUSALS: usize = 64;
/// The last signal there is.
const LAST_SIGNAL: i32 = 64;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the thread, of 15 bytes at most.
    pub thread_name: String,
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// Connections at a time. There are never more than half of the descriptors that the process may have.
    pub max_connections: usize,
    /// Time from the first byte of a request to its last. A connection without a request has no limit.
    pub request_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thread_name: "api".to_owned(),
            max_body: 51200,
            max_connections: 1024,
            request_limit: Duration::from_secs(30),
        }
    }
}

/// The server, before it runs.
#[derive(Clone, Copy, Debug)]
pub struct Server;

/// A server that runs. Dropping it stops it at once.
pub struct ServerHandle {
    /// Sends how much time there is for what is in flight.
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `handler` on `listener`, on a thread of its own that no signal reaches.
    pub fn start(
        listener: StdListener,
        handler: Arc<dyn Handler>,
        settings: Settings,
    ) -> io::Result<ServerHandle> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _context = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name(settings.thread_name.clone())
            .spawn(move || {
                block_signals();
                // On this thread, as no task of it ever leaves it.
                let shared = Rc::new(Shared::new(handler, settings));
                LocalSet::new().block_on(&runtime, serve(listener, shared, stopped));
            })?;
        Ok(ServerHandle {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl ServerHandle {
    /// Stops the server and waits for its thread. Nothing is accepted any more, idle connections are closed and
    /// streams end after what was published. Requests in flight have `grace` to be answered, unless they are not
    /// even complete.
    ///
    /// The listener is closed then; its file is [`crate::socket`]'s.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // It fails if the thread has ended, by a panic.
            let _ = stop.send(grace);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

/// What all connections share.
struct Shared {
    // Fixed configuration.
    handler: Arc<dyn Handler>,
    settings: Settings,
    max_connections: usize,

    // Volatile state.
    connections: Cell<usize>,
    /// Said when a connection has ended.
    ended: Notify,
    refusals: Cell<usize>,
    stopping: Cell<bool>,
    /// Said when the server begins to stop.
    stop: Notify,
}

impl Shared {
    fn new(handler: Arc<dyn Handler>, settings: Settings) -> Self {
        Self {
            handler,
            max_connections: settings.max_connections.min(affordable_connections()),
            settings,
            connections: Cell::new(0),
            ended: Notify::new(),
            refusals: Cell::new(0),
            stopping: Cell::new(false),
            stop: Notify::new(),
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Waits until the server begins to stop.
    async fn until_stop(&self) {
        let stop = self.stop.notified();
        if !self.is_stopping() {
            stop.await;
        }
    }
}

/// One of a bounded number of things, while it lasts.
struct Seat {
    shared: Rc<Shared>,
    count: fn(&Shared) -> &Cell<usize>,
}

impl Seat {
    fn take(shared: &Rc<Shared>, count: fn(&Shared) -> &Cell<usize>, limit: usize) -> Option<Self> {
        let taken = count(shared);
        if taken.get() >= limit {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self {
            shared: Rc::clone(shared),
            count,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = (self.count)(&self.shared);
        taken.set(taken.get() - 1);
        self.shared.ended.notify_one();
    }
}

/// Accepts until it is told to stop, then waits for what is in flight.
async fn serve(listener: UnixListener, shared: Rc<Shared>, stopped: oneshot::Receiver<Duration>) {
    let grace = accept(listener, &shared, stopped).await;
    shared.stopping.set(true);
    shared.stop.notify_waiters();
    let all_ended = async {
        while shared.connections.get() > 0 {
            shared.ended.notified().await;
        }
    };
    // What is left then ends with the tasks.
    let _ = time::timeout(grace, all_ended).await;
}

async fn accept(
    listener: UnixListener,
    shared: &Rc<Shared>,
    stopped: oneshot::Receiver<Duration>,
) -> Duration {
    let mut stopped = pin!(stopped);
    let mut has_failed = false;
    loop {
        let accepted = poll_fn(|cx| match stopped.as_mut().poll(cx) {
            // A handle that is gone gives no time.
            Poll::Ready(grace) => Poll::Ready(Err(grace.unwrap_or_default())),
            Poll::Pending => listener.poll_accept(cx).map(Ok),
        });
        match accepted.await {
            Err(grace) => return grace,
            Ok(Ok((socket, _))) => {
                has_failed = false;
                admit(socket, shared);
            }
            Ok(Err(error)) => {
                if !has_failed {
                    log::warn!("Cannot accept a client of the API: {error}");
                }
                has_failed = true;
                if let Ok(grace) = time::timeout(ACCEPT_PAUSE, stopped.as_mut()).await {
                    return grace.unwrap_or_default();
                }
            }
        }
    }
}

/// Begins to serve a client, or to tell it that there are too many.
fn admit(socket: UnixStream, shared: &Rc<Shared>) {
    if let Some(seat) = Seat::take(shared, |shared| &shared.connections, shared.max_connections) {
        tokio::task::spawn_local(connection::serve(socket, seat));
        return;
    }
    let message = format!(
        "There are {} connections already, as many as there may be.",
        shared.max_connections
    );
    let link = link::Link::new(socket);
    link.refuse(503, &message);
    if let Some(seat) = Seat::take(shared, |shared| &shared.refusals, MAX_REFUSALS) {
        tokio::task::spawn_local(async move { link.linger(&seat.shared).await });
    }
}

/// How many connections there may be at most, so that the machine has descriptors too.
fn affordable_connections() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit / 2).unwrap_or(usize::MAX)
    })
}

/// Signals are for other threads: all but those that a thread brings upon itself.
fn block_signals() {
    let own = [
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGSEGV,
        libc::SIGSYS,
        libc::SIGTRAP,
    ];
    for signal in (1..=LAST_SIGNAL).filter(|signal| !own.contains(signal)) {
        // Fails for those that cannot be blocked, and those that are already.
        let _ = vmm_sys_util::signal::block_signal(signal);
    }
}
