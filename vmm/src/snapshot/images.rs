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
    /// It has been made larger or smaller.
    #[error(
        "{path} is not as it was when the snapshot was taken: it has {found} bytes, then it had {saved}"
    )]
    Changed {
        /// The file.
        path: String,
        /// Bytes then.
        saved: u64,
        /// Bytes now.
        found: u64,
    },
    /// Somebody may have written to it.
    #[error(
        "{path} is not as it was when the snapshot was taken: it was changed {changed}. What the guest knows of it can \
         be wrong, if this is forced",
        changed = if *later { "since" } else { "at another time" }
    )]
    Touched {
        /// The file.
        path: String,
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

    /// Whether it is as it was. `force`: it is enough that it may be.
    pub fn check(&self, force: bool) -> Result<(), Error> {
        let now = Self::of(&self.path)?;
        if now.bytes != self.bytes {
            return Err(Error::Changed {
                path: now.path,
                saved: self.bytes,
                found: now.bytes,
            });
        }
        if now.modified != self.modified && !force {
            return Err(Error::Touched {
                path: now.path,
                later: now.modified > self.modified,
            });
        }
        Ok(())
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
        state.check(false).unwrap();
        // Reading is nothing.
        fs::read(path).unwrap();
        state.check(false).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.as_file().set_modified(later).unwrap();
        let changed = state.check(false).unwrap_err();
        assert!(changed.to_string().contains("changed since"), "{changed}");
        state.check(true).unwrap();
        fs::write(path, "longer").unwrap();
        let changed = state.check(false).unwrap_err();
        assert!(changed.to_string().contains("6 bytes"), "{changed}");
        assert!(state.check(true).is_err());
        fs::remove_file(path).unwrap();
        assert!(matches!(state.check(false), Err(Error::Missing { .. })));
        fs::write(path, "one").unwrap();
    }
}
