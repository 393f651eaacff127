use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use vmm_sys_util::tempdir::TempDir;

use super::*;

const AREA: &str = "things";

fn cache_in(dir: &TempDir) -> Cache {
    Cache::new(Some(dir.as_path().join("mote")))
}

fn draft_of(cache: &Cache, name: &str, contents: &[u8]) -> Draft {
    let mut draft = cache.draft(AREA, name).unwrap();
    draft.write_all(contents).unwrap();
    draft
}

fn read(found: &CachedFile) -> Vec<u8> {
    let mut contents = Vec::new();
    (&found.file).read_to_end(&mut contents).unwrap();
    contents
}

fn inode(found: &CachedFile) -> u64 {
    found.file.metadata().unwrap().ino()
}

fn is_in_memory(found: &CachedFile) -> bool {
    found.path.starts_with("/proc/self/fd")
}

/// Every file and link below `path`, by its name from there.
fn list(path: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(path).unwrap().to_owned();
                names.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
}

fn make_old(path: &Path) {
    let time = SystemTime::now() - Duration::from_secs(3600);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn a_finished_draft_is_found_under_every_key() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    assert!(cache.find(AREA, "one").is_none());
    let made = draft_of(&cache, "a/b", b"contents").finish(&["one", "two"]);
    assert_eq!(made.path, cache.root().unwrap().join(AREA).join("a/b"));
    assert_eq!(read(&made), b"contents");
    for key in ["one", "two"] {
        let found = cache.find(AREA, key).unwrap();
        assert_eq!(found.path, made.path);
        assert_eq!(inode(&found), inode(&made));
        assert_eq!(read(&found), b"contents");
    }
    assert!(cache.find(AREA, "three").is_none());
    assert!(cache.find("elsewhere", "one").is_none());
    assert_eq!(
        list(dir.as_path()),
        [
            "mote/things/a/b",
            "mote/things/index/one",
            "mote/things/index/two"
        ]
    );
}

#[test]
fn what_was_found_can_be_recorded_under_another_key() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let made = draft_of(&cache, "a/b", b"contents").finish(&["one"]);
    cache.record(AREA, "two", &cache.find(AREA, "one").unwrap());
    assert_eq!(inode(&cache.find(AREA, "two").unwrap()), inode(&made));
    // What is not below the area has no name there.
    cache.record("elsewhere", "two", &made);
    assert!(cache.find("elsewhere", "two").is_none());
}

#[test]
fn directories_are_for_this_user_only() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    draft_of(&cache, "a/b", b"").finish(&["key"]);
    for name in ["mote", "mote/things", "mote/things/a", "mote/things/index"] {
        let mode = fs::metadata(dir.as_path().join(name)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

#[test]
fn without_a_root_files_are_in_memory() {
    let cache = Cache::new(None);
    assert_eq!(cache.root(), None);
    let made = draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    assert!(is_in_memory(&made));
    assert_eq!(fs::read(&made.path).unwrap(), b"contents");
    cache.record(AREA, "other", &made);
    assert!(cache.find(AREA, "key").is_none());
}

#[test]
fn a_root_that_cannot_be_written_falls_back_to_memory() {
    let dir = TempDir::new().unwrap();
    // A file in the place of a directory stops root, too.
    let file = dir.as_path().join("file");
    fs::write(&file, b"").unwrap();
    for root in [
        file.clone(),
        file.join("below"),
        "/proc/mote".into(),
        "/dev/null".into(),
    ] {
        let cache = Cache::new(Some(root));
        let made = draft_of(&cache, "a/b", b"contents").finish(&["key"]);
        assert!(is_in_memory(&made));
        assert_eq!(fs::read(&made.path).unwrap(), b"contents");
        cache.record(AREA, "other", &made);
        assert!(cache.find(AREA, "key").is_none());
    }
    assert_eq!(list(dir.as_path()), ["file"]);
}

#[test]
fn an_index_that_cannot_be_written_costs_only_the_record() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let area = cache.root().unwrap().join(AREA);
    fs::create_dir_all(&area).unwrap();
    fs::write(area.join("index"), b"").unwrap();
    let made = draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    assert_eq!(made.path, area.join("a/b"));
    assert_eq!(read(&made), b"contents");
    assert!(cache.find(AREA, "key").is_none());
}

#[test]
fn a_file_that_cannot_get_its_name_is_good_for_this_start() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let draft = draft_of(&cache, "a/b", b"contents");
    fs::create_dir(cache.root().unwrap().join(AREA).join("a/b")).unwrap();
    let made = draft.finish(&["key"]);
    assert!(is_in_memory(&made));
    assert_eq!(fs::read(&made.path).unwrap(), b"contents");
    assert!(cache.find(AREA, "key").is_none());
    assert_eq!(list(dir.as_path()), [""; 0]);
}

