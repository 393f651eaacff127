//! Opening a disk: which files, which format, which locks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::engine::Engine;
use super::engine::sync::Sync;
use super::engine::uring::Uring;
use super::file::HostFile;
use super::image::Image;
use super::qcow2::{Qcow2, is_qcow2};
use super::raw::Raw;
use super::{Disk, Info, SECTOR, overlay, qcow2, whole_sectors};

/// How long a lock is waited for. The kernel takes down the io_uring of a monitor that was killed after its
/// process is gone, and its files are open until then: who starts the next guest at once need not fail.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);
/// Owner may read and write.
const OVERLAY_MODE: u32 = 0o600;

/// Format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// By the file's name: qcow2 if it ends in `.qcow2`, else raw.
    #[default]
    ByName,
    /// By the file's first bytes. Only for images that no guest has written to as raw: a guest could
    /// write a header there.
    ByContent,
    /// The file is the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// By io_uring if the host has it, else as with `Sync`.
    #[default]
    IoUring,
    /// By ordinary system calls, which the event loop waits for.
    Sync,
}

/// What a flush does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Makes durable what was written.
    #[default]
    Writeback,
    /// Nothing: what was written is lost when the host stops, as the host likes.
    Unsafe,
}

/// Whether what is written goes elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// It goes into the image.
    #[default]
    None,
    /// It goes into a file that disappears with the disk.
    Temporary,
    /// The same, and what is not in there comes from an overlay that was written with a snapshot.
    Saved {
        /// The file, which stays as it is.
        path: PathBuf,
        /// Which snapshot.
        id: overlay::Id,
    },
    /// It goes into this file, which is made if it does not exist.
    File(PathBuf),
}

/// What disk to open, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Regular file or block device.
    pub path: PathBuf,
    /// It cannot be written to.
    pub read_only: bool,
    /// Of the file at `path`.
    pub format: Format,
    /// How bytes are moved.
    pub engine: EngineKind,
    /// What a flush does.
    pub cache: Cache,
    /// Whether what is written goes elsewhere.
    pub overlay: Overlay,
    /// Of a raw image without an overlay, whatever its size is: of a length that is no whole number of
    /// sectors the rest is left out, and an empty file is a disk of no sectors, which holds a place for
    /// another file. Any number of guests may have the same empty file, as long as it is empty.
    pub any_size: bool,
}

/// Why a disk cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host does not let us.
    #[error("Cannot open disk '{}'", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, pipe, socket or character device.
    #[error("Disk '{}' is neither a file nor a block device", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another guest or tool has it.
    #[error("Disk '{}' is in use: another disk or process {}", path.display(),
        if *writable { "has it open" } else { "writes to it" })]
    Locked {
        /// The file.
        path: PathBuf,
        /// It was to be opened for writing.
        writable: bool,
    },
    /// No whole sectors.
    #[error("Disk '{}' has {len} bytes, which is not a multiple of 512", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes.
        len: u64,
    },
    /// Nothing at all.
    #[error("Disk '{}' is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A read-only disk is to have an overlay.
    #[error("Disk '{}' is to be read-only and to have an overlay: choose one", path.display())]
    ReadOnlyOverlay {
        /// The file.
        path: PathBuf,
    },
    /// The image is bad.
    #[error("Cannot use qcow2 image '{}'", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: qcow2::Error,
    },
    /// The overlay is bad.
    #[error("Cannot use overlay '{}'", path.display())]
    Overlay {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: overlay::Error,
    },
    /// There is no place for a temporary overlay.
    #[error("Cannot make a temporary file in '{}'", path.display())]
    Temporary {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Disk {
    /// Opens and locks a disk.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let path = &options.path;
        let has_overlay = options.overlay != Overlay::None;
        if has_overlay && options.read_only {
            return Err(Error::ReadOnlyOverlay { path: path.clone() });
        }
        let opened = |source| Error::Open {
            path: path.clone(),
            source,
        };
        let writes_base = !options.read_only && !has_overlay;
        let file = open_file(path, writes_base)?;
        let any_size = options.any_size && !has_overlay && !is_format_qcow2(options, &file);
        let is_placeholder = any_size && file.len().map_err(opened)? == 0;
        let mut to_lock = writes_base && is_placeholder;
        lock(&file, path, writes_base && !is_placeholder)?;
        if is_placeholder && file.len().map_err(opened)? > 0 {
            // It became a disk just now.
            lock(&file, path, writes_base)?;
            to_lock = false;
        }
        let identity = file.identity().map_err(opened)?;
        let size = Arc::new(AtomicU64::new(0));
        let mut resizable = None;
        // The base is locked by its image, and looked at by its overlay.
        let mut base_file = None;
        let durable = options.cache == Cache::Writeback;
        let image: Box<dyn Image> = if is_format_qcow2(options, &file) {
            if has_overlay {
                base_file = Some(HostFile::open(path, false).map_err(opened)?);
            }
            let image = Qcow2::open(file, writes_base, durable);
            Box::new(image.map_err(|source| Error::Qcow2 {
                path: path.clone(),
                source,
            })?)
        } else {
            let len = file.len().map_err(opened)?;
            if len == 0 && !any_size {
                return Err(Error::Empty { path: path.clone() });
            }
            if !len.is_multiple_of(SECTOR) {
                if !any_size {
                    return Err(Error::Size {
                        path: path.clone(),
                        len,
                    });
                }
                log::warn!(
                    "Disk '{}' has {len} bytes: what is beyond its last whole sector of 512 is left out",
                    path.display()
                );
            }
            size.store(whole_sectors(len), Ordering::Release);
            let file = Arc::new(file);
            if !has_overlay {
                resizable = Some(Arc::clone(&file));
            } else {
                base_file = Some(HostFile::open(path, false).map_err(opened)?);
            }
            Box::new(Raw::new(file, Arc::clone(&size), writes_base && durable))
        };
        let image = match base_file {
            Some(base_file) => add_overlay(&options.overlay, image, &base_file)?,
            None => image,
        };
        size.store(image.size(), Ordering::Release);
        let info = Info {
            identity,
            preferred_size: image.preferred_size(),
            read_only: options.read_only,
            resizable,
            any_size,
            to_lock: AtomicBool::new(to_lock),
            size,
        };
        Ok(Self {
            cache: options.cache,
            info: Arc::new(info),
            engine: engine(options.engine, image.files()),
            image,
            pending: Vec::new(),
            in_flight: 0,
            done: Vec::new(),
            extents: Vec::new(),
            reaped: Vec::new(),
        })
    }
}

