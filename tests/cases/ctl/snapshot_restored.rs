//! What guests that go on leave beside their snapshot: the pages that they touch until their first reply, and what that took.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::{SWEPT_FROM, sweeping_kernel};
use tests::live::Live;
use vmm::snapshot::directory;

use super::snapshot::start;
use super::snapshot_crash::without_rights;

/// What the guest touches until it replies.
const MEMORY: u32 = 64 << 20;
const PAGES: u64 = ((MEMORY - SWEPT_FROM) / 4096) as u64;

/// A snapshot of a guest that has replied once.
struct Saved {
    host: Host,
    directory: PathBuf,
}

impl Saved {
    fn new() -> Self {
        let host = Host::new();
        let mut first = start(&host, "first", &[], &sweeping_kernel(MEMORY), false);
        assert_eq!(first.count(), 1);
        let directory = host.path().join("saved");
        let saved = Self { host, directory };
        saved.host.ask(&["snapshot", "first", saved.path()]);
        saved.host.ask(&["kill", "first"]);
        first.wait();
        saved
    }

    fn path(&self) -> &str {
        self.directory.to_str().unwrap()
    }

    fn memory(&self) -> PathBuf {
        directory::memory(&self.directory)
    }

    /// What is noted beside the memory file.
    fn hint(&self, kind: &str) -> PathBuf {
        let mut name = self.memory().into_os_string();
        name.push(kind);
        name.into()
    }

    fn info(&self) -> Value {
        let info = ["snapshot", "info", self.path(), "--json"];
        self.host.ask_json(&info)
    }

    /// Has a guest go on, reply and end, and returns what is known of that.
    #[track_caller]
    fn restore(&self) -> Value {
        let mut guest = self.begin("copy");
        reply_and_end(&self.host, &mut guest, "copy");
        guest.wait();
        self.info()["last_restore"].take()
    }

    /// A guest that goes on, with all in its memory that is brought in first.
    #[track_caller]
    fn begin(&self, id: &str) -> Live {
        let command = self.host.command(&["restore", self.path(), "--id", id]);
        let guest = Live::start(command);
        until("the guest", || {
            let ids = self.host.ask(&["ps", "-q"]);
            (ids.contains(id) && self.host.state(id) == "Running").then_some(())
        });
        until("its pages", || {
            (!guest.threads().iter().any(|name| name == "prefetch")).then_some(())
        });
        guest
    }

