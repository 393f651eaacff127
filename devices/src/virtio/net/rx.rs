//! Frames to the guest (section 5.1.6.3).
//!
//! A frame is read straight into the driver's buffers. How long it is shows only then, so there is
//! always room for the longest: buffers are taken from the ring ahead, and those that a frame does not
//! need are for the next one. When the ring has no more, the end of a long frame goes to the side until
//! the driver has made more available; so nothing is lost, and nothing is read that has no place to go.

use std::collections::VecDeque;
use std::io;

use smallvec::SmallVec;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::backend::{HEADER_LEN, MIN_FRAME, NetBackend};
use super::turn::{FRAMES_PER_TURN, Turn};
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{self, Queue};

/// Where in the header `num_buffers` is.
const NUM_BUFFERS: u32 = 10;
/// Pieces of memory that a frame is read into at most, the side included: what the kernel takes.
const MAX_PIECES: usize = 1024;
/// Pieces that have left the window before the rest moves to the front.
const MAX_GONE: usize = 256;

/// What was negotiated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// A frame may be in several buffers.
    pub(super) mergeable: bool,
    /// The driver knows the checksum flags.
    pub(super) checksums: bool,
    /// Longest frame with its header.
    pub(super) max_len: usize,
}

/// What the direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A frame from the host.
    Frames,
    /// Buffers from the driver.
    Buffers,
    /// The rate limit.
    Tokens,
    /// The host gives no more frames, ever.
    Nothing,
}

/// A request of the driver that was taken from the ring, to be filled.
struct Held {
    head: u16,
    buffers: Buffers,
    /// Into how many pieces of memory.
    pieces: usize,
}

/// A frame that was read and not yet given to the driver.
struct Pending {
    len: usize,
    /// Its end, for which there was no room in what was held.
    rest: Vec<u8>,
}

/// Why no more buffers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathered {
    /// They are enough for any frame.
    Enough,
    /// The ring has no more.
    RingEmpty,
    /// There is no use in more: they are too many, too small, or may only be one.
    Full,
}

/// The host's view of what is held, in order.
struct Window<'m> {
    memory: &'m GuestMemoryMmap,
    /// Where the end of a frame goes.
    side: VolatileSlice<'m>,
    pieces: SmallVec<[VolatileSlice<'m>; 64]>,
    gone: usize,
}

impl<'m> Window<'m> {
    fn new(memory: &'m GuestMemoryMmap, side: VolatileSlice<'m>) -> Self {
        Self {
            memory,
            side,
            pieces: SmallVec::new(),
            gone: 0,
        }
    }

    /// Appends buffers, and says how many pieces they are; None if that is too many.
    fn push(&mut self, buffers: &Buffers) -> Option<usize> {
        let before = self.pieces.len();
        let most = self.gone + MAX_PIECES - 1;
        let pieces = &mut self.pieces;
        let has_room = buffers.each_slice(self.memory, |piece| {
            pieces.push(piece);
            pieces.len() <= most
        });
        if !has_room {
            pieces.truncate(before);
            return None;
        }
        Some(self.pieces.len() - before)
    }

    /// The first ones are not to be filled any more.
    fn pop_front(&mut self, pieces: usize) {
        self.gone += pieces;
        if self.gone >= MAX_GONE {
            self.pieces.drain(..self.gone);
            self.gone = 0;
        }
    }
}

/// The direction.
pub(super) struct Rx {
    // Fixed configuration.
    settings: Settings,
    // Volatile state.
    queue: Queue,
    held: VecDeque<Held>,
    held_bytes: usize,
    pending: Option<Pending>,
    /// Where the end of a frame goes that finds no room.
    side: Vec<u8>,
    wait: Wait,
}

impl Rx {
    pub(super) fn new(queue: Queue, settings: Settings) -> Self {
        Self {
            settings,
            queue,
            held: VecDeque::new(),
            held_bytes: 0,
            pending: None,
            // One byte more than the longest frame: it shows that one is too long. Zeroes that nobody
            // touches take no memory.
            side: vec![0; settings.max_len + 1],
            wait: Wait::Frames,
        }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) fn wait(&self) -> Wait {
        self.wait
    }

