//! A whole snapshot, and a differential one that is relative to it, become a whole one.
//!
//! The memory is a new file: the base's may be what guests run on. It keeps the id of the differential one, as it is what memory was
//! then: what is relative to that one is relative to it too. Where the file system can share blocks between files
//! only what changed is copied.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom as Find};
use rustix::io::Errno;
use thiserror::Error;

use super::directory;
use super::file::NewFile;
use super::format;
use super::memory::{self, Diff};
use super::state::VmState;

/// Why two snapshots were not merged. Both are as they were.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// One of them cannot be read.
    #[error("The state file in {} cannot be used", directory.display())]
    State {
        /// Its directory.
        directory: PathBuf,
        /// What is wrong.
        #[source]
        source: format::Error,
    },
    /// Its memory file.
    #[error("The memory file {} cannot be used", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: memory::Error,
    },
    /// The first one is to be whole.
    #[error(
        "The snapshot in {} is differential itself: merge it into its own base first, and this one into the result",
        directory.display()
    )]
    BaseIsDifferential {
        /// Its directory.
        directory: PathBuf,
    },
    /// The second one is to be differential.
    #[error("The snapshot in {} is whole: there is nothing to merge it with", directory.display())]
    Whole {
        /// Its directory.
        directory: PathBuf,
    },
    /// They do not go together.
    #[error(
        "The snapshot in {} has what changed since another one than that in {}: snapshots are merged in the order in which \
         they were taken",
        differential.display(),
        base.display()
    )]
    Unrelated {
        /// Directory of the differential one.
        differential: PathBuf,
        /// Directory of the whole one.
        base: PathBuf,
    },
    /// A file could not be made or written.
    #[error("Cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The state could not be written.
    #[error(transparent)]
    Encode(format::Error),
}

/// Merges the snapshot in the directory `differential` into that in `base`; the result is in `into`, which may be either of them or is
/// made. A crash at any moment leaves what was there, or the result.
pub fn merge(base: &Path, differential: &Path, into: &Path) -> Result<(), Error> {
    let (whole, _) = read_state(base)?;
    let (mut state, config) = read_state(differential)?;
    if whole.memory_base.is_some() {
        let directory = base.to_owned();
        return Err(Error::BaseIsDifferential { directory });
    }
    let Some(wanted) = state.memory_base.take() else {
        let directory = differential.to_owned();
        return Err(Error::Whole { directory });
    };
    let unrelated = || Error::Unrelated {
        differential: differential.to_owned(),
        base: base.to_owned(),
    };
    if wanted != whole.memory_id || state.memory != whole.memory {
        return Err(unrelated());
    }
    let (from, from_path) = open_memory(base)?;
    let (changes, changes_path) = open_memory(differential)?;
    let regions = &state.memory;
    let of = |path: &PathBuf| {
        let path = path.clone();
        |source| Error::Memory { path, source }
    };
    memory::check_layout(regions).map_err(of(&changes_path))?;
    memory::check_file(regions, &whole.memory_id, &from).map_err(of(&from_path))?;
    let diff = Diff::read(regions, &state.memory_id, &changes).map_err(of(&changes_path))?;
    if diff.base != wanted {
        return Err(unrelated());
    }

    make(into).map_err(write_error(into))?;
    let _lock = directory::lock(into).map_err(write_error(into))?;
    let memory_path = directory::new_memory(into).map_err(write_error(into))?;
    let state_path = directory::state(into);
    let memory_file = NewFile::create(&memory_path).map_err(write_error(&memory_path))?;
    let state_file = NewFile::create(&state_path).map_err(write_error(&state_path))?;
    let end = memory::end_of(regions);
    assemble(&from, &changes, &diff.ranges, end, memory_file.file())
        .and_then(|()| memory_file.file().write_all_at(&state.memory_id, end))
        .map_err(write_error(&memory_path))?;
    let bytes = format::encode(&config, &state).map_err(Error::Encode)?;
    state_file
        .file()
        .write_all(&bytes)
        .map_err(write_error(&state_path))?;
    memory_file.commit().map_err(write_error(&memory_path))?;
    if let Err(source) = state_file.commit() {
        let _ = fs::remove_file(&memory_path);
        return Err(write_error(&state_path)(source));
    }
    directory::tidy(into);
    Ok(())
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Write { path, source }
}

fn read_state(directory: &Path) -> Result<(VmState, String), Error> {
    directory::read_state(directory).map_err(|source| Error::State {
        directory: directory.to_owned(),
        source,
    })
}

fn open_memory(directory: &Path) -> Result<(File, PathBuf), Error> {
    let path = directory::memory(directory);
    match File::open(&path) {
        Ok(file) => Ok((file, path)),
        Err(error) => Err(Error::Memory {
            path,
            source: memory::Error::Read(error),
        }),
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made,
    }
}

/// Fills a new file of `end` bytes: with what `changes` has in these ranges, and what `base` has elsewhere.
fn assemble(
    base: &File,
    changes: &File,
    ranges: &[Range<u64>],
    end: u64,
    new: &File,
) -> io::Result<()> {
    let is_clone = rustix::fs::ioctl_ficlone(new, base).is_ok();
    new.set_len(end)?;
    if is_clone {
        for range in ranges {
            punch(new, range)?;
        }
    } else {
        let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
        let ends = ranges.iter().map(|range| range.start).chain([end]);
        for (start, end) in starts.zip(ends) {
            copy(base, new, start..end)?;
        }
    }
    ranges
        .iter()
        .try_for_each(|range| copy(changes, new, range.clone()))
}

/// Has a range of a file be zero.
fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, range.start, range.end - range.start)?;
    Ok(())
}

/// Copies what there is in a range of a file to the same place of another one. Holes stay holes.
fn copy(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(from, Find::Data(at)) {
            Ok(start) if start < range.end => start,
            // No more of it.
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, Find::Hole(start))?.min(range.end);
        let (mut source, mut target) = (from, to);
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        // In the kernel, where it can.
        let copied = io::copy(&mut source.take(end - start), &mut target)?;
        if copied != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "merge_test.rs"]
mod tests;
