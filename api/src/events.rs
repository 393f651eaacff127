//! A stream that is written in one place and read in many: events as lines, or a console as bytes.
//!
//! [`Broadcast`] keeps the last bytes that were published, so many and no more. A publisher never waits:
//! what there is no room for pushes out what is oldest. Each [`Reader`] has its own place in the stream; one that is
//! too slow for it is told how much it has missed, and goes on with the oldest that is still there.
//!
//! Nothing here knows of an event loop. A reader is polled with a [`Waker`] of whatever kind, or blocks
//! its thread ([`Reader::next_within`]).

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The next bytes: of lines, one or more whole ones, each with its line feed.
    Data(Vec<u8>),
    /// So many lines, or bytes, were pushed out before the reader came to them.
    Lost(u64),
}

/// Where a new reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest that is kept.
    Oldest,
    /// With what is published from now on.
    Next,
}

/// The writing end, and where readers come from. Clones are the same stream, which is over when
/// [`Broadcast::close`] is called or the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Broadcast {
    publisher: Arc<Publisher>,
}

/// Closes the stream when the last clone of its [`Broadcast`] goes.
#[derive(Debug)]
struct Publisher {
    ring: Arc<Mutex<Ring>>,
}

/// What is kept, and who waits for more. Positions are counted in bytes from the beginning of the stream.
#[derive(Debug)]
struct Ring {
    capacity: usize,
    data: VecDeque<u8>,
    /// Position of the first byte of `data`.
    start: u64,
    /// None if the stream has no lines.
    lines: Option<Lines>,
    closed: bool,
    /// Of each reader that waits, by its number.
    waiting: Vec<(u64, Waker)>,
    next_reader: u64,
}

/// Where the kept lines end.
#[derive(Debug, Default)]
struct Lines {
    /// Number of the first one that is kept.
    first: u64,
    ends: VecDeque<u64>,
}

/// A place in the stream.
#[derive(Debug)]
pub struct Reader {
    ring: Arc<Mutex<Ring>>,
    number: u64,
    /// Position of the next byte.
    at: u64,
    /// Number of the next line.
    line: u64,
}

impl Broadcast {
    /// A stream of lines, of which the last `capacity` bytes are kept.
    pub fn of_lines(capacity: usize) -> Self {
        Self::new(capacity, Some(Lines::default()))
    }

    /// A stream of bytes, of which the last `capacity` are kept.
    pub fn of_bytes(capacity: usize) -> Self {
        Self::new(capacity, None)
    }

    fn new(capacity: usize, lines: Option<Lines>) -> Self {
        let ring = Ring {
            capacity,
            data: VecDeque::new(),
            start: 0,
            lines,
            closed: false,
            waiting: Vec::new(),
            next_reader: 0,
        };
        let ring = Arc::new(Mutex::new(ring));
        Self {
            publisher: Arc::new(Publisher { ring }),
        }
    }

    /// Publishes bytes; in a stream of lines, one line, given without its line feed and with none in it.
    ///
    /// Takes a lock that is only ever held to copy bytes, and never waits for a reader. What is published after the
    /// end is dropped.
    pub fn publish(&self, bytes: &[u8]) {
        let mut ring = lock(&self.publisher.ring);
        if ring.closed {
            return;
        }
        ring.append(bytes);
        let waiting = mem::take(&mut ring.waiting);
        drop(ring);
        wake_all(waiting);
    }

    /// Ends the stream: readers get what is left, then the end.
    pub fn close(&self) {
        self.publisher.close();
    }

    /// A new reader.
    pub fn subscribe(&self, start: Start) -> Reader {
        let mut ring = lock(&self.publisher.ring);
        let number = ring.next_reader;
        ring.next_reader += 1;
        let (at, line) = match start {
            Start::Oldest => (ring.start, ring.first_line()),
            Start::Next => (ring.end(), ring.next_line()),
        };
        drop(ring);
        Reader {
            ring: Arc::clone(&self.publisher.ring),
            number,
            at,
            line,
        }
    }
}

impl Publisher {
    fn close(&self) {
        let mut ring = lock(&self.ring);
        ring.closed = true;
        let waiting = mem::take(&mut ring.waiting);
        drop(ring);
        wake_all(waiting);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }

    fn first_line(&self) -> u64 {
        self.lines.as_ref().map_or(0, |lines| lines.first)
    }

