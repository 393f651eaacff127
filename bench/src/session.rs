//! What a measurement has while it lasts: a directory, control groups, the program that is started, and adapters that have been prepared. All of it is
//! removed in the end, however that comes about.

mod mounts;
mod prepared;
mod programs;
mod room;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use thiserror::Error;
use vmm_sys_util::tempdir::TempDir;

use crate::run::Tracer;
use crate::run::cgroup::Base;
use crate::workload::{self, Workload};

pub use prepared::{Absent, Mode, Prepared, Running};

/// What is the same for all starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Memory of a guest, in bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// How long a start may take.
    pub limit: Duration,
    /// The guest kernel, an ELF vmlinux; none if there is none.
    pub kernel: Option<PathBuf>,
    /// The same as a bzImage; none if there is none.
    pub bzimage: Option<PathBuf>,
    /// The initial RAM disk of mote's own guests; none if it cannot be made.
    pub default_initrd: Option<PathBuf>,
    /// mote itself.
    pub mote: PathBuf,
}

/// Why nothing can be measured.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory.
    #[error("Cannot make a directory in {}", .path.display())]
    Directory {
        /// Where.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host has no descriptors left.
    #[error("Cannot make a pipe")]
    Pipe(#[from] rustix::io::Errno),
    /// What is started.
    #[error(transparent)]
    Workload(#[from] workload::Error),
}

/// All that a measurement has.
#[derive(Debug)]
pub struct Session<'a> {
    settings: Settings,
    workload: Workload,
    tracer: Option<Tracer>,
    base: Option<Base>,
    directory: TempDir,
    /// Becomes readable when the measurement is to end.
    stop: BorrowedFd<'a>,
    /// Never readable: for what has to be done to its end.
    never: (OwnedFd, OwnedFd),
    /// Numbers of starts.
    next: AtomicU32,
}

impl<'a> Session<'a> {
    /// Makes what it needs. `stop` becomes readable when the measurement is to end.
    pub fn begin(settings: Settings, stop: BorrowedFd<'a>) -> Result<Self, Error> {
        let parent = std::env::temp_dir();
        let directory = TempDir::new_with_prefix(parent.join("mote-bench-"));
        let directory = directory.map_err(|error| Error::Directory {
            path: parent,
            source: error.into(),
        })?;
        let workload = Workload::make(directory.as_path(), settings.default_initrd.as_deref())?;
        Ok(Self {
            workload,
            tracer: Tracer::make(),
            base: Base::make(),
            settings,
            directory,
            stop,
            never: pipe_with(PipeFlags::CLOEXEC)?,
            next: AtomicU32::new(1),
        })
    }

    /// The version of control groups by which starts are counted; none if they are not.
    pub fn cgroup(&self) -> Option<u32> {
        self.base.as_ref().map(|_| 2)
    }

    /// What is the same for all starts.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the measurement is to end.
    pub fn is_stopped(&self) -> bool {
        crate::run::is_ready(&self.stop).unwrap_or(true)
    }

    fn never(&self) -> BorrowedFd<'_> {
        self.never.0.as_fd()
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn directory(&self) -> &Path {
        self.directory.as_path()
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What is mounted there is not to be removed with the directory.
        mounts::unmount_below(self.directory());
        // A daemon may have made directories that are not even root's to write to.
        let _ = fs::remove_dir_all(self.directory());
    }
}
