//! What a request is answered: the rules of both versions, and the forms of an answer.

use std::time::Instant;

use serde_json::Value;

use super::token::TTL_RANGE;
use super::{Mmds, Version, count};

/// Methods that are known, if not all of them are allowed.
pub(super) const METHODS: [&str; 4] = ["GET", "PUT", "PATCH", "DELETE"];
/// Where tokens are.
const TOKEN_PATH: &str = "/latest/api/token";
/// Who reads says his token by either.
const TOKEN_HEADERS: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
/// Who wants a token says for how long by either.
const TTL_HEADERS: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
/// Who wants a token is no proxy.
const FORWARDED: [&str; 1] = ["X-Forwarded-For"];

/// A request, as far as it matters. Its headers are text without spaces around.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
}

impl<'a> Request<'a> {
    /// The first header that has one of these names.
    pub(super) fn header(&self, names: &[&str]) -> Option<(&'a str, &'a str)> {
        let is_named = |name: &str| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
        self.headers
            .iter()
            .find(|(name, _)| is_named(name))
            .copied()
    }

    /// The path of its target, which may be a whole URL.
    fn path(&self) -> Option<&'a str> {
        if self.target.starts_with('/') {
            return Some(self.target);
        }
        let (scheme, rest) = self.target.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        Some(rest.find('/').map_or("/", |slash| &rest[slash..]))
    }
}

/// What is said of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    NotImplemented,
}

impl Status {
    /// As it is in the first line of an answer.
    pub(super) fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::NotImplemented => "501 Not Implemented",
        }
    }
}

/// A form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The keys of an object, one a line, or a string as it is.
    Plain,
    Json,
}

impl Form {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Plain => "text/plain",
            Self::Json => "application/json",
        }
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: Status,
    pub(super) form: Form,
    /// One more header.
    pub(super) header: Option<(String, String)>,
    pub(super) body: String,
}

impl Reply {
    fn ok(form: Form, body: String) -> Self {
        Self {
            status: Status::Ok,
            form,
            header: None,
            body,
        }
    }

    pub(super) fn error(status: Status, body: impl Into<String>) -> Self {
        Self {
            status,
            form: Form::Plain,
            header: None,
            body: body.into(),
        }
    }

    fn not_found(path: &str) -> Self {
        Self::error(Status::NotFound, format!("Nothing is at {path}."))
    }
}

/// Answers a request.
pub(super) fn answer(mmds: &Mmds, request: Request<'_>, now: Instant) -> Reply {
    match request.method {
        "GET" | "PUT" => {}
        method if METHODS.contains(&method) => {
            let header = Some(("Allow".to_owned(), "GET, PUT".to_owned()));
            let what = "The guest can only GET metadata, and PUT for a token.";
            return Reply {
                header,
                ..Reply::error(Status::MethodNotAllowed, what)
            };
        }
        method => {
            let what = format!("There is no method {method} here.");
            return Reply::error(Status::NotImplemented, what);
        }
    }
    let Some(path) = request.path() else {
        return Reply::error(Status::BadRequest, "The target is no path.");
    };
    if request.method == "PUT" {
        return token(mmds, request, path, now);
    }
    let config = mmds.config();
    let given = request.header(&TOKEN_HEADERS).map(|(_, token)| token);
    let is_valid = given.map(|token| mmds.tokens.is_valid(token, now));
    match is_valid {
        None => count(&mmds.counts.rx_no_token),
        Some(false) => count(&mmds.counts.rx_invalid_token),
        Some(true) => {}
    }
    if config.version == Version::V2 {
        match is_valid {
            None => {
                let [first, second] = TOKEN_HEADERS;
                let what = format!(
                    "No MMDS token provided. Use `{first}` or `{second}` with what \
                     `PUT {TOKEN_PATH}` answers."
                );
                return Reply::error(Status::Unauthorized, what);
            }
            Some(false) => return Reply::error(Status::Unauthorized, "MMDS token not valid."),
            Some(true) => {}
        }
    }
    let accepts_json = request
        .header(&["Accept"])
        .is_some_and(|(_, accepted)| accepted.eq_ignore_ascii_case("application/json"));
    let form = if accepts_json && !config.imds_compat {
        Form::Json
    } else {
        Form::Plain
    };
    lookup(mmds, path, form)
}

/// A new token.
fn token(mmds: &Mmds, request: Request<'_>, path: &str, now: Instant) -> Reply {
    let bad = |what: String| Reply::error(Status::BadRequest, what);
    if let Some((name, _)) = request.header(&FORWARDED) {
        return bad(format!("No token is given to who sends {name}."));
    }
    if pointer(path) != TOKEN_PATH {
        return Reply::not_found(path);
    }
    let Some((name, value)) = request.header(&TTL_HEADERS) else {
        let [first, second] = TTL_HEADERS;
        return bad(format!(
            "No lifetime of the token provided. Use `{first}` or `{second}`."
        ));
    };
    let Ok(ttl) = value.parse() else {
        return bad(format!("{name} is a number of seconds, not '{value}'."));
    };
    match mmds.tokens.issue(ttl, now) {
        Some(token) => Reply {
            header: Some((name.to_owned(), ttl.to_string())),
            ..Reply::ok(Form::Plain, token)
        },
        None => bad(format!(
            "{name} is from {} to {} seconds, not {ttl}.",
            TTL_RANGE.start(),
            TTL_RANGE.end()
        )),
    }
}

/// What the document has at `path`.
fn lookup(mmds: &Mmds, path: &str, form: Form) -> Reply {
    let snapshot = mmds.store.snapshot();
    let document = snapshot.as_deref().unwrap_or(&Value::Null);
    let Some(value) = document.pointer(&pointer(path)) else {
        return Reply::not_found(path);
    };
    match (form, value) {
        // Writing to a string fails for no value that was read from JSON.
        (Form::Json, value) => Reply::ok(form, value.to_string()),
        (Form::Plain, Value::String(text)) => Reply::ok(form, text.clone()),
        (Form::Plain, Value::Object(members)) => {
            let line = |(key, value): (&String, &Value)| {
                let slash = if value.is_object() { "/" } else { "" };
                format!("{key}{slash}")
            };
            let lines: Vec<_> = members.iter().map(line).collect();
            Reply::ok(form, lines.join("\n"))
        }
        (Form::Plain, _) => Reply::error(
            Status::NotImplemented,
            "Only objects and strings have a plain form: ask with `Accept: application/json`.",
        ),
    }
}

/// A path as a JSON pointer (RFC 6901): repeated slashes are one, and one at the end is none.
fn pointer(path: &str) -> String {
    let mut pointer = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !pointer.ends_with('/') {
            pointer.push(character);
        }
    }
    if pointer.ends_with('/') {
        pointer.pop();
    }
    pointer
}

#[cfg(test)]
#[path = "service_test.rs"]
mod tests;
