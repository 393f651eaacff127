//! What the running half of a card shares with its idle half and with whoever controls it.

use std::error::Error;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::error::chain;
use crate::lock;
use crate::rate_limiter::{RateLimit, RateLimiter};
use crate::virtio::interrupt::Interrupt;

/// The shared part.
pub(super) struct Shared {
    /// Has the worker look at what has changed here.
    pub(super) wake: EventFd,
    link_up: AtomicBool,
    /// While the device is active.
    interrupt: Mutex<Option<Interrupt>>,
    /// They outlive the worker: a reset fills no bucket. Locked for a turn of the worker at most.
    pub(super) limiters: Mutex<Limiters>,
    pub(super) counts: Counts,
    pub(super) warnings: Warnings,
}

/// What the log was told. A driver can cause each any number of times.
#[derive(Default)]
pub(super) struct Warnings {
    pub(super) offloads: Warning,
    pub(super) pairs: Warning,
    pub(super) vhost: Warning,
    pub(super) watch: Warning,
    pub(super) send: Warning,
    pub(super) receive: Warning,
}

/// One cause, which is told once.
#[derive(Default)]
pub(super) struct Warning(AtomicBool);

impl Warning {
    /// Tells that `what` failed with card `id`, if that is the first time.
    pub(super) fn tell(&self, id: &str, what: &str, error: &(dyn Error + 'static)) {
        if !self.0.swap(true, Ordering::Relaxed) {
            log::warn!("Network card {id}: {what}: {}", chain(error));
        }
    }
}

/// The limits of both directions, seen from the guest.
pub(super) struct Limiters {
    pub(super) rx: RateLimiter,
    pub(super) tx: RateLimiter,
}

impl Shared {
    pub(super) fn new(rx: RateLimit, tx: RateLimit) -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            link_up: AtomicBool::new(true),
            interrupt: Mutex::new(None),
            limiters: Mutex::new(Limiters {
                rx: RateLimiter::new(rx)?,
                tx: RateLimiter::new(tx)?,
            }),
            counts: Counts::default(),
            warnings: Warnings::default(),
        })
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.link_up.load(Ordering::Acquire)
    }

    pub(super) fn set_link(&self, up: bool) {
        if self.link_up.swap(up, Ordering::AcqRel) == up {
            return;
        }
        if let Some(interrupt) = &*lock(&self.interrupt) {
            interrupt.config_changed();
        }
        self.wake();
    }

    /// The device has become active or, with None, idle.
    pub(super) fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *lock(&self.interrupt) = interrupt;
    }

    pub(super) fn set_rate(&self, rx: RateLimit, tx: RateLimit) -> io::Result<()> {
        {
            let mut limiters = lock(&self.limiters);
            limiters.rx.update(rx)?;
            limiters.tx.update(tx)?;
        }
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // Fails only when the counter is at its maximum: it is readable then too.
        let _ = self.wake.write(1);
    }
}

/// One direction.
#[derive(Default)]
pub(super) struct DirectionCounts {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
    throttled: AtomicU64,
    kicks: AtomicU64,
    starved: AtomicU64,
    limit_timers: AtomicU64,
}

impl DirectionCounts {
    /// A frame of `bytes` bytes, without its header.
    pub(super) fn count_frame(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_throttled(&self) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
    }

    /// The driver has told of what it made available.
    pub(super) fn count_kick(&self) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
    }

    /// A frame has come, and there is no buffer for it.
    pub(super) fn count_starved(&self) {
        self.starved.fetch_add(1, Ordering::Relaxed);
    }

    /// The rate limit lets frames go on.
    pub(super) fn count_limit_timer(&self) {
        self.limit_timers.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> DirectionCounters {
        DirectionCounters {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            kicks: self.kicks.load(Ordering::Relaxed),
            starved: self.starved.load(Ordering::Relaxed),
            limit_timers: self.limit_timers.load(Ordering::Relaxed),
        }
    }
}

/// Both.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) rx: DirectionCounts,
    pub(super) tx: DirectionCounts,
    host_events: AtomicU64,
}

impl Counts {
    /// The host's end is readable, or writable again.
    pub(super) fn count_host_event(&self) {
        self.host_events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Counters {
        Counters {
            rx: self.rx.read(),
            tx: self.tx.read(),
            host_events: self.host_events.load(Ordering::Relaxed),
        }
    }
}

/// What happened in one direction since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounters {
    /// Frames that went through.
    pub frames: u64,
    /// Their bytes, without the headers of section 5.1.6.
    pub bytes: u64,
    /// Frames that the device did not let through: too short, too long, or the link was down.
    pub dropped: u64,
    /// Frames that the host did not take or give.
    pub errors: u64,
    /// How often a frame waited for the rate limit.
    pub throttled: u64,
    /// How often the driver has told of new buffers or frames.
    pub kicks: u64,
    /// How often it had no buffers for what the host might have had; never from the guest.
    pub starved: u64,
    /// How often the rate limit let frames go on.
    pub limit_timers: u64,
}

/// What a card has done. What the host's kernel moves by vhost is not counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// To the guest.
    pub rx: DirectionCounters,
    /// From the guest.
    pub tx: DirectionCounters,
    /// How often the host's end became readable, or writable again.
    pub host_events: u64,
}