    /// The driver gives checksums back to the host, or takes them again.
    pub(super) fn set_checksums(&mut self, checksums: bool) {
        self.settings.checksums = checksums;
    }

    /// Gives the queue back, with what is held in it. A frame that waits is lost.
    pub(super) fn stop(mut self) -> Queue {
        for _ in &self.held {
            self.queue.undo_pop();
        }
        self.queue
    }

    /// Moves at most [`FRAMES_PER_TURN`] frames.
    pub(super) fn serve(
        &mut self,
        backend: &mut dyn NetBackend,
        turn: &mut Turn<'_>,
    ) -> Result<(), queue::Error> {
        if self.wait == Wait::Nothing {
            return Ok(());
        }
        self.queue.disable_kicks()?;
        // Apart from what else is borrowed of `self`.
        let mut side = std::mem::take(&mut self.side);
        let mut window = Window::new(turn.memory, VolatileSlice::from(&mut *side));
        let result = self.serve_with(&mut window, backend, turn);
        drop(window);
        self.side = side;
        result?;
        self.queue.notify()
    }

    fn serve_with(
        &mut self,
        window: &mut Window<'_>,
        backend: &mut dyn NetBackend,
        turn: &mut Turn<'_>,
    ) -> Result<(), queue::Error> {
        for held in &self.held {
            // They fitted before.
            let _ = window.push(&held.buffers);
        }
        for _ in 0..FRAMES_PER_TURN {
            if self.pending.is_none()
                && let Some(wait) = self.receive(window, backend, turn)?
            {
                self.wait = wait;
                return Ok(());
            }
            if let Some(wait) = self.deliver(window, turn)? {
                self.wait = wait;
                return Ok(());
            }
        }
        self.wait = Wait::Frames;
        self.queue.kick_myself();
        Ok(())
    }

