//! Keys that are for mote, not for the guest: Ctrl-A and one more.

use devices::console_io::InputFilter;
use vmm::{PowerButton, StopRequest, Stopper};

use crate::message::say;

const CTRL_A: u8 = 0x01;

const HELP: &str = "keys:
  Ctrl-A x       quit
  Ctrl-A p       press the power button
  Ctrl-A h       this help
  Ctrl-A Ctrl-A  send Ctrl-A to the guest";

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Quit,
    PowerButton,
    Help,
}

/// Finds mote's keys in what is typed.
#[derive(Debug, Default)]
struct Decoder {
    /// Ctrl-A was typed, and nothing after it.
    prefix: bool,
}

impl Decoder {
    /// Passes on what is for the guest; Ctrl-A before any other key passes on both.
    fn decode(&mut self, input: &[u8], to_guest: &mut Vec<u8>, mut act: impl FnMut(Action)) {
        for &byte in input {
            if !std::mem::take(&mut self.prefix) {
                match byte {
                    CTRL_A => self.prefix = true,
                    _ => to_guest.push(byte),
                }
                continue;
            }
            match byte {
                b'x' | b'X' => act(Action::Quit),
                b'p' | b'P' => act(Action::PowerButton),
                b'h' | b'H' | b'?' => act(Action::Help),
                CTRL_A => to_guest.push(CTRL_A),
                _ => to_guest.extend([CTRL_A, byte]),
            }
        }
    }
}

/// The filter of an interactive console.
pub(crate) struct Keys {
    decoder: Decoder,
    targets: std::sync::Arc<std::sync::OnceLock<(Stopper, PowerButton)>>,
}

/// Set once the machine exists: the console is a part of it, so it comes first.
pub(crate) type Targets = std::sync::Arc<std::sync::OnceLock<(Stopper, PowerButton)>>;

impl Keys {
    /// A filter that acts on `targets`.
    pub(crate) fn new(targets: Targets) -> Self {
        Self {
            decoder: Decoder::default(),
            targets,
        }
    }
}

impl InputFilter for Keys {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        let targets = self.targets.get();
        self.decoder
            .decode(input, to_guest, |action| match (action, targets) {
                (Action::Help, _) => say(&HELP),
                (Action::Quit, Some((stopper, _))) => stopper.stop(StopRequest::Quit),
                (Action::PowerButton, Some((_, button))) => button.press(),
                // Nothing is read before the event loop runs, and the machine exists then.
                (_, None) => {}
            });
    }
}

/// Input that does not come from a keyboard goes to the guest as it is.
pub(crate) struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let mut decoder = Decoder::default();
        let (mut to_guest, mut actions) = (Vec::new(), Vec::new());
        for chunk in chunks {
            decoder.decode(chunk, &mut to_guest, |action| actions.push(action));
        }
        (to_guest, actions)
    }

    #[test]
    fn keys_are_found_across_reads_and_everything_else_passes() {
        assert_eq!(decode(&[b"ls\r"]), (b"ls\r".to_vec(), vec![]));
        assert_eq!(decode(&[b"a\x01xb"]), (b"ab".to_vec(), vec![Action::Quit]));
        assert_eq!(
            decode(&[b"a\x01", b"h"]),
            (b"a".to_vec(), vec![Action::Help])
        );
        assert_eq!(decode(&[b"\x01p"]), (vec![], vec![Action::PowerButton]));
        assert_eq!(decode(&[b"\x01\x01x"]), (b"\x01x".to_vec(), vec![]));
        assert_eq!(decode(&[b"\x01k"]), (b"\x01k".to_vec(), vec![]));
    }
}
