//! Standard input and output as the guest's console.

use std::io::{self, stdin, stdout};
use std::os::fd::AsFd;

use devices::console_io::{Input, InputFilter, Output};
use vmm::Console;

use crate::keys::{Keys, Targets, Transparent};
use crate::terminal::{self, RawTerminal, is_foreground_terminal, is_terminal};

/// The console, and the terminal that is in raw mode as long as it is kept.
pub(crate) fn open(targets: Targets) -> io::Result<(Console, Option<RawTerminal>)> {
    let interactive = is_foreground_terminal();
    let terminal = if interactive {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let filter: Box<dyn InputFilter> = if interactive {
        Box::new(Keys::new(targets))
    } else {
        Box::new(Transparent)
    };
    // In the background of a terminal, reading it would stop the process. A closed standard input
    // cannot be duplicated: there is nothing to read then.
    let input = if is_terminal() && !interactive {
        None
    } else {
        stdin().as_fd().try_clone_to_owned().ok().map(Input::new)
    };
    let output = match stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Output::new(fd)?,
        Err(_) => Output::discard(),
    };
    Ok((
        Console {
            input,
            output,
            filter,
            size: terminal::size().unwrap_or_default(),
        },
        terminal,
    ))
}
