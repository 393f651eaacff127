//! An adapter that has been prepared, and its starts.

use std::env;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};

use super::Session;
use crate::adapter::{Adapter, Places};
use crate::record::{Milestones, Missing, Purpose, Run, Runtime};
use crate::run::cgroup::Group;
use crate::run::{Expected, Goal, HttpRequest, Program, Seen, Trouble, Watched, marked, ms};
use crate::workload::write_bundle;

/// What a script may take that makes snapshots or loads images.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);
/// What other scripts may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// What a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How long what is left of a start may be there after its end.
const LEFT_LIMIT: Duration = Duration::from_secs(5);
/// Where programs are looked for if nothing says where.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    fn word(self) -> &'static str {
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

/// A start that has not ended.
#[derive(Debug)]
pub struct Running {
    watched: Watched,
    group: Option<Group>,
    id: String,
    token: String,
    places: Places,
}

impl Running {
    /// The proportional set sizes of all its processes together, in bytes; none if one of them cannot be read.
    pub fn pss(&self) -> Option<u64> {
        let processes = match &self.group {
            Some(group) => group.processes(),
            None => marked::processes(&self.id),
        };
        processes.into_iter().map(pss).sum()
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
        let mark = format!("{}-{}", std::process::id(), adapter.name);
        let group = self
            .base
            .as_ref()
            .and_then(|base| base.group(&adapter.name).ok());
        places.set("id", mark.clone());
        let mut prepared = Prepared {
            runtime: Runtime {
                name: adapter.name.clone(),
                about: adapter.about.clone(),
                kind: adapter.kind,
                version: None,
                command: adapter
                    .run
                    .iter()
                    .map(|word| fill(&places_of_a_record(&places), word))
                    .collect(),
                requests: (adapter.requests.iter())
                    .map(|request| format!("{} {}", request.method, request.path))
                    .collect(),
                uncounted: adapter.uncounted.clone(),
            },
            session: self,
            adapter,
            directory,
            group,
            mark,
            places,
        };
        prepared.runtime.version = prepared.version();
        let made = fs::create_dir(&prepared.directory).map_err(|error| error.to_string());
        let script = prepared.adapter.prepare.clone();
        let done = made.and_then(|()| match script {
            Some(script) => prepared
                .script(&script, &prepared.places, PREPARE_LIMIT, self.stop)
                .map_err(|error| chain(&error)),
            None => Ok(()),
        });
        match done {
            Ok(()) => Ok(prepared),
            Err(_) if self.is_stopped() => Err(Absent::Stopped),
            Err(why) => Err(Absent::Failed(
                Box::new(prepared.runtime.clone()),
                format!("cannot be prepared: {why}"),
            )),
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
        places.set("bundle", path(&directory.join("bundle")));
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

/// Without what is different in each run.
fn places_of_a_record(places: &Places) -> Places {
    let mut places = places.clone();
    places.remove("id");
    places
}

/// All names were known when the adapter was read.
fn fill(places: &Places, text: &str) -> String {
    places.fill(text).unwrap_or_else(|_| text.into())
}

/// What an adapter needs and is not there.
fn what_is_missing(adapter: &Adapter, places: &Places) -> Option<String> {
    let program = adapter
        .needs
        .iter()
        .find(|program| find_program(program).is_none());
    if let Some(program) = program {
        return Some(format!("there is no program {program}"));
    }
    for file in &adapter.needs_files {
        let path = fill(places, file);
        if path.is_empty() {
            return Some(format!("there is nothing for {file}"));
        }
        if !Path::new(&path).exists() {
            return Some(format!("there is no {path}"));
        }
    }
    if adapter.needs_root && !rustix::process::geteuid().is_root() {
        return Some("it needs root".into());
    }
    for (name, what) in [
        ("kernel", "guest kernel"),
        ("jobs_initrd", "initial RAM disk of mote's own"),
    ] {
        if adapter.mentions(name) && fill(places, &format!("${{{name}}}")).is_empty() {
            return Some(format!("there is no {what}"));
        }
    }
    None
}

/// Where a program is.
fn find_program(name: &str) -> Option<PathBuf> {
    let can_run = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.contains('/') {
        let path = PathBuf::from(name);
        return can_run(&path).then_some(path);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    // Debian's root has the last two, others have not.
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories
        .map(|directory| directory.join(name))
        .find(|path| can_run(path))
}

impl Prepared<'_, '_> {
    /// The runtime, for a record.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
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
        let mut run = Run {
            purpose,
            at,
            failure: None,
            milestones: Milestones::default(),
            cpu: None,
            peak_memory: None,
        };
        if let Some(tracer) = tracer {
            // What cannot be traced has fewer milestones.
            let _ = tracer.begin();
        }
        match self.start(mode) {
            Ok(mut running) => {
                let ended = self.watch_to_its_end(&mut running);
                if let (Some(tracer), true) = (tracer, ended.is_ok()) {
                    let watched = &running.watched;
                    let group = self.path_of(running.group.as_ref());
                    let seen = tracer.end(watched.pid(), watched.clock(), group.as_deref());
                    add(&mut run.milestones, seen.unwrap_or_default());
                }
                let seen = running.watched.milestones(&running.token);
                run.milestones = Milestones {
                    environment: run.milestones.environment,
                    guest: run.milestones.guest,
                    ..seen
                };
                run.cpu = running.group.as_ref().and_then(Group::cpu).map(ms);
                run.peak_memory = running.group.as_ref().and_then(Group::peak_memory);
                let failure = match ended {
                    Ok(()) => running
                        .watched
                        .fault(self.expected(&running.token), self.adapter.status),
                    Err(why) => Some(why),
                };
                run.failure = failure.map(|why| self.without_names(&why, &running));
                self.remove(running, run.failure.is_some());
            }
            Err(trouble) => run.failure = Some(chain(&trouble)),
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
        let waited = running
            .watched
            .wait(Goal::Output(&running.token), self.session.stop);
        let output = running.watched.milestones(&running.token).output;
        match (waited, output) {
            (Ok(()), Some(output)) => Ok((running, output)),
            (waited, _) => {
                let why = match waited {
                    Err(trouble) => chain(&trouble),
                    Ok(()) => (running
                        .watched
                        .fault(self.expected(&running.token), self.adapter.status))
                    .unwrap_or_else(|| "ended".into()),
                };
                let why = self.without_names(&why, &running);
                self.remove(running, true);
                Err(why)
            }
        }
    }

    /// Ends an instance, and removes what it had.
    pub fn remove(&self, mut running: Running, is_cut_off: bool) {
        if is_cut_off {
            running.watched.kill();
            if let Some(group) = &running.group {
                group.end();
            }
            marked::end(&running.id);
            if let Some(script) = &self.adapter.clean {
                // There may be nothing left to clean.
                let _ = self.script(script, &running.places, SCRIPT_LIMIT, self.session.never());
            }
        }
        if let Some(group) = &running.group {
            group.end();
            group.remove();
        }
    }

    fn expected<'t>(&self, token: &'t str) -> Expected<'t> {
        Expected {
            token,
            noisy: self.adapter.noisy,
        }
    }

    /// Without what is different in each run, so that the same failures have the same words.
    fn without_names(&self, text: &str, running: &Running) -> String {
        let directory = self.directory.display().to_string();
        text.replace(&running.id, "${id}")
            .replace(&running.token, "${token}")
            .replace(&directory, "${dir}")
    }

    fn path_of(&self, group: Option<&Group>) -> Option<String> {
        Some(self.session.base.as_ref()?.path_of(group?))
    }

    fn start(&self, mode: Mode) -> Result<Running, Trouble> {
        let id = format!("bench-{}-{}", std::process::id(), self.session.number());
        let token = token();
        let mut places = self.places.clone();
        places.set("id", id.clone());
        places.set("token", token.clone());
        places.set("mode", mode.word());
        let group = match &self.session.base {
            Some(base) => Some(base.group(&id)?),
            None => None,
        };
        let main = group
            .as_ref()
            .map(|group| group.inner("main"))
            .transpose()?;
        let path = self.path_of(group.as_ref());
        let inner = path.map_or_else(|| format!("/{id}"), |path| format!("{path}/box"));
        places.set("cgroup", inner.clone());
        let directory = group
            .as_ref()
            .map(|group| group.directory().join("box").display().to_string());
        places.set("cgroup_dir", directory.unwrap_or_default());

        if let Some(script) = &self.adapter.before {
            self.script(script, &places, SCRIPT_LIMIT, self.session.stop)?;
        }
        for (name, text) in &self.adapter.files {
            let path = self.directory.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, fill(&places, text))?;
        }
        if self.adapter.mentions("bundle") {
            let words = ["/program", &token, mode.word()];
            let cgroup = if self.session.base.is_some() {
                &*inner
            } else {
                ""
            };
            write_bundle(
                &self.directory.join("bundle"),
                &self.session.workload.rootfs,
                &words,
                cgroup,
            )?;
        }
        let words: Vec<String> = self
            .adapter
            .run
            .iter()
            .map(|word| fill(&places, word))
            .collect();
        let mut program = self.program(&words, &places, &id)?;
        program.terminal = self.adapter.terminal;
        let input = self
            .adapter
            .input
            .as_ref()
            .map(|input| fill(&places, input));
        let requests = self.adapter.requests.iter().map(|request| HttpRequest {
            socket: fill(&places, &request.socket).into(),
            method: request.method.clone(),
            path: fill(&places, &request.path),
            body: request.body.as_ref().map(|body| fill(&places, body)),
        });
        let entry = main.as_ref().map(Group::open).transpose()?;
        let limit = self.session.settings.limit;
        let watched = Watched::start(
            &program,
            entry.as_ref(),
            input.as_deref(),
            requests.collect(),
            limit,
        )?;
        Ok(Running {
            watched,
            group,
            id,
            token,
            places,
        })
    }

    /// Watches it until nothing is left of it; otherwise says why it was given up.
    fn watch_to_its_end(&self, running: &mut Running) -> Result<(), String> {
        let stop = self.session.stop;
        let watched = &mut running.watched;
        if let Err(trouble) = watched.wait(Goal::Exit, stop) {
            let said = watched
                .said()
                .map(|line| format!(": {line}"))
                .unwrap_or_default();
            return Err(chain(&trouble) + &said);
        }
        let is_gone = match &running.group {
            Some(group) => watched
                .wait_until_gone(group, LEFT_LIMIT, stop)
                .map_err(|trouble| chain(&trouble))?,
            None => false,
        };
        // One may have left the group.
        let began = Instant::now();
        loop {
            let left = marked::processes(&running.id);
            if left.is_empty() && (is_gone || running.group.is_none()) {
                break;
            }
            if began.elapsed() > LEFT_LIMIT || (running.group.is_some() && !is_gone) {
                let in_group = running
                    .group
                    .as_ref()
                    .map(Group::processes)
                    .unwrap_or_default();
                let names = marked::names(&[left, in_group].concat());
                return Err(format!("left processes behind: {names}"));
            }
            if self.session.is_stopped() {
                return Err(chain(&Trouble::Stopped));
            }
        }
        if running.group.is_none() {
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
        let program = self.program(&words, places, &self.mark)?;
        let entry = self.group.as_ref().map(Group::open).transpose()?;
        let mut watched = Watched::start(&program, entry.as_ref(), None, Vec::new(), limit)?;
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
        let words: Vec<String> = self
            .adapter
            .version
            .iter()
            .map(|word| fill(&self.places, word))
            .collect();
        let mut program = self.program(&words, &self.places, &self.mark).ok()?;
        // Its own directory is not there yet.
        program.directory = c"/".into();
        let entry = self.group.as_ref().and_then(|group| group.open().ok());
        let mut watched =
            Watched::start(&program, entry.as_ref(), None, Vec::new(), VERSION_LIMIT).ok()?;
        watched.wait(Goal::Exit, self.session.stop).ok()?;
        let text = watched.printed();
        let line = text
            .lines()
            .find(|line| line.bytes().any(|byte| byte.is_ascii_digit()))?;
        Some(line.trim().chars().take(80).collect())
    }

    fn program(&self, words: &[String], places: &Places, id: &str) -> Result<Program, Trouble> {
        let name = words.first().map(String::as_str).unwrap_or_default();
        let path =
            find_program(name).ok_or_else(|| Trouble::Exec(io::ErrorKind::NotFound.into()))?;
        let own: Vec<(&str, String)> =
            (places.iter().map(|(name, value)| (name, value.to_owned())))
                .chain(
                    self.adapter
                        .env
                        .iter()
                        .map(|(name, value)| (name.as_str(), fill(places, value))),
                )
                .chain([(marked::VARIABLE, id.to_owned())])
                .collect();
        let mut environment = Vec::new();
        for (name, value) in env::vars_os() {
            if !own.iter().any(|(other, _)| name == *other) {
                environment.push(word(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
            }
        }
        for (name, value) in &own {
            environment.push(word(format!("{name}={value}").as_bytes())?);
        }
        Ok(Program {
            path: word(path.as_os_str().as_bytes())?,
            arguments: words
                .iter()
                .map(|it| word(it.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment,
            directory: word(self.directory.as_os_str().as_bytes())?,
            terminal: false,
        })
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
        super::mounts::unmount_below(&self.directory);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn word(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

fn add(milestones: &mut Milestones, seen: Seen) {
    milestones.environment = seen.environment.map(ms);
    milestones.guest = seen.guest.map(ms);
}

/// Another one for each start, so that no output of an earlier one can be taken for it.
fn token() -> String {
    let mut bytes = [0; 8];
    // Fails only before the kernel has any randomness.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
