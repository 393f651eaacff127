//! Who else is at a guest's console, beside its terminal, file or pipe: someone who hears what the guest prints,
//! and types. There may be nobody, as far as the console is concerned.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Bytes that were typed and that the console has not taken. More are refused.
pub const TYPED_MAX: usize = 4096;

/// Hears what a guest prints.
pub trait Listener: Debug + Send {
    /// The guest has printed `bytes`, and they have gone where the console's output goes. Called on an I/O thread:
    /// it must not block.
    fn printed(&mut self, bytes: &[u8]);
}

/// Two of them.
#[derive(Debug)]
pub(crate) struct Both(pub(crate) Box<dyn Listener>, pub(crate) Box<dyn Listener>);

impl Listener for Both {
    fn printed(&mut self, bytes: &[u8]) {
        self.0.printed(bytes);
        self.1.printed(bytes);
    }
}

/// Types into a console from any thread. Clones are the same keyboard.
#[derive(Clone, Debug)]
pub struct Keyboard(Arc<Keys>);

#[derive(Debug)]
struct Keys {
    typed: Mutex<VecDeque<u8>>,
    /// Read by the console's worker.
    wake: EventFd,
}

impl Keyboard {
    /// One that nobody has typed on. Fails without descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Keys {
            typed: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })))
    }

    /// Types as much of `bytes` as there is room for, and says how much that is. It is for the guest as it is: no key
    /// is mote's own.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut typed = lock(&self.0.typed);
        let count = bytes.len().min(TYPED_MAX.saturating_sub(typed.len()));
        typed.extend(&bytes[..count]);
        drop(typed);
        if count > 0 {
            // Fails only when the counter is at its maximum: it is readable then too.
            let _ = self.0.wake.write(1);
        }
        count
    }

    /// Moves up to `room` of what was typed to `to`; says whether that was anything.
    pub(crate) fn take(&self, to: &mut Vec<u8>, room: usize) -> bool {
        let mut typed = lock(&self.0.typed);
        let count = typed.len().min(room);
        to.extend(typed.drain(..count));
        count > 0
    }

    /// What was typed until now has been seen.
    pub(crate) fn clear_wake(&self) {
        // Only resets the counter.
        let _ = self.0.wake.read();
    }
}

impl AsRawFd for Keyboard {
    /// What becomes readable when something was typed.
    fn as_raw_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_much_and_no_more() {
        let keyboard = Keyboard::new().unwrap();
        let text = vec![b'x'; TYPED_MAX - 1];
        assert_eq!(keyboard.type_in(&text), TYPED_MAX - 1);
        assert_eq!(keyboard.clone().type_in(b"yz"), 1);
        assert_eq!(keyboard.type_in(b"z"), 0);
        let mut taken = Vec::new();
        assert!(keyboard.take(&mut taken, TYPED_MAX - 1));
        assert_eq!(taken, text);
        assert!(keyboard.take(&mut taken, 10));
        assert_eq!(taken.last(), Some(&b'y'));
        assert!(!keyboard.take(&mut taken, 10));
    }
}
