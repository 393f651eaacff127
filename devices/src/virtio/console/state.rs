//! What a console has become, as a state. What the guest has sent is not in it, but for its end, which reports of
//! crashes show: the host has it, or gets it from the console that it was sent to.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Console, pack};
use crate::console_io::{HELD_MAX, TAIL_SIZE};
use crate::lock;
use crate::state::BadState;

/// What is between the guest and its terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Columns and rows that the driver knows.
    pub(super) size: (u16, u16),
    /// The driver had just come, and was given no input yet.
    pub(super) settling: bool,
    /// What was typed and not read.
    pub(super) input: Vec<u8>,
    /// The end of what was printed.
    pub(super) tail: Vec<u8>,
}

impl Console {
    pub(super) fn state(&self) -> ConsoleState {
        let size = self.shared.size.load(Ordering::Acquire);
        let (settling, input, tail) = lock(&self.worker).state();
        ConsoleState {
            size: ((size >> 16) as u16, size as u16),
            settling,
            input,
            tail,
        }
    }

    /// The terminal here need not have the size of the one there: the driver is told as soon as it goes on.
    pub(super) fn take_state(&mut self, state: &ConsoleState) -> Result<(), BadState> {
        let ConsoleState {
            size,
            settling,
            input,
            tail,
        } = state;
        BadState::check_limit("bytes of input", input.len(), HELD_MAX)?;
        BadState::check_limit("bytes of output", tail.len(), TAIL_SIZE)?;
        let shared = &self.shared;
        let (known, here) = (pack(*size), shared.size.load(Ordering::Acquire));
        if here == 0 {
            shared.size.store(known, Ordering::Release);
        } else if here != known {
            shared.has_old_size.store(true, Ordering::Release);
        }
        lock(&self.worker).restore(*settling, input, tail);
        Ok(())
    }
}
