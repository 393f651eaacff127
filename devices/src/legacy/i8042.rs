//! The PC's keyboard controller (Intel 8042 as IBM's PS/2 has it), with a keyboard and without a mouse.
//!
//! Whoever runs the machine has one key: Ctrl-Alt-Del ([`I8042::send_ctrl_alt_del`]). What is for the
//! guest waits in a buffer of 16 bytes and comes one by one, with an edge of the interrupt line each;
//! the keys are let go once the guest has read that they were pressed.
//!
//! Every command that a driver uses to look for a controller or a mouse is answered at once: Linux
//! waits half a second for each that is not.

mod state;

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use super::keyboard::{ANSWER_MAX, CTRL_ALT_DEL, CTRL_ALT_DEL_RELEASED, Keyboard, translate};
use crate::bus::{BusDevice, byte_offsets};
use crate::event::{EventSink, GuestEvent};
use crate::interrupt::InterruptLine;
pub use state::I8042State;

/// Bytes that wait for the guest at most.
const OUTPUT_SIZE: usize = 16;

// Ports, as offsets. The ones in between are not the controller's and behave as if they were not
// mapped: Linux may poll bit 5 of port 0x61 (timer 2) until it is set.
const DATA: u64 = 0;
const STATUS_COMMAND: u64 = 4;

/// Status.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    /// The self-test passed: the control byte's bit.
    pub(super) const SYSTEM: u8 = 1 << 2;
    /// The next byte of the data port is a command's parameter.
    pub(super) const COMMAND: u8 = 1 << 3;
    /// There is no lock on the keyboard, or it is open.
    pub(super) const UNLOCKED: u8 = 1 << 4;
}

/// The control byte.
mod control {
    pub(super) const INTERRUPT: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_OFF: u8 = 1 << 4;
    pub(super) const MOUSE_OFF: u8 = 1 << 5;
    pub(super) const TRANSLATE: u8 = 1 << 6;
}

/// Commands.
mod command {
    pub(super) const READ_CONTROL: u8 = 0x20;
    pub(super) const READ_MEMORY: u8 = 0x21;
    pub(super) const READ_MEMORY_END: u8 = 0x3f;
    pub(super) const WRITE_CONTROL: u8 = 0x60;
    pub(super) const WRITE_MEMORY: u8 = 0x61;
    pub(super) const WRITE_MEMORY_END: u8 = 0x7f;
    pub(super) const MOUSE_OFF: u8 = 0xa7;
    pub(super) const MOUSE_ON: u8 = 0xa8;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const KEYBOARD_OFF: u8 = 0xad;
    pub(super) const KEYBOARD_ON: u8 = 0xae;
    pub(super) const READ_INPUT: u8 = 0xc0;
    pub(super) const READ_OUTPUT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT: u8 = 0xd1;
    /// Gives a byte as if it came from the keyboard, or from the mouse.
    pub(super) const FROM_KEYBOARD: u8 = 0xd2;
    pub(super) const FROM_MOUSE: u8 = 0xd3;
    pub(super) const TO_MOUSE: u8 = 0xd4;
    /// From here on: pulses the output lines whose bits are clear.
    pub(super) const PULSE: u8 = 0xf0;
}

const SELF_TEST_PASSED: u8 = 0x55;
const KEYBOARD_WORKS: u8 = 0;
/// The mouse's clock line is stuck: none is connected.
const NO_MOUSE: u8 = 1;
/// The keyboard is not locked.
const INPUT_PORT: u8 = 1 << 7;
/// Output line 0 is the CPU's reset, active low; line 1 opens the address line A20.
const LINE_RESET: u8 = 1 << 0;
const LINE_A20: u8 = 1 << 1;

/// What it has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct I8042Counters {
    /// Reads of its two ports.
    pub reads: u64,
    /// Writes to its two ports.
    pub writes: u64,
    /// Reads of the ports in between.
    pub missed_reads: u64,
    /// Writes to the ports in between.
    pub missed_writes: u64,
    /// Bytes for the guest, or presses of Ctrl-Alt-Del, that had no room.
    pub errors: u64,
    /// Times that the guest pulled the reset line.
    pub resets: u64,
}

/// The guest has not read what came before.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "The guest does not read its keyboard: the controller's buffer has no room for Ctrl-Alt-Del"
)]
pub struct NoRoom;

/// The controller: 5 ports from 0x60 on.
pub struct I8042 {
    // Runtime glue.
    line: Arc<dyn InterruptLine>,
    sink: Arc<dyn EventSink>,

    // Volatile state.
    control: u8,
    output_port: u8,
    /// The command whose parameter is to come.
    command: Option<u8>,
    /// What the guest is to read.
    output: VecDeque<u8>,
    keyboard: Keyboard,
    /// Keys are pressed, and are let go once the guest knows.
    keys_down: bool,
    counters: I8042Counters,
}

impl I8042 {
    /// A controller that interrupts by `line` and reports resets to `sink`.
    pub fn new(line: Arc<dyn InterruptLine>, sink: Arc<dyn EventSink>) -> Self {
        Self {
            line,
            sink,
            control: control::INTERRUPT | control::SYSTEM,
            output_port: LINE_RESET | LINE_A20,
            command: None,
            output: VecDeque::with_capacity(OUTPUT_SIZE),
            keyboard: Keyboard::default(),
            keys_down: false,
            counters: I8042Counters::default(),
        }
    }

