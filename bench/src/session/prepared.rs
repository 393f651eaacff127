//! An adapter that has been prepared, and its starts.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::programs::{fill, fill_all, program, what_is_missing};
use super::room::Room;
use super::{Session, mounts};
use crate::adapter::{Adapter, Places};
use crate::record::{Milestones, Missing, Purpose, Run, Runtime};
use crate::run::cgroup::Group;
use crate::run::{Expected, Goal, HttpRequest, Trouble, Watched, marked, ms};
use crate::workload::write_bundle;

/// What a script may take that makes snapshots or loads images.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);
/// What other scripts may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// What a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How long what is left of a start may be there after its end.
const LEFT_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked for where there are no control groups.
const INTERVAL: Duration = Duration::from_millis(1);

/// Why an adapter cannot be used.
#[derive(Debug)]
pub enum Absent {
    /// What it needs is not there.
    Missing(Missing),
    /// It cannot be prepared.
    Failed(Box<Runtime>, String),
    /// The measurement is to end.
    Stopped,
}

/// What the program is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It prints its token and exits.
    Run,
    /// The first process prints a line before that.
    Mark,
    /// It prints its token and stays.
    Hold,
}

impl Mode {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Mark => "mark",
            Self::Hold => "hold",
        }
    }
}

/// An adapter that has been prepared. What it has made is removed when it is dropped.
#[derive(Debug)]
pub struct Prepared<'s, 'a> {
    session: &'s Session<'a>,
    adapter: Adapter,
    runtime: Runtime,
    directory: PathBuf,
    /// Where its daemons are.
    group: Option<Group>,
    /// What its daemons carry.
    mark: String,
    places: Places,
}

/// A start that has not been removed. It is killed, and what it had is removed, when it is dropped.
#[derive(Debug)]
pub struct Running {
    watched: Watched,
    room: Room,
}

impl Running {
    /// Why it is not running any more; none if it is.
    pub fn has_ended(&mut self) -> Option<String> {
        let status = self.watched.try_status()?;
        Some(format!("exit status {status}"))
    }

    /// The proportional set sizes of all its processes together, in bytes; none if one of them cannot be read.
    pub fn pss(&self) -> Option<u64> {
        self.room.processes().into_iter().map(pss).sum()
    }
}

