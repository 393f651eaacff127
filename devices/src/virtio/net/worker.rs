//! The running half of a card: who works when.
//!
//! Whatever has happened, the direction that it is about moves a bounded number of frames; what it waits
//! for then decides what is watched. A direction that has more to do than one turn allows kicks itself,
//! so that others have theirs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::backend::{HEADER_LEN, KernelError, LINK_HEADER, MAX_FRAME, Offloads, Pair};
use super::control::{self, Command};
use super::running::{Rings, Running};
use super::rx::{self, Rx};
use super::shared::{Limiters, Shared};
use super::turn::Turn;
use super::tx::{self, Tx};
use super::{feature, offloads_of, to_guest_bits};
use crate::lock;
use crate::virtio::queue::{self, Queue};
use crate::virtio::{ActivateError, Resources};

/// Commands that are carried out before others have their turn: some take a lock of the host's kernel
/// that all its interfaces share, so one that changes nothing is not passed on either.
const COMMANDS_PER_TURN: usize = 8;

// Which descriptor an event is for. Those of a pair are behind these: its number times PER_PAIR, and
// which of its descriptors.
const WAKE: u32 = 0;
const CONTROL: u32 = 1;
const RX_TIMER: u32 = 2;
const TX_TIMER: u32 = 3;
const PAIRS: u32 = 4;
const PER_PAIR: u32 = 3;
const BACKEND: u32 = 0;
const RX_KICK: u32 = 1;
const TX_KICK: u32 = 2;

/// What a driver has set by commands: nothing at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Pairs of queues that it uses.
    pub pairs: Option<u16>,
    /// Offloads that it takes, as bits of features.
    pub offloads: Option<u64>,
}

/// The running half.
pub(super) struct Worker {
    // Fixed configuration.
    id: Arc<str>,
    features: u64,
    // Runtime glue.
    memory: Arc<GuestMemoryMmap>,
    shared: Arc<Shared>,
    // Volatile state.
    pairs: Vec<Running>,
    control: Option<Queue>,
    /// What is left to the driver now.
    offloads: Offloads,
    chosen: NetState,
    /// The driver broke the rules.
    broken: bool,
}

impl Worker {
    /// Sets the host's end up for what was negotiated. Gives the pairs back if that fails.
    pub(super) fn new(
        id: Arc<str>,
        mut pairs: Vec<Pair>,
        mtu: u16,
        shared: Arc<Shared>,
        mut resources: Resources,
    ) -> Result<Self, (ActivateError, Vec<Pair>)> {
        let offloads = offloads_of(resources.features);
        if let Some(first) = pairs.first_mut()
            && let Err(error) = first.backend.set_offloads(offloads)
        {
            return Err((ActivateError(Box::new(error)), pairs));
        }
        let max_frame = if offloads.has_segmentation() {
            MAX_FRAME
        } else {
            usize::from(mtu) + LINK_HEADER
        };
        let settings = rx::Settings {
            mergeable: resources.has_feature(feature::MRG_RXBUF),
            checksums: offloads.csum,
            max_len: HEADER_LEN + max_frame,
        };
        // Section 5.1.2: without MQ the control queue is behind the first pair.
        let control = if resources.has_feature(feature::MQ) {
            2 * pairs.len()
        } else {
            2
        };
        let control = resources
            .has_feature(feature::CTRL_VQ)
            .then(|| resources.take_queue(control))
            .flatten();
        let running = (0..).step_by(2).zip(pairs).map(|(index, pair)| {
            let (rx, tx) = (resources.take_queue(index), resources.take_queue(index + 1));
            let rings = match pair.kernel {
                Some(server) => Rings::Kernel {
                    server,
                    rx,
                    tx,
                    started: false,
                },
                None => Rings::Worker {
                    rx: rx.map(|queue| Rx::new(queue, settings)),
                    tx: tx.map(Tx::new),
                },
            };
            Running {
                backend: pair.backend,
                rings,
                enabled: index == 0,
                watched: EventSet::empty(),
            }
        });
        let pairs = running.collect();
        let mut worker = Self {
            id,
            features: resources.features,
            pairs,
            memory: resources.memory,
            shared,
            control,
            offloads,
            chosen: NetState::default(),
            broken: false,
        };
        match worker.update_kernel() {
            Ok(()) => Ok(worker),
            Err(error) => Err((ActivateError(error), worker.stop().0)),
        }
    }

