//! `mote attach`: at a guest's console, beside whoever else is there.

use std::io::{self, ErrorKind, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use api::events::Piece;
use api::frames::{self, Decoder, NoFrame};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error, host};
use crate::message::say;
use crate::signals::{Resizes, Signals};
use crate::status::Status;
use crate::terminal::{self, RawTerminal, is_foreground_terminal};

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;
/// Bytes of input that the guest has not taken. More of a file has to wait, and keys are dropped.
const PENDING_MAX: usize = 64 << 10;
const CHUNK: usize = 16 << 10;

/// `mote attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
KEYS (when standard input is a terminal)
  Ctrl-P Ctrl-Q  detach")]
pub(crate) struct Args {
    /// Name of a guest, or how it begins
    id: String,

    /// Only watch
    #[arg(long)]
    no_stdin: bool,
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest ended, or its monitor.
    Guest,
    /// By the keys.
    Detached,
    /// Nobody reads what is printed.
    Unread,
    Signal(i32),
}

pub(super) fn attach(args: &Args) -> Result<Status, Error> {
    let guest = Guest::find(&args.id)?;
    let console = guest.console(frames::PROTOCOL)?;
    let signals = Signals::catch().map_err(host("set up", "signal handlers"))?;
    let is_terminal = !args.no_stdin && is_foreground_terminal();
    let raw = if is_terminal {
        say(&format!(
            "at the console of guest {}: Ctrl-P Ctrl-Q detaches",
            guest.id()
        ));
        Some(RawTerminal::enter().map_err(host("use", "the terminal"))?)
    } else {
        None
    };
    // In the background of a terminal, reading it would stop the process.
    let reads = !args.no_stdin && (is_terminal || !terminal::is_terminal());
    if is_terminal {
        // A guest whose console is no virtio console has no use for it.
        let resizes = Resizes::catch().map_err(host("set up", "a signal handler"))?;
        let guest = guest.clone();
        thread::spawn(move || follow_size(&guest, &resizes));
    }
    let mut session = Session {
        stream: console.stream,
        signals,
        input: reads.then(Input::default),
        keys: is_terminal.then(Keys::default),
        pending: Vec::new(),
        frames: Decoder::default(),
    };
    let end = session.run(&console.early);
    drop(raw);
    let end = end.map_err(host(
        "go on at",
        format!("the console of guest {}", guest.id()),
    ))?;
    Ok(match end {
        End::Guest => {
            if is_terminal {
                say(&format!("guest {} has ended", guest.id()));
            }
            Status::Success
        }
        End::Detached => {
            say(&format!("detached from guest {}", guest.id()));
            Status::Success
        }
        End::Unread => Status::Success,
        End::Signal(number) => Status::Signal(number),
    })
}

