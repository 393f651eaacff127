//! The run-time directory: a folder for each monitor that can be talked to, by its name. A monitor makes its entry, and
//! whoever lists them finds it.
//!
//! | in `mote/ID/` | |
//! | --- | --- |
//! | `lock` | locked (`flock`) by the monitor for as long as it lives: that is the truth |
//! | `info.json` | what it is: an [`Info`]. Absent while it starts |
//! | `api.sock` | its API's socket, unless that was put elsewhere |
//! | `log` | its log, of a copy of a guest |
//!
//! What a guest is forked from is there for a moment, and a pool of guests for as long as it lives, in entries whose names no guest
//! can have.
//!
//! The folder `mote` is `$XDG_RUNTIME_DIR/mote`; without that, `/run/mote` for root and `/tmp/mote-UID` for others. It is
//! its user's alone, or it is not used.
//!
//! Entries come and go under a lock on that folder. An entry of which the lock is free belongs to a process that
//! was killed: whoever comes across one removes it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, process, thread};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How long the lock of the folder is waited for. Its holder does some dozens of system calls; where many guests keep all CPUs busy, and
/// as many commands want it at once, two seconds were too short.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// And at the end of a monitor: what stays is removed by the next one who looks.
const LOCK_LIMIT_AT_END: Duration = Duration::from_millis(100);
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// An [`Info`] is much shorter, unless a command line is absurd.
const MAX_INFO: u64 = 1 << 20;
/// Letters and digits of a name that nobody gave.
const RANDOM_LETTERS: usize = 6;
const RANDOM_TRIES: usize = 100;
/// Longest name of a guest, in letters of ASCII.
const MAX_ID: usize = 64;

const LOCK: &str = "lock";
const INFO: &str = "info.json";
const SOCKET: &str = "api.sock";
const LOG: &str = "log";

/// Why the run-time directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("Cannot {action} {path:?}, of mote's run-time directory")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("Cannot use the run-time directory {path:?}: {what}")]
    NotOurs {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Others keep it locked.
    #[error("Another process keeps the run-time directory {path:?} locked")]
    Locked {
        /// Where.
        path: PathBuf,
    },
    /// There is one of this name.
    #[error("There is a guest '{id}' already{}: give it another --id", pid_text(*.pid))]
    Taken {
        /// The name.
        id: String,
        /// Its process, if that is known.
        pid: Option<u32>,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// How a guest is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `mote run`.
    Run,
    /// `mote vmm`.
    Vmm,
}

/// What a monitor says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    /// Its name.
    pub id: String,
    /// How it runs.
    pub kind: Kind,
    /// Its process.
    pub pid: u32,
    /// When that started, in the kernel's clock ticks: with it a process cannot be taken for a later one of the same
    /// number.
    pub start_ticks: u64,
    /// When it made its entry, in milliseconds since 1970.
    pub started_ms: u64,
    /// Its API's socket, if it has one.
    pub socket: Option<PathBuf>,
    /// Its log, if that is a file or FIFO.
    pub log: Option<PathBuf>,
    /// Its command line. What is no text is shown as far as it can be.
    pub command: Vec<String>,
}

/// The folder, of which the user is sure.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

/// The entry of this process. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Entry {
    id: String,
    folder: PathBuf,
    run_dir: RunDir,
    /// Held, not used.
    _lock: File,
}

