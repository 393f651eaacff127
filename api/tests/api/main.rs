//! The API without a socket: requests as they are sent, against the commands that they become.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod config;
mod endpoints;
mod fields;
mod kinds;
mod routes;
mod values;

use api::{Command, Fault, Route, route};

/// What a request asks the monitor.
fn command(method: &str, path: &str, body: &str) -> Result<Command, Fault> {
    match route(method, path, body.as_bytes()) {
        Ok(Route::Command { command, .. }) => Ok(*command),
        Ok(other) => panic!("{method} {path} is no command but {other:?}"),
        Err(refusal) => Err(refusal.fault),
    }
}

/// The message with which a request is refused, with 400.
fn refused(method: &str, path: &str, body: &str) -> String {
    match command(method, path, body) {
        Ok(command) => panic!("{method} {path} {body} is {command:?}"),
        Err(fault) => {
            assert_eq!(fault.status, 400, "{method} {path} {body}");
            fault.message
        }
    }
}

/// Whether the answer says that what was asked for is deprecated.
fn is_deprecated(method: &str, path: &str, body: &str) -> bool {
    match route(method, path, body.as_bytes()) {
        Ok(Route::Command { deprecated, .. }) => deprecated,
        Ok(other) => panic!("{method} {path} is no command but {other:?}"),
        Err(refusal) => refusal.deprecated,
    }
}
