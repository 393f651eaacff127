//! Control groups (Linux, Documentation/admin-guide/cgroup-v2.rst): each start has one, so that all its processes are counted, found and ended,
//! whatever they do.
//!
//! ```text
//! mote-bench-PID/            of this measurement
//!   NAME/                    of an adapter: its daemons
//!   ID/                      of a start: what is counted
//!     main/                  the runtime's processes
//!     box/                   where the runtime may put its container
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(2);
/// A group whose processes are gone is busy for a moment.
const REMOVE_TRIES: u32 = 50;

/// The group of a measurement, and all that is in it. It is removed when it is dropped.
#[derive(Debug)]
pub struct Base {
    /// Where the hierarchy is mounted.
    root: PathBuf,
    group: Group,
}

impl Base {
    /// Makes one; none where this process may not, or where there is no version 2.
    pub fn make() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let root = find_mount(&mounts)?;
        let name = format!("mote-bench-{}", std::process::id());
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        // Who is not root can have been given a part.
        let parents = [root.clone(), root.join(own)];
        let directory = parents.iter().find_map(|parent| {
            let directory = parent.join(&name);
            fs::create_dir(&directory).ok().map(|()| directory)
        })?;
        let base = Self {
            group: Group { directory },
            root,
        };
        // The kernel counts memory where it is told to, from the root on.
        if let Some(parent) = base.group.directory.parent() {
            delegate(parent);
        }
        delegate(&base.group.directory);
        // Whether processes can be begun in there shows now, not in the middle.
        let trial = base.group("trial").ok()?;
        let may = trial.may_enter();
        trial.remove();
        may.then_some(base)
    }

    /// Makes a group in it.
    pub fn group(&self, name: &str) -> io::Result<Group> {
        let group = Group {
            directory: self.group.directory.join(name),
        };
        fs::create_dir(&group.directory)?;
        Ok(group)
    }

    /// The path of a group from the hierarchy's root on, as runtimes want it.
    pub fn path_of(&self, group: &Group) -> String {
        let path = group.directory.strip_prefix(&self.root);
        format!("/{}", path.unwrap_or(&group.directory).display())
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.group.end();
        self.group.remove();
    }
}

/// The mount point of the hierarchy of version 2.
fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        // ID PARENT DEVICE ROOT POINT OPTIONS… - TYPE …
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(point))
    })
}

/// Has the groups in `directory` counted by all controllers that there are. One that cannot be is left out.
fn delegate(directory: &Path) {
    let controllers = fs::read_to_string(directory.join("cgroup.controllers"));
    for controller in controllers.unwrap_or_default().split_whitespace() {
        let _ = fs::write(
            directory.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

/// A group.
#[derive(Debug)]
pub struct Group {
    directory: PathBuf,
}

impl Group {
    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has the groups in it counted as it is itself, before a runtime does that in the time that it is given.
    pub fn delegate(&self) {
        delegate(&self.directory);
    }

    /// Makes a group in it.
    pub fn inner(&self, name: &str) -> io::Result<Self> {
        let inner = Self {
            directory: self.directory.join(name),
        };
        fs::create_dir(&inner.directory)?;
        Ok(inner)
    }

    /// Its directory as a descriptor, for clone3(2).
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(
            &self.directory,
            flags,
            Mode::empty(),
        )?))
    }

    /// Its `cgroup.events`, which [`is_populated`] reads.
    pub fn events(&self) -> io::Result<File> {
        File::open(self.directory.join("cgroup.events"))
    }

    fn may_enter(&self) -> bool {
        let procs = self.directory.join("cgroup.procs");
        let common = self
            .directory
            .parent()
            .and_then(Path::parent)
            .map(|parent| parent.join("cgroup.procs"));
        let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
        writable(&procs) && common.is_some_and(|path| writable(&path))
    }

    /// CPU time of all its processes so far, user and system.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(self.directory.join("cpu.stat")).ok()?;
        let used = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(Duration::from_micros(used.parse().ok()?))
    }

    /// The most memory that it had at a time, in bytes.
    pub fn peak_memory(&self) -> Option<u64> {
        let peak = fs::read_to_string(self.directory.join("memory.peak")).ok()?;
        peak.trim().parse().ok()
    }

    /// The processes in it and below.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        self.walk(&mut |directory| {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        });
        found
    }

    /// Kills all its processes and waits until they are gone; false if they are not in time.
    pub fn end(&self) -> bool {
        let Ok(events) = self.events() else {
            return true;
        };
        let deadline = Instant::now() + KILL_LIMIT;
        while is_populated(&events) {
            let mut kill = File::options()
                .write(true)
                .open(self.directory.join("cgroup.kill"));
            let killed = kill.as_mut().is_ok_and(|file| file.write_all(b"1").is_ok());
            if !killed {
                // Kernels before 5.14.
                for process in self.processes() {
                    let process = i32::try_from(process)
                        .ok()
                        .and_then(rustix::process::Pid::from_raw);
                    if let Some(process) = process {
                        let _ =
                            rustix::process::kill_process(process, rustix::process::Signal::KILL);
                    }
                }
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(INTERVAL);
        }
        true
    }

    /// Removes it with all groups in it; their processes are gone.
    pub fn remove(&self) {
        self.walk(&mut |directory| {
            for _ in 0..REMOVE_TRIES {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        thread::sleep(INTERVAL);
                    }
                    _ => break,
                }
            }
        });
    }

    /// Each group, the innermost first.
    fn walk(&self, each: &mut impl FnMut(&Path)) {
        walk(&self.directory, each);
    }
}

fn walk(directory: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), each);
        }
    }
    each(directory);
}

/// Whether a process is in the group of this `cgroup.events`, or below.
pub fn is_populated(events: &File) -> bool {
    let mut text = [0; 128];
    let read = rustix::io::pread(events.as_fd(), &mut text[..], 0).unwrap_or(0);
    text[..read].starts_with(b"populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                    31 23 0:27 / /proc rw - proc proc rw\n";
        assert_eq!(find_mount(text), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(find_mount("31 23 0:27 / /proc rw - proc proc rw\n"), None);
        assert_eq!(find_mount("nonsense - cgroup2 "), None);
    }
}
