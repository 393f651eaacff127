//! Which kernel, initial RAM disk and command line a guest gets: flags first, then the configuration
//! file, then what is there by default.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use api::types::{BootSource, VmConfig};
use image::cache::Cache;
use image::initramfs::Purpose;
use thiserror::Error;

use crate::args::RunArgs;
use crate::console::{ConsoleKind, ConsoleOption};
use crate::devices::{is_root_read_only, pmem};

/// Debian's busybox-static puts it here.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Why there is nothing to boot.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// No kernel was named, and none is cached.
    #[error(
        "There is no guest kernel yet: run resources/kernel/packaged.sh (Debian's kernel, in \
         seconds) or resources/kernel/build.sh (mote's own, in minutes), or name one with --kernel"
    )]
    NoKernel,
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] image::kernel::Error),
    /// The default initial RAM disk cannot be made.
    #[error(transparent)]
    Initramfs(#[from] image::initramfs::Error),
    /// The initrd cannot be opened.
    #[error("Cannot use the initrd {path:?}")]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// What a guest boots.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The kernel as it was named, or found: `kernel` may be what that unpacks to.
    pub kernel_path: PathBuf,
    /// The kernel as it is loaded.
    pub kernel: image::kernel::Kernel,
    /// Initial RAM disk, and where it came from.
    pub initrd: Option<(File, PathBuf)>,
    /// That was made just now.
    pub initrd_is_new: bool,
    /// Kernel command line.
    pub cmdline: String,
    /// Its console.
    pub console: ConsoleKind,
}

/// Chooses and opens all of it.
pub(crate) fn choose(
    args: &RunArgs,
    file: &VmConfig,
    console: &ConsoleOption,
    purpose: Purpose,
) -> Result<Guest, Error> {
    let cache = Cache::from_env();
    let source = Some(&file.boot_source).filter(|source| **source != BootSource::default());
    let named = args
        .kernel
        .as_deref()
        .or(source.map(|source| Path::new(&source.kernel_image_path)));
    let (kernel_path, modules) = match named {
        Some(path) => (path.to_path_buf(), None),
        None => default_kernel(&cache).ok_or(Error::NoKernel)?,
    };
    let kernel = image::kernel::open(&kernel_path, &cache)?;
    let is_tuned = named.is_none() && modules.is_none();
    let console = console.kind.unwrap_or_else(|| {
        let words = [whole_cmdline(args, file), args.append.as_deref()];
        match console_word(words.into_iter().flatten()) {
            Some(name) if name.starts_with("hvc") => ConsoleKind::Virtio,
            Some(_) => ConsoleKind::Serial,
            // Other kernels may have no driver for it, or a late one.
            None if is_tuned && console.is_interactive() => ConsoleKind::Virtio,
            None => ConsoleKind::Serial,
        }
    });

    let initrd_path = args
        .initrd
        .clone()
        .or(source.and_then(|source| source.initrd_path.as_ref().map(PathBuf::from)));
    let mut initrd_is_new = false;
    let initrd = match initrd_path {
        Some(path) => Some((open_initrd(&path)?, path)),
        // A configuration file that names a kernel and no initrd means what it says.
        None if source.is_some() => None,
        // The kernel mounts its root by itself; a command is what the initial RAM disk is needed for.
        None if has_root(args, file)
            && modules.is_none()
            && args.command.is_empty()
            && purpose == Purpose::Shell =>
        {
            None
        }
        None => {
            let initramfs = image::initramfs::default_initramfs(
                &cache,
                modules.as_deref(),
                Path::new(BUSYBOX),
                purpose,
            )?;
            initrd_is_new = initramfs.is_new;
            Some((initramfs.file, initramfs.path))
        }
    };
    Ok(Guest {
        kernel_path,
        kernel,
        initrd,
        initrd_is_new,
        cmdline: cmdline(args, file, console, purpose),
        console,
    })
}

