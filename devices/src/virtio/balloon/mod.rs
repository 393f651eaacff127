//! Memory balloon (virtio 1.2 section 5.5): memory that a guest does not use goes back to the host.
//!
//! Three ways lead there. The host sets a target, and the guest's driver takes as much out of use
//! (inflates) or into use again (deflates); with `deflate_on_oom` it deflates by itself before it kills
//! anything. And with free page reporting the guest tells of memory that it freed, without
//! being asked, and waits with using it again until it was discarded.
//!
//! Free page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT) are there for who asks for them: see [`hinting`] for what
//! they can cost a guest. PAGE_POISON is not offered: without it, a guest that fills its free pages does not
//! report them.

mod hinting;
mod stats;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use serde::{Deserialize, Serialize};

use super::interrupt::Interrupt;
use super::queue::Queue;
use super::state::DeviceState;
use super::worker::{Attached, EventLoop};
use super::{ActivateError, Kind, Resources, VirtioDevice, read_config_bytes};
use crate::backend::guest_ram::PAGE_SIZE;
use crate::lock;
use crate::state::BadState;
use hinting::Hinting;
pub use hinting::{HintingError, HintingStatus};
pub use stats::BalloonStats;
use worker::{Queues, Worker};

/// How far the balloon is inflated, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// What it is to be.
    pub target: u32,
    /// What its driver says that it is.
    pub actual: u32,
}

// Features (section 5.5.3), by their bit.
const F_STATS_VQ: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_FREE_PAGE_HINT: u32 = 3;
const F_PAGE_REPORTING: u32 = 5;

/// Inflate, deflate, statistics, free page hints and reporting; a driver has less than that when it
/// does without some.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The first queue that is there only with its feature.
const OPTIONAL: usize = 2;
// Where section 5.5.2 has these queues, whatever else there is.
const HINTING: usize = 3;
const REPORTING: usize = 4;

// The configuration (section 5.5.4).
const CONFIG_LEN: usize = 12;
const ACTUAL: u64 = 4;

/// Statistics are not asked for more often.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// What a balloon can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Bytes that the guest is to do without, rounded down to pages.
    pub target: u64,
    /// The guest may deflate when it has no memory left.
    pub deflate_on_oom: bool,
    /// The guest tells of free memory by itself.
    pub free_page_reporting: bool,
    /// The guest can be asked which memory is free: see [`BalloonControl::start_hinting`].
    pub free_page_hinting: bool,
    /// How often the guest is asked for statistics; zero: it is not.
    pub stats_interval: Duration,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonCounters {
    /// Bytes that the guest has put into the balloon.
    pub inflated: u64,
    /// Bytes that it has taken out.
    pub deflated: u64,
    /// Bytes of free memory that it has told of.
    pub reported: u64,
    /// Bytes that have gone back to the host, in whatever way.
    pub discarded: u64,
    /// Requests of which something was not given back: no RAM, or the host refused.
    pub failed: u64,
    /// Requests to inflate.
    pub inflations: u64,
    /// Requests to deflate.
    pub deflations: u64,
    /// Requests that tell of free memory.
    pub reports: u64,
    /// Bytes of free memory that it has told of when it was asked, in the round that it was asked for.
    pub hinted: u64,
    /// Requests that tell of it.
    pub hints: u64,
    /// Statistics that the guest has sent.
    pub statistics: u64,
}

/// The same, while it happens.
#[derive(Debug, Default)]
struct Counters {
    inflated: AtomicU64,
    deflated: AtomicU64,
    reported: AtomicU64,
    discarded: AtomicU64,
    failed: AtomicU64,
    inflations: AtomicU64,
    deflations: AtomicU64,
    reports: AtomicU64,
    hinted: AtomicU64,
    hints: AtomicU64,
    statistics: AtomicU64,
}