    /// Goes on with what the driver had set. On no event loop yet.
    pub(super) fn resume(&mut self, chosen: NetState) {
        let NetState { pairs, offloads } = chosen;
        let commands = [
            pairs.map(Command::SetPairs),
            offloads.map(Command::SetOffloads),
        ];
        for command in commands.into_iter().flatten() {
            // What fails now, and did not before, was logged.
            self.carry_out(command);
        }
    }

    /// Ends, and gives back what it was made of, and what the driver has set.
    pub(super) fn stop(mut self) -> (Vec<Pair>, Vec<Queue>, NetState) {
        let mut queues: Vec<Queue> = self.control.take().into_iter().collect();
        let mut pairs = Vec::with_capacity(self.pairs.len());
        let warnings = &self.shared.warnings;
        for (number, mut running) in self.pairs.into_iter().enumerate() {
            if let Err(error) = running.update_kernel(false, self.features, &self.memory) {
                warnings
                    .vhost
                    .tell(&self.id, "vhost does not stop", &*error);
            }
            if number > 0
                && running.enabled
                && let Err(error) = running.backend.set_enabled(false)
            {
                warnings
                    .pairs
                    .tell(&self.id, "a queue stays in use", &error);
            }
            let kernel = match running.rings {
                Rings::Worker { rx, tx } => {
                    queues.extend(rx.map(Rx::stop));
                    queues.extend(tx.map(Tx::stop));
                    None
                }
                Rings::Kernel { server, rx, tx, .. } => {
                    queues.extend(rx);
                    queues.extend(tx);
                    Some(server)
                }
            };
            pairs.push(Pair {
                backend: running.backend,
                kernel,
            });
        }
        (pairs, queues, self.chosen)
    }

