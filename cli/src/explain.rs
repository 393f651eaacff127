//! `mote run --explain`: where the time of one start goes.
//!
//! Two processes. The one that the user starts becomes the watcher ([`watch`]): it starts mote again without the flag, and
//! sees what a process cannot see of itself: its own exec, its status, and when nothing is left of it. The other one runs the
//! guest as ever, notes meanwhile what happens when (this file), and tells the watcher at its end.
//!
//! Without `--explain` all that is left of this is a look at whether there is a recorder, at each step before the guest and
//! after it; nothing is on the way of an exit.

mod boot;
pub(crate) mod emulated;
mod places;
pub(crate) mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use ::bench::waterfall::build::{Mark, Report};
use ::bench::waterfall::console::Console as Heard;
use ::bench::waterfall::step::Step;
use ::bench::waterfall::{Facts, Origin};
use devices::console_beside::Listener;
use devices::lock;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};
use vmm::{BootMark, Console, Faults, Vm};

use crate::args::RunArgs;
pub(crate) use boot::booting;
use places::Places;

/// What the default guest's init writes to the boot timer when it begins, and before it starts the command.
const INIT_MARK: u8 = b'<';
const COMMAND_MARK: u8 = b'>';
/// The word on the kernel's command line that has it do so.
const INIT_WORD: &str = "mote_explain=1";

/// What the watcher says first to the process that it watches: the descriptor that all that is known goes to.
const REPORT_FLAG: &str = "--explain-report=";

/// Room for all that happens. A guest that marks more points of its boot has the rest of them left out.
const MAX_MARKS: usize = 512;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// How what is known is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A table on standard error.
    Text,
    /// A line of JSON there.
    Json,
    /// JSON in this file.
    File(PathBuf),
}

impl FromStr for Form {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => match text.strip_prefix("json:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err("it is text, json or json:FILE"),
            },
        }
    }
}

/// What is known so far.
struct Recorder {
    /// The same moment on two clocks.
    base: (Instant, u64),
    origin: Origin,
    /// Marks of the boot timer are printed as well.
    prints_marks: bool,
    noted: Mutex<Noted>,
    console: Arc<Mutex<Heard>>,
    places: Places,
}

#[derive(Default)]
struct Noted {
    marks: Vec<Mark>,
    facts: Facts,
    /// A pool's guest has done it.
    by_pool: bool,
}

/// Now, in nanoseconds of the monotonic clock, which all processes of a host share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, rest) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + rest
}

/// The same moment on the two clocks, which are read one after the other: as closely as they were in a few tries.
fn base() -> (Instant, u64) {
    let read = |_| {
        let before = now();
        let instant = Instant::now();
        let took = now().saturating_sub(before);
        (took, (instant, before + took / 2))
    };
    let best = (0..8).map(read).min_by_key(|(took, _)| *took);
    best.map_or_else(|| (Instant::now(), now()), |(_, base)| base)
}

impl Recorder {
    fn new(origin: Origin, prints_marks: bool) -> Self {
        Self {
            base: base(),
            origin,
            prints_marks,
            noted: Mutex::new(Noted {
                // Nothing is allocated while the guest runs: that changes the memory of this process, for which vCPUs then wait.
                marks: Vec::with_capacity(MAX_MARKS),
                ..Noted::default()
            }),
            console: Arc::default(),
            places: Places::default(),
        }
    }

    /// An instant in nanoseconds of the monotonic clock.
    fn at(&self, then: Instant) -> u64 {
        let (instant, at) = self.base;
        let nanoseconds =
            |span: std::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        match then.checked_duration_since(instant) {
            Some(since) => at.saturating_add(nanoseconds(since)),
            None => at.saturating_sub(nanoseconds(instant.duration_since(then))),
        }
    }

    /// Now. All that one process notes is of one clock.
    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn mark(&self, step: Step, at: u64) {
        lock(&self.noted).marks.push(Mark { step, at });
    }
}

/// Whether this start is to be explained.
pub(crate) fn is_on() -> bool {
    RECORDER.get().is_some()
}

/// Explains this start from now on, which began at `started`.
pub(crate) fn start(started: Instant, origin: Origin) {
    start_with(Recorder::new(origin, false), started);
}

