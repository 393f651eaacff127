//! `mote run --template`, when there is a pool: a guest that is ready gets the job and this process's standard streams, and this process
//! waits for its status.

use std::io::{self, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ::bench::waterfall::step::Step;
use rustix::event::{PollFd, PollFlags, poll};

use super::wire::{self, Reply, Request};
use super::{Error, socket_of};
use crate::args::RunArgs;
use crate::explain;
use crate::run::{self, host};
use crate::rundir::RunDir;
use crate::signals::{Resizes, Signals};
use crate::status::Status;
use crate::terminal::{RawTerminal, is_foreground_terminal};

/// Has a guest of the template's pool do the job. None if there is no pool, or nobody is ready, or if what is asked for is not what guests of a
/// pool do: then it has not been begun.
pub(crate) fn run(args: &RunArgs, name: &str, job: &[u8]) -> Result<Option<Status>, run::Error> {
    // Those have a console on standard streams, and what the template says.
    if args.console.is_some() || args.vsock.is_some() || args.verbose > 0 {
        return Ok(None);
    }
    let Ok(Some(run_dir)) = RunDir::find() else {
        return Ok(None);
    };
    let Ok(stream) = wire::ask(&socket_of(&run_dir, name)) else {
        return Ok(None);
    };
    let is_interactive = is_foreground_terminal();
    // Before the guest prints or reads anything.
    let terminal = if is_interactive {
        Some(RawTerminal::enter().map_err(host("the terminal"))?)
    } else {
        None
    };
    let waits = Waits {
        signals: Signals::catch().map_err(host("signal handlers"))?,
        resizes: match is_interactive {
            true => Some(Resizes::catch().map_err(host("signal handlers"))?),
            false => None,
        },
        stream,
        has_told: false,
    };
    let request = Request {
        id: args.id.clone(),
        timeout: args.timeout,
        is_interactive,
        explain: explain::is_on(),
    };
    let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    explain::mark(Step::Asked);
    // What does not arrive is not begun.
    if wire::send(&waits.stream, &request, job, streams).is_err() {
        return Ok(None);
    }
    let reply = waits.wait();
    drop(terminal);
    match reply {
        Ok(Some(Reply::Ended(status))) => Ok(Some(Status::Other(status))),
        Ok(Some(Reply::Explained(status, report))) => {
            explain::replied(*report);
            Ok(Some(Status::Other(status)))
        }
        Ok(Some(Reply::Outdated)) => Ok(None),
        // It had been connected with the socket, and with nobody behind it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(None) => Err(Error::GuestGone.into()),
        Err(source) => Err(Error::Wait { source }.into()),
    }
}

/// What a guest is waited for with.
struct Waits {
    stream: UnixStream,
    signals: Signals,
    resizes: Option<Resizes>,
    /// The guest may have gone with something unread.
    has_told: bool,
}

impl Waits {
    /// Passes on what this process gets, until there is a reply.
    fn wait(mut self) -> io::Result<Option<Reply>> {
        loop {
            let mut fds = vec![
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            fds.extend(
                self.resizes
                    .as_ref()
                    .map(|resizes| PollFd::new(resizes, PollFlags::IN)),
            );
            let ready = match poll(&mut fds, None) {
                Ok(_) => |fd: &PollFd<'_>| !fd.revents().is_empty(),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let (signalled, resized) = (ready(&fds[1]), fds.get(2).is_some_and(ready));
            if ready(&fds[0]) {
                return self.reply();
            }
            if signalled && let Some(signal) = self.signals.first() {
                self.tell(u8::try_from(signal).unwrap_or(u8::MAX));
            }
            if resized && let Some(resizes) = &self.resizes {
                resizes.clear();
                self.tell(wire::RESIZED);
            }
        }
    }

    fn tell(&mut self, byte: u8) {
        use std::io::Write;
        self.has_told = true;
        // Whoever has gone is heard of by reading.
        let _ = (&self.stream).write_all(&[byte]);
    }

    fn reply(&self) -> io::Result<Option<Reply>> {
        match wire::wait(&self.stream) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.has_told => {
                Ok(None)
            }
            reply => reply,
        }
    }
}
