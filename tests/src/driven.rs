//! Guests whose devices are changed while they run, by `mote-live`, and that do what they are told to.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::live::Live;
use crate::monitor::Ended;
use crate::{DEADLINE, guest};

/// How often something is looked at that takes its time.
const INTERVAL: Duration = Duration::from_millis(50);
/// More than a thread that has been joined takes to go, on a host that is busy.
const SETTLE: Duration = Duration::from_secs(60);
/// What a guest says when it has done what it was told.
const DONE: &str = "=DONE=";

/// What a guest does: one command a line, after it has said READY.
pub const SCRIPT: &str = r#"
    # Waits until a command does well.
    await() { tries=0; until "$@" >/dev/null 2>&1; do
        usleep 100000; tries=$((tries + 1)); [ $tries -lt 3000 ] || { must false "$@"; break; }; done; }
    gone() { [ ! -e "$1" ]; }
    is() { [ "$(cat "$1")" = "$2" ]; }
    stty -echo
    echo READY
    while read -r line; do
        [ "$line" = end ] && break
        eval "$line"
        echo "=DONE="
    done"#;

/// The binary: `$MOTE_LIVE`, else the one that cargo built beside this test.
fn path() -> PathBuf {
    if let Some(path) = env::var_os("MOTE_LIVE") {
        return path.into();
    }
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("mote-live");
    assert!(
        path.exists(),
        "there is no {path:?}: run `cargo build` first, or set MOTE_LIVE"
    );
    path
}

/// A guest, and a way to its devices.
pub struct Driven {
    live: Live,
    control: BufReader<UnixStream>,
}

impl Driven {
    /// Starts a guest with these options, and waits until it is ready.
    #[track_caller]
    pub fn start<S: AsRef<str>>(directory: &Path, options: &[S]) -> Self {
        let mut driven = Self::start_early(directory, options);
        driven.live.expect("READY");
        driven
    }

    /// The same with Debian's kernel and all its drivers.
    #[track_caller]
    pub fn start_packaged<S: AsRef<str>>(directory: &Path, options: &[S]) -> Self {
        let kernel = guest::packaged_vmlinuz();
        let mut all = vec!["--kernel", &kernel];
        all.extend(options.iter().map(AsRef::as_ref));
        let initrd = guest::probing_packaged(directory, SCRIPT);
        let mut driven = Self::start_with(directory, &all, &initrd);
        driven.live.expect("READY");
        driven
    }

    /// Starts a guest as [`Driven::start`] does, without the waiting: [`Driven::ready`] does that.
    #[track_caller]
    pub fn start_early<S: AsRef<str>>(directory: &Path, options: &[S]) -> Self {
        let initrd = guest::probing(directory, SCRIPT);
        Self::start_with(directory, options, &initrd)
    }

    #[track_caller]
    fn start_with<S: AsRef<str>>(directory: &Path, options: &[S], initrd: &Path) -> Self {
        let socket = directory.join("control");
        // That of the last one.
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(path());
        command.arg(&socket).arg("run");
        command.args(options.iter().map(AsRef::as_ref));
        command.arg("--initrd").arg(initrd);
        let live = Live::start(command);
        let control = until("the socket", || UnixStream::connect(&socket).ok());
        Self {
            live,
            control: BufReader::new(control),
        }
    }

    /// Waits until the guest is ready.
    #[track_caller]
    pub fn ready(&mut self) {
        self.live.expect("READY");
    }

    fn command(&mut self, line: &str) -> String {
        let stream = self.control.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.control.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// Has the monitor do something; fails unless it does. Returns what it says.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        let answer = self.command(line);
        match answer
            .strip_prefix("ok ")
            .or((answer == "ok").then_some(""))
        {
            Some(text) => text.to_owned(),
            None => panic!("{line}: {answer:?}"),
        }
    }