    fn next_line(&self) -> u64 {
        let count = |lines: &Lines| lines.first + lines.ends.len() as u64;
        self.lines.as_ref().map_or(0, count)
    }

    fn append(&mut self, bytes: &[u8]) {
        let capacity = self.capacity;
        let Some(lines) = &mut self.lines else {
            let kept = &bytes[bytes.len().saturating_sub(capacity)..];
            let over = (self.data.len() + kept.len()).saturating_sub(capacity);
            self.data.drain(..over);
            self.data.extend(kept);
            self.start += (over + bytes.len() - kept.len()) as u64;
            return;
        };

        let len = bytes.len() + 1;
        while self.data.len() + len > capacity
            && let Some(end) = lines.ends.pop_front()
        {
            // No more than what is kept, so it fits.
            self.data.drain(..(end - self.start) as usize);
            self.start = end;
            lines.first += 1;
        }
        if len > capacity {
            // One that has no room at all is lost to everyone.
            lines.first += 1;
            return;
        }
        self.data.extend(bytes);
        self.data.push_back(b'\n');
        lines.ends.push_back(self.start + self.data.len() as u64);
    }

    fn wait(&mut self, reader: u64, waker: &Waker) {
        match self
            .waiting
            .iter_mut()
            .find(|(number, _)| *number == reader)
        {
            Some((_, old)) => old.clone_from(waker),
            None => self.waiting.push((reader, waker.clone())),
        }
    }

    /// The position after as many whole lines from `at` on as fit into `max` bytes, but at least one,
    /// and the number of the line that begins there.
    fn lines_within(&self, at: u64, line: u64, max: usize) -> Option<(u64, u64)> {
        let lines = self.lines.as_ref()?;
        let skipped = usize::try_from(line - lines.first).ok()?;
        let ends = lines.ends.range(skipped..);
        let fitting = ends.clone().take_while(|end| **end - at <= max as u64);
        let count = fitting.count().max(1);
        let end = ends.clone().nth(count - 1)?;
        Some((*end, line + count as u64))
    }

    fn copy(&self, from: u64, to: u64) -> Vec<u8> {
        // Both lie in what is kept.
        let (from, to) = ((from - self.start) as usize, (to - self.start) as usize);
        self.data.range(from..to).copied().collect()
    }
}

impl Reader {
    /// The next piece, of `max` bytes at most (a line that is longer comes alone); None when the stream is
    /// over. Wakes the task of `cx` when there is more.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<Piece>> {
        let mut ring = lock(&self.ring);
        if self.at < ring.start || self.line < ring.first_line() {
            let lost = match ring.lines {
                Some(_) => ring.first_line() - self.line,
                None => ring.start - self.at,
            };
            self.at = ring.start;
            self.line = ring.first_line();
            return Poll::Ready(Some(Piece::Lost(lost)));
        }
        if self.at == ring.end() {
            if ring.closed {
                return Poll::Ready(None);
            }
            ring.wait(self.number, cx.waker());
            return Poll::Pending;
        }
        let rest = ring.end() - self.at;
        let (end, line) = ring
            .lines_within(self.at, self.line, max)
            .unwrap_or((self.at + rest.min(max.max(1) as u64), 0));
        let data = ring.copy(self.at, end);
        self.at = end;
        self.line = line;
        Poll::Ready(Some(Piece::Data(data)))
    }

    /// How many bytes there are to read at once.
    pub fn waiting(&self) -> u64 {
        let ring = lock(&self.ring);
        ring.end() - self.at.max(ring.start)
    }

    /// The next piece, waited for on this thread; pending if there was none for so long.
    pub fn next_within(&mut self, limit: Duration, max: usize) -> Poll<Option<Piece>> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        let deadline = Instant::now() + limit;
        loop {
            if let Poll::Ready(piece) = self.poll_next(&mut cx, max) {
                return Poll::Ready(piece);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Pending;
            }
            thread::park_timeout(left);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut ring = lock(&self.ring);
        ring.waiting.retain(|(number, _)| *number != self.number);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Without the lock, as nobody knows what a waker does.
fn wake_all(waiting: Vec<(u64, Waker)>) {
    for (_, waker) in waiting {
        waker.wake();
    }
}

/// A ring is whole between any two statements that could panic.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
