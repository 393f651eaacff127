//! The control API: what a monitor can be asked and what it answers, without the monitor.
//!
//! Reading order: `types` (the objects on the wire, one file a resource), `command` (the complete list of
//! requests), `states` (in which state each is legal), `route` (method, path and body become a command), `answer`
//! (its result becomes a status and a body), `openapi` (the description of all that).
//! Nothing here knows of sockets, devices or KVM.

#![forbid(unsafe_code)]

pub mod answer;
pub mod command;
pub mod openapi;
pub mod route;
pub mod states;
pub mod types;

pub use answer::{Answer, answer};
pub use command::{Command, Fault, Response, State};
pub use route::{Refusal, Route, route};