    /// Reads a frame; or says what to wait for. A frame that is none, or that nobody wants, is dropped.
    fn receive(
        &mut self,
        window: &mut Window<'_>,
        backend: &mut dyn NetBackend,
        turn: &Turn<'_>,
    ) -> Result<Option<Wait>, queue::Error> {
        let max_len = self.settings.max_len;
        let mut direct = 0;
        if turn.link_up {
            self.gather(window)?;
            if self.held.is_empty() {
                return self.starve(turn);
            }
            direct = self.held_bytes;
        }
        let side_len = (max_len + 1).saturating_sub(direct).max(1);
        let Ok(side) = window.side.subslice(0, side_len) else {
            return Ok(Some(Wait::Nothing));
        };
        let received = if turn.link_up {
            window.pieces.push(side);
            let received = backend.recv(&window.pieces[window.gone..]);
            window.pieces.pop();
            received
        } else {
            backend.recv(&[side])
        };
        match received {
            Ok(len)
                if !turn.link_up || len < HEADER_LEN + MIN_FRAME || len >= direct + side_len =>
            {
                turn.counts.count_dropped();
            }
            Ok(len) => {
                let mut rest = vec![0; len.saturating_sub(direct)];
                side.copy_to(&mut rest);
                self.pending = Some(Pending { len, rest });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Some(Wait::Frames));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                turn.counts.count_error();
                turn.warning
                    .tell(turn.id, "the host gives no more frames", &error);
                return Ok(Some(Wait::Nothing));
            }
        }
        Ok(None)
    }

    /// Takes buffers from the ring until they are enough for any frame.
    fn gather(&mut self, window: &mut Window<'_>) -> Result<Gathered, queue::Error> {
        for _ in 0..self.queue.size() {
            if self.held_bytes >= self.settings.max_len {
                return Ok(Gathered::Enough);
            }
            if !self.settings.mergeable && !self.held.is_empty() {
                return Ok(Gathered::Full);
            }
            let Some(chain) = self.queue.pop()? else {
                return Ok(Gathered::RingEmpty);
            };
            let head = chain.head();
            let buffers = chain.writable;
            let has_room = buffers.len() as usize >= HEADER_LEN;
            let pieces = has_room.then(|| window.push(&buffers)).flatten();
            match pieces {
                Some(pieces) => {
                    self.held_bytes += buffers.len() as usize;
                    self.held.push_back(Held {
                        head,
                        buffers,
                        pieces,
                    });
                }
                None => {
                    // It goes back unused, in its turn: what is held may have to go back to the ring in
                    // its order. And one at a time, as a driver may have any number of such.
                    if self.held.is_empty() {
                        self.queue.complete(head, 0)?;
                    } else {
                        self.queue.undo_pop();
                    }
                    return Ok(Gathered::Full);
                }
            }
        }
        Ok(Gathered::Full)
    }

    /// Gives the frame that waits to the driver; or says what to wait for.
    fn deliver(
        &mut self,
        window: &mut Window<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Option<Wait>, queue::Error> {
        let Some(pending) = &self.pending else {
            return Ok(None);
        };
        let len = pending.len;
        let mut has_room = turn.link_up;
        if has_room && self.held_bytes < len {
            let gathered = self.gather(window)?;
            has_room = self.held_bytes >= len;
            let may_come = self.held.len() < usize::from(self.queue.size());
            if !has_room && gathered == Gathered::RingEmpty && may_come {
                return self.starve(turn);
            }
        }
        if !has_room {
            self.pending = None;
            turn.counts.count_dropped();
            return Ok(None);
        }
        let payload = len - HEADER_LEN;
        if !turn.take(payload) {
            return Ok(Some(Wait::Tokens));
        }
        self.fill(turn.memory);
        let mut used: SmallVec<[(u16, u32); 64]> = SmallVec::new();
        let mut left = len;
        while left > 0
            && let Some(held) = self.held.pop_front()
        {
            let room = held.buffers.len();
            #[expect(clippy::cast_possible_truncation, reason = "not more than `room`")]
            let written = left.min(room as usize) as u32;
            used.push((held.head, written));
            left -= written as usize;
            self.held_bytes -= room as usize;
            window.pop_front(held.pieces);
        }
        self.pending = None;
        turn.counts.count_frame(payload);
        self.queue.complete_all(&used)?;
        Ok(None)
    }

    /// Writes to the driver's buffers what the backend has not: the end of the frame that waits, and
    /// its number of buffers.
    fn fill(&self, memory: &GuestMemoryMmap) {
        let (Some(pending), Some(first)) = (&self.pending, self.held.front()) else {
            return;
        };
        let mut rest = &pending.rest[..];
        let mut to_skip = pending.len - rest.len();
        let mut left = pending.len;
        let mut buffers: u16 = 0;
        for held in &self.held {
            if left == 0 {
                break;
            }
            let room = held.buffers.len() as usize;
            left = left.saturating_sub(room);
            buffers += 1;
            let skipped = to_skip.min(room);
            to_skip -= skipped;
            let (now, later) = rest.split_at(rest.len().min(room - skipped));
            rest = later;
            #[expect(clippy::cast_possible_truncation, reason = "not more than `room`")]
            let offset = skipped as u32;
            // Its length was looked at, and memory stays.
            let _ = held.buffers.write(memory, offset, now);
        }
        let first = &first.buffers;
        // A buffer has room for a header, or it would not be held.
        let _ = first.write(memory, NUM_BUFFERS, &buffers.to_le_bytes());
        if !self.settings.checksums {
            let _ = first.write(memory, 0, &[0]);
        }
    }

    /// Waits for buffers, unless some have come meanwhile.
    fn starve(&mut self, turn: &Turn<'_>) -> Result<Option<Wait>, queue::Error> {
        if self.queue.enable_kicks()? {
            return Ok(None);
        }
        turn.counts.count_starved();
        Ok(Some(Wait::Buffers))
    }
}
