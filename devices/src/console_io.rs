//! The host's end of a guest's console, whatever device the guest sees: where output goes to and what
//! is typed comes from.
//!
//! Nothing here blocks. What the host does not take stays with the device, which then holds the guest
//! back; input that the guest does not take is held here, at most [`HELD_MAX`] bytes, and the rest
//! stays at the host.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};

use crate::backend::host_fd::HostFd;
use crate::backend::log_file::{LogFile, Opened};
use crate::backend::pty::PtyEnd;
use crate::console_beside::{Both, Keyboard, Listener};

pub use crate::backend::log_file::FileOutput;
pub use crate::backend::pty::Pty;

/// Input is read as long as fewer bytes than this wait for the guest, however little it takes: keys
/// that are for the filter have to be seen even when the guest hangs.
pub(crate) const HELD_MAX: usize = 4096;
/// Once [`HELD_MAX`] was reached, input is read again when no more than this is left.
const HELD_RESUME: usize = HELD_MAX / 2;
/// Bytes of past output that are remembered.
pub(crate) const TAIL_SIZE: usize = 4096;

/// Looks at what is typed before the guest does.
pub trait InputFilter: Send {
    /// Appends to `to_guest` what of `input` is for the guest. Called on the I/O thread: it must not
    /// block. Over time it must not append more than it was given.
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>);
}

/// Where input comes from.
#[derive(Debug)]
pub struct Input {
    from: Option<From>,
    keyboard: Option<Keyboard>,
}

#[derive(Debug)]
enum From {
    Fd(OwnedFd),
    Pty(PtyEnd),
}

impl Input {
    /// Reads from `fd`: a terminal, pipe, socket, file or device.
    pub fn new(fd: OwnedFd) -> Self {
        Self::from(From::Fd(fd))
    }

    fn from(from: From) -> Self {
        Self {
            from: Some(from),
            keyboard: None,
        }
    }

    /// Reads what is typed by those who open `pty`.
    pub fn pty(pty: &Pty) -> io::Result<Self> {
        Ok(Self::from(From::Pty(pty.end()?)))
    }

    /// Only from this keyboard.
    pub fn keyboard(keyboard: Keyboard) -> Self {
        Self {
            from: None,
            keyboard: Some(keyboard),
        }
    }

    /// And from this keyboard as well.
    pub fn with_keyboard(mut self, keyboard: Keyboard) -> Self {
        self.keyboard = Some(keyboard);
        self
    }
}

/// Where output goes.
#[derive(Debug)]
pub struct Output {
    to: To,
    listener: Option<Box<dyn Listener>>,
}

#[derive(Debug)]
enum To {
    Nowhere,
    Fd(HostFd),
    File(LogFile),
    Lossy(File),
    Pty(PtyEnd),
}

impl Output {
    /// Writes to `fd`: a terminal, pipe, socket, file or device. The process must ignore SIGPIPE, as
    /// Rust programs do. Needs /proc, and permission to open terminals and pipes again: without, a
    /// reader that is slow at the wrong moment may block the I/O thread for a while.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::to(To::Fd(HostFd::for_writing(fd)?)))
    }

    fn to(to: To) -> Self {
        Self { to, listener: None }
    }

    /// Throws it away.
    pub fn discard() -> Self {
        Self::to(To::Nowhere)
    }

    /// Writes to a file by its path.
    pub fn file(file: FileOutput) -> io::Result<Self> {
        Ok(Self::to(match LogFile::open(file)? {
            Opened::File(file) => To::File(file),
            Opened::Other(fd) => To::Fd(fd),
        }))
    }

    /// Writes to the file, FIFO or device at `path`, which is made if it is not there, and never waits for
    /// anybody: a FIFO need not have a reader, now or later, and what it does not take is lost.
    pub fn lossy(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Self::to(To::Lossy(file)))
    }

    /// Writes to whoever opens `pty`. While nobody does, only the newest few KiB are kept for the next.
    pub fn pty(pty: &Pty) -> io::Result<Self> {
        Ok(Self::to(To::Pty(pty.end()?)))
    }

    /// And `listener` hears of it, once it has gone there, after those that hear of it already.
    pub fn with_listener(mut self, listener: Box<dyn Listener>) -> Self {
        self.listener = Some(match self.listener {
            Some(other) => Box::new(Both(other, listener)),
            None => listener,
        });
        self
    }
}

