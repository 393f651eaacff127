use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use sample::{FORMATS, bzimage, payload, set, vmlinux};

mod hostile;
pub(super) mod sample;

/// A directory with kernels and a cache of its own.
struct Place {
    dir: TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let cache = Cache::new(Some(dir.as_path().join("cache")));
        Self { dir, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_path().join(name)
    }

    /// Writes a file, and waits until its identity counts.
    fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        settle(&path);
        path
    }

    fn open(&self, path: &Path) -> Result<Kernel, Error> {
        super::open(path, &self.cache)
    }

    fn open_contents(&self, contents: &[u8]) -> Result<Kernel, Error> {
        self.open(&self.write("kernel", contents))
    }

    fn index(&self) -> PathBuf {
        self.path("cache/kernels/index")
    }
}

fn settle(path: &Path) {
    while !Identity::of(&fs::metadata(path).unwrap()).is_settled() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn contents(kernel: &Kernel) -> Vec<u8> {
    let size = kernel.file.metadata().unwrap().len();
    read_all(&kernel.file, size).unwrap()
}

fn inode(kernel: &Kernel) -> u64 {
    kernel.file.metadata().unwrap().ino()
}

/// A cause after the other, as the user sees it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[track_caller]
fn assert_unpacked(kernel: &Kernel, expected: &[u8]) {
    assert_eq!(kernel.kind, Kind::Elf);
    assert!(kernel.fallback.is_none());
    assert!(contents(kernel) == expected);
    // The name is as good as the file.
    assert!(fs::read(&kernel.path).unwrap() == expected);
}

#[test]
fn a_vmlinux_is_taken_as_it_is() {
    let place = Place::new();
    let path = place.write("vmlinux", &vmlinux(5000, 1));
    let kernel = place.open(&path).unwrap();
    assert_unpacked(&kernel, &vmlinux(5000, 1));
    assert_eq!(kernel.path, path);
    assert_eq!(inode(&kernel), fs::metadata(&path).unwrap().ino());
    assert!(!place.path("cache").exists());
    // So is one that is as small as its headers, and one that a link names.
    let mut small = vmlinux(0x100, 1);
    small.truncate(64 + 2 * 56);
    set(&mut small, 96, 8, 0);
    set(&mut small, 72, 8, 64);
    assert_unpacked(&place.open_contents(&small).unwrap(), &small);
    symlink(&path, place.path("link")).unwrap();
    let kernel = place.open(&place.path("link")).unwrap();
    assert_eq!(inode(&kernel), fs::metadata(&path).unwrap().ino());
}

#[test]
fn a_name_must_lead_to_a_file() {
    let place = Place::new();
    let error = place.open(&place.path("none")).unwrap_err();
    assert!(
        matches!(&error, Error::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
    symlink("none", place.path("dangling")).unwrap();
    symlink("loop", place.path("loop")).unwrap();
    for name in ["dangling", "loop", "none/below"] {
        let error = place.open(&place.path(name)).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{name}");
    }
    assert!(matches!(place.open(Path::new("")), Err(Error::Open { .. })));

    fs::create_dir(place.path("directory")).unwrap();
    mkfifoat(CWD, place.path("fifo"), Mode::RUSR).unwrap();
    let _listener = UnixListener::bind(place.path("socket")).unwrap();
    for (path, expected) in [
        (place.path("directory"), "a directory"),
        // Nobody writes into it: opening it would wait for ever.
        (place.path("fifo"), "a named pipe"),
        (place.path("socket"), "a socket"),
        ("/dev/null".into(), "a device"),
    ] {
        let error = place.open(&path).unwrap_err();
        assert!(
            matches!(error, Error::NotAFile { what, .. } if what == expected),
            "{expected}"
        );
    }
    assert!(matches!(place.open_contents(b""), Err(Error::Empty { .. })));
}

#[test]
fn a_file_that_may_not_be_read_is_an_error() {
    let place = Place::new();
    let path = place.write("vmlinux", &vmlinux(5000, 1));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    if File::open(&path).is_ok() {
        return; // to root, nothing is forbidden
    }
    let error = place.open(&path).unwrap_err();
    assert!(
        matches!(error, Error::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    );
}

#[test]
fn other_files_are_told_from_kernels() {
    let place = Place::new();
    for (offset, magic, expected) in NOT_KERNELS {
        for size in [offset + magic.len(), 700, 2 * HEAD_SIZE] {
            let mut file = vec![0; size.max(offset + magic.len())];
            file[offset..offset + magic.len()].copy_from_slice(magic);
            match super::open(&write_new(&place, &file), &place.cache) {
                Err(Error::NotAKernel { what, .. }) => assert_eq!(what, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
    // These begin like EFI programs, and say more later on.
    for magic in [b"ARM\x64", b"RSC\x05"] {
        let mut file = vec![0; 1000];
        file[..2].copy_from_slice(b"MZ");
        file[0x38..0x3c].copy_from_slice(magic);
        let error = super::open(&write_new(&place, &file), &place.cache).unwrap_err();
        assert!(chain(&error).contains("kernel Image"));
    }
    for file in [&b"\n"[..], b"\x7fEL", b"hello, world", &[0xff; 10_000]] {
        let error = super::open(&write_new(&place, file), &place.cache).unwrap_err();
        assert!(matches!(
            error,
            Error::NotAKernel {
                what: "something else",
                ..
            }
        ));
    }
}

/// Writes a file that nothing is cached of, without waiting.
fn write_new(place: &Place, contents: &[u8]) -> PathBuf {
    let path = place.path("new");
    fs::write(&path, contents).unwrap();
    path
}

#[test]
fn an_elf_file_must_be_a_whole_static_x86_64_executable() {
    let place = Place::new();
    for (offset, width, value, expected) in [
        (18, 2, 3, "made for 32-bit x86"),
        (18, 2, 40, "made for 32-bit Arm"),
        (18, 2, 183, "made for arm64"),
        (18, 2, 243, "made for RISC-V"),
        (18, 2, 258, "made for LoongArch"),
        (18, 2, 21, "made for ELF machine 21"),
        (5, 1, 2, "made for a big-endian processor"),
        (4, 1, 1, "32-bit pointers"),
        (16, 2, 1, "an object file or a kernel module"),
        (16, 2, 4, "a core dump"),
        (16, 2, 0, "of ELF type 0"),
        (54, 2, 32, "program headers are 32 bytes each"),
        (56, 2, 0, "has 0 program headers"),
        (56, 2, 0xffff, "has 65535 program headers"),
        (
            32,
            8,
            4999,
            "program headers end at byte 5111, the file at 5000",
        ),
        (32, 8, u64::MAX, "cut short: its program headers end"),
        (64, 4, 0, "no segment is to be loaded"),
        (120, 4, 3, "dynamically linked"),
        (72, 8, 0x101, "segments end at byte 5001, the file at 5000"),
        (96, 8, u64::MAX, "cut short: its segments end"),
    ] {
        let mut elf = vmlinux(5000, 1);
        set(&mut elf, offset, width, value);
        let error = super::open(&write_new(&place, &elf), &place.cache).unwrap_err();
        assert!(matches!(error, Error::Elf { .. }));
        assert!(
            chain(&error).contains(expected),
            "{expected}: {}",
            chain(&error)
        );
        // The same in a bzImage. That can still try its own luck.
        let image = bzimage(&payload(Format::Lz4, &elf));
        let kernel = super::open(&write_new(&place, &image), &place.cache).unwrap();
        assert_eq!(kernel.kind, Kind::BzImage);
        let error = kernel.fallback.unwrap();
        assert!(matches!(error, Error::Unpacked { .. }));
        assert!(
            chain(&error).contains(expected),
            "{expected}: {}",
            chain(&error)
        );
    }
    // Position-independent executables are static, too.
    let mut elf = vmlinux(5000, 1);
    set(&mut elf, 16, 2, 3);
    assert_unpacked(&place.open_contents(&elf).unwrap(), &elf);
}

#[test]
fn a_bzimage_is_unpacked_whatever_its_compression() {
    for format in FORMATS {
        let place = Place::new();
        // More than one chunk and one LZO block; LZMA and XZ are slow without optimization.
        for size in [5000, 300_000] {
            let elf = vmlinux(size, 2);
            let kernel = place
                .open_contents(&bzimage(&payload(format, &elf)))
                .unwrap();
            assert_unpacked(&kernel, &elf);
            assert!(
                kernel.path.starts_with(place.path("cache/kernels")),
                "{format}"
            );
        }
    }
}

#[test]
fn the_second_start_does_not_read_the_bzimage() {
    let place = Place::new();
    let elf = vmlinux(5000, 3);
    let path = place.write("bzImage", &bzimage(&payload(Format::Gzip, &elf)));
    let first = place.open(&path).unwrap();
    // Had it been read, its contents would have been looked for, and not found.
    let hash = hex(&Sha256::digest(fs::read(&path).unwrap()));
    fs::remove_file(place.index().join(&hash)).unwrap();
    let second = place.open(&path).unwrap();
    assert_unpacked(&second, &elf);
    assert_eq!((inode(&second), &second.path), (inode(&first), &first.path));
    assert!(!place.index().join(&hash).exists());
}

#[test]
fn a_copy_shares_the_vmlinux() {
    let place = Place::new();
    let elf = vmlinux(5000, 4);
    let image = bzimage(&payload(Format::Gzip, &elf));
    let first = place.open(&place.write("bzImage", &image)).unwrap();
    let copy = place.write("copy", &image);
    let second = place.open(&copy).unwrap();
    assert_unpacked(&second, &elf);
    assert_eq!((inode(&second), &second.path), (inode(&first), &first.path));
    // From now on by its identity.
    let hash = hex(&Sha256::digest(&image));
    fs::remove_file(place.index().join(hash)).unwrap();
    assert_eq!(inode(&place.open(&copy).unwrap()), inode(&first));
    // A link has no identity of its own.
    symlink("copy", place.path("link")).unwrap();
    assert_eq!(
        inode(&place.open(&place.path("link")).unwrap()),
        inode(&first)
    );
}

#[test]
fn a_modified_bzimage_is_unpacked_again() {
    let place = Place::new();
    let stored = |elf: &[u8]| bzimage(&payload(Format::Lz4, elf));
    let path = place.write("bzImage", &stored(&vmlinux(5000, 5)));
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    let first = place.open(&path).unwrap();
    // In its place, with its name and its time.
    let mut changed = vmlinux(5000, 5);
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&path, stored(&changed)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(times).unwrap();
    let second = place.open(&path).unwrap();
    assert_unpacked(&second, &changed);
    assert_ne!((inode(&second), &second.path), (inode(&first), &first.path));
    // The first one is still what it was.
    assert_unpacked(&first, &vmlinux(5000, 5));
}

#[test]
fn a_bzimage_that_was_just_written_is_not_recorded_by_its_identity() {
    let place = Place::new();
    let path = place.path("bzImage");
    fs::write(&path, bzimage(&payload(Format::Gzip, &vmlinux(5000, 6)))).unwrap();
    let identity = Identity::of(&fs::metadata(&path).unwrap());
    let kernel = place.open(&path).unwrap();
    if identity.is_settled() {
        return; // this machine is too slow to tell
    }
    assert_eq!(fs::read_dir(place.index()).unwrap().count(), 1);
    settle(&path);
    assert_eq!(inode(&place.open(&path).unwrap()), inode(&kernel));
    assert_eq!(fs::read_dir(place.index()).unwrap().count(), 2);
}

#[test]
fn a_damaged_cache_is_made_again() {
    let place = Place::new();
    let elf = vmlinux(5000, 7);
    let path = place.write("bzImage", &bzimage(&payload(Format::Gzip, &elf)));
    let open = || place.open(&path).unwrap();
    let write = |kernel: &Kernel, contents: &[u8]| {
        let time = fs::metadata(&kernel.path).unwrap().modified().unwrap();
        fs::write(&kernel.path, contents).unwrap();
        let file = File::options().write(true).open(&kernel.path).unwrap();
        file.set_modified(time).unwrap();
    };
    let first = open();
    write(&first, &elf[..3000]);
    assert_unpacked(&open(), &elf);
    // The length and the time are right, and what is there is no kernel.
    write(&open(), &[0; 5000]);
    assert_unpacked(&open(), &elf);
    fs::remove_file(open().path).unwrap();
    assert_unpacked(&open(), &elf);
    fs::remove_dir_all(place.index()).unwrap();
    assert_unpacked(&open(), &elf);
    fs::remove_dir_all(place.path("cache")).unwrap();
    assert_unpacked(&open(), &elf);
}

#[test]
fn without_a_cache_the_vmlinux_is_in_memory() {
    let place = Place::new();
    let elf = vmlinux(5000, 8);
    let path = place.write("bzImage", &bzimage(&payload(Format::Gzip, &elf)));
    // A file is no directory for root either.
    for root in [None, Some(path.clone()), Some("/proc/mote".into())] {
        for _ in 0..2 {
            let kernel = super::open(&path, &Cache::new(root.clone())).unwrap();
            assert_unpacked(&kernel, &elf);
            assert!(kernel.path.starts_with("/proc/self/fd"));
        }
    }
}

#[test]
fn what_cannot_be_unpacked_unpacks_itself() {
    let place = Place::new();
    let good = payload(Format::Gzip, &vmlinux(5000, 9));
    let mut too_large = good.clone();
    let end = good.len();
    set(&mut too_large, end - 4, 4, u64::from(u32::MAX));
    let mut wrong_size = good.clone();
    set(&mut wrong_size, end - 4, 4, 4999);
    let mut corrupt = good.clone();
    corrupt[end / 2..end / 2 + 40].fill(0xff);
    let mut cut = good.clone();
    cut.drain(end / 2..end - 4);
    for (payload, expected) in [
        (
            &b"own format"[..],
            "compression is unknown: it begins with [6f, 77, 6e",
        ),
        (b"x", "compression is unknown"),
        (&good[..1], "compression is unknown"),
        (&good[..2], "gzip data is corrupt"),
        (&cut, "gzip data is corrupt"),
        (&too_large, "4294967295 bytes uncompressed"),
        (
            &wrong_size,
            "gzip data unpacks to 5000 bytes or more, and says that it is 4999",
        ),
        (&corrupt, "gzip data is corrupt"),
        (
            &sample::payload(Format::Gzip, b"no ELF file"),
            "does not begin with an ELF header",
        ),
        (
            &sample::payload(Format::Xz, b""),
            "does not begin with an ELF header",
        ),
    ] {
        let image = bzimage(payload);
        let path = place.write("bzImage", &image);
        let kernel = place.open(&path).unwrap();
        assert_eq!((kernel.kind, &kernel.path), (Kind::BzImage, &path));
        assert!(contents(&kernel) == image);
        let reason = chain(&kernel.fallback.unwrap());
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    // Nothing of them is left in the cache.
    let area = place.path("cache/kernels");
    assert!(!area.exists() || fs::read_dir(area).unwrap().count() == 0);
}

#[test]
fn one_that_cannot_unpack_itself_either_is_an_error() {
    let place = Place::new();
    // Before protocol 2.12 there is no 64-bit entry point.
    let old = |payload: &[u8]| {
        let mut image = bzimage(payload);
        set(&mut image, 0x206, 2, 0x020b);
        image
    };
    let error = place.open_contents(&old(b"own format")).unwrap_err();
    assert!(matches!(error, Error::Unpack { .. }));
    let error = place
        .open_contents(&old(&payload(Format::Gzip, b"text")))
        .unwrap_err();
    assert!(matches!(error, Error::Unpacked { .. }));
    let elf = vmlinux(5000, 10);
    let kernel = place
        .open_contents(&old(&payload(Format::Gzip, &elf)))
        .unwrap();
    assert_unpacked(&kernel, &elf);
}

#[test]
fn a_bzimage_that_is_wrong_is_an_error() {
    let place = Place::new();
    let image = bzimage(&payload(Format::Gzip, &vmlinux(5000, 11)));
    for (offset, width, value, expected) in [
        (0x206, 2, 0x0207, "boot protocol is 2.07, mote needs 2.08"),
        (0x236, 2, 0x7e, "32-bit x86 kernel"),
        (0x211, 1, 0, "a zImage"),
        (0x24c, 4, 0, "payload_length is 0"),
        (0x24c, 4, 0xffff_ffff, "cut short"),
        (0x248, 4, 0xffff_ffff, "cut short"),
    ] {
        let mut image = image.clone();
        set(&mut image, offset, width, value);
        let error = super::open(&write_new(&place, &image), &place.cache).unwrap_err();
        assert!(matches!(error, Error::BzImage { .. }));
        assert!(
            chain(&error).contains(expected),
            "{expected}: {}",
            chain(&error)
        );
    }
}

#[test]
fn a_bzimage_that_is_too_large_is_not_read() {
    let place = Place::new();
    let path = place.write(
        "bzImage",
        &bzimage(&payload(Format::Gzip, &vmlinux(5000, 12))),
    );
    // A hole: it takes no space.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(MAX_BZIMAGE_SIZE + 1).unwrap();
    let kernel = place.open(&path).unwrap();
    assert_eq!(kernel.kind, Kind::BzImage);
    assert!(
        matches!(kernel.fallback, Some(Error::TooLarge { size, .. }) if size == MAX_BZIMAGE_SIZE + 1)
    );
}

#[test]
fn starts_at_once_all_get_the_kernel() {
    let place = Place::new();
    let elf = vmlinux(20_000, 13);
    let path = place.write("bzImage", &bzimage(&payload(Format::Zstd, &elf)));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_unpacked(&place.open(&path).unwrap(), &elf));
        }
    });
    let second = place.open(&path).unwrap();
    assert_eq!(inode(&place.open(&path).unwrap()), inode(&second));
}
