//! How long a command takes that runs in a guest from a template, from exec of mote to its exit status, beside the same
//! program in containers.
//!
//! ```text
//! cargo bench -p tests --bench template -- [--rounds N] [--memory SIZE] [--runtime PROGRAM]...
//! ```
//! Runs in turn (A B C A B C …): a process that does nothing, `busybox true` as a process, each runtime (crun and runc, if
//! they are there) with a root file system that has busybox and no more, `mote run --template`, and the same with a pool. "output" is
//! when the first byte of `echo` arrives here in place of it. Nothing is begun before all guests of the pool are ready again.
//!
//! It boots Linux, so it is for a host that can; in the emulated host, with its instruction clock (docs/snapshots.md).
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::times::FEW;
use tests::{executable, monitor};
use vmm_sys_util::tempdir::TempDir;

const BUSYBOX: &str = "/bin/busybox";
/// What a run leaves to the kernel to be done later is done by then.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the command that runs a program.
type Run = dyn Fn(&[&str]) -> Command;

/// A way to run a program.
struct Row {
    name: String,
    command: Box<Run>,
    outputs: Vec<Duration>,
    exits: Vec<Duration>,
}

impl Row {
    fn new(name: &str, command: impl Fn(&[&str]) -> Command + 'static) -> Self {
        Self {
            name: name.into(),
            command: Box::new(command),
            outputs: Vec::new(),
            exits: Vec::new(),
        }
    }

    fn run(&mut self, keep: bool, settle: &dyn Fn()) {
        settle();
        let start = Instant::now();
        let mut child = (self.command)(&["true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let status = child.wait().unwrap();
        let exit = start.elapsed();
        assert!(status.success(), "{}: {status}", self.name);
        settle();
        let start = Instant::now();
        let mut child = (self.command)(&["echo", "out"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut text = vec![0];
        stdout.read_exact(&mut text).unwrap();
        let output = start.elapsed();
        stdout.read_to_end(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert!(
            status.success() && text.starts_with(b"out"),
            "{}: {status}",
            self.name
        );
        if keep {
            self.exits.push(exit);
            self.outputs.push(output);
        }
    }
}

/// Guests of the template that are ready.
struct Pool {
    mote: Box<Run>,
}

impl Pool {
    fn start(mote: impl Fn(&[&str]) -> Command + 'static) -> Self {
        let mote = Box::new(mote);
        assert!(
            mote(&["pool", "start", "bench", "-n", "2"])
                .status()
                .unwrap()
                .success()
        );
        Self { mote }
    }

    /// Waits until all of them are, and what was run before is gone.
    fn settle(&self) {
        loop {
            thread::sleep(PAUSE);
            let listed = (self.mote)(&["pool", "ls", "--json"]).output().unwrap();
            let pool: Value = serde_json::from_slice(&listed.stdout).unwrap();
            if pool["ready"] == pool["count"] {
                return;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = (self.mote)(&["pool", "stop", "bench"]).status();
    }
}

fn main() {
    let mut rounds = 10;
    let mut memory = "128m".to_owned();
    let mut runtimes = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--memory" => memory = arguments.next().unwrap(),
            "--runtime" => runtimes.push(PathBuf::from(arguments.next().unwrap())),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    if runtimes.is_empty() {
        let known = ["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"];
        // Where /usr/bin and /usr/sbin are the same, there is one.
        for path in known
            .into_iter()
            .filter_map(|path| fs::canonicalize(path).ok())
        {
            let name = path.file_name();
            if !runtimes
                .iter()
                .any(|other: &PathBuf| other.file_name() == name)
            {
                runtimes.push(path);
            }
        }
    }
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let nothing = directory.join("nothing");
    fs::write(&nothing, executable::nothing()).unwrap();
    fs::set_permissions(&nothing, fs::Permissions::from_mode(0o755)).unwrap();
    let root = root(directory);
    let mote = |arguments: &[&str]| -> Command {
        let mut command = Command::new(monitor::path());
        command.args(arguments);
        command
    };
    let data = directory.join("data");
    let made = mote(&["template", "create", "bench", "--memory", &memory])
        .env("XDG_DATA_HOME", &data)
        .status()
        .unwrap();
    assert!(made.success());

    let mut rows = vec![Row::new("busybox", |words| {
        let mut command = Command::new(BUSYBOX);
        command.args(words);
        command
    })];
    for runtime in runtimes {
        let bundles = directory.join(runtime.file_name().unwrap());
        let name = runtime.file_name().unwrap().to_string_lossy().into_owned();
        let root = root.clone();
        rows.push(Row::new(&name, move |words| {
            let bundle = bundle(&bundles, &root, words);
            let mut command = Command::new(&runtime);
            command.args(["run", "--bundle"]).arg(bundle).arg("bench");
            command
        }));
    }
    // Two run-time directories: one has the pool.
    let here = move |arguments: &[&str], run_dir: &Path| {
        let mut command = mote(arguments);
        command
            .env("XDG_DATA_HOME", &data)
            .env("XDG_RUNTIME_DIR", run_dir);
        command
    };
    let (without, with) = (directory.join("without"), directory.join("with"));
    for folder in [&without, &with] {
        fs::create_dir(folder).unwrap();
    }
    let pool = Pool::start({
        let (here, with) = (here.clone(), with.clone());
        move |arguments: &[&str]| here(arguments, &with)
    });
    for (name, run_dir) in [("mote, template", without), ("mote, pool", with)] {
        let here = here.clone();
        rows.push(Row::new(name, move |words| {
            let mut command = here(&["run", "--template", "bench", "--"], &run_dir);
            command.args(words);
            command
        }));
    }

    FEW.head(rounds, "rounds");
    let mut floor = Vec::new();
    for round in 0..rounds + 2 {
        // The first rounds fill caches.
        let keep = round >= 2;
        let start = Instant::now();
        Command::new(&nothing).status().unwrap();
        if keep {
            floor.push(start.elapsed());
        }
        for row in &mut rows {
            row.run(keep, &|| pool.settle());
        }
    }
    drop(pool);
    FEW.row("exec and exit", floor);
    for row in rows {
        FEW.row(&format!("{}, output", row.name), row.outputs);
        FEW.row(&format!("{}, exit", row.name), row.exits);
    }
}

/// A root file system with one program.
fn root(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    for name in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for name in ["true", "echo"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    root
}

/// A bundle for the runtimes, as `runc spec` makes it, for this command; made once.
fn bundle(bundles: &Path, root: &Path, words: &[&str]) -> PathBuf {
    let bundle = bundles.join(words[0]);
    if bundle.exists() {
        return bundle;
    }
    fs::create_dir_all(&bundle).unwrap();
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|name| json!({ "type": name }))
        .collect();
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": words, "cwd": "/",
            "env": ["PATH=/bin"], "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        },
        "root": {"path": root, "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}
