use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use super::*;

/// A folder of its own for a test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("mote-socket-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("api.socket")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn found(result: Result<BoundSocket, Error>) -> Found {
    match result {
        Err(Error::Exists { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

/// Leaves a socket that nobody listens on.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).expect("a socket"));
    assert!(path.exists());
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_its_owner() {
    let folder = Folder::new();
    let path = folder.socket();
    for existing in [Existing::Refuse, Existing::ReplaceIfStale] {
        let bound = bind(&path, existing).expect("a socket");
        let mode = fs::metadata(&path).expect("its file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(bound.file.path(), path);

        let mut client = UnixStream::connect(&path).expect("a connection");
        drop(bound.listener.accept().expect("the same"));
        assert_eq!(client.read(&mut [0]).expect("its end"), 0);
        drop(bound);
        assert!(!path.exists());
    }
}

#[test]
fn what_is_there_is_refused_by_name_and_left_alone() {
    let folder = Folder::new();
    let path = folder.socket();
    leave_stale(&path);
    let error = bind(&path, Existing::Refuse).expect_err("there is a file");
    let text = format!(
        "Failed to open the API socket at: {}. Check that it is not already used.",
        path.display()
    );
    assert!(error.to_string().contains(&text), "{error}");
    assert!(path.exists());
}

#[test]
fn only_a_stale_socket_is_replaced() {
    let folder = Folder::new();
    let path = folder.socket();
    let replace = |path: &Path| bind(path, Existing::ReplaceIfStale);

    leave_stale(&path);
    let bound = replace(&path).expect("in place of the stale one");
    assert_eq!(found(replace(&path)), Found::Live);
    UnixStream::connect(&path).expect("the live one is untouched");
    drop(bound);

    fs::write(&path, "precious").expect("a file");
    assert_eq!(found(replace(&path)), Found::NoSocket);
    assert_eq!(fs::read(&path).expect("the file"), b"precious");
    fs::remove_file(&path).expect("its end");

    let elsewhere = folder.0.join("elsewhere");
    leave_stale(&elsewhere);
    symlink(&elsewhere, &path).expect("a link");
    assert_eq!(found(replace(&path)), Found::NoSocket);
    assert!(elsewhere.exists());
    fs::remove_file(&path).expect("its end");

    let datagrams = UnixDatagram::bind(&path).expect("a socket of another kind");
    assert_eq!(found(replace(&path)), Found::Unclear);
    drop(datagrams);
}

#[test]
fn a_file_that_is_no_longer_ours_stays() {
    let folder = Folder::new();
    let path = folder.socket();
    let bound = bind(&path, Existing::Refuse).expect("a socket");
    // Something else has taken its place; the old one is kept, or its inode could be used again.
    fs::rename(&path, folder.0.join("moved")).expect("away");
    fs::write(&path, "another's").expect("a file");
    drop(bound);
    assert!(path.exists());
}

#[test]
fn what_cannot_be_a_socket_is_said_clearly() {
    let folder = Folder::new();
    let missing = folder.0.join("no/such/api.socket");
    let error = bind(&missing, Existing::Refuse).expect_err("no folder");
    assert!(matches!(error, Error::NoFolder { .. }), "{error}");

    let name = "x".repeat(LONGEST_PATH - folder.0.as_os_str().len() - 1);
    let longest = folder.0.join(name);
    drop(bind(&longest, Existing::Refuse).expect("just short enough"));
    let mut longer = longest.into_os_string();
    longer.push("x");
    let error = bind(Path::new(&longer), Existing::Refuse).expect_err("too long");
    assert!(error.to_string().contains("108 bytes"), "{error}");

    for path in ["", "/", "..", "/tmp/.."] {
        let error = bind(Path::new(path), Existing::Refuse).expect_err("no name");
        assert!(matches!(error, Error::NotAPath { .. }), "{path}: {error}");
    }
}

#[test]
fn of_many_that_race_for_a_stale_socket_one_wins() {
    let folder = Folder::new();
    let path = folder.socket();
    for _ in 0..20 {
        leave_stale(&path);
        let start = Arc::new(Barrier::new(8));
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let (path, start) = (path.clone(), Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    bind(&path, Existing::ReplaceIfStale)
                })
            })
            .collect();
        let results: Vec<_> = racers
            .into_iter()
            .map(|racer| racer.join().expect("a racer"))
            .collect();
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(winners, 1, "{results:?}");
        UnixStream::connect(&path).expect("the winner's");
    }
}
