//! Files that are there whole, or as they were before.
//!
//! Until it is whole, a file has another name, and is locked by whoever writes it. What has such a name and is not locked
//! was left behind by a process that was killed: whoever writes there next removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that is being written. Unless it is committed, nothing of it is left.
pub(super) struct NewFile {
    file: File,
    /// Where it is until then: in the same folder. None: committed.
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file that will be at `path`, in place of whatever file is there. Its owner can read and write
    /// it, nobody else: it has all that a guest knows.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            // A device, a socket, or somebody's link is not to be replaced by a file.
            Ok(there) if !there.is_file() => return Err(io::ErrorKind::AlreadyExists.into()),
            _ => {}
        }
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        remove_left_behind(folder_of(path), |found| {
            found.as_bytes().starts_with(prefix.as_bytes())
        });
        let mut temporary = prefix;
        temporary.push(format!("{}{SUFFIX}", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        // Where there are no locks nothing is found to be left behind.
        let _ = file.try_lock();
        Ok(Self {
            file,
            temporary: Some(temporary),
            path: path.to_owned(),
        })
    }

    /// What is to be written to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// All of it is there, whatever happens to the host from now on.
    pub(super) fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename()?;
        File::open(folder_of(&self.path))?.sync_all()
    }

    /// Whoever reads it finds all of it; if the host crashes, there may be nothing in it. For what is only a hint: nobody
    /// waits for a disk.
    pub(super) fn commit_hint(mut self) -> io::Result<()> {
        self.rename()
    }

    fn rename(&mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path)?;
            self.temporary = None;
        }
        Ok(())
    }
}

/// How the name of a file ends that is not whole.
const SUFFIX: &str = ".new";
/// More files than this are not looked at for what was left behind.
const MAX_FILES: usize = 4096;

/// The folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Removes files that are not whole and that nobody writes, if this is true of their names. What cannot be removed stays.
pub(super) fn remove_left_behind(folder: &Path, is_meant: impl Fn(&OsStr) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.take(MAX_FILES).flatten() {
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !name.as_bytes().ends_with(SUFFIX.as_bytes()) || !is_meant(&name) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Whoever cannot write there any more has to live with it.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_there_when_it_is_whole() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("state");
        fs::write(&path, "old").unwrap();
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        new.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(folder.as_path()), ["state"]);
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"a hint").unwrap();
        new.commit_hint().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"a hint");
        assert_eq!(names(folder.as_path()), ["state"]);
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("state");
        fs::write(&path, "old").unwrap();
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"half").unwrap();
        assert_eq!(names(folder.as_path()).len(), 2);
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.as_path()), ["state"]);
    }

    #[test]
    fn what_was_left_behind_goes_and_what_is_being_written_stays() {
        let folder = TempDir::new().unwrap();
        let folder = folder.as_path();
        for name in [".state.1.new", ".other.1.new", ".state.old", "state.1.new"] {
            fs::write(folder.join(name), "left").unwrap();
        }
        let busy = File::create(folder.join(".state.2.new")).unwrap();
        busy.try_lock().unwrap();
        let new = NewFile::create(&folder.join("state")).unwrap();
        drop(new);
        assert_eq!(
            names(folder),
            [".other.1.new", ".state.2.new", ".state.old", "state.1.new"]
        );
    }

    #[test]
    fn places_where_no_file_can_be() {
        let folder = TempDir::new().unwrap();
        let folder = folder.as_path();
        assert!(NewFile::create(&folder.join("missing/state")).is_err());
        assert!(NewFile::create(folder).is_err());
        assert!(NewFile::create(Path::new("/")).is_err());
        assert!(NewFile::create(Path::new("/dev/null")).is_err());
        assert_eq!(names(folder), [""; 0]);
    }
}