/// How the event loop watches a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    Off,
    On,
    /// Epoll refuses it (EPERM), as it is always ready: a regular file, /dev/null.
    Never,
}

/// An open [`Input`].
#[derive(Debug)]
enum Reader {
    Fd(HostFd),
    Pty(PtyEnd),
}

impl Reader {
    /// What there is to read from, besides a keyboard.
    fn open(input: Option<Input>) -> io::Result<(Option<Self>, Option<Keyboard>)> {
        let (from, keyboard) =
            input.map_or((None, None), |Input { from, keyboard }| (from, keyboard));
        let reader = match from {
            Some(From::Fd(fd)) => Some(Self::Fd(HostFd::for_reading(fd)?)),
            Some(From::Pty(pty)) => Some(Self::Pty(pty)),
            None => None,
        };
        Ok((reader, keyboard))
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Fd(fd) => fd.read(buffer),
            Self::Pty(pty) => pty.read(buffer),
        }
    }
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Fd(fd) => fd.as_raw_fd(),
            Self::Pty(pty) => pty.as_raw_fd(),
        }
    }
}

/// What is typed, on its way to the guest.
pub(crate) struct Source {
    // Fixed configuration.
    /// The event of its descriptor.
    event: u32,
    /// The event of the keyboard beside it.
    keyboard_event: u32,
    // Runtime glue.
    filter: Box<dyn InputFilter>,
    /// None once it has ended.
    input: Option<Reader>,
    keyboard: Option<Keyboard>,
    // Volatile state.
    watch: Watch,
    watches_keyboard: bool,
    /// Input for the guest that it has not taken.
    held: Vec<u8>,
    error: Option<io::Error>,
}

impl Source {
    pub(crate) fn new(
        input: Option<Input>,
        filter: Box<dyn InputFilter>,
        event: u32,
        keyboard_event: u32,
    ) -> io::Result<Self> {
        let (input, keyboard) = Reader::open(input)?;
        Ok(Self {
            event,
            keyboard_event,
            filter,
            input,
            keyboard,
            watch: Watch::Off,
            watches_keyboard: false,
            held: Vec::new(),
            error: None,
        })
    }

    /// Reads from `input` from now on, through `filter`. Fails if there is something to read from already. To be
    /// followed by [`Source::serve`], on the event loop.
    pub(crate) fn connect(
        &mut self,
        input: Option<Input>,
        filter: Box<dyn InputFilter>,
    ) -> io::Result<()> {
        if self.input.is_some() || self.keyboard.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        (self.input, self.keyboard) = Reader::open(input)?;
        self.filter = filter;
        Ok(())
    }

    /// The event loop has stopped watching: its worker moves to another one, or to the same again.
    pub(crate) fn unwatched(&mut self) {
        self.watch = Watch::Off;
        self.watches_keyboard = false;
    }

    /// Something was typed on the keyboard: it is to be served then.
    pub(crate) fn clear_keyboard(&mut self) {
        if let Some(keyboard) = &self.keyboard {
            keyboard.clear_wake();
        }
    }

    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Input that the guest has not taken.
    pub(crate) fn holds(&self) -> &[u8] {
        &self.held
    }

    /// Has the guest get `input`, of at most [`HELD_MAX`] bytes, before all that is read from now on.
    pub(crate) fn hold(&mut self, input: &[u8]) {
        self.held = input.to_vec();
    }

