//! A request becomes an answer.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};
use tokio::sync::oneshot;

use super::Shared;
use super::body::{Body, Events};
use super::link::{Link, Phase, Switched};
use crate::answer::{Answer, answer};
use crate::command::{Command, Fault};
use crate::frames;
use crate::handler::{Reply, Seen};
use crate::route::{Route, route};

/// What clients of Firecracker's have always been told.
pub(super) const SERVER: &str = "Firecracker API";
/// The protocol of the console: bytes in both directions.
pub const CONSOLE_PROTOCOL: &str = "mote-console";
/// How many bytes of what the guest has printed before come first: so many will come, whatever happens.
pub(super) const CONSOLE_BACKLOG: &str = "mote-backlog";
const EVENTS_TYPE: &str = "application/x-ndjson";

/// Answers a request.
pub(super) async fn serve(
    link: &Rc<Link>,
    shared: &Rc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut response = match read_body(body, shared.settings.max_body).await {
        Ok(body) => {
            link.set_phase(Phase::Waiting);
            respond(link, shared, &parts, &body).await
        }
        Err(fault) => {
            let mut response = whole(answer(&Err(fault), false));
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            response
        }
    };
    link.set_phase(Phase::Idle);
    let server = HeaderValue::from_static(SERVER);
    response.headers_mut().insert(header::SERVER, server);
    // What a client sends is not to write lines of its own into a log.
    log::info!(
        "API: {} {:?}: {}",
        parts.method,
        target(&parts),
        response.status().as_u16()
    );
    Ok(response)
}

/// What is asked for, as it was sent.
fn target(parts: &Parts) -> String {
    match parts.uri.path_and_query() {
        Some(path) => path.as_str().to_owned(),
        None => parts.uri.to_string(),
    }
}

/// The whole body, unless it is too long. One whose length says so is not read at all, and its client not told
/// to go on if it asks.
async fn read_body(mut body: Incoming, max: usize) -> Result<Vec<u8>, Fault> {
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        return Err(Fault::bad(format!(
            "The body of the request is too large: it has {announced} bytes, and {max} are allowed."
        )));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| {
            Fault::bad(format!("The body of the request cannot be read: {error}."))
        })?;
        // Trailers are of no use here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > max {
            return Err(Fault::too_large(format!(
                "The body of the request is too large: it has more than the {max} bytes that are allowed."
            )));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn respond(
    link: &Rc<Link>,
    shared: &Rc<Shared>,
    parts: &Parts,
    body: &[u8],
) -> Response<Body> {
    let (method, path) = (parts.method.as_str(), target(parts));
    let routed = route(method, &path, body);
    shared.handler.seen(&Seen {
        method,
        path: &path,
        is_refused: routed.is_err(),
        is_deprecated: match &routed {
            Ok(Route::Command { deprecated, .. }) => *deprecated,
            Ok(_) => false,
            Err(refusal) => refusal.deprecated,
        },
    });
    match routed {
        Ok(Route::Command {
            command,
            deprecated,
        }) => whole(answer(&carry_out(shared, *command).await, deprecated)),
        Ok(Route::OpenApi) => whole(Answer::openapi()),
        Ok(Route::Events) => events(link, shared),
        Ok(Route::Console) => match console(link, shared, parts) {
            Ok(response) => response,
            Err(fault) => whole(answer(&Err(fault), false)),
        },
        Err(refusal) => whole(answer(&Err(refusal.fault), refusal.deprecated)),
    }
}

async fn carry_out(shared: &Shared, command: Command) -> Result<crate::command::Response, Fault> {
    let (sender, result) = oneshot::channel();
    let reply = Reply::new(move |result| {
        // The client may be gone.
        let _ = sender.send(result);
    });
    shared.handler.submit(command, reply);
    // A reply always comes, see there.
    result
        .await
        .unwrap_or_else(|_| Err(Fault::bad("The command was not answered.")))
}

fn whole(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Body::whole(answer.body));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn events(link: &Rc<Link>, shared: &Rc<Shared>) -> Response<Body> {
    let reader = shared.handler.events();
    let events = Events::new(reader, Rc::clone(link), Rc::clone(shared));
    let mut response = Response::new(Body::events(events));
    let kind = HeaderValue::from_static(EVENTS_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn console(link: &Link, shared: &Shared, parts: &Parts) -> Result<Response<Body>, Fault> {
    let wants = parts.version == Version::HTTP_11
        && has_token(&parts.headers, &header::CONNECTION, "upgrade");
    let protocol = [CONSOLE_PROTOCOL, frames::PROTOCOL]
        .into_iter()
        .find(|protocol| wants && has_token(&parts.headers, &header::UPGRADE, protocol));
    let Some(protocol) = protocol else {
        return Err(Fault::bad(format!(
            "The console is attached to by an upgrade: 'Connection: Upgrade' and 'Upgrade: {CONSOLE_PROTOCOL}'."
        )));
    };
    let stream = shared.handler.console()?;
    let backlog = stream.output.waiting();
    link.switch(Switched {
        stream,
        in_frames: protocol == frames::PROTOCOL,
    });
    let mut response = Response::new(Body::whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(
        HeaderName::from_static(CONSOLE_BACKLOG),
        HeaderValue::from(backlog),
    );
    Ok(response)
}

/// Whether a header that is a list has this in it.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}