/// What both halves, and those who control the device, have in common.
struct Shared {
    /// `num_pages`: what the host wants.
    target: AtomicU32,
    /// `actual`: what the driver says there is.
    actual: AtomicU32,
    stats: Mutex<BalloonStats>,
    hinting: Mutex<Hinting>,
    counters: Counters,
    /// Expires when it is time for statistics.
    timer: OwnedFd,
    /// While it is active.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Shared {
    /// Tells the driver that the configuration is another one.
    fn announce(&self) {
        let interrupt = lock(&self.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    fn set_stats_interval(&self, interval: Duration) -> io::Result<()> {
        let interval = if interval.is_zero() {
            interval
        } else {
            interval.max(MIN_INTERVAL)
        };
        let interval = Timespec::try_from(interval)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let times = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }
}

/// Bytes as the configuration space has them.
fn to_pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

/// The device.
pub struct Balloon {
    // Fixed configuration.
    event_loop: Arc<dyn EventLoop>,
    features: u64,
    // Runtime glue.
    shared: Arc<Shared>,
    worker: Option<Attached<Worker>>,
}

impl Balloon {
    /// A balloon whose worker lives on `event_loop`.
    pub fn new(event_loop: Arc<dyn EventLoop>, config: Config) -> io::Result<Self> {
        let Config {
            target,
            deflate_on_oom,
            free_page_reporting,
            free_page_hinting,
            stats_interval,
        } = config;
        let mut features = 1 << F_STATS_VQ;
        if deflate_on_oom {
            features |= 1 << F_DEFLATE_ON_OOM;
        }
        if free_page_hinting {
            features |= 1 << F_FREE_PAGE_HINT;
        }
        if free_page_reporting {
            features |= 1 << F_PAGE_REPORTING;
        }
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let shared = Shared {
            target: AtomicU32::new(to_pages(target)),
            actual: AtomicU32::new(0),
            stats: Mutex::default(),
            hinting: Mutex::default(),
            counters: Counters::default(),
            timer,
            interrupt: Mutex::new(None),
        };
        shared.set_stats_interval(stats_interval)?;
        Ok(Self {
            event_loop,
            features,
            shared: Arc::new(shared),
            worker: None,
        })
    }

    /// What controls it from outside, before and while it runs.
    pub fn control(&self) -> BalloonControl {
        BalloonControl {
            shared: Arc::clone(&self.shared),
            has_hinting: self.features & 1 << F_FREE_PAGE_HINT != 0,
        }
    }
}

/// Takes the queues that belong to the negotiated features. Linux numbers those that it uses without
/// gaps; section 5.5.2 has fixed numbers. They differ where a feature before is missing.
fn take_queues(resources: &mut Resources) -> Queues {
    let mut next = OPTIONAL;
    let mut optional = |bit, fixed: usize| {
        if !resources.has_feature(bit) {
            return None;
        }
        let index = next;
        next += 1;
        resources
            .take_queue(index)
            .or_else(|| resources.take_queue(fixed))
    };
    let stats = optional(F_STATS_VQ, OPTIONAL);
    let hinting = optional(F_FREE_PAGE_HINT, HINTING);
    let reporting = optional(F_PAGE_REPORTING, REPORTING);
    Queues {
        inflate: resources.take_queue(INFLATE),
        deflate: resources.take_queue(DEFLATE),
        stats,
        hinting,
        reporting,
        unused: resources.queues.drain(..).flatten().collect(),
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        let target = self.shared.target.load(Ordering::Acquire);
        let actual = self.shared.actual.load(Ordering::Acquire);
        config[..4].copy_from_slice(&target.to_le_bytes());
        config[4..8].copy_from_slice(&actual.to_le_bytes());
        let command = lock(&self.shared.hinting).status.host_command;
        config[8..].copy_from_slice(&command.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            let actual = u32::from_le_bytes(bytes);
            self.shared.actual.store(actual, Ordering::Release);
        }
    }

    fn activate(&mut self, mut resources: Resources) -> Result<(), ActivateError> {
        let interrupt = resources.interrupt.clone();
        lock(&self.shared.hinting).forget_guest();
        let queues = take_queues(&mut resources);
        let worker = Worker::new(Arc::clone(&self.shared), resources.memory, queues);
        let worker = Attached::new(&self.event_loop, worker)
            .map_err(|error| ActivateError(Box::new(error)))?;
        self.worker = Some(worker);
        *lock(&self.shared.interrupt) = Some(interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *lock(&self.shared.interrupt) = None;
        let worker = self.worker.take().and_then(Attached::detach);
        worker.map(Worker::into_queues).unwrap_or_default()
    }

    fn save(&self) -> Result<DeviceState, BadState> {
        Ok(DeviceState::Balloon(BalloonState {
            target: self.shared.target.load(Ordering::Acquire),
            actual: self.shared.actual.load(Ordering::Acquire),
        }))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Balloon(BalloonState { target, actual }) = state else {
            return Err(BadState::Kind);
        };
        self.shared.target.store(*target, Ordering::Release);
        self.shared.actual.store(*actual, Ordering::Release);
        Ok(())
    }
}

/// What controls a [`Balloon`].
#[derive(Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
    has_hinting: bool,
}

impl BalloonControl {
    /// Sets how many bytes the guest is to do without, rounded down to pages; it takes its time.
    pub fn set_target(&self, bytes: u64) {
        let pages = to_pages(bytes);
        if self.shared.target.swap(pages, Ordering::AcqRel) == pages {
            return;
        }
        self.shared.announce();
    }

    /// Bytes that the guest is to do without.
    pub fn target(&self) -> u64 {
        u64::from(self.shared.target.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Bytes that it does without, as it says.
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// What the guest last told of its memory.
    pub fn stats(&self) -> BalloonStats {
        *lock(&self.shared.stats)
    }

    /// Sets how often the guest is asked for statistics; zero: it is not.
    pub fn set_stats_interval(&self, interval: Duration) -> io::Result<()> {
        self.shared.set_stats_interval(interval)
    }

    /// Asks the guest which memory it does not use. What it tells goes back to the host; it gets it again
    /// as soon as it has told all (`acknowledge`), or with [`BalloonControl::stop_hinting`].
    pub fn start_hinting(&self, acknowledge: bool) -> Result<(), HintingError> {
        self.check_hinting()?;
        lock(&self.shared.hinting).start(acknowledge);
        self.shared.announce();
        Ok(())
    }

    /// Ends that: the guest has its memory again.
    pub fn stop_hinting(&self) -> Result<(), HintingError> {
        self.check_hinting()?;
        lock(&self.shared.hinting).stop();
        self.shared.announce();
        Ok(())
    }

    fn check_hinting(&self) -> Result<(), HintingError> {
        if !self.has_hinting {
            return Err(HintingError::Off);
        }
        if lock(&self.shared.interrupt).is_none() {
            return Err(HintingError::NotActive);
        }
        Ok(())
    }

    /// How far that is.
    pub fn hinting(&self) -> Result<HintingStatus, HintingError> {
        if !self.has_hinting {
            return Err(HintingError::Off);
        }
        Ok(lock(&self.shared.hinting).status)
    }

    /// What has happened so far.
    pub fn counters(&self) -> BalloonCounters {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BalloonCounters {
            inflated: get(&counters.inflated),
            deflated: get(&counters.deflated),
            reported: get(&counters.reported),
            discarded: get(&counters.discarded),
            failed: get(&counters.failed),
            inflations: get(&counters.inflations),
            deflations: get(&counters.deflations),
            reports: get(&counters.reports),
            hinted: get(&counters.hinted),
            hints: get(&counters.hints),
            statistics: get(&counters.statistics),
        }
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod tests;
