//! A PS/2 keyboard (IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and
//! Auxiliary Device Controller" and "Keyboards"), on which nobody types but [`super::i8042`]'s handle.
//!
//! It answers all commands as a keyboard does, so that a driver that asks for an identification gets
//! one and does not wait for it. It sends scan code set 2, whatever set it is told to use: the keys
//! there are have to be understood before a driver has been there as well.

use serde::{Deserialize, Serialize};

use crate::state::BadState;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const ECHO: u8 = 0xee;
/// The self-test passed.
const SELF_TEST_PASSED: u8 = 0xaa;
/// An MF2 keyboard.
const IDENTITY: [u8; 2] = [0xab, 0x83];
/// The scan code set that it sends.
const SET: u8 = 2;

/// Commands.
mod command {
    pub(super) const SET_LEDS: u8 = 0xed;
    pub(super) const ECHO: u8 = 0xee;
    pub(super) const SCAN_CODE_SET: u8 = 0xf0;
    pub(super) const IDENTIFY: u8 = 0xf2;
    pub(super) const TYPEMATIC: u8 = 0xf3;
    pub(super) const ENABLE: u8 = 0xf4;
    pub(super) const DISABLE: u8 = 0xf5;
    /// Defaults, then types of all keys and of single ones, of which set 2 knows nothing.
    pub(super) const SET_DEFAULTS: u8 = 0xf6;
    pub(super) const KEY_TYPES_END: u8 = 0xfa;
    pub(super) const RESEND: u8 = 0xfe;
    pub(super) const RESET: u8 = 0xff;
}

/// Left Ctrl, left Alt and Delete are pressed.
pub(super) const CTRL_ALT_DEL: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];
/// They are let go.
pub(super) const CTRL_ALT_DEL_RELEASED: [u8; 7] = [0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// Before the code of a key that is let go.
const RELEASED: u8 = 0xf0;

/// The longest answer.
pub(super) const ANSWER_MAX: usize = 3;

/// What it sends when it is sent a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    bytes: [u8; ANSWER_MAX],
    len: usize,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        let mut answer = Self::default();
        for (to, from) in answer.bytes.iter_mut().zip(bytes) {
            *to = *from;
            answer.len += 1;
        }
        answer
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What its driver has sent and got last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyboardState {
    command: Option<u8>,
    last: Vec<u8>,
}

/// The keyboard.
#[derive(Debug)]
pub(super) struct Keyboard {
    /// The command whose parameter is to come.
    command: Option<u8>,
    last: Answer,
}

impl Default for Keyboard {
    /// As it is after its self-test.
    fn default() -> Self {
        Self {
            command: None,
            last: Answer::of(&[SELF_TEST_PASSED]),
        }
    }
}

impl Keyboard {
    pub(super) fn save(&self) -> KeyboardState {
        KeyboardState {
            command: self.command,
            last: self.last.bytes().to_vec(),
        }
    }

    pub(super) fn restore(&mut self, state: &KeyboardState) -> Result<(), BadState> {
        let last = state.last.len();
        BadState::check_limit("bytes of the keyboard's last answer", last, ANSWER_MAX)?;
        self.command = state.command;
        self.last = Answer::of(&state.last);
        Ok(())
    }

    /// Takes a byte from the driver.
    pub(super) fn take(&mut self, byte: u8) -> Answer {
        let answer = match self.command.take() {
            // A parameter is below 0x80 or it is the next command.
            Some(command) if byte < 0x80 => Self::parameter(command, byte),
            _ => self.command(byte),
        };
        self.last = answer;
        answer
    }

    /// Whether the driver is in the middle of a command.
    pub(super) fn awaits_parameter(&self) -> bool {
        self.command.is_some()
    }

    fn parameter(command: u8, byte: u8) -> Answer {
        match (command, byte) {
            // Which one is it?
            (command::SCAN_CODE_SET, 0) => Answer::of(&[ACKNOWLEDGE, SET]),
            (command::SCAN_CODE_SET, 1..=3) => Answer::of(&[ACKNOWLEDGE]),
            (command::SCAN_CODE_SET, _) => Answer::of(&[RESEND]),
            _ => Answer::of(&[ACKNOWLEDGE]),
        }
    }

    fn command(&mut self, byte: u8) -> Answer {
        match byte {
            command::SET_LEDS | command::SCAN_CODE_SET | command::TYPEMATIC => {
                self.command = Some(byte);
                Answer::of(&[ACKNOWLEDGE])
            }
            command::ECHO => Answer::of(&[ECHO]),
            command::IDENTIFY => Answer::of(&[ACKNOWLEDGE, IDENTITY[0], IDENTITY[1]]),
            command::ENABLE | command::DISABLE => Answer::of(&[ACKNOWLEDGE]),
            command::SET_DEFAULTS..=command::KEY_TYPES_END => Answer::of(&[ACKNOWLEDGE]),
            command::RESEND => self.last,
            command::RESET => Answer::of(&[ACKNOWLEDGE, SELF_TEST_PASSED]),
            _ => Answer::of(&[RESEND]),
        }
    }
}

/// Scan codes of set 2 as the controller translates them to set 1: the code, and none for the prefix
/// of a key that is let go, which becomes bit 7 of the next one. Only of the keys there are.
pub(super) fn translate(codes: &[u8]) -> impl Iterator<Item = u8> {
    let mut released = 0;
    codes.iter().filter_map(move |&code| {
        let key = match code {
            RELEASED => {
                released = 0x80;
                return None;
            }
            0x14 => 0x1d,
            0x11 => 0x38,
            0x71 => 0x53,
            // A prefix stays.
            prefix => return Some(prefix),
        };
        Some(key | std::mem::take(&mut released))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_gets_the_answers_of_a_keyboard() {
        let mut keyboard = Keyboard::default();
        for (sent, answer) in [
            // As Linux's atkbd does: identify, LEDs, typematic rate, enable.
            (0xf2, &[0xfa, 0xab, 0x83][..]),
            (0xfe, &[0xfa, 0xab, 0x83]),
            (0xed, &[0xfa]),
            (0x00, &[0xfa]),
            (0xf3, &[0xfa]),
            (0x00, &[0xfa]),
            (0xf4, &[0xfa]),
            // Which scan codes?
            (0xf0, &[0xfa]),
            (0x00, &[0xfa, 2]),
            (0xf0, &[0xfa]),
            (0x07, &[0xfe]),
            (0xff, &[0xfa, 0xaa]),
            (0xee, &[0xee]),
            // A command instead of the parameter.
            (0xed, &[0xfa]),
            (0xf5, &[0xfa]),
            // None at all.
            (0x00, &[0xfe]),
        ] {
            assert_eq!(keyboard.take(sent).bytes(), answer, "{sent:#x}");
        }
    }

    #[test]
    fn every_byte_has_an_answer_after_every_other() {
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let mut keyboard = Keyboard::default();
                let answers = [keyboard.take(first), keyboard.take(second)];
                assert!(answers.iter().all(|answer| !answer.bytes().is_empty()));
            }
        }
    }

    #[test]
    fn keys_are_translated_to_set_1() {
        let pressed: Vec<u8> = translate(&CTRL_ALT_DEL).collect();
        assert_eq!(pressed, [0x1d, 0x38, 0xe0, 0x53]);
        let released: Vec<u8> = translate(&CTRL_ALT_DEL_RELEASED).collect();
        assert_eq!(released, [0xe0, 0xd3, 0xb8, 0x9d]);
    }
}