    /// Moves input to the guest, which takes the first so many bytes of what `give` is called with, and
    /// reads more, if it is there, as far as there is room for it here.
    pub(crate) fn serve(
        &mut self,
        mut readable: bool,
        ops: &mut EventOps,
        mut give: impl FnMut(&[u8]) -> usize,
    ) {
        self.watch_keyboard(ops);
        loop {
            let has_typed = self.take_typed();
            if !self.held.is_empty() {
                let taken = give(&self.held).min(self.held.len());
                self.held.drain(..taken);
            }
            if self.held.len() <= HELD_RESUME {
                self.watch(true, ops);
                readable |= self.watch == Watch::Never;
            } else if self.held.len() >= HELD_MAX {
                self.watch(false, ops);
                return;
            }
            let has_read = readable && self.read(ops);
            readable = false;
            if !has_read && !has_typed {
                return;
            }
        }
    }

    /// Takes what was typed on the keyboard, as far as there is room; says whether that was anything.
    fn take_typed(&mut self) -> bool {
        let Some(keyboard) = &self.keyboard else {
            return false;
        };
        let room = HELD_MAX.saturating_sub(self.held.len());
        keyboard.take(&mut self.held, room)
    }

    fn watch_keyboard(&mut self, ops: &mut EventOps) {
        let Some(keyboard) = &self.keyboard else {
            return;
        };
        if !self.watches_keyboard {
            let events = Events::with_data(keyboard, self.keyboard_event, EventSet::IN);
            // Fails only for a descriptor that is already there.
            let _ = ops.add(events);
            self.watches_keyboard = true;
        }
    }

    /// Reads once; false if that gave nothing.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(input) = &self.input else {
            return false;
        };
        let mut buffer = [0; HELD_MAX];
        let room = HELD_MAX.saturating_sub(self.held.len());
        match input.read(&mut buffer[..room]) {
            Ok(count) if count > 0 => {
                self.filter.filter(&buffer[..count], &mut self.held);
                return true;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The end; a terminal that was hung up gives EIO.
            _ => self.end(ops),
        }
        false
    }

    fn watch(&mut self, wanted: bool, ops: &mut EventOps) {
        let Some(input) = &self.input else {
            return;
        };
        let events = Events::with_data(input, self.event, EventSet::IN);
        match (self.watch, wanted) {
            (Watch::Off, true) => match ops.add(events) {
                Ok(()) => self.watch = Watch::On,
                Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                    self.watch = Watch::Never;
                }
                Err(error) => {
                    self.input = None;
                    self.error.get_or_insert(io::Error::other(error));
                }
            },
            // Without interest in any event, epoll would still report a hang-up, for ever.
            (Watch::On, false) => {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(events);
                self.watch = Watch::Off;
            }
            _ => {}
        }
    }

    fn end(&mut self, ops: &mut EventOps) {
        // Before it is closed: other processes may keep what it refers to open, and epoll with it.
        self.watch(false, ops);
        self.input = None;
        self.watch = Watch::Off;
    }

    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        self.input.is_none()
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }
}

/// Output, on its way to the host.
#[derive(Debug)]
pub(crate) struct Sink {
    // Fixed configuration.
    /// The event of its descriptor.
    event: u32,
    // Runtime glue.
    output: To,
    listener: Option<Box<dyn Listener>>,
    // Volatile state.
    watch: Watch,
    /// The host refuses output, and what the guest sends is thrown away.
    failed: bool,
    error: Option<io::Error>,
    /// Bytes that were neither taken nor held back, since they were last asked for.
    lost: u64,
    tail: VecDeque<u8>,
}

impl Sink {
    pub(crate) fn new(output: Output, event: u32) -> Self {
        Self {
            event,
            output: output.to,
            listener: output.listener,
            watch: Watch::Off,
            failed: false,
            error: None,
            lost: 0,
            tail: VecDeque::new(),
        }
    }

    /// Writes to `output` from now on. Fails if it has led anywhere before.
    pub(crate) fn connect(&mut self, output: Output) -> io::Result<()> {
        if !matches!(self.output, To::Nowhere) || self.listener.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        (self.output, self.listener) = (output.to, output.listener);
        Ok(())
    }

