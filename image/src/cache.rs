//! The cache directory: files derived from other files, so that only the first start makes them.
//!
//! ```text
//! $XDG_CACHE_HOME/mote/<area>/<name>        the derived file
//! $XDG_CACHE_HOME/mote/<area>/index/<key>   a symbolic link whose text is the record
//! ```
//!
//! A record is `<length>:<mtime>:<name>` of the derived file: one `readlink` finds it, and one
//! `fstat` tells whether the file is still the one that was written. A file gets its name only
//! once it is complete, so nobody sees half of one. It is not flushed to the disk: after a crash
//! of the host it is shorter than its record says, and is made again.
//!
//! Where there is no cache directory, or it cannot be written, the same files are made in memory.
//! The whole directory may be deleted at any time.

use std::env;
use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, memfd_create};

/// Ends the names of files that are being written.
const TEMPORARY_SUFFIX: &str = ".tmp";
/// How long a file must have been left alone before its change time identifies its contents. Local
/// file systems stamp changes with a clock of at most 10 ms: two writes closer than that can
/// leave the same stamp.
const SETTLED_AFTER: Duration = Duration::from_millis(20);

/// Where derived files are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    root: Option<PathBuf>,
}

/// A file that the guest can be started from.
#[derive(Debug)]
pub struct CachedFile {
    /// Open for reading.
    pub file: File,
    /// The file's name. One that is only in memory is named `/proc/self/fd/<n>`, which is valid
    /// in this process as long as the file is open.
    pub path: PathBuf,
    /// It was not there before.
    pub is_new: bool,
}

impl Cache {
    /// Keeps files below `root` (mote's own directory); without one, in memory only.
    ///
    /// Nothing is created before there is something to keep.
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root }
    }

    /// Keeps files in `$XDG_CACHE_HOME/mote`, else in `$HOME/.cache/mote`, else in memory only.
    pub fn from_env() -> Self {
        // The XDG specification has relative paths ignored.
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Self::new(base.map(|base| base.join("mote")))
    }

    /// The directory, if there is one.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Finds what is recorded under `key`, if it is still as it was written.
    pub(crate) fn find(&self, area: &str, key: &str) -> Option<CachedFile> {
        let area = self.root.as_ref()?.join(area);
        let text = fs::read_link(index_path(&area, key)).ok()?;
        let record = Record::parse(text.to_str()?)?;
        let path = area.join(&record.name);
        let file = File::open(&path).ok()?;
        record
            .matches(&file.metadata().ok()?)
            .then_some(CachedFile {
                file,
                path,
                is_new: false,
            })
    }

    /// Records a file that [`Cache::find`] found under another key.
    pub(crate) fn record(&self, area: &str, key: &str, found: &CachedFile) {
        let Some(area) = self.root.as_ref().map(|root| root.join(area)) else {
            return;
        };
        let (Ok(metadata), Ok(name)) = (found.file.metadata(), found.path.strip_prefix(&area))
        else {
            return;
        };
        if let Some(name) = name.to_str() {
            Record::of(&metadata, name).write(&area, key);
        }
    }

    /// Starts a file that shall be called `name`; falls back to memory, and fails if that does.
    pub(crate) fn draft(&self, area: &str, name: &str) -> io::Result<Draft> {
        let Some(area) = self.root.as_ref().map(|root| root.join(area)) else {
            return Draft::in_memory();
        };
        Draft::on_disk(area, name).or_else(|_| Draft::in_memory())
    }
}

/// Which file this is, and which state of it: what can be known without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    dev: u64,
    ino: u64,
    size: u64,
    /// Nanoseconds since the epoch.
    mtime: i128,
    /// Nanoseconds since the epoch.
    ctime: i128,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |secs: i64, nsec: i64| i128::from(secs) * 1_000_000_000 + i128::from(nsec);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether any later change of the file will show in its identity.
    pub(crate) fn is_settled(&self) -> bool {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .is_ok_and(|now| now.as_nanos() as i128 - self.ctime > SETTLED_AFTER.as_nanos() as i128)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            dev,
            ino,
            size,
            mtime,
            ctime,
        } = self;
        write!(f, "{dev:x}-{ino:x}-{size}-{mtime}-{ctime}")
    }
}

