//! Both files of a snapshot in one directory, such that a crash at any moment leaves the old snapshot or the new one.
//!
//! The state file is always `state`. The memory file has a name that no other one has, `memory-…`, and is there before the
//! state file comes to be its: renaming that one is what makes the new snapshot the directory's. What was the old one's is removed
//! afterwards, with the hints beside it. A memory file by the name of `memory` is one as well: clients of the API choose names of their own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use devices::random::random;

use super::file::remove_left_behind;
use super::format::{self, StateFile};
use super::hints;
use super::memory::{self, Id};
use super::state::VmState;

/// The state file's name.
pub const STATE: &str = "state";
/// How the memory file's begins.
const MEMORY: &str = "memory";
/// More files than this are not looked at.
const MAX_FILES: usize = 4096;

/// Where the state file is.
pub fn state(directory: &Path) -> PathBuf {
    directory.join(STATE)
}

/// Where the memory file is that belongs to the state file, as far as can be told; whoever loads it checks that.
pub fn memory(directory: &Path) -> PathBuf {
    let mut there = memory_files(directory);
    if there.len() > 1
        && let Ok((state, _)) = read_state(directory)
        && let Some(index) = (there.iter()).position(|path| is_of(path, &state))
    {
        return there.swap_remove(index);
    }
    there.pop().unwrap_or_else(|| directory.join(MEMORY))
}

/// A name for a memory file, which no other one has.
pub fn new_memory(directory: &Path) -> io::Result<PathBuf> {
    let number = u64::from_le_bytes(random()?);
    Ok(directory.join(format!("{MEMORY}-{number:016x}")))
}

/// Keeps others from writing there. It is let go of with what is returned.
pub fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process writes a snapshot there",
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what is not part of the directory's snapshot any more, or never was: memory files of others, hints without their
/// memory file, and what writers left behind that were killed. To be called with the [`lock`].
pub fn tidy(directory: &Path) {
    remove_left_behind(directory, |name| {
        let name = name.to_str().and_then(|name| name.strip_prefix('.'));
        let name = name.and_then(|name| name.strip_suffix(".new"));
        let name = name.and_then(|name| name.rsplit_once('.'));
        name.is_some_and(|(name, _)| {
            let memory = hints::memory_of(name).unwrap_or(name);
            name == STATE || is_memory(OsStr::new(memory))
        })
    });
    if let Ok((state, _)) = read_state(directory) {
        let there = memory_files(directory);
        // Whoever has none that belongs to the state has lost it already: then nothing more is lost here.
        if there.iter().any(|path| is_of(path, &state)) {
            for path in there.iter().filter(|path| !is_of(path, &state)) {
                let _ = fs::remove_file(path);
            }
        }
    }
    // Guests may still write some whose memory file is going.
    for path in files(directory, |name| hint_of(name).is_some()) {
        let memory = path.file_name().and_then(hint_of);
        if memory.is_some_and(|memory| !directory.join(memory).exists()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The memory file's name that a file is a hint of.
fn hint_of(name: &OsStr) -> Option<&str> {
    let memory = hints::memory_of(name.to_str()?)?;
    is_memory(OsStr::new(memory)).then_some(memory)
}

/// The state of a directory's snapshot, and its configuration.
pub(super) fn read_state(directory: &Path) -> Result<(VmState, String), format::Error> {
    let mut file = File::open(state(directory)).map_err(format::Error::Read)?;
    let file = StateFile::read(&mut file)?;
    let state = file.state()?;
    Ok((state, file.config))
}

fn is_memory(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(MEMORY));
    rest.is_some_and(|rest| {
        rest.is_empty()
            || rest.strip_prefix('-').is_some_and(|number| {
                number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
    })
}

fn memory_files(directory: &Path) -> Vec<PathBuf> {
    files(directory, is_memory)
}

/// Files whose names are such.
fn files(directory: &Path, is_meant: impl Fn(&OsStr) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let files = (entries.take(MAX_FILES).flatten())
        .filter(|entry| is_meant(&entry.file_name()))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).collect()
}

/// Whether a memory file is that of a state: what a differential one has been merged into has the same id, and no table.
fn is_of(path: &Path, state: &VmState) -> bool {
    let whole = memory::end_of(&state.memory) + size_of::<Id>() as u64;
    let is_of = || -> Result<bool, memory::Error> {
        memory::check_layout(&state.memory)?;
        let file = File::open(path).map_err(memory::Error::Read)?;
        let is_whole = file.metadata().map_err(memory::Error::Read)?.len() == whole;
        let id = memory::id_of(&state.memory, &file)?;
        Ok(id == state.memory_id && is_whole == state.memory_base.is_none())
    };
    is_of().unwrap_or(false)
}

#[cfg(test)]
#[path = "directory_test.rs"]
mod tests;
