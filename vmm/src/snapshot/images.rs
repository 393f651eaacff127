//! Which files a guest used, and whether they are as they were: a file system that is in a guest's memory and on
//! a disk is broken if only one of them has gone on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a guest cannot go on with a file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not there, or cannot be looked at.
    #[error("Cannot look at {path}, which the guest uses")]
    Missing {
        /// The file.
        path: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Somebody has written to it.
    #[error(
        "{path} is not as it was when the snapshot was taken: it has {found} bytes and was changed {changed}, \
         then it had {saved}",
        changed = if *later { "since" } else { "at another time" }
    )]
    Changed {
        /// The file.
        path: String,
        /// Bytes then.
        saved: u64,
        /// Bytes now.
        found: u64,
        /// It was changed after that.
        later: bool,
    },
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageState {
    path: String,
    bytes: u64,
    /// Last change of its contents: seconds since 1970, and nanoseconds.
    modified: (i64, i64),
}

impl ImageState {
    /// As it is now.
    pub fn of(path: &str) -> Result<Self, Error> {
        let metadata = fs::metadata(Path::new(path)).map_err(|source| Error::Missing {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Whether it is as it was.
    pub fn check(&self) -> Result<(), Error> {
        let now = Self::of(&self.path)?;
        if now == *self {
            return Ok(());
        }
        Err(Error::Changed {
            path: now.path,
            saved: self.bytes,
            found: now.bytes,
            later: now.modified > self.modified,
        })
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn a_file_is_known_again_until_it_is_changed() {
        let file = TempFile::new().unwrap();
        let path = file.as_path().to_str().unwrap();
        fs::write(path, "one").unwrap();
        let state = ImageState::of(path).unwrap();
        state.check().unwrap();
        // Reading is nothing.
        fs::read(path).unwrap();
        state.check().unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.as_file().set_modified(later).unwrap();
        let changed = state.check().unwrap_err();
        assert!(changed.to_string().contains("changed since"), "{changed}");
        fs::write(path, "longer").unwrap();
        let changed = state.check().unwrap_err();
        assert!(changed.to_string().contains("6 bytes"), "{changed}");
        fs::remove_file(path).unwrap();
        assert!(matches!(state.check(), Err(Error::Missing { .. })));
        fs::write(path, "one").unwrap();
    }
}