fn start_with(recorder: Recorder, started: Instant) {
    let at = recorder.at(started);
    if recorder.origin != Origin::Pool {
        recorder.mark(Step::Exec, at);
    }
    // There is one guest a process, and one who asks.
    let _ = RECORDER.set(recorder);
}

/// This has happened.
pub(crate) fn mark(step: Step) {
    if let Some(recorder) = RECORDER.get() {
        recorder.mark(step, recorder.now());
    }
}

/// The descriptor that a command line of the watcher's has.
pub(crate) fn report_of(line: &[OsString]) -> Option<RawFd> {
    let fd = line.get(2)?.to_str()?.strip_prefix(REPORT_FLAG)?;
    fd.parse().ok()
}

/// Where what is known goes to.
pub(crate) struct Destination(File);

/// Explains the start of this process, whose `main` began at `started`, to whoever has the other end of this descriptor and
/// has started it for that; with a guest that makes marks, if it can.
pub(crate) fn begin(
    fd: RawFd,
    started: Instant,
    args: &mut RunArgs,
) -> Result<Destination, String> {
    let wrong = |error: io::Error| format!("--explain-report is for mote itself: {error}");
    let destination = open(fd).map_err(wrong)?;
    // As if it were one process.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| wrong(errno.into()))?;
    let origin = match args.template {
        Some(_) => Origin::Template,
        None => Origin::Boot,
    };
    start_with(Recorder::new(origin, args.boot_timer), started);
    mark(Step::Arguments);
    if origin == Origin::Boot {
        args.boot_timer = true;
        if boot::has_default_init(args) {
            let words = args.append.take();
            let words = words.map(|words| format!("{words} {INIT_WORD}"));
            args.append = Some(words.unwrap_or_else(|| INIT_WORD.to_owned()));
        }
    }
    Ok(Destination(destination))
}

#[expect(unsafe_code, reason = "a descriptor that was inherited")]
fn open(fd: RawFd) -> io::Result<File> {
    use rustix::io::{FdFlags, fcntl_setfd};
    if fd <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl takes plain numbers.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, was inherited for this, and is nobody else's: this is done before anything else is opened.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(File::from(fd))
}

impl Destination {
    /// Passes on all that is known.
    pub(crate) fn write(mut self) {
        let (Some(recorder), Some(mut report)) = (RECORDER.get(), take_report()) else {
            return;
        };
        let at = recorder.now();
        report.marks.push(Mark {
            step: Step::Reported,
            at,
        });
        // Whoever wanted it may have gone.
        if let Ok(json) = serde_json::to_vec(&report) {
            let _ = self.0.write_all(&json);
        }
    }
}

/// All that is known; None if nobody wants to know.
pub(crate) fn take_report() -> Option<Report> {
    let recorder = RECORDER.get()?;
    let noted = std::mem::take(&mut *lock(&recorder.noted));
    Some(Report {
        marks: noted.marks,
        origin: if noted.by_pool {
            Origin::Pool
        } else {
            recorder.origin
        },
        facts: noted.facts,
    })
}

/// A pool's guest has said how it ended, and what it knows.
pub(crate) fn replied(report: Report) {
    let Some(recorder) = RECORDER.get() else {
        return;
    };
    let mut noted = lock(&recorder.noted);
    noted.marks.extend(report.marks);
    (noted.facts, noted.by_pool) = (report.facts, true);
    noted.marks.push(Mark {
        step: Step::Replied,
        at: recorder.now(),
    });
}

/// Listens to a console.
pub(crate) fn listen(console: Console) -> Console {
    let Some(recorder) = RECORDER.get() else {
        return console;
    };
    let listener = Box::new(Ear(Arc::clone(&recorder.console), recorder.base));
    Console {
        output: console.output.with_listener(listener),
        ..console
    }
}

#[derive(Debug)]
struct Ear(Arc<Mutex<Heard>>, (Instant, u64));

impl Listener for Ear {
    fn printed(&mut self, bytes: &[u8]) {
        let (instant, at) = self.1;
        let since = instant.elapsed().as_nanos();
        let at = at.saturating_add(u64::try_from(since).unwrap_or(u64::MAX));
        lock(&self.0).printed(bytes, at);
    }
}

