//! How much a guest may move through a device: token buckets for bytes and for operations.
//!
//! A [`Bucket`] is Firecracker's: it holds `size` tokens, is full at first, refills evenly so that an
//! empty one is full after `refill_time_ms`, and has a burst on top that is spent first and never
//! comes back. A [`RateLimiter`] has a bucket for bandwidth, one for operations, both or none.
//!
//! A device asks with [`RateLimiter::take`] before it works on a request. If that says no, it leaves
//! the request in the ring, calls [`RateLimiter::watch`], and asks again after
//! [`RateLimiter::on_timer`]. Nothing is charged in advance, and nobody polls.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

const NANOS_PER_MILLI: u128 = 1_000_000;
/// A timer that is to expire at once: 0 would disarm it.
const AT_ONCE: Duration = Duration::from_nanos(1);
/// Longest time a timer is set for; it is set again if that was not enough. The kernel takes no
/// arbitrary number of seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// A rate a second is a bucket of this many milliseconds' worth, so that what was saved up while a
/// device was idle is no flood.
const SMOOTH_MS: u64 = 125;
/// Parts of a second that are [`SMOOTH_MS`] long.
const SMOOTH_PARTS: u64 = 1000 / SMOOTH_MS;

/// One token bucket's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    size: NonZeroU64,
    refill_time_ms: NonZeroU64,
    one_time_burst: u64,
}

impl Bucket {
    /// A bucket of `size` tokens (bytes or operations) that an empty one regains in `refill_time_ms`
    /// milliseconds, with `one_time_burst` tokens on top that are spent first. None, which is no limit,
    /// if size or time is 0, as in Firecracker's API. Any other numbers will do.
    pub fn new(size: u64, refill_time_ms: u64, one_time_burst: u64) -> Option<Self> {
        Some(Self {
            size: NonZeroU64::new(size)?,
            refill_time_ms: NonZeroU64::new(refill_time_ms)?,
            one_time_burst,
        })
    }

    /// `rate` tokens a second, evenly, after `one_time_burst` tokens at any speed. None if `rate` is 0.
    pub fn per_second(rate: u64, one_time_burst: u64) -> Option<Self> {
        if rate.is_multiple_of(SMOOTH_PARTS) {
            Self::new(rate / SMOOTH_PARTS, SMOOTH_MS, one_time_burst)
        } else {
            // Not a whole number of tokens: exact rather than smooth.
            Self::new(rate, 1000, one_time_burst)
        }
    }

    /// Reads `RATE[/s][+BURST]`, such as `10m`, `10m/s` or `10m+500m`. `quantity` reads one number, in
    /// whatever units it has, and says what is wrong with it.
    pub fn parse(
        text: &str,
        quantity: impl Fn(&str) -> Result<u64, String>,
    ) -> Result<Self, String> {
        let (rate, burst) = match text.split_once('+') {
            Some((rate, burst)) => (rate, quantity(burst)?),
            None => (text, 0),
        };
        let rate = quantity(rate.strip_suffix("/s").unwrap_or(rate))?;
        Self::per_second(rate, burst).ok_or_else(|| {
            format!("'{text}' lets nothing through: leave it out if there is to be no limit")
        })
    }

    /// Tokens that it holds.
    pub fn size(&self) -> u64 {
        self.size.get()
    }

    /// Milliseconds in which an empty one becomes full.
    pub fn refill_time_ms(&self) -> u64 {
        self.refill_time_ms.get()
    }

    /// Tokens on top, once.
    pub fn one_time_burst(&self) -> u64 {
        self.one_time_burst
    }
}

/// Reads a number of operations, for [`Bucket::parse`]: `iops=1000`.
pub fn parse_ops(text: &str) -> Result<u64, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("'{text}' is no number of operations a second: write 1000"))
}

/// The limits of a device. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes.
    pub bandwidth: Option<Bucket>,
    /// Requests, packets or whatever the device counts.
    pub ops: Option<Bucket>,
}

impl RateLimit {
    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }
}

/// A bucket with what is in it.
#[derive(Clone, Copy, Debug)]
struct Level {
    // Fixed configuration.
    bucket: Bucket,
    // Volatile state.
    /// Negative after a request that was larger than the bucket; never above its size.
    tokens: i128,
    /// What is left of the burst.
    burst: u64,
    /// When `tokens` was right, in nanoseconds.
    at: u64,
    /// Part of a token that has come by then, in units of one by the nanoseconds of a refill.
    part: u128,
}

impl Level {
    fn new(bucket: Bucket, now: u64) -> Self {
        Self {
            bucket,
            tokens: bucket.size().into(),
            burst: bucket.one_time_burst,
            at: now,
            part: 0,
        }
    }

    fn size(&self) -> i128 {
        self.bucket.size().into()
    }

