//! The process of a pool: it has guests get ready, and has others take the place of those that are taken. It has one thread, and
//! waits for all of them at once.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write, pipe, stdout};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::stdio::{dup2_stderr, dup2_stdout};

use super::{
    CONTROL, Described, Error, GUESTS, LOG, OUTDATED, PREFIX, READY, STOP, TAKEN, host, wire,
};
use crate::message::last_said;
use crate::rundir::{self, Entry, RunDir};
use crate::signals::Signals;
use crate::template;
use crate::template::store::Store;
use crate::{copies, logger};

/// After one was taken, how long until the next one gets ready: who has taken it has the host's CPUs until then. With none left there is no
/// wait.
const CALM: Duration = Duration::from_millis(20);
/// How long until the next try after a guest did not get ready; twice as long after each further one, up to the second.
const RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How often processes of guests that have ended are looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long whoever asks the keeper may take to say what.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of the log is looked through for why a guest did not get ready.
const MAX_SAID: u64 = 64 << 10;

/// Keeps the pool of this template, until it is told to stop.
pub(super) fn keep(name: &str, count: u32) -> Result<(), Error> {
    copies::leave();
    logger::start(0, name);
    let mut keeper = Keeper::new(name, count)?;
    let signals = Signals::catch().map_err(host("catch signals"))?;
    let served = keeper.serve(&signals);
    keeper.end_guests();
    served
}

/// A guest that nobody has taken yet.
struct Guest {
    process: Child,
    /// What it has to say.
    reports: PipeReader,
    is_ready: bool,
}

/// What a guest has said.
enum Report {
    Ready,
    Taken,
    Outdated,
    /// Nothing: it has ended.
    Ended,
}

struct Keeper {
    name: String,
    count: u32,
    /// Goes with the keeper, with all sockets.
    entry: Entry,
    /// Whoever waits for the end of this process: it comes behind that of the entry.
    waiting: Vec<UnixStream>,
    /// What guests take connections from.
    socket: OwnedFd,
    control: UnixListener,
    log: File,
    guests: Vec<Guest>,
    /// Guests that were taken.
    taken: Vec<Child>,
    /// How many those were.
    total: u64,
    /// Not before that the next one is begun.
    not_before: Instant,
    failures: u32,
    failure: Option<String>,
    /// Whoever has begun this has been told that all are there.
    is_announced: bool,
}