    /// Presses Ctrl-Alt-Del. The guest need not care, and one that has no driver never reads it.
    pub fn send_ctrl_alt_del(&mut self) -> Result<(), NoRoom> {
        if OUTPUT_SIZE - self.output.len() < CTRL_ALT_DEL.len() {
            self.counters.errors += 1;
            return Err(NoRoom);
        }
        self.send_keys(&CTRL_ALT_DEL);
        self.keys_down = true;
        Ok(())
    }

    /// What it has done so far.
    pub fn counters(&self) -> I8042Counters {
        self.counters
    }

    fn send_keys(&mut self, codes: &[u8]) {
        if self.control & control::TRANSLATE != 0 {
            translate(codes).for_each(|code| self.push(code));
        } else {
            codes.iter().for_each(|&code| self.push(code));
        }
    }

    /// Puts a byte behind what the guest is to read.
    fn push(&mut self, byte: u8) {
        if self.output.len() >= OUTPUT_SIZE {
            self.counters.errors += 1;
            return;
        }
        self.output.push_back(byte);
        if self.output.len() == 1 {
            self.update();
        }
    }

    /// Answers a command: the answer is what the guest reads next.
    fn answer(&mut self, bytes: &[u8]) {
        const { assert!(ANSWER_MAX <= OUTPUT_SIZE) };
        self.output.clear();
        self.line.set(false);
        bytes.iter().for_each(|&byte| self.push(byte));
    }

    /// Brings the line up to date.
    fn update(&self) {
        self.line
            .set(!self.output.is_empty() && self.control & control::INTERRUPT != 0);
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.output.pop_front().unwrap_or(0);
        // An edge for each byte.
        self.line.set(false);
        self.update();
        if self.output.is_empty() && self.keys_down && !self.keyboard.awaits_parameter() {
            self.keys_down = false;
            self.send_keys(&CTRL_ALT_DEL_RELEASED);
        }
        byte
    }

    fn status(&self) -> u8 {
        let mut status = status::UNLOCKED;
        if !self.output.is_empty() {
            status |= status::OUTPUT_FULL;
        }
        if self.control & control::SYSTEM != 0 {
            status |= status::SYSTEM;
        }
        if self.command.is_some() {
            status |= status::COMMAND;
        }
        status
    }

    fn write_data(&mut self, byte: u8) {
        match self.command.take() {
            None => {
                let answer = self.keyboard.take(byte);
                self.answer(answer.bytes());
            }
            Some(command::WRITE_CONTROL) => {
                self.control = byte;
                self.update();
            }
            Some(command::WRITE_OUTPUT) => {
                self.output_port = byte;
                if byte & LINE_RESET == 0 {
                    self.reset();
                }
            }
            Some(command::FROM_KEYBOARD) => self.push(byte),
            // Without the status bit that says so it did not come from the mouse: there is none.
            Some(command::FROM_MOUSE) => self.answer(&[byte]),
            // There is no such memory, and nobody at the other end.
            Some(_) => {}
        }
    }

    fn write_command(&mut self, byte: u8) {
        self.command = None;
        match byte {
            command::READ_CONTROL => self.answer(&[self.control]),
            command::READ_MEMORY..=command::READ_MEMORY_END => self.answer(&[0]),
            command::WRITE_CONTROL
            | command::WRITE_MEMORY..=command::WRITE_MEMORY_END
            | command::WRITE_OUTPUT
            | command::FROM_KEYBOARD
            | command::FROM_MOUSE
            | command::TO_MOUSE => self.command = Some(byte),
            command::MOUSE_OFF => self.control |= control::MOUSE_OFF,
            command::MOUSE_ON => self.control &= !control::MOUSE_OFF,
            command::TEST_MOUSE => self.answer(&[NO_MOUSE]),
            command::SELF_TEST => {
                self.control |= control::SYSTEM;
                self.answer(&[SELF_TEST_PASSED]);
            }
            command::TEST_KEYBOARD => self.answer(&[KEYBOARD_WORKS]),
            command::KEYBOARD_OFF => self.control |= control::KEYBOARD_OFF,
            command::KEYBOARD_ON => self.control &= !control::KEYBOARD_OFF,
            command::READ_INPUT => self.answer(&[INPUT_PORT]),
            command::READ_OUTPUT => self.answer(&[self.output_port]),
            command::PULSE.. if byte & LINE_RESET == 0 => self.reset(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.counters.resets += 1;
        self.sink.event(GuestEvent::Reset);
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in byte_offsets(offset).zip(data) {
            *byte = match offset {
                DATA => self.read_data(),
                STATUS_COMMAND => self.status(),
                _ => {
                    self.counters.missed_reads += 1;
                    *byte = 0xff;
                    continue;
                }
            };
            self.counters.reads += 1;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, &byte) in byte_offsets(offset).zip(data) {
            match offset {
                DATA => self.write_data(byte),
                STATUS_COMMAND => self.write_command(byte),
                _ => {
                    self.counters.missed_writes += 1;
                    continue;
                }
            }
            self.counters.writes += 1;
        }
    }
}

#[cfg(test)]
#[path = "i8042_test.rs"]
mod tests;