/// Tells the guest of the terminal's size, now and whenever it changes, until it does not want to know.
fn follow_size(guest: &Guest, resizes: &Resizes) {
    loop {
        // A terminal may not know its size as yet.
        if let Some((columns @ 1.., rows @ 1..)) = terminal::size() {
            let size = json!({ "columns": columns, "rows": rows });
            let told = guest.request("PATCH", "/console", Some(&size), ANSWER_LIMIT);
            if let Err(Error::Refused { .. }) = told {
                return;
            }
        }
        resizes.wait();
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Standard input, as long as there is more of it.
#[derive(Debug, Default)]
struct Input {
    has_ended: bool,
}

struct Session {
    stream: UnixStream,
    signals: Signals,
    /// None: nothing is typed.
    input: Option<Input>,
    /// Those of a terminal.
    keys: Option<Keys>,
    /// What was typed and is not sent.
    pending: Vec<u8>,
    frames: Decoder,
}

impl Session {
    fn run(&mut self, early: &[u8]) -> io::Result<End> {
        self.stream.set_nonblocking(true)?;
        if let Some(end) = self.print(early)? {
            return Ok(end);
        }
        loop {
            let (readable, typed) = self.wait()?;
            if let Some(number) = self.signals.first() {
                return Ok(End::Signal(number));
            }
            if readable && let Some(end) = self.show()? {
                return Ok(end);
            }
            if typed && let Some(end) = self.read_input()? {
                return Ok(end);
            }
            if let Some(end) = self.send()? {
                return Ok(end);
            }
        }
    }

    /// Waits until the guest has printed something, something was typed, what was typed can be sent, or a signal is
    /// there; says whether the first two are so.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut wanted = PollFlags::IN;
        if !self.pending.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let stdin = stdin();
        let mut fds = vec![
            PollFd::new(&self.stream, wanted),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        let has_room = self.keys.is_some() || self.pending.len() < PENDING_MAX;
        if has_room && self.input.as_ref().is_some_and(|input| !input.has_ended) {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((false, false)),
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |fd: Option<&PollFd<'_>>| {
            let waiting = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            fd.is_some_and(|fd| fd.revents().intersects(waiting))
        };
        Ok((is_ready(fds.first()), is_ready(fds.get(2))))
    }

    /// Prints what the guest has printed.
    fn show(&mut self) -> io::Result<Option<End>> {
        let mut chunk = vec![0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Ok(Some(End::Guest)),
            Ok(count) => self.print(&chunk[..count]),
            Err(error) => Ok(gone(error)?),
        }
    }

    /// Prints what is in frames.
    fn print(&mut self, bytes: &[u8]) -> io::Result<Option<End>> {
        let pieces = self.frames.take(bytes);
        let pieces = pieces.map_err(|NoFrame| io::Error::from(ErrorKind::InvalidData))?;
        for piece in pieces {
            match piece {
                Piece::Data(bytes) if print(&bytes).is_err() => return Ok(Some(End::Unread)),
                Piece::Data(_) => {}
                Piece::Lost(count) => say(&format!(
                    "{count} bytes of the guest's output are missing here: they came faster than they were read"
                )),
            }
        }
        Ok(None)
    }

    fn read_input(&mut self) -> io::Result<Option<End>> {
        let mut chunk = vec![0; CHUNK];
        let count = match rustix::io::read(stdin(), &mut chunk) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            // A terminal that was hung up.
            Err(Errno::IO) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if count == 0 {
            if let Some(input) = &mut self.input {
                input.has_ended = true;
            }
            return Ok(None);
        }
        let typed = &chunk[..count];
        let Some(keys) = &mut self.keys else {
            self.pending.extend_from_slice(typed);
            return Ok(None);
        };
        let mut to_guest = Vec::new();
        if keys.decode(typed, &mut to_guest) {
            return Ok(Some(End::Detached));
        }
        // Keys have to be seen even if the guest takes nothing any more.
        if self.pending.len() < PENDING_MAX {
            self.pending.append(&mut to_guest);
        }
        Ok(None)
    }

    /// Sends what was typed, as far as it is taken.
    fn send(&mut self) -> io::Result<Option<End>> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return gone(error),
            }
        }
        if self.input.take_if(|input| input.has_ended).is_some() {
            // There is no more; what the guest prints is still of interest.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(None)
    }
}

/// A connection that breaks is the end of the guest.
fn gone(error: io::Error) -> io::Result<Option<End>> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(Some(End::Guest)),
        _ => Err(error),
    }
}

/// Finds the keys that detach in what is typed.
#[derive(Debug, Default)]
struct Keys {
    /// Ctrl-P was typed, and nothing after it.
    prefix: bool,
}

impl Keys {
    /// Appends what is for the guest; true if it is time to detach.
    fn decode(&mut self, input: &[u8], to_guest: &mut Vec<u8>) -> bool {
        for &byte in input {
            if std::mem::take(&mut self.prefix) {
                if byte == CTRL_Q {
                    return true;
                }
                to_guest.push(CTRL_P);
            }
            if byte == CTRL_P {
                self.prefix = true;
            } else {
                to_guest.push(byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_detach_are_found_across_reads_and_everything_else_passes() {
        let decode = |chunks: &[&[u8]]| {
            let (mut keys, mut to_guest) = (Keys::default(), Vec::new());
            let detached = chunks.iter().any(|chunk| keys.decode(chunk, &mut to_guest));
            (to_guest, detached)
        };
        assert_eq!(decode(&[b"ls\r"]), (b"ls\r".to_vec(), false));
        assert_eq!(decode(&[b"a\x10\x11b"]), (b"a".to_vec(), true));
        assert_eq!(decode(&[b"\x10", b"\x11"]), (vec![], true));
        assert_eq!(decode(&[b"\x10x\x11"]), (b"\x10x\x11".to_vec(), false));
        assert_eq!(decode(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }
}
