//! A function with its device, as a state.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::signals::{ISR_CONFIG, Signals};
use super::{PciDevice, Plugged};
use crate::pci::config::SpaceState;
use crate::pci::msix::MsixState;
use crate::state::BadState;
use crate::virtio::interrupt::Deliver;
use crate::virtio::state::CoreState;

/// See [`crate::state`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    core: CoreState,
    space: SpaceState,
    msix: MsixState,
    signals: SignalsState,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u16,
}

impl PciState {
    /// The device, whatever transport it is behind.
    pub fn core(&self) -> &CoreState {
        &self.core
    }
}

/// Which vectors the driver wants for what, and why it was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignalsState {
    config: u16,
    queues: Vec<u16>,
    isr: u8,
}

impl Signals {
    fn save(&self) -> SignalsState {
        let queues = 0..self.queue_count();
        SignalsState {
            config: self.config_vector(),
            queues: queues.map(|queue| self.queue_vector(queue)).collect(),
            isr: self.isr.load(Ordering::Acquire),
        }
    }

    fn restore(&self, state: &SignalsState) -> Result<(), BadState> {
        BadState::check_count("queue vectors", state.queues.len(), self.queue_count())?;
        self.set_config_vector(state.config);
        for (queue, vector) in state.queues.iter().enumerate() {
            self.set_queue_vector(queue, *vector);
        }
        self.note(state.isr);
        Ok(())
    }
}

impl Plugged {
    fn restore(&mut self, state: &PciState) -> Result<(), BadState> {
        self.core.restore(&state.core)?;
        self.space.restore(&state.space)?;
        self.msix.restore(&state.msix)?;
        self.signals.restore(&state.signals)?;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.follow_space();
        self.core.interrupt_again();
        if state.signals.isr & ISR_CONFIG != 0 {
            super::Delivery(std::sync::Arc::clone(&self.signals)).config();
        }
        Ok(())
    }
}

impl PciDevice {
    /// See [`Core::pause`](super::Core::pause).
    pub fn pause(&mut self) {
        if let Some(plugged) = &mut self.0 {
            plugged.core.pause();
        }
    }

    /// See [`Core::resume`](super::Core::resume).
    pub fn resume(&mut self) {
        if let Some(plugged) = &mut self.0 {
            plugged.core.resume();
        }
    }

    /// See [`Core::save`](super::Core::save). None once it is unplugged.
    pub fn save(&mut self) -> Result<Option<PciState>, BadState> {
        let Some(plugged) = &mut self.0 else {
            return Ok(None);
        };
        Ok(Some(PciState {
            core: plugged.core.save()?,
            space: plugged.space.save(),
            msix: plugged.msix.save(),
            signals: plugged.signals.save(),
            device_features_select: plugged.device_features_select,
            driver_features_select: plugged.driver_features_select,
            queue_select: plugged.queue_select,
        }))
    }

    /// See [`Core::restore`](super::Core::restore). The memory goes where the guest had put it, and what the
    /// driver may have been told it is told again.
    pub fn restore(&mut self, state: &PciState) -> Result<(), BadState> {
        match &mut self.0 {
            Some(plugged) => plugged.restore(state),
            None => Err(BadState::Kind),
        }
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