/// What the index says about a file.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    length: u64,
    /// Whole seconds: some file systems forget the rest once the inode leaves memory.
    mtime: i64,
    /// Below the area's directory.
    name: String,
}

impl Record {
    fn of(metadata: &Metadata, name: &str) -> Self {
        Self {
            length: metadata.len(),
            mtime: metadata.mtime(),
            name: name.to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(3, ':');
        Some(Self {
            length: fields.next()?.parse().ok()?,
            mtime: fields.next()?.parse().ok()?,
            name: fields.next()?.to_owned(),
        })
    }

    fn matches(&self, metadata: &Metadata) -> bool {
        metadata.is_file() && metadata.len() == self.length && metadata.mtime() == self.mtime
    }

    /// Puts the record into the index, replacing what was there. Without it the next start is
    /// slower, so a failure is no reason to stop this one.
    fn write(&self, area: &Path, key: &str) {
        let path = index_path(area, key);
        let temporary = temporary_path(&path);
        let Self {
            length,
            mtime,
            name,
        } = self;
        let written = create_parent(&path)
            .and_then(|()| symlink(format!("{length}:{mtime}:{name}"), &temporary))
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

/// A file that is being written. It vanishes unless it is finished.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    /// `None`: the file is in memory.
    place: Option<Place>,
}

/// Where a draft is, and where it shall be.
#[derive(Debug)]
struct Place {
    temporary: PathBuf,
    area: PathBuf,
    name: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
        // The directory, too, if nothing else is in it: it was made for this file.
        if let Some(parent) = self.temporary.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Draft {
    fn in_memory() -> io::Result<Self> {
        let file = File::from(memfd_create("mote-image", MemfdFlags::CLOEXEC)?);
        Ok(Self { file, place: None })
    }

    fn on_disk(area: PathBuf, name: &str) -> io::Result<Self> {
        let path = area.join(name);
        create_parent(&path)?;
        remove_abandoned(&path);
        let temporary = temporary_path(&path);
        // Read, too: the draft is checked before it is finished.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        // Shows others that somebody is writing it. Where files cannot be locked, nothing that
        // was abandoned is recognized, either.
        let _ = file.try_lock();
        let place = Some(Place {
            temporary,
            area,
            name: name.to_owned(),
        });
        Ok(Self { file, place })
    }

    /// What has been written.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name and records it under `keys`.
    pub(crate) fn finish(self, keys: &[&str]) -> CachedFile {
        let Self { file, place } = self;
        if let Some(place) = &place
            && let Ok(metadata) = file.metadata()
            && let path = place.area.join(&place.name)
            && fs::rename(&place.temporary, &path).is_ok()
            && let Ok(file) = File::open(&path)
        {
            for key in keys {
                Record::of(&metadata, &place.name).write(&place.area, key);
            }
            return CachedFile {
                file,
                path,
                is_new: true,
            };
        }
        // In memory, or complete but not to be named: good for this start.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        CachedFile {
            file,
            path,
            is_new: true,
        }
    }

    /// Goes on in memory with what is written so far: the disk may be full.
    fn move_to_memory(&mut self) -> io::Result<()> {
        let mut memory = Self::in_memory()?;
        self.file.rewind()?;
        io::copy(&mut self.file, &mut memory.file)?;
        *self = memory;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Err(error) if self.place.is_some() && error.kind() != io::ErrorKind::Interrupted => {
                self.move_to_memory()?;
                self.file.write(bytes)
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a hash so that it can be part of a file name.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn index_path(area: &Path, key: &str) -> PathBuf {
    area.join("index").join(key)
}

/// A name beside `path` that no other process or thread uses.
fn temporary_path(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".{}-{}{TEMPORARY_SUFFIX}",
        process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    name.into()
}

/// Creates the directory that `path` is in, for this user only, as the XDG specification has it.
fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)
    })
}

/// Removes what killed processes left beside `path`: the kernel took their locks away.
fn remove_abandoned(path: &Path) {
    let Some(entries) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else {
        return;
    };
    for entry in entries.flatten() {
        let abandoned = entry
            .file_name()
            .to_string_lossy()
            .ends_with(TEMPORARY_SUFFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        // One that is not locked yet may be hit, too: its writer goes on without a name.
        if abandoned {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
