//! The guest's console, for clients of the API: what it prints is kept and passed on, and what they type goes to it
//! beside what comes from the terminal.

use std::io;

use api::events::{Broadcast, Start};
use api::handler::ConsoleStream;
use devices::console_beside::{Keyboard, Listener};
use devices::console_io::Input;
use vmm::Console;

/// Bytes of what the guest has printed that are kept, for those who come later and those who are slow.
const KEPT: usize = 64 << 10;

/// Both ways. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Attachments {
    printed: Broadcast,
    keyboard: Keyboard,
}

#[derive(Debug)]
struct Tee(Broadcast);

impl Listener for Tee {
    fn printed(&mut self, bytes: &[u8]) {
        self.0.publish(bytes);
    }
}

impl Attachments {
    /// Of a console that is not there yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            printed: Broadcast::of_bytes(KEPT),
            keyboard: Keyboard::new()?,
        })
    }

    /// Those of `console`.
    pub(super) fn beside(&self, console: Console) -> Console {
        let keyboard = self.keyboard.clone();
        Console {
            input: Some(match console.input {
                Some(input) => input.with_keyboard(keyboard),
                None => Input::keyboard(keyboard),
            }),
            output: console
                .output
                .with_listener(Box::new(Tee(self.printed.clone()))),
            ..console
        }
    }

    /// One more.
    pub(super) fn attach(&self) -> ConsoleStream {
        let keyboard = self.keyboard.clone();
        ConsoleStream {
            output: self.printed.subscribe(Start::Oldest),
            input: Box::new(move |bytes| keyboard.type_in(bytes)),
        }
    }
}
