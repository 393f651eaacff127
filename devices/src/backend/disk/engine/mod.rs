//! Who moves bytes between files and guest memory.

pub(super) mod sync;
pub(super) mod uring;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::buffer::Buffer;
use super::file::HostFile;

/// What is to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpKind {
    /// Fill the buffer.
    Read,
    /// Write it.
    Write,
    /// Make durable what was written before.
    Sync,
}

/// One operation.
pub(super) struct Op {
    pub(super) kind: OpKind,
    /// Which of the engine's files.
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) buffer: Buffer,
    /// Comes back with the result.
    pub(super) token: u32,
}

/// An operation has ended.
pub(super) type Done = (u32, io::Result<()>);

/// Does operations, in any order, on the files it was made for. It owns what an operation needs until
/// that has ended.
pub(super) trait Engine: Send {
    /// Takes an operation. Not before [`Engine::submit`] is it sure to be started.
    fn push(&mut self, op: Op);

    /// Starts all that was pushed.
    fn submit(&mut self);

    /// Appends what has ended.
    fn reap(&mut self, done: &mut Vec<Done>);

    /// Waits until all that was pushed has ended, and appends it.
    fn drain(&mut self, done: &mut Vec<Done>);

    /// An eventfd that is readable when there may be something to reap that nobody has pushed just
    /// now. None if there never is.
    fn event(&self) -> Option<RawFd>;

    /// Empties the event, before [`Engine::reap`]. Not part of that, which is mostly called without.
    fn clear_event(&mut self);
}

/// Does an operation at once.
fn perform(files: &[Arc<HostFile>], op: &Op) -> io::Result<()> {
    let file = files.get(op.file).ok_or(io::ErrorKind::InvalidInput)?;
    match op.kind {
        OpKind::Read => file.read_buffer(&op.buffer, op.offset),
        OpKind::Write => file.write_buffer(&op.buffer, op.offset),
        OpKind::Sync => file.sync(),
    }
}