/// The machine is there, and about to start.
pub(crate) fn built(vm: &Vm) {
    let Some(recorder) = RECORDER.get() else {
        return;
    };
    if recorder.origin == Origin::Boot {
        recorder.mark(Step::Attended, recorder.now());
    }
    lock(&recorder.noted).facts.guest_faults = faults();
    vm.watch(|place| recorder.places.witness(place));
}

/// Page faults of this process until now.
fn faults() -> u64 {
    let faults = Faults::of_process();
    faults.minor + faults.major
}

/// The guest has marked a point of its boot. Says whether that is nobody else's business.
pub(crate) fn marked(mark: &BootMark) -> bool {
    let Some(recorder) = RECORDER.get() else {
        return false;
    };
    let step = match mark.value {
        INIT_MARK => Step::Init,
        COMMAND_MARK => Step::Command,
        value => Step::Mark(value),
    };
    let is_own = matches!(step, Step::Init | Step::Command);
    // No more of them than there is room for.
    let mut noted = lock(&recorder.noted);
    if noted.marks.len() < MAX_MARKS {
        let at = recorder.at(mark.at);
        noted.marks.push(Mark { step, at });
    }
    drop(noted);
    is_own || !recorder.prints_marks
}

/// The machine has stopped, and its output has been written: notes what it knows.
pub(crate) fn ended(vm: &Vm) {
    let Some(recorder) = RECORDER.get() else {
        return;
    };
    recorder.mark(Step::Flushed, recorder.now());
    let insight = vm.insight();
    let mut marks = Vec::new();
    let mut note = |step: Step, then: Option<Instant>| {
        marks.extend(then.map(|then| Mark {
            step,
            at: recorder.at(then),
        }));
    };
    boot::steps(recorder.origin, &insight, &mut note);
    note(Step::Entry, insight.first_run());
    note(Step::Ended, insight.stopped());
    if recorder.origin == Origin::Boot {
        for (id, then) in insight.controls().activated() {
            note(Step::Driver(id.to_string()), Some(then));
        }
    }
    let entered = insight.first_run().map_or(0, |then| recorder.at(then));
    let heard = lock(&recorder.console).heard(entered);
    recorder.places.steps(recorder.origin, &mut note);
    if heard.is_first {
        note(Step::Printed, recorder.places.printed());
    }
    let mut add = |step, at: Option<u64>| marks.extend(at.map(|at| Mark { step, at }));
    add(Step::Output, heard.output);
    add(
        Step::LastOutput,
        heard.last_output.filter(|last| Some(*last) != heard.output),
    );
    for (id, at) in heard.lines {
        add(Step::Line(id.to_owned()), Some(at));
    }
    let mut noted = lock(&recorder.noted);
    noted.marks.extend(marks);
    let facts = &mut noted.facts;
    facts.printed = heard.printed;
    facts.exits = insight.exits().total().total();
    facts.places = recorder.places.facts();
    facts.faults = faults();
    // Counted from when the machine was there.
    facts.guest_faults = facts.faults.saturating_sub(facts.guest_faults);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_what_they_are_said_to_be() {
        assert_eq!("text".parse(), Ok(Form::Text));
        assert_eq!("json".parse(), Ok(Form::Json));
        assert_eq!("json:a:b".parse(), Ok(Form::File("a:b".into())));
        for bad in ["", "json:", "yaml", "text:x"] {
            assert!(bad.parse::<Form>().is_err(), "{bad}");
        }
    }

    #[test]
    fn instants_are_on_the_clock_that_all_share() {
        let before = Instant::now();
        let recorder = Recorder::new(Origin::Boot, false);
        let (low, high) = (recorder.at(before), recorder.at(Instant::now()));
        assert!(low <= recorder.base.1 && recorder.base.1 <= high);
        assert!(now().abs_diff(high) < 1_000_000_000);
    }

    #[test]
    fn descriptors_that_were_not_passed_on_are_refused() {
        for fd in [-1, 0, 2, 1_000_000] {
            assert!(open(fd).is_err(), "{fd}");
        }
    }
}
