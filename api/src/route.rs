//! From method, path and body to a command.

use crate::command::{Command, Fault};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// To the monitor.
    Command {
        /// What it is asked.
        command: Box<Command>,
        /// Whether something was asked for that Firecracker deprecates: the answer says so.
        deprecated: bool,
    },
    /// The description of the API is asked for.
    OpenApi,
    /// The stream of events is asked for.
    Events,
    /// The console is asked for.
    Console,
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub fault: Fault,
    /// Whether something was asked for that Firecracker deprecates: the answer says so.
    pub deprecated: bool,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            deprecated: false,
        }
    }
}

/// Finds out what a request asks for. `path` is the target as it was sent: with a query it is another path.
///
/// What is wrong is found in this order: method and path, the id's form, whether there is a body, its JSON, whether
/// the ids are the same, its values.
pub fn route(method: &str, path: &str, body: &[u8]) -> Result<Route, Refusal> {
    let _ = (method, path, body);
    Err(Fault::bad("").into())
}
