//! The control API: what a monitor can be asked and what it answers, without the monitor.
//!
//! Reading order: `types` (the objects on the wire, one file a resource), `command` (the complete list of
//! requests), `states` (in which state each is legal), `route` (method, path and body become a command), `answer`
//! (its result becomes a status and a body), `openapi` (the description of all that). `handler` and `events` are what
//! a monitor gives to the server, `frames` a way to write the latter. All that knows of no socket, and nothing here of devices or KVM.
//!
//! With the feature `server`: `socket` (the file), `server` (HTTP on it). With `client`: `client`.

#![forbid(unsafe_code)]

pub mod answer;
#[cfg(feature = "client")]
pub mod client;
pub mod command;
pub mod events;
pub mod frames;
pub mod handler;
pub mod openapi;
pub mod route;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod socket;
pub mod states;
pub mod types;

pub use answer::{Answer, answer};
pub use command::{Command, Fault, Response, State};
pub use route::{Refusal, Route, route};
