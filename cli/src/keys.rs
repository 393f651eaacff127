//! Keys that are for mote, not for the guest: Ctrl-A and one more.

use devices::console_io::InputFilter;
use vmm::{Keyboard, PowerButton, StopRequest, Stopper};

use crate::message::say;

const CTRL_A: u8 = 0x01;

const HELP: &str = "keys:
  Ctrl-A x       quit
  Ctrl-A p       press the power button
  Ctrl-A c       press Ctrl-Alt-Del, with --keyboard
  Ctrl-A h       this help
  Ctrl-A Ctrl-A  send Ctrl-A to the guest";

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Quit,
    PowerButton,
    CtrlAltDel,
    Help,
}

/// Finds mote's keys in what is typed.
#[derive(Debug, Default)]
struct Decoder {
    /// Ctrl-A was typed, and nothing after it.
    prefix: bool,
}

impl Decoder {
    /// Passes on what is for the guest; Ctrl-A before any other key passes on both, such as `c` if there
    /// is no keyboard.
    fn decode(
        &mut self,
        input: &[u8],
        keyboard: bool,
        to_guest: &mut Vec<u8>,
        mut act: impl FnMut(Action),
    ) {
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
                b'c' | b'C' if keyboard => act(Action::CtrlAltDel),
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
    targets: Targets,
}

/// What keys act on.
pub(crate) struct Target {
    /// Ends the machine.
    pub stopper: Stopper,
    /// The guest's.
    pub power_button: PowerButton,
    /// The guest's, if it has one.
    pub keyboard: Option<Keyboard>,
}

/// Set once the machine exists: the console is a part of it, so it comes first.
pub(crate) type Targets = std::sync::Arc<std::sync::OnceLock<Target>>;

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
        // Nothing is read before the event loop runs, and the machine exists then.
        let target = self.targets.get();
        let keyboard = target.and_then(|target| target.keyboard.as_ref());
        self.decoder
            .decode(input, keyboard.is_some(), to_guest, |action| match action {
                Action::Help => say(&HELP),
                Action::Quit => {
                    if let Some(target) = target {
                        target.stopper.stop(StopRequest::Quit);
                    }
                }
                Action::PowerButton => {
                    if let Some(target) = target {
                        target.power_button.press();
                    }
                }
                Action::CtrlAltDel => {
                    if let Some(Err(error)) = keyboard.map(Keyboard::send_ctrl_alt_del) {
                        say(&error);
                    }
                }
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
        decode_with(true, chunks)
    }

    fn decode_with(keyboard: bool, chunks: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let mut decoder = Decoder::default();
        let (mut to_guest, mut actions) = (Vec::new(), Vec::new());
        for chunk in chunks {
            decoder.decode(chunk, keyboard, &mut to_guest, |action| {
                actions.push(action);
            });
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
        assert_eq!(decode(&[b"\x01c"]), (vec![], vec![Action::CtrlAltDel]));
        let without = decode_with(false, &[b"\x01c"]);
        assert_eq!(without, (b"\x01c".to_vec(), vec![]));
    }
}
