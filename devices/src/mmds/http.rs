//! One connection's bytes: requests as they come, answers as they go (HTTP/1.0 and 1.1, RFC 9112).
//!
//! A request is answered when its head is complete; a body is not looked at and thrown away. While an
//! answer has not gone, no more is read: requests that come at once are answered one after the other.

use std::fmt::Write;
use std::time::Instant;

use httparse::Header;

use super::Mmds;
use super::service::{self, Reply, Request, Status};

/// Bytes of a request's head.
const MAX_HEAD: usize = 2500;
/// Headers of a request.
const MAX_HEADERS: usize = 64;

/// The connection is of no use any more: its head was too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeadTooLong;

/// What is between the bytes and the service.
#[derive(Debug, Default)]
pub(super) struct Http {
    /// The beginning of a request.
    head: Vec<u8>,
    /// Bytes of a body that are still to come.
    to_skip: u64,
    answer: Vec<u8>,
    sent: usize,
    is_last: bool,
}

impl Http {
    /// What is to be sent.
    pub(super) fn output(&self) -> &[u8] {
        &self.answer[self.sent..]
    }

    /// So much of it was.
    pub(super) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.answer.len() {
            // An answer can be large, and connections wait for long.
            self.answer = Vec::new();
            self.sent = 0;
        }
    }

    /// Nothing more is read, and all was sent.
    pub(super) fn is_over(&self) -> bool {
        self.is_last && self.answer.is_empty()
    }

    /// It waits for a request, and has nothing of it.
    pub(super) fn is_idle(&self) -> bool {
        self.head.is_empty() && self.to_skip == 0 && self.answer.is_empty()
    }

    /// Whether bytes are taken now. After the last request they are taken and thrown away.
    pub(super) fn wants_input(&self) -> bool {
        self.answer.is_empty() || self.is_last
    }

    /// Takes bytes, and says how many: not more than to the end of a request.
    pub(super) fn input(
        &mut self,
        bytes: &[u8],
        mmds: &Mmds,
        now: Instant,
    ) -> Result<usize, HeadTooLong> {
        if !self.wants_input() {
            return Ok(0);
        }
        if self.is_last {
            return Ok(bytes.len());
        }
        if self.to_skip > 0 {
            let skipped = self.to_skip.min(bytes.len() as u64);
            self.to_skip -= skipped;
            // Not more than there are.
            return Ok(skipped as usize);
        }
        let before = self.head.len();
        let added = bytes.len().min(MAX_HEAD - before);
        self.head.extend_from_slice(&bytes[..added]);
        match self.parse(mmds, now) {
            Some(head_len) => {
                self.head.clear();
                // What came before was not a whole head.
                Ok(head_len.saturating_sub(before))
            }
            None if self.head.len() >= MAX_HEAD => Err(HeadTooLong),
            None => Ok(added),
        }
    }

    /// Answers the request in `head` if it is complete or cannot become one, and says how long it is.
    fn parse(&mut self, mmds: &Mmds, now: Instant) -> Option<usize> {
        let head = std::mem::take(&mut self.head);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let result = parsed.parse(&head);
        let len = match result {
            Ok(httparse::Status::Partial) => {
                self.head = head;
                return None;
            }
            Ok(httparse::Status::Complete(len)) => {
                self.request(&parsed, mmds, now);
                len
            }
            Err(error) => {
                let status = match error {
                    httparse::Error::Version => Status::NotImplemented,
                    _ => Status::BadRequest,
                };
                let reply = Reply::error(status, format!("This is no request: {error}."));
                self.reply(&reply, 1, false);
                head.len()
            }
        };
        self.head = head;
        Some(len)
    }

    fn request(&mut self, parsed: &httparse::Request<'_, '_>, mmds: &Mmds, now: Instant) {
        let minor = parsed.version.unwrap_or(1);
        let headers: Option<Vec<_>> = parsed.headers.iter().map(as_text).collect();
        let (Some(headers), Some(method), Some(target)) = (headers, parsed.method, parsed.path)
        else {
            let reply = Reply::error(Status::BadRequest, "A header is not text.");
            return self.reply(&reply, minor, false);
        };
        let request = Request {
            method,
            target,
            headers: &headers,
        };
        match body_len(request) {
            Ok(len) => self.to_skip = len,
            Err(reply) => return self.reply(&reply, minor, false),
        }
        let waits = request
            .header(&["Expect"])
            .is_some_and(|(_, what)| what.eq_ignore_ascii_case("100-continue"));
        if waits && minor > 0 && self.to_skip > 0 {
            self.answer
                .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let reply = service::answer(mmds, request, now);
        // An answer to HEAD and the like would be taken for something else.
        let is_known = service::METHODS.contains(&method);
        self.reply(&reply, minor, is_known && keeps_alive(request, minor));
    }

    /// Puts an answer where it is sent from.
    fn reply(&mut self, reply: &Reply, minor: u8, keep_alive: bool) {
        self.is_last = !keep_alive;
        if self.is_last {
            self.to_skip = 0;
        }
        let mut head = format!(
            "HTTP/1.{minor} {}\r\nConnection: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            reply.status.line(),
            if keep_alive { "keep-alive" } else { "close" },
            reply.form.content_type(),
            reply.body.len()
        );
        if let Some((name, value)) = &reply.header {
            // To a string: nothing fails.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        self.answer.extend_from_slice(head.as_bytes());
        self.answer.extend_from_slice(reply.body.as_bytes());
    }
}

fn as_text<'a>(header: &Header<'a>) -> Option<(&'a str, &'a str)> {
    let value = std::str::from_utf8(header.value).ok()?;
    Some((header.name, value.trim_matches([' ', '\t'])))
}

/// How many bytes of a body follow.
fn body_len(request: Request<'_>) -> Result<u64, Reply> {
    if request.header(&["Transfer-Encoding"]).is_some() {
        let what = "A body in pieces is of no use here.";
        return Err(Reply::error(Status::NotImplemented, what));
    }
    let name = "Content-Length";
    let mut lengths = request
        .headers
        .iter()
        .filter(|(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| *value);
    let Some(first) = lengths.next() else {
        return Ok(0);
    };
    let is_number = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    // Two that differ are how requests are smuggled.
    let is_one = lengths.all(|other| other == first);
    first
        .parse()
        .ok()
        .filter(|_| is_number && is_one)
        .ok_or_else(|| Reply::error(Status::BadRequest, format!("{name} is no number.")))
}

/// Whether another request may follow.
fn keeps_alive(request: Request<'_>, minor: u8) -> bool {
    let has = |wanted: &str| {
        request
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("Connection"))
            .flat_map(|(_, value)| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case(wanted))
    };
    !has("close") && (minor > 0 || has("keep-alive"))
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