    fn refill_nanos(&self) -> u128 {
        u128::from(self.bucket.refill_time_ms()) * NANOS_PER_MILLI
    }

    fn refill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        let missing = self.missing(self.size());
        // Both factors are below 2^64.
        let parts = u128::from(elapsed) * u128::from(self.bucket.size());
        let parts = parts.saturating_add(self.part);
        let (tokens, part) = (parts / self.refill_nanos(), parts % self.refill_nanos());
        if tokens >= missing {
            self.tokens = self.size();
            self.part = 0;
        } else {
            // Less than `missing`, which is below 2^66.
            self.tokens = self.tokens.saturating_add_unsigned(tokens);
            self.part = part;
        }
    }

    fn missing(&self, wanted: i128) -> u128 {
        wanted.saturating_sub(self.tokens).max(0).unsigned_abs()
    }

    /// The tokens that have to be there for `amount`: a full bucket is enough for anything.
    fn needed(&self, amount: u64) -> i128 {
        i128::from(amount.saturating_sub(self.burst)).min(self.size())
    }

    /// Nanoseconds until `amount` can be taken; 0 if it can be now.
    fn wait(&self, amount: u64) -> u128 {
        let missing = self.missing(self.needed(amount));
        if missing == 0 {
            return 0;
        }
        // Below 2^66 times 2^84: too much only for configurations that take ages anyway.
        missing
            .saturating_mul(self.refill_nanos())
            .saturating_sub(self.part)
            .div_ceil(self.bucket.size().into())
    }

    fn take(&mut self, amount: u64) {
        let from_burst = amount.min(self.burst);
        self.burst -= from_burst;
        self.tokens -= i128::from(amount - from_burst);
    }

    fn give_back(&mut self, amount: u64) {
        let room = self.missing(self.size());
        let to_bucket = u128::from(amount).min(room);
        self.tokens = self.tokens.saturating_add_unsigned(to_bucket);
        // No more than `amount`.
        let rest = u64::try_from(u128::from(amount) - to_bucket).unwrap_or(0);
        self.burst = self
            .burst
            .saturating_add(rest)
            .min(self.bucket.one_time_burst);
    }
}

