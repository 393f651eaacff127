//! What guests have written to drives whose overlay is temporary: a file for each, beside the state file.

use std::io;
use std::path::{Path, PathBuf};

use devices::virtio::block::BlockControl;

use super::file::NewFile;
use super::memory::Id;
use super::save::Error;
use crate::controls::Controls;

/// Where the overlay of drive `id` is, of the snapshot with this state file.
pub(crate) fn path(state_path: &Path, id: &str) -> PathBuf {
    let mut name = state_path.as_os_str().to_owned();
    name.push(".overlay-");
    name.push(id);
    name.into()
}

/// The files of a snapshot that is being written.
pub(super) struct Overlays(Vec<Copy>);

/// One of them, which its disk writes when its state is taken.
struct Copy {
    disk: BlockControl,
    file: NewFile,
    path: PathBuf,
}

impl Overlays {
    /// Begins the files of these drives.
    pub(super) fn begin(
        controls: &Controls,
        drives: &[String],
        state_path: &Path,
        id: &Id,
    ) -> Result<Self, Error> {
        let copy = |drive: &String| {
            let path = path(state_path, drive);
            let begun = (|| {
                let disk = controls.disk(drive).ok_or(io::ErrorKind::NotFound)?;
                let file = NewFile::create(&path)?;
                disk.save_overlay_to(Some((file.file().try_clone()?, *id)));
                Ok((disk, file))
            })();
            match begun {
                Ok((disk, file)) => Ok(Copy { disk, file, path }),
                Err(source) => Err(Error::File { path, source }),
            }
        };
        Ok(Self(drives.iter().map(copy).collect::<Result<_, _>>()?))
    }

    /// All of them are there, whatever happens to the host from now on.
    pub(super) fn commit(mut self) -> Result<(), Error> {
        for Copy { file, path, .. } in self.0.drain(..) {
            file.commit()
                .map_err(|source| Error::File { path, source })?;
        }
        Ok(())
    }
}

impl Drop for Overlays {
    /// A snapshot that was given up wants none.
    fn drop(&mut self) {
        for copy in &self.0 {
            copy.disk.save_overlay_to(None);
        }
    }
}
