use vmm_sys_util::tempdir::TempDir;

use super::super::test_support;
use super::*;

const OLD: Id = [1; 16];
const NEW: Id = [2; 16];

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn write_memory(directory: &Path, name: &str, id: Id) -> PathBuf {
    let path = directory.join(name);
    test_support::write_memory(&path, id, &[], None);
    path
}

#[test]
fn the_memory_file_is_that_of_the_state() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    assert_eq!(memory(directory), directory.join("memory"));
    assert_eq!(
        memory(&directory.join("no/such")),
        directory.join("no/such/memory")
    );
    let old = write_memory(directory, "memory-00000000000000ff", OLD);
    // The only one needs no state.
    assert_eq!(memory(directory), old);
    let new = write_memory(directory, "memory-0000000000000001", NEW);
    for (id, expected) in [(OLD, &old), (NEW, &new)] {
        test_support::write_state(directory, &test_support::state(id, None));
        assert_eq!(memory(directory), *expected);
    }
    let own = write_memory(directory, "memory", [3; 16]);
    test_support::write_state(directory, &test_support::state([3; 16], None));
    assert_eq!(memory(directory), own);
    let made = new_memory(directory).unwrap();
    assert!(is_memory(made.file_name().unwrap()), "{made:?}");
    assert_ne!(made, new_memory(directory).unwrap());
}

#[test]
fn what_belongs_to_nothing_is_removed_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kept = [
        ".state.new",
        "memory-mine",
        "memory-mine.pages",
        "memory.old",
        "notes",
        "notes.restored",
    ];
    for name in kept {
        fs::write(directory.join(name), "mine").unwrap();
    }
    write_memory(directory, "memory", OLD);
    write_memory(directory, "memory-00000000000000ff", NEW);
    for name in [
        ".state.7.new",
        ".memory-00000000000000ff.7.new",
        ".memory-00000000000000ff.restored.7.new",
        ".memory.pages.7.new",
        // Of one that is gone.
        "memory-00000000000000fe.pages",
        "memory-00000000000000fe.restored",
    ] {
        fs::write(directory.join(name), "half").unwrap();
    }
    let hints = [
        "memory-00000000000000ff.pages",
        "memory-00000000000000ff.restored",
    ];
    for name in hints.into_iter().chain(["memory.pages", "memory.restored"]) {
        fs::write(directory.join(name), "a hint").unwrap();
    }
    // Without a state it is not known whose these are.
    tidy(directory);
    let mut expected = [
        &kept[..],
        &hints,
        &[
            "memory",
            "memory.pages",
            "memory.restored",
            "memory-00000000000000ff",
        ],
    ]
    .concat();
    expected.sort_unstable();
    assert_eq!(names(directory), expected);
    test_support::write_state(directory, &test_support::state(NEW, None));
    tidy(directory);
    let mut expected = [&kept[..], &hints, &["memory-00000000000000ff", "state"]].concat();
    expected.sort_unstable();
    assert_eq!(names(directory), expected);
    // The only one that there is stays, even if it is another one's.
    test_support::write_state(directory, &test_support::state([9; 16], None));
    tidy(directory);
    assert_eq!(names(directory), expected);
}

#[test]
fn one_writes_at_a_time() {
    let directory = TempDir::new().unwrap();
    let first = lock(directory.as_path()).unwrap();
    assert!(lock(directory.as_path()).is_err());
    drop(first);
    lock(directory.as_path()).unwrap();
}