#[test]
fn a_disk_that_fails_in_the_middle_does_not_show() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let mut draft = draft_of(&cache, "a/b", b"begun ");
    let temporary = draft.place.as_ref().unwrap().temporary.clone();
    draft.file = File::open(&temporary).unwrap(); // fails every write
    draft.write_all(b"on disk, ").unwrap();
    assert!(draft.place.is_none());
    assert!(!temporary.exists());
    draft.write_all(b"ended in memory").unwrap();
    let made = draft.finish(&["key"]);
    assert!(is_in_memory(&made));
    let contents = fs::read(&made.path).unwrap();
    assert_eq!(contents, b"begun on disk, ended in memory");
    assert!(cache.find(AREA, "key").is_none());
}

#[test]
fn a_file_that_was_touched_since_is_not_found() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let make = || draft_of(&cache, "a/b", b"contents").finish(&["key"]).path;
    let open = |path| OpenOptions::new().write(true).open(path).unwrap();

    // What a crash of the host leaves.
    open(make()).set_len(3).unwrap();
    assert!(cache.find(AREA, "key").is_none());
    // The same length at another time.
    make_old(&make());
    assert!(cache.find(AREA, "key").is_none());
    fs::remove_file(make()).unwrap();
    assert!(cache.find(AREA, "key").is_none());
    make();
    assert!(cache.find(AREA, "key").is_some());
    // Something else in its place.
    let path = make();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(cache.find(AREA, "key").is_none());
}

#[test]
fn a_record_that_makes_no_sense_is_as_none() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    let link = index_path(&cache.root().unwrap().join(AREA), "key");
    for text in [
        "nonsense",
        "8",
        "8:",
        "8:x:a/b",
        "-8:0:a/b",
        "8:99999999999999999999:a/b",
        ":::",
    ] {
        fs::remove_file(&link).unwrap();
        symlink(text, &link).unwrap();
        assert!(cache.find(AREA, "key").is_none(), "{text}");
    }
    fs::remove_file(&link).unwrap();
    fs::write(&link, b"a file").unwrap();
    assert!(cache.find(AREA, "key").is_none());
    // And is replaced.
    draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    assert!(cache.find(AREA, "key").is_some());
}

#[test]
fn a_record_survives_its_text() {
    for name in ["a/b", "with:colons:", ""] {
        for mtime in [0, -1, i64::MIN, i64::MAX] {
            let record = Record {
                length: u64::MAX,
                mtime,
                name: name.to_owned(),
            };
            let text = format!("{}:{mtime}:{name}", u64::MAX);
            assert_eq!(Record::parse(&text), Some(record));
        }
    }
}

#[test]
fn nobody_sees_a_draft_before_it_is_finished() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let draft = draft_of(&cache, "a/b", b"half");
    assert!(cache.find(AREA, "key").is_none());
    assert!(!cache.root().unwrap().join(AREA).join("a/b").exists());
    draft.finish(&["key"]);
    assert!(cache.find(AREA, "key").is_some());
}

#[test]
fn two_drafts_at_once_do_not_mix() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let mut first = draft_of(&cache, "a/b", b"one ");
    let mut second = draft_of(&cache, "a/b", b"two ");
    first.write_all(b"first").unwrap();
    second.write_all(b"second").unwrap();
    let first = first.finish(&["key"]);
    let second = second.finish(&["key"]);
    // Both go on with what they wrote; the last one is kept.
    assert_eq!(read(&first), b"one first");
    assert_eq!(read(&second), b"two second");
    assert_eq!(inode(&cache.find(AREA, "key").unwrap()), inode(&second));
    assert_eq!(
        list(dir.as_path()),
        ["mote/things/a/b", "mote/things/index/key"]
    );
}

