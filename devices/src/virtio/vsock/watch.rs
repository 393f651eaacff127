//! What the muxer waits for: its sockets, the listener and a timer, in one epoll instance. That is all
//! that the event loop has to watch.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// Events taken at once.
const EVENTS: usize = 64;

/// What a stream is called here. Never used twice.
pub(super) type Id = u64;
/// The listener's and the timer's.
pub(super) const LISTENER: Id = 0;
pub(super) const TIMER: Id = 1;
/// The first stream's.
pub(super) const FIRST_ID: Id = 2;

/// Something has happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Happened {
    pub(super) id: Id,
    pub(super) events: EventSet,
}

/// The epoll instance and what is in it.
pub(super) struct Watch {
    // Runtime glue.
    epoll: Epoll,
    timer: TimerFd,
    listener: Arc<UnixListener>,
    // Volatile state.
    /// The listener is watched.
    listens: bool,
    /// When the timer goes off.
    alarm: Option<Instant>,
}

impl Watch {
    /// Watches `listener`.
    pub(super) fn new(listener: &Arc<UnixListener>) -> io::Result<Self> {
        let mut watch = Self {
            epoll: Epoll::new()?,
            timer: TimerFd::new().map_err(io::Error::from)?,
            listener: Arc::clone(listener),
            listens: false,
            alarm: None,
        };
        watch.control(ControlOperation::Add, &watch.timer, TIMER, EventSet::IN)?;
        watch.listen()?;
        Ok(watch)
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: &impl AsRawFd,
        id: Id,
        events: EventSet,
    ) -> io::Result<()> {
        self.epoll
            .ctl(operation, fd.as_raw_fd(), EpollEvent::new(events, id))
    }

    /// What has happened, up to a limit: if there is more, the descriptor stays readable.
    pub(super) fn take(&self) -> impl Iterator<Item = Happened> + use<> {
        let mut events = [EpollEvent::default(); EVENTS];
        // Fails only when a signal comes: then it stays readable as well.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        events.into_iter().take(count).map(|event| Happened {
            id: event.data(),
            events: EventSet::from_bits_truncate(event.events()),
        })
    }

    /// Watches a stream. It leaves when it is closed.
    pub(super) fn add(&self, stream: &impl AsRawFd, id: Id) -> io::Result<()> {
        self.control(ControlOperation::Add, stream, id, stream_events())
    }

    /// Watches a stream for becoming writable too, or no more. If it is so already, that is told.
    pub(super) fn modify(&self, stream: &impl AsRawFd, id: Id, writable: bool) -> io::Result<()> {
        let mut events = stream_events();
        events.set(EventSet::OUT, writable);
        self.control(ControlOperation::Modify, stream, id, events)
    }

    /// Watches the listener.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if !self.listens {
            self.control(
                ControlOperation::Add,
                &*self.listener,
                LISTENER,
                EventSet::IN,
            )?;
            self.listens = true;
        }
        Ok(())
    }

    /// Watches the listener no more.
    pub(super) fn stop_listening(&mut self) {
        if self.listens {
            self.listens = false;
            let none = EventSet::empty();
            // It is watched.
            let _ = self.control(ControlOperation::Delete, &*self.listener, LISTENER, none);
        }
    }

    /// Sets the timer, unless it goes off earlier.
    pub(super) fn set_alarm(&mut self, at: Instant, now: Instant) {
        if self.alarm.is_some_and(|alarm| alarm <= at) {
            return;
        }
        self.alarm = Some(at);
        // 0 would turn it off.
        let wait = at
            .saturating_duration_since(now)
            .max(Duration::from_millis(1));
        // Fails only for times that are none.
        let _ = self.timer.reset(wait, None);
    }

    /// The timer went off: it does so no more until it is set again.
    pub(super) fn clear_alarm(&mut self) {
        // Also takes back the expiry.
        let _ = self.timer.clear();
        self.alarm = None;
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// What is watched of a stream at all times.
fn stream_events() -> EventSet {
    EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}
