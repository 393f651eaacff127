//! Free page hints: the host asks, and the guest tells which memory it does not use just now (virtio 1.2
//! section 5.5.6.4).
//!
//! A round has a number. The host writes it into the configuration; the driver answers with the number on the
//! queue, then with buffers that are free memory, then with [`STOP`]. It keeps what it told of until the host
//! writes [`DONE`], but for lack of memory takes it back before: **a guest may use a page again before its hint is
//! read, and loses what it has written to it**. So this is only for guests whose memory is not short while
//! a round lasts, and only there for who asks for it; free page reporting has no such window.

use thiserror::Error;

/// The driver is to stop, or has told all.
pub(super) const STOP: u32 = 0;
/// The driver can have its pages back.
pub(super) const DONE: u32 = 1;
/// The lowest number of a round.
const FIRST: u32 = 2;

/// Why there is no round.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HintingError {
    /// It was not asked for.
    #[error("The balloon has no free page hinting")]
    Off,
    /// There is nobody to be asked.
    #[error("The guest's driver of the balloon is not active")]
    NotActive,
}

/// How far a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintingStatus {
    /// What the driver was last told: 0 stop, 1 done, a round's number otherwise.
    pub host_command: u32,
    /// What it last said; None: nothing yet.
    pub guest_command: Option<u32>,
}

/// The state of hinting.
#[derive(Debug, Default)]
pub(super) struct Hinting {
    pub(super) status: HintingStatus,
    last_round: u32,
    /// The driver gets its pages back as soon as it has told all.
    acknowledge: bool,
}

impl Hinting {
    /// Begins a round.
    pub(super) fn start(&mut self, acknowledge: bool) {
        self.last_round = self.last_round.wrapping_add(1).max(FIRST);
        self.status.host_command = self.last_round;
        self.acknowledge = acknowledge;
    }

    /// Ends it: what is told from now on counts no more.
    pub(super) fn stop(&mut self) {
        self.status.host_command = DONE;
    }

    /// The driver is another one, or the same from its start.
    pub(super) fn forget_guest(&mut self) {
        self.status.guest_command = None;
    }

    /// The driver has said this; whether the configuration has changed thereby.
    pub(super) fn hear(&mut self, command: u32) -> bool {
        let was_in_round = self.is_in_round();
        self.status.guest_command = Some(command);
        if command == STOP && was_in_round && self.acknowledge {
            self.stop();
            return true;
        }
        false
    }

    /// Whether what the driver tells of belongs to the host's round.
    pub(super) fn is_in_round(&self) -> bool {
        let HintingStatus {
            host_command,
            guest_command,
        } = self.status;
        host_command >= FIRST && guest_command == Some(host_command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_have_numbers_of_their_own() {
        let mut hinting = Hinting::default();
        assert!(!hinting.is_in_round());
        hinting.start(true);
        assert_eq!(hinting.status.host_command, 2);
        hinting.start(true);
        assert_eq!(hinting.status.host_command, 3);
        hinting.last_round = u32::MAX;
        hinting.start(true);
        assert_eq!(hinting.status.host_command, 2);
    }

    #[test]
    fn only_the_hosts_round_counts() {
        let mut hinting = Hinting::default();
        // A driver that says what it likes.
        for command in [STOP, DONE, 7] {
            assert!(!hinting.hear(command));
            assert!(!hinting.is_in_round());
        }
        hinting.start(true);
        assert!(!hinting.is_in_round());
        assert!(!hinting.hear(9));
        assert!(!hinting.is_in_round());
        assert!(!hinting.hear(2));
        assert!(hinting.is_in_round());
        // All is told: the pages are the guest's again.
        assert!(hinting.hear(STOP));
        assert_eq!(hinting.status.host_command, DONE);
        assert_eq!(hinting.status.guest_command, Some(STOP));
        assert!(!hinting.hear(STOP));
    }

    #[test]
    fn a_round_without_acknowledgement_ends_when_the_host_says() {
        let mut hinting = Hinting::default();
        hinting.start(false);
        hinting.hear(2);
        assert!(!hinting.hear(STOP));
        assert_eq!(hinting.status.host_command, 2);
        assert!(!hinting.is_in_round());
        hinting.stop();
        assert_eq!(hinting.status.host_command, DONE);
        hinting.start(true);
        hinting.hear(3);
        hinting.stop();
        assert!(!hinting.is_in_round());
        hinting.forget_guest();
        assert_eq!(hinting.status.guest_command, None);
    }
}