/// Nanoseconds since some point in the past.
#[derive(Debug)]
enum Clock {
    Monotonic(Instant),
    #[cfg(test)]
    Manual(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    fn now(&self) -> u64 {
        match self {
            // 584 years.
            Self::Monotonic(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            #[cfg(test)]
            Self::Manual(now) => now.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}

/// What a request wants.
#[derive(Clone, Copy, Debug)]
struct Amount {
    ops: u64,
    bytes: u64,
}

/// A device's limits at work. It belongs to the device's worker.
#[derive(Debug)]
pub struct RateLimiter {
    // Runtime glue.
    clock: Clock,
    /// There once there was a limit; it stays, so that an event loop may go on watching it.
    timer: Option<TimerFd>,
    // Volatile state.
    ops: Option<Level>,
    bandwidth: Option<Level>,
    /// The request that was refused and that the timer runs for.
    refused: Option<Amount>,
    /// How long the timer was last set for.
    #[cfg(test)]
    armed: Option<Duration>,
}

impl RateLimiter {
    /// Full buckets. Fails when the process has no file descriptors left.
    pub fn new(limit: RateLimit) -> io::Result<Self> {
        Self::with_clock(limit, Clock::Monotonic(Instant::now()))
    }

    fn with_clock(limit: RateLimit, clock: Clock) -> io::Result<Self> {
        let mut limiter = Self {
            clock,
            timer: None,
            ops: None,
            bandwidth: None,
            refused: None,
            #[cfg(test)]
            armed: None,
        };
        limiter.update(limit)?;
        Ok(limiter)
    }

    /// One that lets everything through, until it is updated.
    pub fn unlimited() -> Self {
        Self {
            clock: Clock::Monotonic(Instant::now()),
            timer: None,
            ops: None,
            bandwidth: None,
            refused: None,
            #[cfg(test)]
            armed: None,
        }
    }

    /// Whether there is no limit now.
    #[inline]
    pub fn is_unlimited(&self) -> bool {
        self.ops.is_none() && self.bandwidth.is_none()
    }

    /// The limits as they were set last.
    pub fn limit(&self) -> RateLimit {
        RateLimit {
            bandwidth: self.bandwidth.map(|level| level.bucket),
            ops: self.ops.map(|level| level.bucket),
        }
    }

    /// Takes tokens for a request of `ops` operations and `bytes` bytes. If it says no, nothing was
    /// taken, and the timer runs until the request can go on. Until then nothing else can: a small one
    /// must not overtake a large one for ever. A request that is larger than its bucket needs a full
    /// one and leaves it in debt.
    #[inline]
    pub fn take(&mut self, ops: u64, bytes: u64) -> bool {
        self.is_unlimited() || self.take_limited(Amount { ops, bytes })
    }

    fn take_limited(&mut self, amount: Amount) -> bool {
        if self.refused.is_some() {
            return false;
        }
        let wait = self.wait(amount);
        if wait > 0 {
            self.refused = Some(amount);
            if self.arm(wait) {
                return false;
            }
            // Without a timer nobody would ever ask again: better no limit than no device.
            self.refused = None;
        }
        if let Some(level) = &mut self.ops {
            level.take(amount.ops);
        }
        if let Some(level) = &mut self.bandwidth {
            level.take(amount.bytes);
        }
        true
    }

    /// Returns tokens of a request, or of the part of it, that came to nothing.
    pub fn give_back(&mut self, ops: u64, bytes: u64) {
        if let Some(level) = &mut self.ops {
            level.give_back(ops);
        }
        if let Some(level) = &mut self.bandwidth {
            level.give_back(bytes);
        }
        self.rearm();
    }

    /// Whether a request was refused and its time has not come.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        self.refused.is_some()
    }

    /// The timer has expired: the request that was refused is to be tried again.
    pub fn on_timer(&mut self) {
        if let Some(timer) = &mut self.timer {
            // Also takes back the expiry. Fails only with arguments that are not used here.
            let _ = timer.clear();
        }
        self.refused = None;
    }

    /// Changes the limits. A bucket that stays as it is keeps its level; another starts full. If a
    /// request was refused, the timer expires when the new limits let it through.
    pub fn update(&mut self, limit: RateLimit) -> io::Result<()> {
        if self.timer.is_none() && !limit.is_unlimited() {
            self.timer = Some(TimerFd::new()?);
        }
        let now = self.clock.now();
        let next = |level: Option<Level>, bucket: Option<Bucket>| match (level, bucket) {
            (Some(level), Some(bucket)) if level.bucket == bucket => Some(level),
            (_, bucket) => bucket.map(|bucket| Level::new(bucket, now)),
        };
        self.ops = next(self.ops, limit.ops);
        self.bandwidth = next(self.bandwidth, limit.bandwidth);
        self.rearm();
        Ok(())
    }

    /// The timer, for an event loop: readable when [`RateLimiter::on_timer`] is to be called. None as
    /// long as there never was a limit; afterwards always the same.
    pub fn timer_fd(&self) -> Option<RawFd> {
        self.timer.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Has the timer watched, as event `data`, unless it is or there is none. For a worker's `init`, and
    /// for whenever [`RateLimiter::take`] has said no: the first limit may have come in between.
    pub fn watch(&self, data: u32, ops: &mut EventOps) {
        if let Some(timer) = &self.timer {
            // Fails only for a descriptor that is already there.
            let _ = ops.add(Events::with_data(timer, data, EventSet::IN));
        }
    }

    /// Nanoseconds until there is enough for `amount`.
    fn wait(&mut self, amount: Amount) -> u128 {
        let now = self.clock.now();
        let mut wait = 0;
        for (level, amount) in [
            (&mut self.ops, amount.ops),
            (&mut self.bandwidth, amount.bytes),
        ] {
            if let Some(level) = level {
                level.refill(now);
                wait = level.wait(amount).max(wait);
            }
        }
        wait
    }

    /// Sets the timer anew for the request that was refused, if one was.
    fn rearm(&mut self) {
        if let Some(amount) = self.refused {
            let wait = self.wait(amount);
            self.arm(wait);
        }
    }

    fn arm(&mut self, nanos: u128) -> bool {
        let wait = u64::try_from(nanos).map_or(LONGEST_WAIT, Duration::from_nanos);
        let wait = wait.clamp(AT_ONCE, LONGEST_WAIT);
        #[cfg(test)]
        {
            self.armed = Some(wait);
        }
        self.timer
            .as_mut()
            .is_some_and(|timer| timer.reset(wait, None).is_ok())
    }
}

/// A bucket for what cannot wait: what is beyond it is dropped by whoever asks.
#[derive(Debug)]
pub struct Meter {
    // Runtime glue.
    clock: Clock,
    // Volatile state.
    level: Level,
}

impl Meter {
    /// A full bucket.
    pub fn new(bucket: Bucket) -> Self {
        Self::with_clock(bucket, Clock::Monotonic(Instant::now()))
    }

    fn with_clock(bucket: Bucket, clock: Clock) -> Self {
        let level = Level::new(bucket, clock.now());
        Self { clock, level }
    }

    /// How many tokens there are now.
    pub fn available(&mut self) -> u64 {
        self.level.refill(self.clock.now());
        u64::try_from(self.level.tokens.max(0))
            .unwrap_or(u64::MAX)
            .saturating_add(self.level.burst)
    }

    /// Takes that many of them.
    pub fn take(&mut self, amount: u64) {
        self.level.take(amount);
    }
}

#[cfg(test)]
#[path = "rate_limiter_test.rs"]
mod tests;
