//! What the guest has made of controller and keyboard, as a state.

use serde::{Deserialize, Serialize};

use super::{I8042, OUTPUT_SIZE};
use crate::legacy::keyboard::KeyboardState;
use crate::state::BadState;

/// See [`crate::state`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    control: u8,
    output_port: u8,
    command: Option<u8>,
    output: Vec<u8>,
    keyboard: KeyboardState,
    keys_down: bool,
}

impl I8042 {
    /// See [`crate::state`].
    pub fn save(&self) -> I8042State {
        I8042State {
            control: self.control,
            output_port: self.output_port,
            command: self.command,
            output: self.output.iter().copied().collect(),
            keyboard: self.keyboard.save(),
            keys_down: self.keys_down,
        }
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, state: &I8042State) -> Result<(), BadState> {
        let held = state.output.len();
        BadState::check_limit("bytes that the guest has to read", held, OUTPUT_SIZE)?;
        self.keyboard.restore(&state.keyboard)?;
        self.control = state.control;
        self.output_port = state.output_port;
        self.command = state.command;
        self.output = state.output.iter().copied().collect();
        self.keys_down = state.keys_down;
        self.update();
        Ok(())
    }
}
