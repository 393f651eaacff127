//! `/actions`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;

/// Something to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// What can be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum ActionType {
    /// Starts the guest.
    InstanceStart,
    /// Presses Ctrl-Alt-Del on the guest's keyboard.
    SendCtrlAltDel,
    /// Writes the metrics to their file.
    FlushMetrics,
    /// Presses the guest's power button. An extension.
    PowerButton,
    /// Ends the guest and the monitor. An extension.
    Stop,
    /// Resets the guest, which ends it and the monitor. An extension.
    Reset,
}

wire!(Object: Action);
wire!(Text: ActionType);

impl Validate for Action {}
