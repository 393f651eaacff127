//! The default user space: an initramfs of busybox and a few lines of init, made once and kept.
//!
//! It is a cpio archive in the "newc" format (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: it is mapped into
//! the guest, and unpacking it would cost every start. What it is made from is identified by inode,
//! size and times, so that a later start does not read it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpio::newc::{self, ModeFileType};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{Cache, CachedFile, Identity, hex};
use crate::elf;

pub use crate::elf::Error as ElfError;

/// Where initramfs are in the cache.
const AREA: &str = "initramfs";
/// What the first process does.
const INIT: &str = include_str!("initramfs/init.sh");
/// What runs commands one after the other, in guests that templates are made of (image/build.rs).
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
/// Where it is.
const AGENT_PATH: &str = "bin/mote-agent";
/// What busybox's DHCP client calls to set up an interface.
const DHCP: &str = include_str!("initramfs/dhcp.sh");
/// Where Debian's busybox looks for it, and where it was meant to be.
const DHCP_PATHS: [&str; 2] = [
    "etc/udhcpc/default.script",
    "usr/share/udhcpc/default.script",
];
/// Counts changes of how the archive is laid out.
const LAYOUT: u32 = 2;
/// Modules are read from here, in the order of their names.
const MODULES: &str = "lib/modules/mote";
/// Far more than a guest needs; the archive is put together in memory.
const MAX_MODULES: usize = 256;

/// Why the default initramfs cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The one program in it is not there.
    #[error(
        "The default guest needs {path:?}: install it (Debian: apt install busybox-static), or \
         name an initrd with --initrd"
    )]
    NoBusybox {
        /// Where it was looked for.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It would not run on its own.
    #[error(
        "The default guest cannot use {path:?}: install a static busybox (Debian: apt install \
         busybox-static), or name an initrd with --initrd"
    )]
    Busybox {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// It does not tell what it can do.
    #[error("Cannot ask {path:?} which programs it has")]
    Applets {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A module or busybox could not be read.
    #[error("Cannot read {path:?}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// There is no place for the archive, on disk or in memory.
    #[error("Cannot write the default initramfs")]
    Write {
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// What the default user space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A shell, or one command that is on the kernel's command line.
    Shell,
    /// Jobs, which come by the job port, if the word `mote.jobs` is on the kernel's command line.
    Jobs,
}

/// Makes the initramfs that boots into a shell, or finds that it has been made.
///
/// `modules` is a directory of kernel modules, loaded in the order of their names. `busybox` must
/// be statically linked.
pub fn default_initramfs(
    cache: &Cache,
    modules: Option<&Path>,
    busybox: &Path,
    purpose: Purpose,
) -> Result<CachedFile, Error> {
    let modules = modules.map_or(Ok(Vec::new()), list_modules)?;
    let busybox_identity = fs::metadata(busybox)
        .map(|metadata| Identity::of(&metadata))
        .map_err(|source| Error::NoBusybox {
            path: busybox.to_owned(),
            source,
        })?;
    let mut settled = busybox_identity.is_settled();
    let mut key = Sha256::new();
    key.update(format!("{LAYOUT}\n{INIT}\n{DHCP}\n{busybox_identity}\n"));
    let agent = (purpose == Purpose::Jobs).then_some(AGENT);
    if let Some(agent) = agent {
        key.update(agent);
    }
    for path in &modules {
        let identity = fs::metadata(path)
            .map(|metadata| Identity::of(&metadata))
            .map_err(read_error(path))?;
        settled &= identity.is_settled();
        key.update(path.as_os_str().as_encoded_bytes());
        key.update(format!("\n{identity}\n"));
    }
    let key = hex(&key.finalize());
    if let Some(found) = cache.find(AREA, &key) {
        return Ok(found);
    }

    let archive = build(busybox, &modules, agent)?;
    let write_error = |source| Error::Write { source };
    let name = format!("{}.cpio", hex(&Sha256::digest(&archive)));
    let mut draft = cache.draft(AREA, &name).map_err(write_error)?;
    draft.write_all(&archive).map_err(write_error)?;
    let keys = [key.as_str()];
    Ok(draft.finish(if settled { &keys } else { &[] }))
}

/// Writes a command so that it is one word on a kernel command line, for the default initramfs to
/// run with exactly these arguments: `mote.exec=<this>`.
pub fn encode_command(arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments
        .iter()
        .map(|argument| format!("'{}'", argument.replace('\'', r"'\''")))
        .collect();
    let mut encoded = String::new();
    for byte in quoted.join(" ").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02x}")),
        }
    }
    encoded
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Read {
        path: path.to_owned(),
        source,
    }
}