    /// Asks for something that is refused with an error that has these parts.
    #[track_caller]
    pub fn refused(&mut self, line: &str, parts: &[&str]) {
        let answer = self.command(line);
        let error = answer.strip_prefix("error ");
        let error = error.unwrap_or_else(|| panic!("{line}: {answer:?}"));
        for part in parts {
            assert!(error.contains(part), "{line}: no {part:?} in {error:?}");
        }
    }

    /// Numbers by their names, as the monitor answers with them.
    #[track_caller]
    pub fn numbers(&mut self, line: &str) -> HashMap<String, u64> {
        let answer = self.ask(line);
        let words = answer.split_whitespace();
        words
            .map(|word| {
                let (name, number) = word.split_once('=').unwrap();
                (name.to_owned(), number.parse().unwrap())
            })
            .collect()
    }

    /// Tells the guest to do something, without waiting for it: [`Driven::done`] does that.
    pub fn tell(&mut self, command: &str) {
        tell(&mut self.live, command);
    }

    /// Waits until the guest has done what it was told, and returns what it said since. Fails if anything
    /// went wrong in it.
    #[track_caller]
    pub fn done(&mut self) -> String {
        done(&mut self.live)
    }

    /// Has the guest do something, and returns what it says.
    #[track_caller]
    pub fn guest(&mut self, command: &str) -> String {
        self.tell(command);
        self.done()
    }

    /// The monitor.
    pub fn live(&mut self) -> &mut Live {
        &mut self.live
    }

    /// How many descriptors the monitor has, and how many threads, once that stays: Linux lists a thread
    /// for a moment longer than whoever joins it waits.
    pub fn holds(&self) -> (usize, usize) {
        let mut before = self.holds_now();
        loop {
            thread::sleep(10 * INTERVAL);
            let now = self.holds_now();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// The same, once it is `expected`; or what it is after a while.
    pub fn holds_again(&self, expected: (usize, usize)) -> (usize, usize) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = self.holds_now();
            if now == expected || Instant::now() > deadline {
                return now;
            }
            thread::sleep(INTERVAL);
        }
    }

    fn holds_now(&self) -> (usize, usize) {
        let count = |what| {
            let directory = format!("/proc/{}/{what}", self.live.pid().as_raw_nonzero());
            fs::read_dir(directory).unwrap().count()
        };
        (count("fd"), count("task"))
    }

    /// The names of the monitor's threads.
    pub fn threads(&self) -> Vec<String> {
        self.live.threads()
    }

    /// Waits for the end of a guest that nobody has told to end.
    #[track_caller]
    pub fn wait(self) -> Ended {
        self.live.wait()
    }

    /// Ends the monitor the hard way.
    pub fn kill(self) {
        self.live.kill();
    }

    /// Ends the guest; fails unless all has gone well in it.
    #[track_caller]
    pub fn end(mut self) -> String {
        self.live.send("end");
        self.live.wait_for_success()
    }
}

/// Tells a guest of [`SCRIPT`] to do something, without waiting for it: [`done`] does that.
pub fn tell(live: &mut Live, command: &str) {
    assert!(!command.contains('\n'), "one line: {command}");
    live.send(command);
}

/// Waits until it has, and returns what it said since. Fails if anything went wrong in it.
#[track_caller]
pub fn done(live: &mut Live) -> String {
    let output = live.expect_output(DONE);
    // Whoever serves the guest may wait for ever once something has gone wrong in it.
    let is_wrong = |line: &str| line.starts_with("FAILED (") || line.starts_with("SUCCEEDED: ");
    assert!(!output.lines().any(is_wrong), "{output}");
    output
}

/// The names of a process's threads.
pub fn threads(process: Pid) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    // One that ends meanwhile has no name.
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
    names
        .filter_map(|name| Some(name.ok()?.trim_end().to_owned()))
        .collect()
}

/// Has a guest of [`SCRIPT`] do something, and returns what it says.
#[track_caller]
pub fn guest_does(live: &mut Live, command: &str) -> String {
    tell(live, command);
    done(live)
}

/// Waits until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(INTERVAL);
    }
}
