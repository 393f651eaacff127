//! Mote where nobody else writes files, so that everything it leaves behind is seen, and where the
//! memory that it can take is bounded.
#![expect(
    unsafe_code,
    reason = "limits the child and changes its mounts between fork and exec"
)]

use std::ffi::{CString, OsStr};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    UnshareFlags, set_thread_gid, set_thread_groups, set_thread_uid, unshare_unsafe,
};
use vmm_sys_util::tempdir::TempDir;

use crate::DEADLINE;
use crate::monitor::{self, Ended, Running};

/// More than a guest of 128 MiB and its threads need. An allocation that a file asks for and that
/// has no bound fails here, and mote is aborted.
const ADDRESS_SPACE: u64 = 1 << 30;
/// A user without any rights.
const NOBODY: u32 = 65534;

/// Directories for one case.
pub struct Sandbox {
    root: TempDir,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes the directories.
    pub fn new() -> Self {
        let root = TempDir::new().unwrap();
        let sandbox = Self { root };
        // Another user may run mote in it.
        let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        open(sandbox.root.as_path());
        for directory in ["input", "work", "tmp", "cache"] {
            let path = sandbox.directory(directory);
            fs::create_dir(&path).unwrap();
            open(&path);
        }
        sandbox
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.as_path().join(name)
    }

    /// The name of an input file.
    pub fn path(&self, name: &str) -> String {
        let path = self.directory("input").join(name);
        path.into_os_string().into_string().unwrap()
    }

    /// Writes an input file and returns its name.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// Mote with these arguments.
    pub fn mote<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.command(&monitor::path(), arguments)
    }

    /// The same where `device` is at `/dev/kvm`. Takes the right to mount.
    pub fn mote_with_kvm<S: AsRef<OsStr>>(
        &self,
        device: &KvmDevice,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = self.mote(arguments);
        replace_kvm(&mut command, device);
        command
    }

    /// The same as a user without any rights; takes root. `device` replaces `/dev/kvm`.
    pub fn mote_as_nobody<S: AsRef<OsStr>>(
        &self,
        device: Option<&KvmDevice>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        // That user may not come to where mote is.
        let copy = self.directory("mote");
        fs::copy(monitor::path(), &copy).unwrap();
        let mut command = self.command(&copy, arguments);
        if let Some(device) = device {
            replace_kvm(&mut command, device);
        }
        before_exec(&mut command, || {
            set_thread_groups(&[])?;
            set_thread_gid(Gid::from_raw(NOBODY))?;
            Ok(set_thread_uid(Uid::from_raw(NOBODY))?)
        });
        command
    }

    fn command<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(self.directory("work"))
            .env("TMPDIR", self.directory("tmp"))
            .env("XDG_CACHE_HOME", self.directory("cache"))
            .process_group(0);
        before_exec(&mut command, || {
            let limit = Some(ADDRESS_SPACE);
            Ok(setrlimit(
                Resource::As,
                Rlimit {
                    current: limit,
                    maximum: limit,
                },
            )?)
        });
        command
    }

    /// Runs it; fails unless it prints nothing on standard output and leaves nothing behind.
    #[track_caller]
    pub fn run(&self, command: Command) -> Ended {
        let running = Running::start(command);
        let group = running.pid();
        let ended = running.wait();
        assert!(ended.stdout.is_empty(), "{ended:#?}");
        let mut files = Vec::new();
        for directory in ["work", "tmp", "cache"] {
            list(&self.directory(directory), &mut files);
        }
        // Unpacked kernels are there to stay, once they are complete.
        let kernels = self.directory("cache/mote/kernels");
        files.retain(|path| !path.starts_with(&kernels) || path.to_string_lossy().contains(".tmp"));
        assert!(files.is_empty(), "{files:?} of {ended:#?}");
        let deadline = Instant::now() + DEADLINE;
        // What holds on to a VM's memory may live a moment longer.
        while is_alive(group) {
            assert!(Instant::now() < deadline, "processes of {ended:#?}");
            thread::sleep(Duration::from_millis(1));
        }
        ended
    }
}

/// All that is not a directory, in a directory and those below it.
fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), files);
        } else {
            files.push(entry.path());
        }
    }
}

/// Whether a process of this group runs. One that has died does not count: whose child it is then
/// may not care.
fn is_alive(group: Pid) -> bool {
    let group = group.to_string();
    fs::read_dir("/proc").unwrap().any(|entry| {
        // Most are no processes, and processes end while they are looked at.
        let Ok(stat) = fs::read_to_string(entry.unwrap().path().join("stat")) else {
            return false;
        };
        // PID (NAME) STATE PPID PGRP; a name can have blanks and parentheses.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut fields = fields.split(' ');
        let state = fields.next();
        fields.nth(1) == Some(&group) && !matches!(state, Some("Z" | "X"))
    })
}

/// What is at `/dev/kvm`.
pub enum KvmDevice<'a> {
    /// Nothing.
    Missing,
    /// This file.
    File(&'a str),
}

fn replace_kvm(command: &mut Command, device: &KvmDevice) {
    let file = match device {
        KvmDevice::Missing => None,
        KvmDevice::File(path) => Some(CString::new(OsStr::new(path).as_bytes()).unwrap()),
    };
    before_exec(command, move || {
        // SAFETY: only descriptors that are unshared can surprise anybody, and those are not.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", propagation)?;
        match &file {
            None => mount(c"tmpfs", c"/dev", c"tmpfs", MountFlags::empty(), None)?,
            Some(file) => mount_bind(file.as_c_str(), c"/dev/kvm")?,
        }
        Ok(())
    });
}

/// Whether this process may change what is at `/dev/kvm`.
pub fn can_mount() -> Result<(), String> {
    let mut command = Command::new(monitor::path());
    command.arg("--version").stdout(Stdio::null());
    replace_kvm(&mut command, &KvmDevice::Missing);
    match command.status() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("may not mount: {error}")),
    }
}

/// `call` may only make system calls.
fn before_exec(
    command: &mut Command,
    call: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: everything in this file that is passed makes system calls with what was prepared
    // before, which is allowed between fork and exec.
    unsafe { command.pre_exec(call) };
}
