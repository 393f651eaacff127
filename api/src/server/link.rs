//! A client's socket, and how it looks to the HTTP library.
//!
//! [`Link`] is shared by all who deal with a connection, on one thread. [`Io`] is the library's end of it: it
//! notes when a request begins, and rewrites the library's own answers.
//!
//! # Broken HTTP
//! hyper answers what it cannot parse by itself, without a body, before anyone else hears of it. Such an
//! answer is the last of its connection and comes in one piece, at the end of what is written; no other answer
//! ends in these bytes, as ours have more headers and JSON has no line feeds. So it is known at sight, and
//! the same with a `fault_message` goes out in its place.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, Shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{self, Instant};

use super::{Shared, service};
use crate::answer::answer;
use crate::command::Fault;
use crate::handler::ConsoleStream;

/// Bytes read at once.
const CHUNK: usize = 8192;
/// What a client may still send, and how long it may take, while it is to read why it is not heard. A socket that is
/// closed with bytes in it makes most clients report a broken connection instead.
const DRAIN_BYTES: usize = 8 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// How often a client that sends no more is looked at, as to whether it is still there.
const GONE_INTERVAL: Duration = Duration::from_secs(1);

/// How far a client is with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not begun one.
    Idle,
    /// It has sent some of one, the first byte at this time.
    Partial(Instant),
    /// It has sent all of one and is not answered.
    Waiting,
}

/// What a connection becomes.
pub(super) struct Switched {
    pub(super) stream: ConsoleStream,
    /// What the guest prints is sent in frames.
    pub(super) in_frames: bool,
}

