//! Kernels: whatever the user names becomes an ELF vmlinux that can be mapped.
//!
//! A bzImage is a small program that unpacks the kernel it carries. Having the guest do that
//! costs every start tens to hundreds of milliseconds and memory that no two guests share. So
//! the host does it, once: the vmlinux is kept in the [`Cache`] by the contents of the bzImage,
//! and by its identity (inode, size and times), so that later starts do not read it at all.
//! Where the host cannot unpack it, the bzImage itself is handed back, with the reason.
//!
//! The file is untrusted. `bzimage` checks its header, `decompress` bounds what it unpacks to,
//! and what comes out must be an x86-64 executable; what the loader does with that is checked by
//! the loader.

mod bzimage;
mod decompress;
mod lzo;

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{Cache, CachedFile, Identity, hex};
use crate::elf;
use bzimage::BzImage;

pub use crate::elf::Error as ElfError;
pub use bzimage::Error as BzImageError;
pub use decompress::{Error as DecompressError, Format};

/// Where unpacked kernels are in the cache.
const AREA: &str = "kernels";

/// How much of a file tells what it is: covers the bzImage header and every magic number below.
const HEAD_SIZE: usize = 4096;

/// The largest bzImage that is unpacked. Distributions' are 5 to 20 MiB. It is read into memory
/// as a whole, so that what is hashed and what is unpacked cannot differ.
const MAX_BZIMAGE_SIZE: u64 = 256 << 20;

/// Beginnings of files that are taken for kernels: offset, bytes, what it is.
const NOT_KERNELS: [(usize, &[u8], &str); 17] = [
    (0x38, b"ARM\x64", "an arm64 kernel Image"),
    (0x38, b"RSC\x05", "a RISC-V kernel Image"),
    (0x24, &[0x18, 0x28, 0x6f, 0x01], "a 32-bit Arm zImage"),
    (4, b"zimg", "an EFI zboot kernel for another processor"),
    (0, &[0x27, 0x05, 0x19, 0x56], "a U-Boot image"),
    (0, b"MZ", "an EFI program"),
    (0, b"07070", "a cpio archive (an initramfs?)"),
    (
        0,
        &[0x1f, 0x8b],
        "gzip data (an initramfs? a vmlinux to unpack first?)",
    ),
    (
        0,
        b"\xfd7zXZ\0",
        "xz data (an initramfs? a vmlinux to unpack first?)",
    ),
    (
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
        "zstd data (an initramfs? a vmlinux to unpack first?)",
    ),
    (
        0,
        &[0x02, 0x21, 0x4c, 0x18],
        "lz4 data (an initramfs? a vmlinux to unpack first?)",
    ),
    (
        0,
        b"BZh",
        "bzip2 data (an initramfs? a vmlinux to unpack first?)",
    ),
    (0, b"!<arch>\n", "a package or a library"),
    (0, b"#!", "a script"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs image"),
    (0x1fe, &[0x55, 0xaa], "a boot sector or a disk image"),
];

/// Why a file cannot be booted, or why it can only be booted as it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such file, or it may not be read.
    #[error("Cannot open the kernel {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A directory, a device and the like.
    #[error("The kernel {path:?} is {what}: name a vmlinux or bzImage file")]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Nothing in it.
    #[error("The kernel {path:?} is empty: copy it again")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Reading failed.
    #[error("Cannot read the kernel {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("{path:?} is {what}, not a kernel: mote boots an x86-64 ELF vmlinux or a bzImage")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// An ELF file that is no vmlinux for mote.
    #[error("Cannot boot the ELF file {path:?}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// A bzImage whose header is wrong.
    #[error("Cannot boot the bzImage {path:?}")]
    BzImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BzImageError,
    },
    /// A bzImage that is larger than is read.
    #[error(
        "Cannot unpack the bzImage {path:?} on the host: it is {size} bytes, more than {MAX_BZIMAGE_SIZE}"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A bzImage whose payload cannot be unpacked here.
    #[error("Cannot unpack the bzImage {path:?} on the host")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DecompressError,
    },
    /// A bzImage that carries something that is no vmlinux for mote.
    #[error("What the bzImage {path:?} unpacks to cannot be booted")]
    Unpacked {
        /// The file.
        path: PathBuf,
        /// What is wrong with what it carries.
        #[source]
        source: ElfError,
    },
    /// Somebody wrote to the file.
    #[error("The kernel {path:?} was changed while it was read: try again")]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// How the guest is to be started from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ELF vmlinux: its segments are mapped.
    Elf,
    /// A bzImage that unpacks itself in the guest.
    BzImage,
}

/// A kernel to boot.
#[derive(Debug)]
pub struct Kernel {
    /// Open for reading.
    pub file: File,
    /// The name of `file`: the one that was given, or that of the unpacked kernel (see
    /// [`CachedFile::path`]).
    pub path: PathBuf,
    /// What `file` is.
    pub kind: Kind,
    /// With [`Kind::BzImage`], why it could not be unpacked on the host.
    pub fallback: Option<Error>,
    /// It was unpacked just now.
    pub is_new: bool,
}

impl Kernel {
    fn elf(found: CachedFile) -> Self {
        let CachedFile { file, path, is_new } = found;
        Self {
            file,
            path,
            is_new,
            kind: Kind::Elf,
            fallback: None,
        }
    }
}