impl RunDir {
    /// Where it is; it need not be there.
    pub(crate) fn path() -> PathBuf {
        let user = rustix::process::geteuid();
        match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            // A relative path is to be ignored.
            Some(path) if path.is_absolute() => path.join("mote"),
            _ if user.is_root() => "/run/mote".into(),
            _ => format!("/tmp/mote-{}", user.as_raw()).into(),
        }
    }

    /// The folder, which is made if it is not there.
    pub(crate) fn make() -> Result<Self, Error> {
        let path = Self::path();
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("make", &path)(error))
            }
            _ => Self::check(path),
        }
    }

    /// The folder, if it is there.
    pub(crate) fn find() -> Result<Option<Self>, Error> {
        let path = Self::path();
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::check(path).map(Some),
        }
    }

    /// Nobody else may have made it, or be able to put something into it.
    fn check(path: PathBuf) -> Result<Self, Error> {
        let found = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        let what = if !found.is_dir() {
            "it is not a folder"
        } else if found.uid() != rustix::process::geteuid().as_raw() {
            "it belongs to another user"
        } else if found.mode() & 0o077 != 0 {
            "others have access to it: chmod 700 it"
        } else {
            return Ok(Self { path });
        };
        Err(Error::NotOurs { path, what })
    }

    /// Keeps all others from making and removing entries until it is closed.
    fn lock(&self, limit: Duration) -> Result<OwnedFd, Error> {
        let refused = |errno: Errno| failed("lock", &self.path)(errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(refused)?;
        let deadline = Instant::now() + limit;
        loop {
            match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(folder),
                Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => {
                    return Err(Error::Locked {
                        path: self.path.clone(),
                    });
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(LOCK_PAUSE),
                Err(errno) => return Err(refused(errno)),
            }
        }
    }

    /// Makes an entry of this name for this process; of another one that is free if nobody gave a name.
    pub(crate) fn register(&self, id: Option<&str>) -> Result<Entry, Error> {
        let _lock = self.lock(LOCK_LIMIT)?;
        if let Some(id) = id {
            return self.register_as(id.to_owned());
        }
        let mut tries = 0;
        loop {
            match self.register_as(random_id("mote")) {
                Err(Error::Taken { .. }) if tries < RANDOM_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    fn register_as(&self, id: String) -> Result<Entry, Error> {
        let folder = self.path.join(&id);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_alive(&folder)? {
                    let pid = read_info(&folder).map(|info| info.pid);
                    return Err(Error::Taken { id, pid });
                }
                clear(&folder)?;
            }
            Err(error) => return Err(failed("make", &folder)(error)),
        }
        let path = folder.join(LOCK);
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock", &path)(errno.into()))?;
        Ok(Entry {
            id,
            folder,
            run_dir: self.clone(),
            _lock: lock,
        })
    }

    /// An entry for files that are of use to others for as long as this process has it. It has no name of a guest's.
    pub(crate) fn set_aside(&self) -> Result<Entry, Error> {
        let _lock = self.lock(LOCK_LIMIT)?;
        self.register_as(random_id("fork.of"))
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> PathBuf {
        self.path.clone()
    }

    /// All monitors that live, by name. The entries of others are removed, and their names are the second list.
    pub(crate) fn list(&self) -> Result<(Vec<Info>, Vec<String>), Error> {
        let _lock = self.lock(LOCK_LIMIT)?;
        let (mut alive, mut dead) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.path).map_err(failed("read", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(failed("read", &self.path))?;
            let folder = entry.path();
            // What is no folder is not ours.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match is_alive(&folder) {
                // Without an info it is about to start.
                Ok(true) => alive.extend(read_info(&folder)),
                Ok(false) => {
                    // What cannot be removed is no reason not to show the others.
                    if clear(&folder).is_ok() && fs::remove_dir(&folder).is_ok() {
                        dead.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
                Err(_) => {}
            }
        }
        alive.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((alive, dead))
    }
}

impl Entry {
    /// The name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the API's socket is, if it is to be here.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    /// Shows what this is to whoever looks from now on.
    pub(crate) fn publish(
        &self,
        kind: Kind,
        socket: Option<&Path>,
        log: Option<&Path>,
    ) -> Result<(), Error> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let info = Info {
            id: self.id.clone(),
            kind,
            pid: process::id(),
            start_ticks: start_ticks(process::id()).unwrap_or(0),
            started_ms: now_ms(),
            socket: socket.map(absolute),
            log: log.map(absolute),
            command: env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        };
        // In one piece, as others read it.
        let (new, path) = (self.folder.join("info.new"), self.folder.join(INFO));
        let write = || {
            fs::write(&new, serde_json::to_vec(&info)?)?;
            fs::rename(&new, &path)
        };
        write().map_err(failed("write", &path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Without the lock someone else could make an entry of this name while this one is removed.
        if let Ok(_lock) = self.run_dir.lock(LOCK_LIMIT_AT_END)
            && clear(&self.folder).is_ok()
        {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Whether the process of an entry lives. The run-time directory is locked meanwhile.
fn is_alive(folder: &Path) -> Result<bool, Error> {
    let path = folder.join(LOCK);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        // It was killed as it began, or as it ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(failed("lock", &path)(errno.into())),
    }
}

/// Removes what is in an entry.
fn clear(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let path = entry.map_err(failed("read", folder))?.path();
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}

fn read_info(folder: &Path) -> Option<Info> {
    let path = folder.join(INFO);
    if fs::metadata(&path).ok()?.len() > MAX_INFO {
        return None;
    }
    serde_json::from_slice(&fs::read(&path).ok()?).ok()
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// When a process started, in clock ticks since the host did.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may have anything in it, but is in brackets. The first word behind is field 3, this is field 22.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Where the API's socket of `id` is, in its entry.
pub(crate) fn socket_of(run_dir: &Path, id: &str) -> PathBuf {
    run_dir.join(id).join(SOCKET)
}

/// Where the log of a copy of a guest is, in its entry.
pub(crate) fn log_of(run_dir: &Path, id: &str) -> PathBuf {
    run_dir.join(id).join(LOG)
}

/// A name that begins so, as far as there is room, with `-` and some letters and digits behind.
pub(crate) fn random_id(name: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // Its keys are random.
    let mut number = RandomState::new().hash_one(process::id());
    let mut id: String = name.chars().take(MAX_ID - RANDOM_LETTERS - 1).collect();
    id.push('-');
    for _ in 0..RANDOM_LETTERS {
        let index = usize::try_from(number % LETTERS.len() as u64).unwrap_or(0);
        id.push(char::from(LETTERS[index]));
        number /= LETTERS.len() as u64;
    }
    id
}