    /// The event loop has stopped watching: its worker moves to another one, or to the same again.
    pub(crate) fn unwatched(&mut self) {
        self.watch = Watch::Off;
    }

    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// The last [`TAIL_SIZE`] bytes of what was written and of `waiting`, which is to be written next.
    pub(crate) fn tail(&self, waiting: (&[u8], &[u8])) -> Vec<u8> {
        let (front, back) = waiting;
        let sent = self.tail.len() + front.len() + back.len();
        let all = self.tail.iter().chain(front).chain(back);
        all.skip(sent.saturating_sub(TAIL_SIZE)).copied().collect()
    }

    /// Writes some of `bytes`; says how many. None: the host takes no more for now.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        let count = match self.try_write(bytes) {
            Ok(count) => count,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock if matches!(self.output, To::Lossy(_)) => {
                    self.lost += bytes.len() as u64;
                    bytes.len()
                }
                io::ErrorKind::WouldBlock => return None,
                io::ErrorKind::Interrupted => 0,
                _ => {
                    self.fail(error);
                    0
                }
            },
        };
        let written = &bytes[..count];
        remember(&mut self.tail, written);
        if let Some(listener) = &mut self.listener {
            listener.printed(written);
        }
        Some(count)
    }

    /// Remembers what is not written at all.
    pub(crate) fn skip(&mut self, bytes: &[u8]) {
        remember(&mut self.tail, bytes);
    }

    /// How many bytes were lost since the last call, as the host did not take them.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Ok(bytes.len());
        }
        let count = match &mut self.output {
            To::Nowhere => return Ok(bytes.len()),
            To::Fd(fd) => fd.write(bytes)?,
            To::File(file) => file.write(bytes)?,
            To::Lossy(file) => file.write(bytes)?,
            To::Pty(pty) => pty.write(bytes)?,
        };
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(count)
    }

    fn fail(&mut self, error: io::Error) {
        self.failed = true;
        self.error.get_or_insert(error);
    }

    /// Waits at most `timeout` until a write would do something, or fail. May return early.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        match &self.output {
            To::Fd(fd) => {
                fd.wait_writable(timeout);
            }
            To::Pty(pty) => pty.wait_writable(timeout),
            // They take everything.
            To::Nowhere | To::File(_) | To::Lossy(_) => {}
        }
    }

    /// Has the descriptor watched while output is `blocked`.
    pub(crate) fn watch(&mut self, blocked: bool, ops: &mut EventOps) {
        let fd = match &self.output {
            To::Fd(fd) => fd.as_raw_fd(),
            To::Pty(pty) => pty.as_raw_fd(),
            To::Nowhere | To::File(_) | To::Lossy(_) => return,
        };
        let events = Events::with_data_raw(fd, self.event, EventSet::OUT);
        match (self.watch, blocked) {
            (Watch::Off, true) => match ops.add(events) {
                Ok(()) => self.watch = Watch::On,
                // It blocks and cannot be waited for: there is no way to go on with it.
                Err(error) => self.fail(io::Error::other(error)),
            },
            (Watch::On, false) => {
                // Fails only for a descriptor that is not watched.
                let _ = ops.remove(events);
                self.watch = Watch::Off;
            }
            _ => {}
        }
    }

    /// Whether what is written is thrown away: nobody is to wait for the host.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    #[cfg(test)]
    pub(crate) fn is_watched(&self) -> bool {
        self.watch == Watch::On
    }
}

/// Appends what was output to the tail, and forgets as much at its start.
fn remember(tail: &mut VecDeque<u8>, output: &[u8]) {
    let output = &output[output.len().saturating_sub(TAIL_SIZE)..];
    let surplus = (tail.len() + output.len()).saturating_sub(TAIL_SIZE);
    tail.drain(..surplus);
    tail.extend(output);
}