impl Keeper {
    fn new(name: &str, count: u32) -> Result<Self, Error> {
        let registered =
            RunDir::make().and_then(|run_dir| run_dir.register(Some(&format!("{PREFIX}{name}"))));
        let entry = registered.map_err(|error| match error {
            rundir::Error::Taken { .. } => Error::Exists { name: name.into() },
            error => Error::RunDir(error),
        })?;
        let path = |file: &str| entry.folder().join(file);
        let log = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path(LOG))
            .map_err(host("make the log"))?;
        let socket = wire::listener(&path(GUESTS), count).map_err(host("make a socket"))?;
        let control = UnixListener::bind(path(CONTROL)).map_err(host("make a socket"))?;
        Ok(Self {
            name: name.into(),
            count,
            entry,
            waiting: Vec::new(),
            socket,
            control,
            log,
            guests: Vec::new(),
            taken: Vec::new(),
            total: 0,
            not_before: Instant::now(),
            failures: 0,
            failure: None,
            is_announced: false,
        })
    }

    /// Until it is told to stop, or can be of no more use.
    fn serve(&mut self, signals: &Signals) -> Result<(), Error> {
        loop {
            self.begin_some()?;
            let mut fds = vec![
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
            ];
            let reports = self.guests.iter().map(|guest| &guest.reports);
            fds.extend(reports.map(|reports| PollFd::new(reports, PollFlags::IN)));
            let timeout = self
                .timeout()
                .and_then(|time| Timespec::try_from(time).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(host("wait")(errno.into())),
            }
            let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if signals.first().is_some() {
                return Ok(());
            }
            if is_ready[1] && self.answer() {
                return Ok(());
            }
            // From behind: one that goes leaves those before it where they are, unless all go.
            for index in (0..self.guests.len()).rev() {
                if index < self.guests.len() && is_ready[index + 2] {
                    self.hear(index)?;
                }
            }
            self.taken
                .retain_mut(|process| matches!(process.try_wait(), Ok(None)));
        }
    }

    fn ready(&self) -> usize {
        self.guests.iter().filter(|guest| guest.is_ready).count()
    }

    fn starting(&self) -> usize {
        self.guests.len() - self.ready()
    }

    fn is_missing_some(&self) -> bool {
        self.guests.len() < self.count as usize
    }

    /// How long there is nothing to do unless somebody says something.
    fn timeout(&self) -> Option<Duration> {
        let next = (self.is_missing_some() && !self.is_busy())
            .then(|| self.not_before.saturating_duration_since(Instant::now()));
        let ended = (!self.taken.is_empty()).then_some(LOOK_AGAIN);
        next.into_iter().chain(ended).min()
    }

    /// As many get ready as there are CPUs: the next one comes when one is there.
    fn is_busy(&self) -> bool {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        self.starting() >= cpus
    }

    /// Begins guests, if some are missing.
    fn begin_some(&mut self) -> Result<(), Error> {
        while self.is_missing_some() && !self.is_busy() && Instant::now() >= self.not_before {
            let guest = self.begin().map_err(host("start a guest"))?;
            self.guests.push(guest);
        }
        if !self.is_announced && self.ready() == self.count as usize {
            self.announce().map_err(host("say that all are ready"))?;
        }
        Ok(())
    }

    fn begin(&self) -> io::Result<Guest> {
        let (reports, told) = pipe()?;
        let process = Command::new("/proc/self/exe")
            .arg0("mote")
            .args(["pool", "guest", &self.name])
            .stdin(self.socket.try_clone()?)
            .stdout(told)
            .stderr(self.log.try_clone()?)
            .spawn()?;
        Ok(Guest {
            process,
            reports,
            is_ready: false,
        })
    }

    /// Lets go of whoever has begun this process.
    fn announce(&mut self) -> io::Result<()> {
        let mut stdout = stdout();
        stdout.write_all(b"ready\n")?;
        stdout.flush()?;
        dup2_stdout(&self.log)?;
        dup2_stderr(&self.log)?;
        self.is_announced = true;
        Ok(())
    }

    fn hear(&mut self, index: usize) -> Result<(), Error> {
        let guest = &mut self.guests[index];
        let mut byte = [0];
        let report = match guest.reports.read(&mut byte) {
            Ok(1) if byte == [READY] => Report::Ready,
            Ok(1) if byte == [TAKEN] => Report::Taken,
            Ok(1) if byte == [OUTDATED] => Report::Outdated,
            _ => Report::Ended,
        };
        match report {
            Report::Ready => {
                guest.is_ready = true;
                self.failures = 0;
                self.failure = None;
            }
            Report::Taken => {
                let guest = self.guests.swap_remove(index);
                self.taken.push(guest.process);
                self.total += 1;
                let calm = if self.ready() > 0 {
                    CALM
                } else {
                    Duration::ZERO
                };
                self.not_before = Instant::now() + calm;
            }
            // So are those that have not noticed yet.
            Report::Outdated => self.renew(),
            Report::Ended => {
                let mut guest = self.guests.swap_remove(index);
                let _ = guest.process.wait();
                if !guest.is_ready {
                    self.note_failure()?;
                }
            }
        }
        Ok(())
    }

    /// A guest did not get ready. Fails if that is no use any more.
    fn note_failure(&mut self) -> Result<(), Error> {
        let template = Store::from_env().and_then(|store| store.find(&self.name));
        if let Err(error @ template::Error::Missing { .. }) = template {
            return Err(error.into());
        }
        let why = self.last_said();
        if !self.is_announced {
            return Err(Error::NotReady {
                name: self.name.clone(),
                why,
            });
        }
        let wait = RETRY.saturating_mul(1 << self.failures.min(16));
        self.not_before = Instant::now() + wait.min(MAX_RETRY);
        self.failures += 1;
        self.failure = Some(why);
        Ok(())
    }

    /// The last that a guest has said.
    fn last_said(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(self.entry.folder().join(LOG)).and_then(|mut log| {
            use std::io::{Seek, SeekFrom};
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(MAX_SAID)))?;
            log.read_to_end(&mut text)
        });
        let text = read.map(|_| String::from_utf8_lossy(&text));
        let text = text.unwrap_or_default();
        last_said(&text)
            .unwrap_or("its process was killed")
            .to_owned()
    }

    /// Answers whoever asks; true if the pool is to end.
    fn answer(&mut self) -> bool {
        let Ok((mut stream, _)) = self.control.accept() else {
            return false;
        };
        let mut order = [0];
        let heard = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| stream.read(&mut order));
        match heard {
            Ok(1) if order == [STOP] => {
                self.waiting.push(stream);
                true
            }
            Ok(1) if order == [OUTDATED] => {
                self.renew();
                false
            }
            Ok(0) => {
                let _ = self.describe(&mut stream);
                false
            }
            _ => false,
        }
    }

    fn describe(&self, stream: &mut UnixStream) -> io::Result<()> {
        let described = Described {
            template: self.name.clone(),
            pid: process::id(),
            ready: self.ready(),
            starting: self.starting(),
            count: self.count,
            taken: self.total,
            failure: self.failure.clone(),
        };
        stream.write_all(&serde_json::to_vec(&described)?)
    }

    /// Others take the place of all guests, which are of no use any more.
    fn renew(&mut self) {
        let path = self.entry.folder().join(GUESTS);
        self.end_guests();
        let _ = fs::remove_file(&path);
        match wire::listener(&path, self.count) {
            Ok(socket) => self.socket = socket,
            // None gets ready.
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    /// Ends all guests that nobody has taken, and nobody else: each finds out when it looks for the next connection.
    fn end_guests(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        for mut guest in self.guests.drain(..) {
            // The last that it says tells whether somebody has taken it; or it is about to get ready, and ends then.
            let mut last = [0];
            while matches!(guest.reports.read(&mut last), Ok(1)) && last == [READY] {}
            if last == [TAKEN] {
                self.total += 1;
                self.taken.push(guest.process);
            } else {
                let _ = guest.process.wait();
            }
        }
    }
}