pub(super) fn open_and_lock(path: &Path, writable: bool) -> Result<HostFile, Error> {
    let file = open_file(path, writable)?;
    lock(&file, path, writable)?;
    Ok(file)
}

fn open_file(path: &Path, writable: bool) -> Result<HostFile, Error> {
    let opened = |source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::InvalidInput
            || source.kind() == io::ErrorKind::IsADirectory
        {
            Error::Kind { path }
        } else {
            Error::Open { path, source }
        }
    };
    HostFile::open(path, writable).map_err(opened)
}

fn lock(file: &HostFile, path: &Path, writable: bool) -> Result<(), Error> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut locked = file.lock(writable);
    while matches!(locked, Ok(false)) && Instant::now() < deadline {
        std::thread::sleep(LOCK_INTERVAL);
        locked = file.lock(writable);
    }
    match locked {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Locked {
            path: path.to_owned(),
            writable,
        }),
        Err(source) => Err(Error::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

fn is_format_qcow2(options: &Options, file: &HostFile) -> bool {
    match options.format {
        Format::ByName => options.path.extension().is_some_and(|end| end == "qcow2"),
        Format::ByContent => is_qcow2(file),
        Format::Raw => false,
        Format::Qcow2 => true,
    }
}

fn add_overlay(
    overlay: &Overlay,
    base: Box<dyn Image>,
    base_file: &HostFile,
) -> Result<Box<dyn Image>, Error> {
    let path = match overlay {
        Overlay::None => return Ok(base),
        Overlay::Temporary => return add_temporary(base, base_file),
        Overlay::Saved { path, id } => {
            let file = open_and_lock(path, false)?;
            let saved = overlay::Overlay::saved(base, base_file, file, id);
            let saved = saved.map_err(|source| Error::Overlay {
                path: path.clone(),
                source,
            })?;
            return add_temporary(Box::new(saved), base_file);
        }
        Overlay::File(path) => path,
    };
    let created = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(OVERLAY_MODE)
        .open(path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(Error::Open {
                path: path.clone(),
                source,
            });
        }
    }
    let file = open_and_lock(path, true)?;
    let overlay = overlay::Identity::of(base_file)
        .map_err(overlay::Error::from)
        .and_then(|identity| overlay::Overlay::persistent(base, identity, file));
    Ok(Box::new(overlay.map_err(|source| Error::Overlay {
        path: path.clone(),
        source,
    })?))
}

fn add_temporary(base: Box<dyn Image>, base_file: &HostFile) -> Result<Box<dyn Image>, Error> {
    let directory = std::env::temp_dir();
    let made = temporary_file(&directory)
        .and_then(|file| Ok((HostFile::new(file), overlay::Identity::of(base_file)?)));
    let (file, identity) = made.map_err(|source| Error::Temporary {
        path: directory,
        source,
    })?;
    Ok(Box::new(overlay::Overlay::temporary(base, identity, file)))
}

/// A file without a name.
fn temporary_file(directory: &Path) -> io::Result<File> {
    let unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(OVERLAY_MODE)
        .open(directory);
    match unnamed {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)
            ) && directory.is_dir() => {}
        result => return result,
    }
    // A file system without them: one that loses its name at once.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("mote-{}-{number}.overlay", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(OVERLAY_MODE)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

pub(super) fn engine(kind: EngineKind, files: Vec<Arc<HostFile>>) -> Box<dyn Engine> {
    static ONCE: Once = Once::new();
    if kind == EngineKind::IoUring {
        match Uring::new(files.clone()) {
            Ok(engine) => return Box::new(engine),
            Err(error) => ONCE.call_once(|| {
                log::warn!("Disks do without io_uring, as the host has none for us: {error}");
            }),
        }
    }
    Box::new(Sync::new(files))
}