    /// Has the kernel serve what it is to serve now.
    fn update_kernel(&mut self) -> Result<(), KernelError> {
        let link_up = self.shared.is_link_up();
        for pair in &mut self.pairs {
            let wanted = link_up && pair.enabled;
            pair.update_kernel(wanted, self.features, &self.memory)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: Events) -> Result<(), queue::Error> {
        let shared = Arc::clone(&self.shared);
        let limiters = &mut *lock(&shared.limiters);
        let which = event.data();
        match which {
            WAKE => {
                // Empties it; fails if it is empty.
                let _ = shared.wake.read();
                if let Err(error) = self.update_kernel() {
                    self.shared
                        .warnings
                        .vhost
                        .tell(&self.id, "vhost failed", &*error);
                }
                self.serve_all(limiters)
            }
            CONTROL => self.serve_control(limiters),
            RX_TIMER => {
                shared.counts.rx.count_limit_timer();
                limiters.rx.on_timer();
                (0..self.pairs.len()).try_for_each(|pair| self.serve_rx(pair, limiters))
            }
            TX_TIMER => {
                shared.counts.tx.count_limit_timer();
                limiters.tx.on_timer();
                (0..self.pairs.len()).try_for_each(|pair| self.serve_tx(pair, limiters))
            }
            _ => {
                let pair = (which - PAIRS) / PER_PAIR;
                self.on_pair_event(pair as usize, &event, limiters)
            }
        }
    }

    fn on_pair_event(
        &mut self,
        number: usize,
        event: &Events,
        limiters: &mut Limiters,
    ) -> Result<(), queue::Error> {
        let Some(pair) = self.pairs.get(number) else {
            return Ok(());
        };
        let Rings::Worker { rx, tx } = &pair.rings else {
            return Ok(());
        };
        match (event.data() - PAIRS) % PER_PAIR {
            BACKEND => {
                self.shared.counts.count_host_event();
                let is_writable = event.event_set().contains(EventSet::OUT);
                if is_writable || event.event_set().contains(EventSet::ERROR) {
                    self.serve_tx(number, limiters)?;
                }
                if event.event_set() == EventSet::OUT {
                    return Ok(());
                }
                // An error or a hang-up is for reading to find out.
                self.on_readable(number, limiters)
            }
            RX_KICK => {
                self.shared.counts.rx.count_kick();
                // Empties it; fails if it is empty.
                let _ = rx.as_ref().map(|rx| rx.queue().kick().read());
                self.serve_rx(number, limiters)
            }
            _ => {
                self.shared.counts.tx.count_kick();
                let _ = tx.as_ref().map(|tx| tx.queue().kick().read());
                // While it waits for something else, a kick changes nothing.
                if tx.as_ref().is_some_and(|tx| tx.wait() != tx::Wait::Frames) {
                    return Ok(());
                }
                self.serve_tx(number, limiters)
            }
        }
    }

    fn on_readable(&mut self, number: usize, limiters: &mut Limiters) -> Result<(), queue::Error> {
        let Some(pair) = self.pairs.get_mut(number) else {
            return Ok(());
        };
        let had_work = pair.backend.has_work();
        if had_work {
            pair.backend.work();
        }
        if let Rings::Worker { tx: Some(tx), .. } = &pair.rings
            && had_work
            && tx.wait() == tx::Wait::Host
        {
            // One with work of its own may have nothing to be writable by.
            self.serve_tx(number, limiters)?;
        }
        self.serve_rx(number, limiters)
    }

    fn serve_all(&mut self, limiters: &mut Limiters) -> Result<(), queue::Error> {
        for pair in 0..self.pairs.len() {
            self.serve_tx(pair, limiters)?;
            self.serve_rx(pair, limiters)?;
        }
        Ok(())
    }

    fn serve_rx(&mut self, pair: usize, limiters: &mut Limiters) -> Result<(), queue::Error> {
        let Some(pair) = self.pairs.get_mut(pair).filter(|pair| pair.enabled) else {
            return Ok(());
        };
        let Rings::Worker { rx: Some(rx), .. } = &mut pair.rings else {
            return Ok(());
        };
        let mut turn = Turn {
            id: &self.id,
            memory: &self.memory,
            link_up: self.shared.is_link_up(),
            counts: &self.shared.counts.rx,
            warning: &self.shared.warnings.receive,
            limiter: &mut limiters.rx,
        };
        rx.serve(&mut *pair.backend, &mut turn)
    }

    fn serve_tx(&mut self, number: usize, limiters: &mut Limiters) -> Result<(), queue::Error> {
        let Some(pair) = self.pairs.get_mut(number).filter(|pair| pair.enabled) else {
            return Ok(());
        };
        let Rings::Worker { tx: Some(tx), .. } = &mut pair.rings else {
            return Ok(());
        };
        let mut turn = Turn {
            id: &self.id,
            memory: &self.memory,
            link_up: self.shared.is_link_up(),
            counts: &self.shared.counts.tx,
            warning: &self.shared.warnings.send,
            limiter: &mut limiters.tx,
        };
        tx.serve(&mut *pair.backend, &mut turn)?;
        if pair.backend.flush() {
            self.serve_rx(number, limiters)?;
        }
        Ok(())
    }

    /// Carries out at most [`COMMANDS_PER_TURN`] commands of the driver.
    fn serve_control(&mut self, limiters: &mut Limiters) -> Result<(), queue::Error> {
        let Some(mut queue) = self.control.take() else {
            return Ok(());
        };
        let result = self.serve_control_queue(&mut queue);
        self.control = Some(queue);
        if result? {
            // Pairs that are in use now may have been kicked before.
            self.serve_all(limiters)?;
        }
        Ok(())
    }

    /// True if it has changed anything.
    fn serve_control_queue(&mut self, queue: &mut Queue) -> Result<bool, queue::Error> {
        // Empties it; fails if it is empty.
        let _ = queue.kick().read();
        queue.disable_kicks()?;
        let mut has_changed = false;
        for _ in 0..COMMANDS_PER_TURN {
            let Some(chain) = queue.pop()? else {
                break;
            };
            let command = Command::read(&chain, &self.memory);
            let is_done = command.is_some_and(|command| self.carry_out(command));
            has_changed |= is_done;
            let answer = if is_done { control::OK } else { control::ERR };
            let written = match chain.writable.write(&self.memory, 0, &[answer]) {
                Ok(()) => 1,
                Err(_) => 0,
            };
            queue.complete(chain.head(), written)?;
        }
        if queue.enable_kicks()? {
            queue.kick_myself();
        }
        queue.notify()?;
        Ok(has_changed)
    }

    fn carry_out(&mut self, command: Command) -> bool {
        match command {
            Command::SetPairs(count) => {
                let is_done = self.set_pairs(count.into());
                if is_done {
                    self.chosen.pairs = Some(count);
                }
                is_done
            }
            Command::SetOffloads(bits) => {
                let is_done = self.set_offloads(bits);
                if is_done {
                    self.chosen.offloads = Some(bits);
                }
                is_done
            }
        }
    }

    /// Section 5.1.6.5.5: the first `count` pairs are in use.
    fn set_pairs(&mut self, count: usize) -> bool {
        let is_possible = self.has_feature(feature::MQ) && (1..=self.pairs.len()).contains(&count);
        if !is_possible {
            return false;
        }
        for (number, pair) in self.pairs.iter_mut().enumerate() {
            let enabled = number < count;
            if pair.enabled == enabled {
                continue;
            }
            if let Err(error) = pair.backend.set_enabled(enabled) {
                self.shared
                    .warnings
                    .pairs
                    .tell(&self.id, "no more or fewer queues", &error);
                return false;
            }
            pair.enabled = enabled;
        }
        if let Err(error) = self.update_kernel() {
            self.shared
                .warnings
                .vhost
                .tell(&self.id, "vhost failed", &*error);
            return false;
        }
        true
    }

    /// Section 5.1.6.5.6: of what was negotiated, this is left to the driver.
    fn set_offloads(&mut self, bits: u64) -> bool {
        let negotiated = self.features & to_guest_bits(Offloads::ALL);
        if !self.has_feature(feature::CTRL_GUEST_OFFLOADS) || bits & !negotiated != 0 {
            return false;
        }
        let offloads = offloads_of(bits);
        if offloads == self.offloads {
            return true;
        }
        let Some(first) = self.pairs.first_mut() else {
            return false;
        };
        if let Err(error) = first.backend.set_offloads(offloads) {
            self.shared
                .warnings
                .offloads
                .tell(&self.id, "the offloads stay as they are", &error);
            return false;
        }
        self.offloads = offloads;
        for pair in &mut self.pairs {
            if let Rings::Worker { rx: Some(rx), .. } = &mut pair.rings {
                rx.set_checksums(offloads.csum);
            }
        }
        true
    }

    fn has_feature(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// What is watched as long as the driver keeps to the rules.
    fn steady_fds(&self) -> Vec<(RawFd, u32)> {
        let limiters = lock(&self.shared.limiters);
        let mut fds = vec![(self.shared.wake.as_raw_fd(), WAKE)];
        fds.extend(limiters.rx.timer_fd().map(|fd| (fd, RX_TIMER)));
        fds.extend(limiters.tx.timer_fd().map(|fd| (fd, TX_TIMER)));
        let kick = |queue: &Queue| queue.kick().as_raw_fd();
        fds.extend(self.control.as_ref().map(|queue| (kick(queue), CONTROL)));
        for (number, pair) in (0..).zip(&self.pairs) {
            let base = PAIRS + PER_PAIR * number;
            // Those of the others are the kernel's.
            if let Rings::Worker { rx, tx } = &pair.rings {
                fds.extend(rx.as_ref().map(|rx| (kick(rx.queue()), base + RX_KICK)));
                fds.extend(tx.as_ref().map(|tx| (kick(tx.queue()), base + TX_KICK)));
            }
        }
        fds
    }

    /// Watches what is waited for, and nothing else: what is readable and not read would call for ever.
    fn update_watches(&mut self, ops: &mut EventOps) {
        let mut is_limited = [false; 2];
        for (number, pair) in (0..).zip(&mut self.pairs) {
            let mut wanted = EventSet::empty();
            if let Rings::Worker { rx, tx } = &pair.rings
                && pair.enabled
                && !self.broken
            {
                let rx = rx.as_ref().map(Rx::wait);
                let tx = tx.as_ref().map(Tx::wait);
                let has_work = pair.backend.has_work();
                wanted.set(EventSet::IN, rx == Some(rx::Wait::Frames) || has_work);
                wanted.set(EventSet::OUT, tx == Some(tx::Wait::Host));
                is_limited[0] |= rx == Some(rx::Wait::Tokens);
                is_limited[1] |= tx == Some(tx::Wait::Tokens);
            }
            let data = PAIRS + PER_PAIR * number + BACKEND;
            if let Err(error) = pair.watch(data, wanted, ops) {
                self.shared
                    .warnings
                    .watch
                    .tell(&self.id, "cannot wait for the host", &error);
            }
        }
        if is_limited != [false; 2] {
            let limiters = lock(&self.shared.limiters);
            limiters.rx.watch(RX_TIMER, ops);
            limiters.tx.watch(TX_TIMER, ops);
        }
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, event: Events, ops: &mut EventOps) {
        if self.broken {
            // Nothing is watched any more.
            return;
        }
        if let Err(error) = self.on_event(event) {
            let queue = self.pairs.iter().find_map(Running::any_queue);
            if let Some(queue) = queue.or(self.control.as_ref()) {
                queue.fail(&error);
            }
            self.broken = true;
            for (fd, _) in self.steady_fds() {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(Events::empty_raw(fd));
            }
        }
        self.update_watches(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (fd, data) in self.steady_fds() {
            // Fails only for a descriptor that is already there.
            let _ = ops.add(Events::with_data_raw(fd, data, EventSet::IN));
        }
        self.update_watches(ops);
    }
}