#[test]
fn many_threads_make_the_same_file() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    drop(draft_of(&cache, "a/b", b"never finished"));
                    let made = draft_of(&cache, "a/b", b"contents").finish(&["key"]);
                    assert_eq!(fs::read(&made.path).unwrap(), b"contents");
                    if let Some(found) = cache.find(AREA, "key") {
                        assert_eq!(read(&found), b"contents");
                    }
                }
            });
        }
    });
    draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    assert!(cache.find(AREA, "key").is_some());
    assert_eq!(
        list(dir.as_path()),
        ["mote/things/a/b", "mote/things/index/key"]
    );
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let area = cache.root().unwrap().join(AREA);
    let draft = draft_of(&cache, "a/b", b"contents");
    assert_eq!(list(&area).len(), 1);
    drop(draft);
    // Not even the directory that was made for it.
    assert_eq!(fs::read_dir(&area).unwrap().count(), 0);
    // Unless something else is in there.
    draft_of(&cache, "a/b", b"contents").finish(&["key"]);
    drop(draft_of(&cache, "a/b", b"other contents"));
    assert_eq!(list(&area), ["a/b", "index/key"]);
    assert_eq!(read(&cache.find(AREA, "key").unwrap()), b"contents");
}

#[test]
fn abandoned_files_are_removed() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let parent = cache.root().unwrap().join(AREA).join("a");
    fs::create_dir_all(&parent).unwrap();
    for name in ["b.1-1.tmp", "c.2-1.tmp", "kept"] {
        fs::write(parent.join(name), b"").unwrap();
    }
    // What is still being written is not.
    let draft = draft_of(&cache, "a/d", b"contents");
    assert_eq!(list(&parent).len(), 2);
    draft_of(&cache, "a/b", b"").finish(&[]);
    draft.finish(&[]);
    assert_eq!(list(&parent), ["b", "d", "kept"]);
}

#[test]
fn a_draft_whose_file_was_taken_for_abandoned_goes_on() {
    let dir = TempDir::new().unwrap();
    let cache = cache_in(&dir);
    let draft = draft_of(&cache, "a/b", b"contents");
    draft.file().unlock().unwrap();
    draft_of(&cache, "a/b", b"others").finish(&["key"]);
    let made = draft.finish(&["key"]);
    assert!(is_in_memory(&made));
    assert_eq!(fs::read(&made.path).unwrap(), b"contents");
    assert_eq!(read(&cache.find(AREA, "key").unwrap()), b"others");
}

#[test]
fn only_a_file_left_alone_for_a_while_is_settled() {
    let nanoseconds = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap();
        since.as_nanos() as i128
    };
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("file");
    fs::write(&path, b"").unwrap();
    let identity = Identity::of(&fs::metadata(&path).unwrap());
    let at = |ctime| Identity { ctime, ..identity };
    let now = SystemTime::now();
    assert!(at(nanoseconds(now - 2 * SETTLED_AFTER)).is_settled());
    assert!(at(0).is_settled());
    // As good as now, and a clock that was set back since.
    assert!(!at(nanoseconds(now + SETTLED_AFTER)).is_settled());
    assert!(!at(nanoseconds(now + Duration::from_secs(3600))).is_settled());
    assert!(!at(i64::MAX.into()).is_settled());
}

#[test]
fn an_identity_shows_every_change() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("file");
    let identity = || Identity::of(&fs::metadata(&path).unwrap());
    fs::write(&path, b"contents").unwrap();
    let mut seen = vec![identity()];
    assert_eq!(identity(), seen[0]);
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let mut changed = |change: &dyn Fn()| {
        while !identity().is_settled() {
            std::thread::sleep(SETTLED_AFTER / 4);
        }
        change();
        assert!(!seen.contains(&identity()));
        seen.push(identity());
    };
    changed(&|| fs::write(&path, b"contents").unwrap());
    changed(&|| fs::write(&path, b"CONTENTS").unwrap());
    // One who covers the tracks cannot set the change time.
    changed(&|| {
        fs::write(&path, b"contents").unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(mtime).unwrap();
    });
    changed(&|| fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap());
    changed(&|| {
        let other = dir.as_path().join("other");
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
    });
    let keys: Vec<_> = seen.iter().map(Identity::to_string).collect();
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key));
        assert!(key.len() < 128 && !key.contains('/'));
    }
}

#[test]
fn hexadecimal_has_two_digits_a_byte() {
    assert_eq!(hex(&[]), "");
    assert_eq!(hex(&[0x00, 0x0f, 0xa0, 0xff]), "000fa0ff");
}
