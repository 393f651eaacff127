//! What runtimes start: one small program, in the forms that they take it in. All of it is made here, so that nothing is downloaded.

mod bundle;
mod image;
mod initrd;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use bundle::write_bundle;

/// Prints its token and exits with a status of its own (guest/program.rs).
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/program"));
/// A guest's first process, which starts it (guest/init.rs).
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Why it could not be made.
#[derive(Debug, Error)]
#[error("Cannot write {}", .path.display())]
pub struct Error {
    /// What was to be written.
    path: PathBuf,
    /// What the host said.
    #[source]
    source: io::Error,
}

/// Where the forms are.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The program.
    pub program: PathBuf,
    /// A directory with it.
    pub rootfs: PathBuf,
    /// A docker archive with that.
    pub image: PathBuf,
    /// An initial RAM disk that starts it.
    pub initrd: PathBuf,
    /// mote's default one, with it; none where that cannot be made.
    pub jobs_initrd: Option<PathBuf>,
}

impl Workload {
    /// Makes all of them in `directory`. `default_initrd` is the initial RAM disk of mote's own guests.
    pub fn make(directory: &Path, default_initrd: Option<&Path>) -> Result<Self, Error> {
        let rootfs = directory.join("rootfs");
        // Whatever a runtime puts mounts on has to be there, as its root is read-only.
        for name in ["", "dev", "proc", "sys"] {
            let path = rootfs.join(name);
            let made = DirBuilder::new().mode(0o755).recursive(true).create(&path);
            made.map_err(|source| Error { path, source })?;
        }
        let program = rootfs.join("program");
        write(&program, PROGRAM)?;
        let executable = fs::set_permissions(&program, fs::Permissions::from_mode(0o755));
        executable.map_err(|source| Error {
            path: program.clone(),
            source,
        })?;
        let put = |name: &str, made: io::Result<Vec<u8>>| {
            let path = directory.join(name);
            let bytes = made.map_err(|source| Error {
                path: path.clone(),
                source,
            })?;
            write(&path, &bytes)?;
            Ok(path)
        };
        Ok(Self {
            image: put("image.tar", image::archive())?,
            initrd: put("initrd", initrd::own())?,
            jobs_initrd: match default_initrd {
                Some(path) => Some(put("jobs-initrd", initrd::added_to(path))?),
                None => None,
            },
            program,
            rootfs,
        })
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| Error {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests;