    fn names(&self) -> Vec<String> {
        names(&self.directory)
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn reply_and_end(host: &Host, guest: &mut Live, id: &str) {
    assert_eq!(guest.count(), 2);
    host.ask(&["kill", id]);
}

/// The number at this place.
#[track_caller]
fn number(value: &Value, path: &str) -> u64 {
    let found = value.pointer(path).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {path} in {value}"))
}

pub(super) fn first_and_second() {
    let saved = Saved::new();
    let info = saved.info();
    assert!(
        info["working_set"].is_null() && info["last_restore"].is_null(),
        "{info}"
    );
    let text = saved.host.ask(&["snapshot", "info", saved.path()]);
    assert!(!text.contains("first reply"), "{text}");

    let first = saved.restore();
    assert!(first["working_set"].is_null(), "{first}");
    assert_eq!(first["reply"]["kind"], "console", "{first}");
    let ms = |path: &str| first.pointer(path).unwrap().as_f64().unwrap();
    assert!(ms("/running/ms") > 0.0, "{first}");
    assert!(ms("/reply/taken/ms") >= ms("/running/ms"), "{first}");
    let waited = "/reply/vcpus/threads/minor";
    let all = "/reply/taken/faults/minor";
    // Each is copied when it is written to.
    assert!(number(&first, waited) >= PAGES, "{first}");
    assert!(
        number(&first, all) >= number(&first, "/running/faults/minor"),
        "{first}"
    );
    let noted = saved.info()["working_set"].take();
    assert!(number(&noted, "/written") >= PAGES, "{noted}");
    assert!(
        number(&noted, "/all") >= number(&noted, "/written"),
        "{noted}"
    );

    let second = saved.restore();
    assert_eq!(second["working_set"], noted);
    for path in [waited, all] {
        let (first, second) = (number(&first, path), number(&second, path));
        assert!(second < first / 2, "{path}: {second} and {first}");
    }
    assert_eq!(saved.info()["working_set"], noted);
    let text = saved.host.ask(&["snapshot", "info", saved.path()]);
    for part in [
        "first reply console, after",
        "with a working set of",
        "working set ",
    ] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
}

pub(super) fn damaged() {
    let saved = Saved::new();
    let first = saved.restore();
    let waited = |restored: &Value| number(restored, "/reply/vcpus/threads/minor");
    let pages = saved.hint(".pages");
    let good = fs::read(&pages).unwrap();
    for at in [0, 9, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&pages, &bad).unwrap();
        assert!(saved.info()["working_set"].is_null(), "byte {at}");
    }
    // It is made anew.
    let again = saved.restore();
    assert!(
        again["working_set"].is_null() && waited(&again) >= PAGES,
        "{again}"
    );
    let next = saved.restore();
    assert!(waited(&next) < waited(&first) / 2, "{next} {first}");

    let restored = saved.hint(".restored");
    let text = fs::read_to_string(&restored).unwrap();
    for bad in [
        "",
        "{}",
        &text[1..],
        &text.replace("\"memory_id\":\"", "\"memory_id\":\"0"),
    ] {
        fs::write(&restored, bad).unwrap();
        assert!(saved.info()["last_restore"].is_null(), "{bad}");
    }
    let text = saved.host.ask(&["snapshot", "info", saved.path()]);
    assert!(
        !text.contains("first reply") && text.contains("working set "),
        "{text}"
    );
    assert!(saved.restore().is_object());

    // A new snapshot is not the one that they are about.
    let mut copy = saved.begin("copy");
    assert_eq!(copy.count(), 2);
    until("what is noted", || {
        let thread = copy.threads().iter().any(|name| name == "first-reply");
        (!thread).then_some(())
    });
    saved.host.ask(&["snapshot", "copy", saved.path()]);
    assert_eq!(saved.names().len(), 2, "{:?}", saved.names());
    saved.host.ask(&["kill", "copy"]);
    copy.wait();
    let info = saved.info();
    assert!(
        info["working_set"].is_null() && info["last_restore"].is_null(),
        "{info}"
    );
}

/// The guest goes on all the same.
pub(super) fn unwritable() {
    let saved = Saved::new();
    let log = saved.host.write("log", "");
    let run = saved.host.path().join("run");
    let started = |id: &str, more: &[&str]| {
        let arguments = [
            "restore",
            saved.path(),
            "--id",
            id,
            "--log-path",
            &log,
            "--level",
            "Debug",
        ];
        let command = saved.host.command(&[&arguments[..], more].concat());
        let mut command = without_rights(&command);
        command.env("XDG_RUNTIME_DIR", &run);
        let guest = Live::start(command);
        until(id, || {
            saved.host.ask(&["ps", "-q"]).contains(id).then_some(())
        });
        guest
    };
    let said = || fs::read_to_string(&log).unwrap();
    let before = saved.names();
    fs::set_permissions(&saved.directory, Permissions::from_mode(0o500)).unwrap();
    let mut guest = started("limited", &[]);
    reply_and_end(&saved.host, &mut guest, "limited");
    guest.wait();
    assert_eq!(saved.names(), before);
    assert!(
        said().contains("What the restore took is not noted"),
        "{}",
        said()
    );
    assert!(said().contains("Permission denied"), "{}", said());

    // And where the snapshot goes, while it stands still.
    fs::set_permissions(&saved.directory, Permissions::from_mode(0o700)).unwrap();
    let mut guest = started("alone", &["--paused"]);
    until("alone", || {
        (saved.host.state("alone") == "Paused").then_some(())
    });
    let memory = saved.memory();
    fs::remove_file(&memory).unwrap();
    fs::write(&memory, "another").unwrap();
    let before = saved.names();
    saved.host.ask(&["resume", "alone"]);
    reply_and_end(&saved.host, &mut guest, "alone");
    guest.wait();
    assert_eq!(saved.names(), before);
    assert!(said().contains("another one is in its place"), "{}", said());
}

/// Several are the first, and each is the last at some time.
pub(super) fn at_once() {
    const GUESTS: usize = 4;
    let saved = Saved::new();
    let ids: Vec<_> = (0..GUESTS).map(|index| format!("copy-{index}")).collect();
    for _ in 0..2 {
        let mut guests: Vec<_> = ids.iter().map(|id| saved.begin(id)).collect();
        for (guest, id) in guests.iter_mut().zip(&ids) {
            reply_and_end(&saved.host, guest, id);
        }
        for guest in guests {
            guest.wait();
        }
        let info = saved.info();
        assert!(number(&info, "/working_set/written") >= PAGES, "{info}");
        assert_eq!(info["last_restore"]["reply"]["kind"], "console", "{info}");
        assert_eq!(saved.names().len(), 4, "{:?}", saved.names());
    }
}
