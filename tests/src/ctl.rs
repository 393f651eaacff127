//! Guests with a run-time directory of their own, and the commands that find them there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

use crate::driven::until;
use crate::executable;
use crate::live::Live;
use crate::monitor::{self, Ended, Running};

/// A place with a run-time directory.
pub struct Host {
    directory: TempDir,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// An empty one.
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.as_path().join("run")).unwrap();
        Self { directory }
    }

    /// A folder for files.
    pub fn path(&self) -> &Path {
        self.directory.as_path()
    }

    /// The folder with a folder for each guest. It need not be there.
    pub fn run_dir(&self) -> PathBuf {
        self.path().join("run/mote")
    }

    /// A file in the folder.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A command line of mote, here.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(monitor::path());
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("XDG_DATA_HOME", self.path().join("data"));
        command
    }

    /// Runs a command to its end, without input.
    pub fn mote(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null());
        Running::start(command).wait()
    }

    /// Runs a command that succeeds, and returns what it prints.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        let ended = self.mote(arguments);
        assert_eq!(ended.status, 0, "{arguments:?}: {ended:?}");
        ended.text()
    }

    /// The same, of one that prints JSON.
    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> Value {
        let text = self.ask(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// Starts `mote run --api-sock` with a kernel of a few instructions, and waits until it is there.
    #[track_caller]
    pub fn run(&self, id: &str, kernel: &[u8], options: &[&str]) -> Live {
        let kernel = self.write(&format!("{id}-kernel"), kernel);
        let mut command = self.command(&["run", "--id", id, "--kernel", &kernel]);
        let initrd = self.write("initrd", "none");
        command
            .args(["--initrd", &initrd, "--api-sock"])
            .args(options);
        self.wait_for(id, Live::start(command))
    }

    /// Starts `mote vmm` with these options, and waits until it is there.
    #[track_caller]
    pub fn vmm(&self, id: &str, options: &[&str]) -> Live {
        let mut command = self.command(&["vmm", "--id", id]);
        command.args(options);
        self.wait_for(id, Live::start(command))
    }

    /// The same, with a guest that does nothing.
    #[track_caller]
    pub fn idle(&self, id: &str, options: &[&str]) -> Live {
        let kernel = self.write("idle", executable::idle_kernel());
        let document = serde_json::json!({
            "boot-source": { "kernel_image_path": kernel },
            "machine-config": { "vcpu_count": 2, "mem_size_mib": 64 },
        });
        let file = self.write("idle.json", document.to_string());
        let options = [&["--config-file", &file], options].concat();
        let live = self.vmm(id, &options);
        until("the start", || (self.state(id) == "Running").then_some(()));
        live
    }

    #[track_caller]
    fn wait_for(&self, id: &str, live: Live) -> Live {
        until(id, || {
            let ids = self.ask(&["ps", "-q"]);
            ids.lines().any(|line| line == id).then_some(())
        });
        live
    }

    /// The state that `mote ps` has of a guest.
    #[track_caller]
    pub fn state(&self, id: &str) -> String {
        let all = self.ask_json(&["ps", "--json"]);
        let line = all.as_array().unwrap().iter().find(|line| line["id"] == id);
        line.unwrap()["state"].as_str().unwrap_or("none").to_owned()
    }

    /// What the only pool says of itself. One that is too busy to answer in time is left out of the list.
    pub fn pool(&self) -> Value {
        until("an answer", || {
            serde_json::from_str(&self.ask(&["pool", "ls", "--json"])).ok()
        })
    }

    /// How many of its guests were taken.
    pub fn taken(&self) -> u64 {
        self.pool()["taken"].as_u64().unwrap()
    }
}

/// Ends the pool of the template `t`. Pools are nobody's children: a case that fails would leave them.
pub struct PoolEnds<'a>(pub &'a Host);

impl Drop for PoolEnds<'_> {
    fn drop(&mut self) {
        let _ = self.0.mote(&["pool", "stop", "t"]);
    }
}

/// Ends a guest as it would be if the host ran out of memory.
pub fn kill(live: Live) {
    kill_process(live.pid(), Signal::KILL).unwrap();
    assert_eq!(live.wait().status, 128 + 9);
}