/// Lists the modules of a directory in the order in which they are loaded.
fn list_modules(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut modules = Vec::new();
    for entry in fs::read_dir(directory).map_err(read_error(directory))? {
        let path = entry.map_err(read_error(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "ko") {
            modules.push(path);
        }
    }
    modules.sort();
    modules.truncate(MAX_MODULES);
    Ok(modules)
}

/// Puts the archive together.
fn build(busybox: &Path, modules: &[PathBuf], agent: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    let program = File::open(busybox).map_err(read_error(busybox))?;
    let size = program.metadata().map_err(read_error(busybox))?.len();
    elf::check_static_executable(&program, size).map_err(|source| Error::Busybox {
        path: busybox.to_owned(),
        source,
    })?;
    let mut archive = Archive::default();
    archive.put(|archive| {
        for directory in [
            "bin",
            "dev",
            "etc",
            "etc/udhcpc",
            "lib",
            "lib/modules",
            MODULES,
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "usr",
            "usr/share",
            "usr/share/udhcpc",
        ] {
            archive.directory(directory)?;
        }
        // Without it the kernel gives the first process no standard streams.
        archive.character_device("dev/console", 5, 1)?;
        archive.symlink("sbin", "bin")?;
        archive.symlink("usr/bin", "../bin")?;
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.file("etc/group", 0o644, b"root:x:0:\n")?;
        for path in DHCP_PATHS {
            archive.file(path, 0o755, DHCP.as_bytes())?;
        }
        archive.file("init", 0o755, INIT.as_bytes())
    })?;
    let program = fs::read(busybox).map_err(read_error(busybox))?;
    let applets = applets(busybox).map_err(|source| Error::Applets {
        path: busybox.to_owned(),
        source,
    })?;
    if let Some(agent) = agent {
        archive.put(|archive| archive.file(AGENT_PATH, 0o755, agent))?;
    }
    archive.put(|archive| {
        archive.file("bin/busybox", 0o755, &program)?;
        for applet in &applets {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        Ok(())
    })?;
    for path in modules {
        let module = fs::read(path).map_err(read_error(path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.put(|archive| archive.file(&format!("{MODULES}/{name}"), 0o644, &module))?;
    }
    archive.finish()
}

/// Asks busybox for the names it answers to.
fn applets(busybox: &Path) -> io::Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| !name.is_empty() && *name != "busybox" && !name.contains('/'))
        .map(str::to_owned)
        .collect();
    if !output.status.success() || names.is_empty() {
        return Err(io::Error::other("`busybox --list` failed"));
    }
    Ok(names)
}

/// A cpio archive that is being written. Every entry belongs to root and is as old as the epoch,
/// so that the same contents make the same archive.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn put(&mut self, add: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), Error> {
        add(self).map_err(|source| Error::Write { source })
    }

    fn entry(&mut self, entry: newc::Builder, contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(contents.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut writer = entry
            .ino(self.entries)
            .nlink(1)
            .write(&mut self.bytes, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }

    fn directory(&mut self, path: &str) -> io::Result<()> {
        let entry = newc::Builder::new(path)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory);
        self.entry(entry, &[])
    }

    fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        let entry = newc::Builder::new(path)
            .mode(permissions)
            .set_mode_file_type(ModeFileType::Regular);
        self.entry(entry, contents)
    }

    fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let entry = newc::Builder::new(path)
            .mode(0o777)
            .set_mode_file_type(ModeFileType::Symlink);
        self.entry(entry, target.as_bytes())
    }

    fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let entry = newc::Builder::new(path)
            .mode(0o600)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(major)
            .rdev_minor(minor);
        self.entry(entry, &[])
    }

    fn finish(mut self) -> Result<Vec<u8>, Error> {
        newc::trailer(&mut self.bytes).map_err(|source| Error::Write { source })?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests;
