//! When a connection does something by itself: retransmissions, probes, time-outs.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::connection::{Connection, End, State, after};

/// The first retransmission. The guest is near, but may be busy.
pub(super) const FIRST_RTO: Duration = Duration::from_millis(250);
/// No two retransmissions are further apart.
const MAX_RTO: Duration = Duration::from_secs(10);
/// Retransmissions of data after which the guest is taken for dead: it has had a minute.
const MAX_RETRIES: u8 = 12;
/// Those of a SYN: half a minute.
const MAX_SYN_RETRIES: u8 = 6;
/// How long the host may take to connect.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which the guest is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(2 * 3600);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    Connect,
    Syn,
    Retransmit,
    /// The guest's window is closed, or it was silent for long: it is asked.
    Probe,
    Idle,
}

impl Connection {
    /// When the connection wants to be called for [`Connection::timer`].
    pub(super) fn update_timer(&mut self, now: Instant) -> Instant {
        let blocked = after(self.end, self.next) || self.readable && !self.host_ended;
        let timer = match self.state {
            State::Connecting => Timer::Connect,
            State::SynReceived | State::SynSent => Timer::Syn,
            State::Established if self.sent != self.acked => Timer::Retransmit,
            State::Established if blocked && self.window_left() == 0 || self.asked => Timer::Probe,
            State::Established => Timer::Idle,
        };
        if timer != self.timer || self.restart_timer {
            self.deadline = now
                + match timer {
                    Timer::Connect => CONNECT_TIMEOUT,
                    Timer::Syn | Timer::Retransmit | Timer::Probe => self.rto,
                    Timer::Idle => KEEPALIVE,
                };
            self.timer = timer;
            self.restart_timer = false;
        }
        self.deadline
    }

    /// The time has come that [`Connection::update_timer`] has said.
    pub(super) fn timer(&mut self) -> Result<(), End> {
        self.restart_timer = true;
        match self.timer {
            Timer::Connect => return Err(End::Unreachable(Errno::TIMEDOUT)),
            Timer::Syn if self.retries >= MAX_SYN_RETRIES => return Err(End::Reset),
            _ if self.retries >= MAX_RETRIES => return Err(End::Reset),
            Timer::Syn => self.syn_owed = true,
            Timer::Retransmit => {
                self.next = self.acked;
                self.lost = true;
                // A closed window has nothing sent, but the guest has to be asked.
                self.probe_owed = self.window_left() == 0;
            }
            Timer::Probe => self.probe_owed = true,
            Timer::Idle => {
                self.asked = true;
                self.probe_owed = true;
            }
        }
        self.rto = (self.rto * 2).min(MAX_RTO);
        Ok(())
    }
}