/// The tuned kernel where it is cached, else the packaged one with its modules.
pub(crate) fn default_kernel(cache: &Cache) -> Option<(PathBuf, Option<PathBuf>)> {
    let kernels = cache.root()?.join("kernel");
    let tuned = kernels.join("tuned/vmlinux");
    if tuned.exists() {
        return Some((tuned, None));
    }
    let packaged = kernels.join("packaged");
    let vmlinuz = packaged.join("vmlinuz");
    vmlinuz
        .exists()
        .then(|| (vmlinuz, Some(packaged.join("modules"))))
}

fn open_initrd(path: &Path) -> Result<File, Error> {
    let wrong = |source| Error::Initrd {
        path: path.to_path_buf(),
        source,
    };
    let invalid = |what| wrong(io::Error::new(io::ErrorKind::InvalidInput, what));
    // Opening something else than a file can wait for ever, or do something.
    if !fs::metadata(path).map_err(wrong)?.is_file() {
        return Err(invalid(
            "it is no regular file, and only a file can be mapped",
        ));
    }
    let file = File::open(path).map_err(wrong)?;
    if file.metadata().map_err(wrong)?.len() == 0 {
        return Err(invalid("it is empty: copy it again"));
    }
    Ok(file)
}

/// Whether a device has the root file system.
fn has_root(args: &RunArgs, file: &VmConfig) -> bool {
    args.rootfs.is_some() || pmem::root(args).is_some() || vmm::control::root_words(file).is_some()
}

/// The last console that a command line names: the one that /dev/console is.
fn console_word<'a>(lines: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    lines
        .flat_map(str::split_ascii_whitespace)
        .filter_map(|word| word.strip_prefix("console="))
        .last()
}

/// `--cmdline` or the file's `boot_args`.
fn whole_cmdline<'a>(args: &'a RunArgs, file: &'a VmConfig) -> Option<&'a str> {
    let words = file.boot_source.boot_args.as_deref();
    args.cmdline.as_deref().or(words)
}

/// The whole command line as it is; otherwise mote's own words.
fn cmdline(args: &RunArgs, file: &VmConfig, console: ConsoleKind, purpose: Purpose) -> String {
    let mut cmdline = match whole_cmdline(args, file) {
        Some(whole) => whole.to_owned(),
        None => default_cmdline(args, console),
    };
    // A device of the file's that has the root file system; flags say it by themselves.
    if let Some(root) = vmm::control::root_words(file) {
        cmdline.push(' ');
        cmdline.push_str(&root);
    }
    if let Some(more) = &args.append {
        cmdline.push(' ');
        cmdline.push_str(more);
    }
    if purpose == Purpose::Jobs {
        cmdline.push_str(" mote.jobs");
    }
    if !args.command.is_empty() {
        cmdline.push_str(" mote.exec=");
        cmdline.push_str(&image::initramfs::encode_command(&args.command));
    }
    cmdline
}

/// - `quiet`: every character on a serial port is an exit; a panic is printed all the same, and
///   `panic=-1` ends the guest at once, by the `reboot=k`eyboard controller, which is the quickest way.
/// - `pci=conf1,noearly`: there is no PCI, and no need to look for it, unless it was asked for.
/// - `noreplace-smp`: a kernel with one CPU leaves its lock prefixes. Taking them out writes to nearly
///   every page of its text, which is then no longer shared with other guests (docs/start-up.md).
fn default_cmdline(args: &RunArgs, console: ConsoleKind) -> String {
    let hostname = args.id.as_deref().unwrap_or("mote");
    let console = match console {
        ConsoleKind::Virtio => "console=hvc0 ",
        ConsoleKind::Serial => "console=ttyS0 ",
        ConsoleKind::Off => "",
    };
    let access = |read_only| if read_only { "ro" } else { "rw" };
    let root = match (&args.rootfs, pmem::root(args)) {
        (Some(rootfs), _) => format!("root=/dev/vda {} ", access(is_root_read_only(rootfs))),
        (None, Some((index, read_only))) => {
            format!("root=/dev/pmem{index} {} ", access(read_only))
        }
        (None, None) => String::new(),
    };
    let pci = if args.pci { "" } else { "pci=conf1,noearly " };
    format!("{console}{root}quiet panic=-1 reboot=k {pci}noreplace-smp hostname={hostname}")
}
