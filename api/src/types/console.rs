//! `/console`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;
use crate::command::Fault;

/// What can be changed of the guest's console: the size of the terminal that it is shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ConsolePatch {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

wire!(Object: ConsolePatch);

impl Validate for ConsolePatch {
    fn validate(&self) -> Result<(), Fault> {
        for (field, value) in [("columns", self.columns), ("rows", self.rows)] {
            if value == 0 {
                return Err(Fault::value(
                    "/console",
                    field,
                    "a terminal has one at least",
                ));
            }
        }
        Ok(())
    }
}