/// Opens a kernel and unpacks it if that is needed and possible.
///
/// Fails only where there is nothing to boot.
pub fn open(path: &Path, cache: &Cache) -> Result<Kernel, Error> {
    let open_error = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(open_error)?;
    if let Some(vmlinux) = find(cache, &Identity::of(&metadata).to_string()) {
        return Ok(Kernel::elf(vmlinux));
    }

    // Opening something else than a file can wait for ever, or do something.
    check_file_type(path, &metadata)?;
    let file = File::open(path).map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    check_file_type(path, &metadata)?;
    if metadata.len() == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    let head = read_head(&file).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    if head.starts_with(&elf::MAGIC) {
        elf::check_static_executable(&file, metadata.len()).map_err(|source| Error::Elf {
            path: path.to_owned(),
            source,
        })?;
        let path = path.to_owned();
        let is_new = false;
        return Ok(Kernel::elf(CachedFile { file, path, is_new }));
    }
    if !bzimage::is_bzimage(&head) {
        let what = NOT_KERNELS
            .iter()
            .find(|(offset, magic, _)| {
                head.get(*offset..)
                    .is_some_and(|rest| rest.starts_with(magic))
            })
            .map_or("something else", |(_, _, what)| what);
        let path = path.to_owned();
        return Err(Error::NotAKernel { path, what });
    }

    let bzimage = bzimage::parse(&head, metadata.len()).map_err(|source| Error::BzImage {
        path: path.to_owned(),
        source,
    })?;
    match unpack(path, &file, &metadata, &bzimage, cache) {
        Ok(vmlinux) => Ok(Kernel::elf(vmlinux)),
        Err(error @ (Error::Read { .. } | Error::Changed { .. })) => Err(error),
        Err(reason) if bzimage.unpacks_itself => Ok(Kernel {
            file,
            path: path.to_owned(),
            kind: Kind::BzImage,
            fallback: Some(reason),
            is_new: false,
        }),
        Err(error) => Err(error),
    }
}

/// Finds an unpacked kernel in the cache, if it is one.
fn find(cache: &Cache, key: &str) -> Option<CachedFile> {
    let found = cache.find(AREA, key)?;
    let size = found.file.metadata().ok()?.len();
    elf::check_static_executable(&found.file, size)
        .is_ok()
        .then_some(found)
}

fn check_file_type(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let file_type = metadata.file_type();
    let what = match () {
        () if file_type.is_file() => return Ok(()),
        () if file_type.is_dir() => "a directory",
        () if file_type.is_fifo() => "a named pipe",
        () if file_type.is_socket() => "a socket",
        () => "a device",
    };
    let path = path.to_owned();
    Err(Error::NotAFile { path, what })
}

/// Reads the beginning of a file, up to [`HEAD_SIZE`].
fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_SIZE);
    file.take(HEAD_SIZE as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Unpacks a bzImage, or finds that it has been.
fn unpack(
    path: &Path,
    file: &File,
    metadata: &Metadata,
    bzimage: &BzImage,
    cache: &Cache,
) -> Result<CachedFile, Error> {
    let read_error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let unpack_error = |source| Error::Unpack {
        path: path.to_owned(),
        source,
    };
    // What cannot be unpacked need not be read: every start comes here then.
    let mut magic = [0; Format::MAGIC_SIZE];
    let count = file
        .read_at(&mut magic, bzimage.payload.start)
        .map_err(read_error)?;
    Format::detect(&magic[..count]).map_err(unpack_error)?;
    let size = metadata.len();
    if size > MAX_BZIMAGE_SIZE {
        let path = path.to_owned();
        return Err(Error::TooLarge { path, size });
    }

    let identity = Identity::of(metadata);
    let is_settled = identity.is_settled();
    let changed = || Error::Changed {
        path: path.to_owned(),
    };
    let contents = read_all(file, size).map_err(read_error)?;
    if Identity::of(&file.metadata().map_err(read_error)?) != identity {
        return Err(changed());
    }
    let payload = slice(&contents, &bzimage.payload).ok_or_else(changed)?;

    let hash = hex(&Sha256::digest(&contents));
    let identity = identity.to_string();
    if let Some(vmlinux) = find(cache, &hash) {
        if is_settled {
            cache.record(AREA, &identity, &vmlinux);
        }
        return Ok(vmlinux);
    }
    let mut draft = cache
        .draft(AREA, &format!("{hash}/vmlinux"))
        .map_err(|source| unpack_error(DecompressError::Write { source }))?;
    let size = decompress::decompress(payload, &mut draft).map_err(unpack_error)?;
    elf::check_static_executable(draft.file(), size.into()).map_err(|source| Error::Unpacked {
        path: path.to_owned(),
        source,
    })?;
    let keys = [hash.as_str(), identity.as_str()];
    Ok(draft.finish(if is_settled { &keys } else { &keys[..1] }))
}

/// Reads a file of `size` bytes from its beginning.
fn read_all(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut contents = vec![0; size];
    file.read_exact_at(&mut contents, 0)?;
    Ok(contents)
}

fn slice<'a>(bytes: &'a [u8], range: &std::ops::Range<u64>) -> Option<&'a [u8]> {
    bytes.get(range.start.try_into().ok()?..range.end.try_into().ok()?)
}

#[cfg(test)]
mod tests;
