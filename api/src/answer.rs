//! What becomes of a result: a status, headers and a body.

use serde::Serialize;

use crate::command::{Fault, Response};

/// What is answered, but for the headers that the connection is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Names and values, with the type of the body if there is one, without its length.
    pub headers: Vec<(&'static str, &'static str)>,
    /// The body; empty is none.
    pub body: Vec<u8>,
}

/// A member that does not serialise would be a mistake of ours, not of the client.
const BROKEN: &str = r#"{"fault_message":"The answer cannot be written as JSON."}"#;

const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The answer of a request. `deprecated`: it asked for something that Firecracker deprecates.
pub fn answer(result: &Result<Response, Fault>, deprecated: bool) -> Answer {
    let mut answer = match result {
        Ok(response) => success(response),
        Err(fault) => failure(fault),
    };
    if deprecated {
        answer.headers.push(("Deprecation", "true"));
    }
    answer
}

fn success(response: &Response) -> Answer {
    match response {
        Response::Empty => Answer {
            status: 204,
            headers: Vec::new(),
            body: Vec::new(),
        },
        Response::Text(text) => Answer {
            status: 200,
            headers: vec![("Content-Type", OPEN_METRICS)],
            body: text.clone().into_bytes(),
        },
        Response::Instance(value) => json(200, value),
        Response::Version(value) => json(200, value),
        Response::Config(value) => json(200, value),
        Response::MachineConfig(value) => json(200, value),
        Response::Balloon(value) => json(200, value),
        Response::BalloonStatistics(value) => json(200, value),
        Response::Hinting(value) => json(200, value),
        Response::MemoryHotplug(value) => json(200, value),
        Response::Mmds(value) => json(200, value),
        Response::Forked(value) => json(200, value),
    }
}

/// The body of an error.
#[derive(Serialize)]
struct FaultBody<'a> {
    fault_message: &'a str,
}

fn failure(fault: &Fault) -> Answer {
    json(
        fault.status,
        &FaultBody {
            fault_message: &fault.message,
        },
    )
}

fn json<T: Serialize>(status: u16, value: &T) -> Answer {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(_) => (500, BROKEN.into()),
    };
    Answer {
        status,
        headers: vec![("Content-Type", JSON)],
        body,
    }
}

impl Answer {
    /// The description of the API itself.
    pub fn openapi() -> Self {
        Self {
            status: 200,
            headers: vec![("Content-Type", JSON)],
            body: crate::openapi::DESCRIPTION.into(),
        }
    }
}
