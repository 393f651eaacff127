//! What lies beside a memory file and is not needed: a snapshot goes on without, or with one that is damaged.
//!
//! | behind the memory file's name | |
//! | --- | --- |
//! | `.pages` | what guests touch at first (`working_set`) |
//! | `.restored` | how the last one went on (`restored`) |
//!
//! Each has the memory file's id in it: beside another file of the same name it means nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How their names end.
pub(super) const PAGES: &str = ".pages";
pub(super) const RESTORED: &str = ".restored";

/// How many pages of a guest something is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// All of them.
    pub all: u64,
    /// Those that the guest has written to.
    pub written: u64,
}

/// Where a hint is of a memory file.
pub(super) fn path(memory_path: &Path, hint: &str) -> PathBuf {
    let mut name = OsString::from(memory_path);
    name.push(hint);
    name.into()
}

/// The name of the memory file that a file is a hint of, if it is one by its name.
pub(super) fn memory_of(name: &str) -> Option<&str> {
    [PAGES, RESTORED]
        .iter()
        .find_map(|hint| name.strip_suffix(hint))
}

/// Removes those of a memory file that is not there any more, or is another one now. What cannot be removed means nothing.
pub(super) fn remove(memory_path: &Path) {
    for hint in [PAGES, RESTORED] {
        let _ = fs::remove_file(path(memory_path, hint));
    }
}
