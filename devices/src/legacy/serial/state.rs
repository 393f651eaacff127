//! What the guest has made of the port, as a state. What it has sent is not in it: the host has that, or
//! gets it from the port that it was sent to.

use serde::{Deserialize, Serialize};

use super::{FIFO_SIZE, IER_WRITABLE, MCR_WRITABLE, Serial, TRIGGER_LEVELS};
use crate::state::BadState;

/// The registers, and what the receiver holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifo_enabled: bool,
    trigger: usize,
    received: Vec<u8>,
    returned: Vec<u8>,
    overrun: bool,
    modem_changes: u8,
    transmitter_interrupt: bool,
    line_asserted: bool,
    uses_rts: bool,
}

impl Serial {
    /// See [`crate::state`].
    pub fn save(&self) -> SerialState {
        SerialState {
            ier: self.ier,
            lcr: self.lcr,
            mcr: self.mcr,
            scr: self.scr,
            divisor: self.divisor,
            fifo_enabled: self.fifo_enabled,
            trigger: self.trigger,
            received: self.received.iter().copied().collect(),
            returned: self.returned.iter().copied().collect(),
            overrun: self.overrun,
            modem_changes: self.modem_changes,
            // A transmitter that is busy here has nothing to do there.
            transmitter_interrupt: self.transmitter_interrupt || !self.transmitter_empty(),
            line_asserted: self.line_asserted,
            uses_rts: self.uses_rts,
        }
    }

    /// See [`crate::state`]. The interrupt line's level is the controller's to know.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), BadState> {
        for (what, held) in [
            ("bytes in the receiver", &state.received),
            ("bytes in front of the receiver", &state.returned),
        ] {
            BadState::check_limit(what, held.len(), FIFO_SIZE)?;
        }
        if !TRIGGER_LEVELS.contains(&state.trigger) {
            return Err(BadState::Value {
                what: "the receiver's trigger level",
                value: state.trigger as u64,
            });
        }
        self.ier = state.ier & IER_WRITABLE;
        self.lcr = state.lcr;
        self.mcr = state.mcr & MCR_WRITABLE;
        self.scr = state.scr;
        self.divisor = state.divisor;
        self.fifo_enabled = state.fifo_enabled;
        self.trigger = state.trigger;
        self.received = state.received.iter().copied().collect();
        self.returned = state.returned.iter().copied().collect();
        self.overrun = state.overrun;
        self.modem_changes = state.modem_changes & 0xf;
        self.transmitter_interrupt = state.transmitter_interrupt;
        self.line_asserted = state.line_asserted;
        self.uses_rts = state.uses_rts;
        self.update();
        Ok(())
    }
}