/// A client's socket, and what is known of the client.
pub(super) struct Link {
    socket: UnixStream,
    phase: Cell<Phase>,
    /// Bytes to be written before all others.
    first: RefCell<Vec<u8>>,
    /// The client does not take what is written.
    blocked: Cell<bool>,
    /// It has been told why it is not heard.
    refused: Cell<bool>,
    /// What the connection is for once the answer that says so is out.
    console: RefCell<Option<Switched>>,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            phase: Cell::new(Phase::Idle),
            first: RefCell::default(),
            blocked: Cell::new(false),
            refused: Cell::new(false),
            console: RefCell::default(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    /// Turns the connection into a console, after the answer that is about to be written.
    pub(super) fn switch(&self, console: Switched) {
        *self.console.borrow_mut() = Some(console);
    }

    pub(super) fn take_console(&self) -> Option<Switched> {
        self.console.borrow_mut().take()
    }

    /// Waits for bytes, or the end of them. They are looked at, as a new socket passes for readable until it
    /// is read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        let peek = || Ok(rustix::net::recv(&self.socket, &mut [0], RecvFlags::PEEK)?);
        loop {
            self.socket.readable().await?;
            match self.socket.try_io(Interest::READABLE, peek) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(drop),
            }
        }
    }

    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Writes what the library has left, then `bytes`.
    pub(super) async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let first = self.first.take();
        for mut bytes in [first.as_slice(), bytes] {
            while !bytes.is_empty() {
                self.socket.writable().await?;
                match self.socket.try_write(bytes) {
                    Ok(count) => bytes = &bytes[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Writes an answer of its own, unless there is one already, or it would come after half of another.
    pub(super) fn refuse(&self, status: u16, message: &str) {
        if self.refused.replace(true) || self.blocked.get() || !self.first.borrow().is_empty() {
            return;
        }
        // It fits into the socket's buffer, in which there is nothing that the client has not been sent whole.
        let _ = self.socket.try_write(&refusal(status, message));
    }

    /// Says that no more comes, and goes on reading for a while.
    pub(super) async fn linger(&self, shared: &Shared) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        let drain = async {
            let mut buffer = vec![0; CHUNK];
            let mut left = DRAIN_BYTES;
            while left > 0 {
                match self.read(&mut buffer).await {
                    Ok(count @ 1..) => left = left.saturating_sub(count),
                    Ok(0) | Err(_) => return,
                }
            }
        };
        let _ = time::timeout(DRAIN_TIME, unless_stopped(shared, drain)).await;
    }

    /// Waits until the client has closed both directions. One that has only said that it sends no more is
    /// still there.
    pub(super) async fn until_gone(&self) {
        // At once if it just goes, which makes the socket readable; else by looking from time to time.
        let mut result = self.readable().await;
        while result.is_ok() && !self.is_gone() {
            time::sleep(GONE_INTERVAL).await;
            result = Ok(());
        }
    }

    fn is_gone(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec::default();
        match rustix::event::poll(&mut socket, Some(&now)) {
            Ok(_) => socket[0]
                .revents()
                .intersects(PollFlags::HUP | PollFlags::ERR),
            Err(_) => true,
        }
    }

    fn poll_first(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut first = self.first.borrow_mut();
        while !first.is_empty() {
            let count = ready!(self.poll_write(cx, &first))?;
            first.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.blocked.set(false);
        loop {
            if self.socket.poll_write_ready(cx)?.is_pending() {
                self.blocked.set(true);
                return Poll::Pending;
            }
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

/// Runs `future`, to its end or the server's.
pub(super) async fn unless_stopped(shared: &Shared, future: impl Future<Output = ()>) {
    let mut future = std::pin::pin!(future);
    let mut stop = std::pin::pin!(shared.until_stop());
    std::future::poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() || stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

/// A whole answer, after which the connection is closed.
fn refusal(status: u16, message: &str) -> Vec<u8> {
    let fault = Fault {
        status,
        message: message.to_owned(),
    };
    let body = answer(&Err(fault), false).body;
    let reason = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    let mut text = format!(
        "HTTP/1.1 {status} {reason}\r\nServer: {}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        service::SERVER,
        body.len()
    )
    .into_bytes();
    text.extend(body);
    text
}

/// The end of what is written, if it is an answer of the library's own: where it begins, and what to write
/// in its place.
fn rewritten(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    const END: &str = "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let head = bytes.strip_suffix(END.as_bytes())?;
    let answers = [
        (
            400,
            "HTTP/1.1 400 Bad Request",
            "This is not HTTP/1.1 as it should be.",
        ),
        (414, "HTTP/1.1 414 URI Too Long", "The path is too long."),
        (
            431,
            "HTTP/1.1 431 Request Header Fields Too Large",
            "There are too many headers, or they are too long, or the body is that they announce.",
        ),
    ];
    answers.into_iter().find_map(|(status, line, message)| {
        let before = head.strip_suffix(line.as_bytes())?;
        Some((before.len(), refusal(status, message)))
    })
}

/// The library's end of the socket.
pub(super) struct Io(pub(super) Rc<Link>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let link = &self.0;
        let mut chunk = [0; CHUNK];
        let chunk = &mut chunk[..CHUNK.min(buffer.remaining())];
        loop {
            ready!(link.socket.poll_read_ready(cx))?;
            match link.socket.try_read(chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    if count > 0 && link.phase() == Phase::Idle {
                        link.set_phase(Phase::Partial(Instant::now()));
                    }
                    buffer.put_slice(&chunk[..count]);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let link = &self.0;
        ready!(link.poll_first(cx))?;
        if let Some((keep, answer)) = rewritten(bytes) {
            let mut first = link.first.borrow_mut();
            first.extend(&bytes[..keep]);
            first.extend(answer);
            link.refused.set(true);
            return Poll::Ready(Ok(bytes.len()));
        }
        match link.poll_write(cx, bytes) {
            // The library is not asked again once the protocol has changed: what the client does not take yet
            // goes out before the console's first bytes.
            Poll::Pending if link.console.borrow().is_some() => {
                link.first.borrow_mut().extend(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            result => result,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_first(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_first(cx))?;
        Poll::Ready(rustix::net::shutdown(&self.0.socket, Shutdown::Write).map_err(Into::into))
    }
}
