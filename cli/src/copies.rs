//! Copies of a guest: processes that go on from the files of one snapshot, and that nobody waits for once they do.
//!
//! Each is a `mote restore` with `--copy`: it leaves the session of whoever began it, and says on standard error that its
//! guest has been loaded ([`say_loaded`]), or why it could not be.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use api::types::{COPY_NUMBER, Fork, ForkedGuest, VmConfig};
use rustix::process::{Pid, Signal, kill_process, setsid};
use vmm::snapshot::directory;
use vmm::snapshot::format::StateFile;

use crate::message::{chain, last_said};
use crate::rundir::{self, RunDir};

/// What a copy says when its guest has been loaded.
const LOADED: &str = "mote: loaded\n";
/// More of what it says is not read.
const MAX_SAID: u64 = 64 << 10;
/// How many are begun at a time for each of the host's CPUs, and at all: each reads and maps files most of the time.
const AT_A_TIME: usize = 2;
const MAX_AT_A_TIME: usize = 16;
/// How long those that are given up have until they are killed.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(2);
/// What a guest is called that nobody gave a name.
const NAME: &str = "mote";

/// Leaves the session of whoever began this process, which is a copy.
pub(crate) fn leave() {
    // It leads no group, as it was begun by another program.
    let _ = setsid();
}

/// Says that the guest has been loaded. What is said from now on goes to the log, if there is one.
pub(crate) fn say_loaded(log: Option<&Path>) -> io::Result<()> {
    let path = log.unwrap_or(Path::new("/dev/null"));
    let file = File::options().append(true).open(path)?;
    io::stderr().write_all(LOADED.as_bytes())?;
    rustix::stdio::dup2_stderr(&file)?;
    Ok(())
}

/// Copies that are being begun.
#[derive(Default)]
pub(crate) struct Copies(Mutex<Begun>);

#[derive(Default)]
struct Begun {
    is_given_up: bool,
    children: Vec<Child>,
}

impl Copies {
    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts them from the snapshot of this directory, and waits until each has been loaded. Fails with a sentence; then
    /// there is none.
    pub(crate) fn start(&self, directory: &Path, fork: &Fork) -> Result<Vec<ForkedGuest>, String> {
        let plan = Plan::new(directory, fork)?;
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<ForkedGuest>>> = Mutex::new(vec![None; plan.ids.len()]);
        let failure = Mutex::new(None);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= plan.ids.len() {
                    return;
                }
                match self.begin(&plan, index) {
                    Ok(guest) => {
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done[index] = Some(guest);
                    }
                    Err(why) => {
                        // The first one: the others fail as they are given up.
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(why);
                        next.store(plan.ids.len(), Ordering::Relaxed);
                        return;
                    }
                }
            }
        };
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let threads = (cpus * AT_A_TIME).min(MAX_AT_A_TIME).min(plan.ids.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = failure {
            self.give_up();
            return Err(why);
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(done.into_iter().flatten().collect())
    }

    fn begin(&self, plan: &Plan<'_>, index: usize) -> Result<ForkedGuest, String> {
        let id = &plan.ids[index];
        let mut command = plan.command(index);
        let (pid, stderr) = {
            let mut begun = self.begun();
            if begun.is_given_up {
                return Err("it was given up".into());
            }
            let child = command.spawn();
            let mut child =
                child.map_err(|error| format!("Cannot start the copy '{id}': {error}"))?;
            let stderr = child.stderr.take();
            let pid = child.id();
            begun.children.push(child);
            (pid, stderr)
        };
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            // It ends when the copy has said all, or has ended.
            let _ = stderr.take(MAX_SAID).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        if !said.ends_with(LOADED) {
            let why = last_said(&said).unwrap_or("it ended before it had been loaded");
            return Err(format!("The copy '{id}' cannot be started: {why}"));
        }
        let socket = rundir::socket_of(&plan.run_dir, id);
        Ok(ForkedGuest {
            id: id.clone(),
            pid,
            socket: socket.to_string_lossy().into_owned(),
        })
    }

    /// Ends all that were begun, and has no more of them begin.
    pub(crate) fn give_up(&self) {
        let mut begun = self.begun();
        begun.is_given_up = true;
        let mut children = std::mem::take(&mut begun.children);
        for child in &children {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        for child in &mut children {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                thread::sleep(INTERVAL);
            }
        }
        // Nobody else removes what one that was killed has left.
        if let Ok(Some(directory)) = RunDir::find() {
            let _ = directory.list();
        }
    }
}

/// What each is started with.
struct Plan<'a> {
    directory: &'a Path,
    fork: &'a Fork,
    ids: Vec<String>,
    /// The guest's socket, if it has one.
    vsock: Option<String>,
    run_dir: PathBuf,
}

impl<'a> Plan<'a> {
    fn new(directory: &'a Path, fork: &'a Fork) -> Result<Self, String> {
        let path = directory::state(directory);
        let cannot = |why: String| format!("{} cannot be used: {why}", path.display());
        let mut file = File::open(&path).map_err(|error| cannot(error.to_string()))?;
        let state = StateFile::read(&mut file).map_err(|error| cannot(chain(&error)))?;
        let (document, _) =
            VmConfig::read(state.config.as_bytes()).map_err(|error| cannot(chain(&error)))?;
        Ok(Self {
            directory,
            fork,
            ids: names(fork, NAME),
            vsock: document.vsock.map(|vsock| vsock.uds_path),
            run_dir: RunDir::make().map_err(|error| chain(&error))?.folder(),
        })
    }

    fn command(&self, index: usize) -> Command {
        let id = &self.ids[index];
        let number = (index + 1).to_string();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("mote")
            .arg("restore")
            .arg(self.directory)
            .args(["--copy", "--id", id, "--log-path"])
            .arg(rundir::log_of(&self.run_dir, id));
        for change in &self.fork.network_overrides {
            let tap = change.host_dev_name.replace(COPY_NUMBER, &number);
            let vhost = match change.vhost {
                None => "",
                Some(true) => ",vhost=on",
                Some(false) => ",vhost=off",
            };
            command.arg(format!("--net={}={tap}{vhost}", change.iface_id));
        }
        let vsock = match (&self.fork.vsock_override, &self.vsock) {
            (Some(change), _) => Some(change.uds_path.replace(COPY_NUMBER, &number)),
            (None, Some(path)) => Some(format!("{path}-{id}")),
            (None, None) => None,
        };
        if let Some(path) = vsock {
            command.arg(format!("--vsock={path}"));
        }
        if self.fork.paused {
            command.arg("--paused");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

/// The names of copies of the guest `id`.
pub(crate) fn names(fork: &Fork, id: &str) -> Vec<String> {
    if fork.ids.is_empty() {
        (0..fork.copies()).map(|_| rundir::random_id(id)).collect()
    } else {
        fork.ids.clone()
    }
}
