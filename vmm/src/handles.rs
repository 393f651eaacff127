//! Handles on devices of a machine that whoever serves it may use: copies of one are of the same device.

use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::ged::Ged;
use devices::legacy::i8042::{I8042, I8042Counters, NoRoom};
use devices::legacy::serial::{Serial, SerialCounters};

/// A handle on the guest's power button.
#[derive(Clone)]
pub struct PowerButton(pub(crate) Arc<Mutex<Ged>>);

impl PowerButton {
    /// Presses it: a guest with ACPI shuts itself down.
    pub fn press(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .press_power_button();
    }
}

/// A handle on the guest's keyboard.
#[derive(Clone)]
pub struct Keyboard(pub(crate) Arc<Mutex<I8042>>);

impl Keyboard {
    /// Presses Ctrl-Alt-Del, and lets go: a Linux guest restarts, or does what its init says. Fails if
    /// the guest has not read what came before.
    pub fn send_ctrl_alt_del(&self) -> Result<(), NoRoom> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send_ctrl_alt_del()
    }

    /// What the keyboard's controller has done so far.
    pub fn counters(&self) -> I8042Counters {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counters()
    }
}

/// A handle on the guest's serial port.
#[derive(Clone)]
pub struct SerialPort(pub(crate) Arc<Mutex<Serial>>);

impl SerialPort {
    /// What it has done so far.
    pub fn counters(&self) -> SerialCounters {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counters()
    }
}
