//! Frames from the guest (section 5.1.6.2).

use std::io;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::backend::{HEADER_LEN, MAX_FRAME, MIN_FRAME, NetBackend};
use super::turn::{FRAMES_PER_TURN, Turn};
use crate::virtio::chain::Chain;
use crate::virtio::queue::{self, Queue};

/// The host's view of a frame. It is large, and made once a turn.
type Pieces<'m> = SmallVec<[VolatileSlice<'m>; 24]>;

/// What the direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A frame from the driver.
    Frames,
    /// The host takes no more for now.
    Host,
    /// The rate limit.
    Tokens,
}

/// The direction.
pub(super) struct Tx {
    queue: Queue,
    wait: Wait,
}

impl Tx {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            wait: Wait::Frames,
        }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) fn wait(&self) -> Wait {
        self.wait
    }

    /// Gives the queue back.
    pub(super) fn stop(self) -> Queue {
        self.queue
    }

    /// Moves at most [`FRAMES_PER_TURN`] frames.
    pub(super) fn serve(
        &mut self,
        backend: &mut dyn NetBackend,
        turn: &mut Turn<'_>,
    ) -> Result<(), queue::Error> {
        self.queue.disable_kicks()?;
        self.wait = Wait::Frames;
        let mut is_over = true;
        let mut pieces = Pieces::new();
        for _ in 0..FRAMES_PER_TURN {
            let Some(chain) = self.queue.pop()? else {
                if self.queue.enable_kicks()? {
                    continue;
                }
                is_over = false;
                break;
            };
            if let Some(wait) = send(&chain, &mut pieces, backend, turn) {
                self.queue.undo_pop();
                self.wait = wait;
                is_over = false;
                break;
            }
            self.queue.complete(chain.head(), 0)?;
        }
        if is_over {
            self.queue.kick_myself();
        }
        self.queue.notify()
    }
}

/// Sends a frame, or drops it; or says what it has to wait for.
fn send<'m>(
    chain: &Chain,
    pieces: &mut Pieces<'m>,
    backend: &mut dyn NetBackend,
    turn: &mut Turn<'m>,
) -> Option<Wait> {
    let len = chain.readable.len() as usize;
    let has_good_len = (HEADER_LEN + MIN_FRAME..=HEADER_LEN + MAX_FRAME).contains(&len);
    pieces.clear();
    let is_memory = chain.readable.each_slice(turn.memory, |piece| {
        pieces.push(piece);
        true
    });
    if !turn.link_up || !has_good_len || !is_memory {
        turn.counts.count_dropped();
        return None;
    }
    let payload = len - HEADER_LEN;
    if !turn.take(payload) {
        return Some(Wait::Tokens);
    }
    match backend.send(pieces) {
        Ok(()) => turn.counts.count_frame(payload),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            turn.limiter.give_back(1, payload as u64);
            return Some(Wait::Host);
        }
        Err(error) => {
            turn.counts.count_error();
            turn.warning
                .tell(turn.id, "the host refused a frame", &error);
        }
    }
    None
}