/// The proportional set size of a process, in bytes; 0 for one that has ended meanwhile.
fn pss(process: u32) -> Option<u64> {
    match fs::read_to_string(format!("/proc/{process}/smaps_rollup")) {
        Ok(text) => {
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            Some(kib.unwrap_or(0) << 10)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
        // A process that is ending has no memory to be read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Some(0),
        Err(_) => None,
    }
}

impl<'a> Session<'a> {
    /// Looks for what an adapter needs, and prepares it.
    pub fn prepare(&self, adapter: Adapter) -> Result<Prepared<'_, 'a>, Absent> {
        let directory = self.directory().join(&adapter.name);
        let mut places = self.places(&directory);
        if let Some(why) = what_is_missing(&adapter, &places) {
            return Err(Absent::Missing(Missing {
                name: adapter.name,
                why,
            }));
        }
        let runtime = Runtime {
            name: adapter.name.clone(),
            about: adapter.about.clone(),
            kind: adapter.kind,
            version: None,
            command: fill_all(&places, &adapter.run),
            requests: (adapter.requests.iter())
                .map(|request| format!("{} {}", request.method, request.path))
                .collect(),
            uncounted: adapter.uncounted.clone(),
        };
        let mark = format!("bench-{}-{}", std::process::id(), adapter.name);
        places.set("id", mark.clone());
        let mut prepared = Prepared {
            group: self
                .base
                .as_ref()
                .and_then(|base| base.group(&adapter.name).ok()),
            session: self,
            adapter,
            runtime,
            directory,
            mark,
            places,
        };
        let done = prepared.set_up();
        match done {
            Ok(()) => Ok(prepared),
            Err(_) if self.is_stopped() => Err(Absent::Stopped),
            Err(trouble) => {
                let why = format!("cannot be prepared: {}", chain(&trouble));
                Err(Absent::Failed(Box::new(prepared.runtime.clone()), why))
            }
        }
    }

    fn places(&self, directory: &Path) -> Places {
        let settings = self.settings();
        let path = |path: &Path| path.display().to_string();
        let optional = |file: &Option<PathBuf>| file.as_deref().map(path).unwrap_or_default();
        let mut places = Places::default();
        places.set("dir", path(directory));
        places.set("program", path(&self.workload.program));
        places.set("rootfs", path(&self.workload.rootfs));
        places.set("image", path(&self.workload.image));
        places.set("kernel", optional(&settings.kernel));
        places.set("bzimage", optional(&settings.bzimage));
        places.set("initrd", path(&self.workload.initrd));
        places.set("jobs_initrd", optional(&self.workload.jobs_initrd));
        places.set("memory", (settings.memory >> 20).to_string());
        places.set("mote", path(&settings.mote));
        places.set("seconds", settings.limit.as_secs().max(1).to_string());
        places
    }
}

impl Prepared<'_, '_> {
    /// The runtime, for a record.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn set_up(&mut self) -> Result<(), Trouble> {
        fs::create_dir(&self.directory)?;
        self.runtime.version = self.version();
        if let Some(script) = &self.adapter.prepare {
            self.script(script, &self.places, PREPARE_LIMIT, self.session.stop)?;
            // What it has written is not to be brought to the disk while something is timed.
            rustix::fs::sync();
        }
        Ok(())
    }

    /// Starts it once, from beginning to end. None: the measurement is to end.
    pub fn run(&self, purpose: Purpose, at: f64) -> Option<Run> {
        let mode = if purpose == Purpose::Traced {
            Mode::Mark
        } else {
            Mode::Run
        };
        let tracer = self
            .session
            .tracer
            .as_ref()
            .filter(|_| purpose == Purpose::Traced);
        if let Some(tracer) = tracer {
            // What cannot be traced has fewer milestones.
            let _ = tracer.begin();
        }
        let mut run = Run {
            purpose,
            at,
            failure: None,
            milestones: Milestones::default(),
            cpu: None,
            peak_memory: None,
        };
        match self.start(mode) {
            Ok(mut running) => {
                let ended = self.watch_to_its_end(&mut running);
                let Running { watched, room } = &running;
                run.milestones = watched.milestones(&room.token);
                if let Some(tracer) = tracer {
                    let seen = tracer.end(
                        watched.pid(),
                        watched.clock(),
                        self.path_of(room).as_deref(),
                    );
                    let seen = seen.unwrap_or_default();
                    run.milestones.environment = seen.environment.map(ms);
                    run.milestones.guest = seen.guest.map(ms);
                }
                run.cpu = room.group.as_ref().and_then(Group::cpu).map(ms);
                run.peak_memory = room.group.as_ref().and_then(Group::peak_memory);
                let fault = || watched.fault(self.expected(&room.token), self.adapter.status);
                let failure = ended.err().or_else(fault);
                run.failure = failure.map(|why| self.without_names(&why, room));
                if run.failure.is_some() {
                    self.cut_off(running);
                }
            }
            Err(trouble) => {
                run.failure = Some(chain(&trouble));
                if let Some(tracer) = tracer {
                    tracer.give_up();
                }
            }
        }
        if self.session.is_stopped() {
            None
        } else {
            Some(run)
        }
    }

    /// Starts an instance that stays, and waits for its output: with it the time until then, in milliseconds.
    pub fn hold(&self) -> Result<(Running, f64), String> {
        let mut running = self.start(Mode::Hold).map_err(|trouble| chain(&trouble))?;
        let Running { watched, room } = &mut running;
        let waited = watched.wait(Goal::Output(&room.token), self.session.stop);
        let output = watched.milestones(&room.token).output;
        let why = match (waited, output) {
            (Ok(()), Some(output)) => return Ok((running, output)),
            (Err(trouble), _) => chain(&trouble),
            (Ok(()), None) => {
                let fault = watched.fault(self.expected(&room.token), self.adapter.status);
                fault.unwrap_or_else(|| "it ended".into())
            }
        };
        let why = self.without_names(&why, room);
        self.cut_off(running);
        Err(why)
    }

    /// Ends an instance that would not end by itself, and removes what it had.
    pub fn cut_off(&self, mut running: Running) {
        running.watched.kill();
        running.room.end_all();
        if let Some(script) = &self.adapter.clean {
            // There may be nothing left to clean.
            let _ = self.script(
                script,
                &running.room.places,
                SCRIPT_LIMIT,
                self.session.never(),
            );
        }
    }

    fn expected<'t>(&self, token: &'t str) -> Expected<'t> {
        Expected {
            token,
            noisy: self.adapter.noisy,
        }
    }

    /// Without what is different in each run, so that the same failures have the same words.
    fn without_names(&self, text: &str, room: &Room) -> String {
        let directory = self.directory.display().to_string();
        let text = text.replace(&room.directory.display().to_string(), "${run_dir}");
        text.replace(&room.id, "${id}")
            .replace(&room.token, "${token}")
            .replace(&directory, "${dir}")
    }

    fn path_of(&self, room: &Room) -> Option<String> {
        Some(self.session.base.as_ref()?.path_of(room.group.as_ref()?))
    }

    fn start(&self, mode: Mode) -> Result<Running, Trouble> {
        let room = Room::make(self.session, &self.directory, &self.places, mode)?;
        if let Some(script) = &self.adapter.before {
            self.script(script, &room.places, SCRIPT_LIMIT, self.session.stop)?;
        }
        for (name, text) in &self.adapter.files {
            let path = room.directory.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, fill(&room.places, text))?;
        }
        if self.adapter.mentions("bundle") {
            let words = ["/program", &room.token, mode.word()];
            let cgroup = room.group.as_ref().map(|_| room.inner.as_str());
            write_bundle(
                &room.bundle(),
                &self.session.workload.rootfs,
                &words,
                cgroup,
            )?;
        }
        let words = fill_all(&room.places, &self.adapter.run);
        let mut program = program(
            &words,
            &self.adapter,
            &room.places,
            &room.id,
            &self.directory,
        )?;
        program.terminal = self.adapter.terminal;
        let input = self
            .adapter
            .input
            .as_ref()
            .map(|input| fill(&room.places, input));
        let requests = self.adapter.requests.iter().map(|request| HttpRequest {
            socket: fill(&room.places, &request.socket).into(),
            method: request.method.clone(),
            path: fill(&room.places, &request.path),
            body: request.body.as_ref().map(|body| fill(&room.places, body)),
        });
        let entry = room.main.as_ref().map(Group::open).transpose()?;
        let limit = self.session.settings.limit;
        let watched = Watched::start(
            &program,
            entry.as_ref(),
            input.as_deref(),
            requests.collect(),
            limit,
        )?;
        Ok(Running { watched, room })
    }

    /// Watches it until nothing is left of it; otherwise says why it was given up.
    fn watch_to_its_end(&self, running: &mut Running) -> Result<(), String> {
        let stop = self.session.stop;
        let Running { watched, room } = running;
        if let Err(trouble) = watched.wait(Goal::Exit, stop) {
            let said = watched
                .said()
                .map(|line| format!(": {line}"))
                .unwrap_or_default();
            return Err(chain(&trouble) + &said);
        }
        let left = |processes: &[u32]| {
            Err(format!(
                "left processes behind: {}",
                marked::names(processes)
            ))
        };
        if let Some(group) = &room.group {
            let gone = watched.wait_until_gone(group, LEFT_LIMIT, stop);
            if !gone.map_err(|trouble| chain(&trouble))? {
                return left(&group.processes());
            }
        }
        // Where there is no group, and those that have left it.
        let began = Instant::now();
        loop {
            let processes = marked::processes(&room.id);
            if processes.is_empty() {
                break;
            }
            if began.elapsed() > LEFT_LIMIT {
                return left(&processes);
            }
            if self.session.is_stopped() {
                return Err(chain(&Trouble::Stopped));
            }
            thread::sleep(INTERVAL);
        }
        if room.group.is_none() {
            watched.is_gone();
        }
        Ok(())
    }

    /// Runs a script among its daemons.
    fn script(
        &self,
        text: &str,
        places: &Places,
        limit: Duration,
        stop: BorrowedFd,
    ) -> Result<(), Trouble> {
        let words = ["sh", "-euc", text].map(str::to_owned);
        let mut watched = self.own(&words, places, limit)?;
        watched.wait(Goal::Exit, stop)?;
        match watched.status_fault(0) {
            None => Ok(()),
            Some(why) => Err(Trouble::Script(why)),
        }
    }

    fn version(&self) -> Option<String> {
        if self.adapter.version.is_empty() {
            return None;
        }
        let words = fill_all(&self.places, &self.adapter.version);
        let mut watched = self.own(&words, &self.places, VERSION_LIMIT).ok()?;
        watched.wait(Goal::Exit, self.session.stop).ok()?;
        let text = watched.printed();
        let line = text
            .lines()
            .find(|line| line.bytes().any(|byte| byte.is_ascii_digit()))?;
        Some(line.trim().chars().take(80).collect())
    }

    /// Starts what is not an instance.
    fn own(&self, words: &[String], places: &Places, limit: Duration) -> Result<Watched, Trouble> {
        let program = program(words, &self.adapter, places, &self.mark, &self.directory)?;
        let entry = self.group.as_ref().map(Group::open).transpose()?;
        Watched::start(&program, entry.as_ref(), None, Vec::new(), limit)
    }
}

impl Drop for Prepared<'_, '_> {
    fn drop(&mut self) {
        if let Some(script) = &self.adapter.finish {
            // What it leaves is ended below.
            let _ = self.script(script, &self.places, SCRIPT_LIMIT, self.session.never());
        }
        if let Some(group) = &self.group {
            group.end();
            group.remove();
        }
        marked::end(&self.mark);
        mounts::unmount_below(&self.directory);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
