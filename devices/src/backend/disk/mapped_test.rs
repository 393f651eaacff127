use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::super::test_support::{TempDir, pattern};
use super::*;

const GPA: u64 = 1 << 33;

fn map(file: &MappedFile) -> GuestMemoryMmap {
    let region = file.map(GPA).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

#[test]
fn the_guest_reads_and_writes_the_file() {
    let directory = TempDir::new();
    // Neither whole pages nor whole blocks.
    let len = (2 << 20) + 5000;
    let path = directory.file("file", len);
    let file = MappedFile::open(&path, false).unwrap();
    assert_eq!((file.file_len(), file.size()), (len as u64, 4 << 20));
    let memory = map(&file);
    let mut bytes = vec![0; 4 << 20];
    memory.read_slice(&mut bytes, GuestAddress(GPA)).unwrap();
    assert!(bytes[..len] == pattern(len));
    assert!(bytes[len..].iter().all(|byte| *byte == 0));
    memory
        .write_slice(b"written", GuestAddress(GPA + 9))
        .unwrap();
    // Behind the end, in its last page and beyond.
    for offset in [len, 3 << 20] {
        memory
            .write_slice(b"gone", GuestAddress(GPA + offset as u64))
            .unwrap();
    }
    let mut syncer = file.syncer(&Arc::new(memory.clone()));
    for _ in 0..3 {
        syncer.start();
        syncer.wait();
        syncer.take_result().unwrap().unwrap();
        assert!(syncer.take_result().is_none());
    }
    file.check_whole().unwrap();
    let on_disk = std::fs::read(&path).unwrap();
    assert_eq!(on_disk.len(), len);
    assert_eq!(&on_disk[9..16], b"written");
    assert!(on_disk[16..] == pattern(len)[16..]);
    assert!(file.map(GPA).is_err());
}

#[test]
fn a_read_only_file_is_mapped_so() {
    let directory = TempDir::new();
    let path = directory.file("file", 4096);
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    let file = MappedFile::open(&path, true).unwrap();
    let memory = map(&file);
    let region = memory.find_region(GuestAddress(GPA)).unwrap();
    assert_eq!(region.prot(), libc::PROT_READ);
    assert_eq!(region.len(), 2 << 20);
    // Any number of readers, and no writer.
    MappedFile::open(&path, true).unwrap();
    assert!(matches!(
        MappedFile::open(&path, false),
        Err(Error::Locked { .. } | Error::Open { .. })
    ));
}

#[test]
fn files_that_cannot_be_mapped_are_refused() {
    let directory = TempDir::new();
    let empty = directory.file("empty", 0);
    let refused = |path: &Path| MappedFile::open(path, false).err().unwrap();
    assert!(matches!(refused(&empty), Error::Empty { .. }));
    assert!(matches!(
        refused(&directory.path("missing")),
        Error::Open { .. }
    ));
    assert!(matches!(
        refused(Path::new("/dev/null")),
        Error::Kind { .. }
    ));
    let path = directory.file("file", 4096);
    let _writer = MappedFile::open(&path, false).unwrap();
    assert!(matches!(refused(&path), Error::Locked { .. }));
}

#[test]
fn a_file_that_is_cut_is_noticed() {
    let directory = TempDir::new();
    let path = directory.file("file", 1 << 20);
    for read_only in [false, true] {
        let file = MappedFile::open(&path, read_only).unwrap();
        let memory = map(&file);
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        other.set_len(4096).unwrap();
        let byte: u8 = memory.read_obj(GuestAddress(GPA + (1 << 19))).unwrap();
        assert_eq!(byte, 0);
        file.check_whole().unwrap_err();
        other.write_all_at(&pattern(1 << 20), 0).unwrap();
    }
}

/// A region that is read-only as far as devices know, and that is longer than any file.
fn window() -> GuestMemoryMmap {
    let mapping = MmapRegionBuilder::new(16 << 20)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(GPA)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

/// Whether devices may write there.
fn is_writable(memory: &GuestMemoryMmap, offset: u64, len: usize) -> bool {
    crate::virtio::chain::is_writable(memory, GuestAddress(GPA + offset), len)
}

#[test]
fn files_come_into_memory_and_go() {
    let directory = TempDir::new();
    let memory = window();
    let path = directory.file("file", (1 << 20) + 100);
    for round in 0..3_u8 {
        let file = MappedFile::open(&path, false).unwrap();
        assert!(!is_writable(&memory, 4 << 20, 1));
        file.map_into(&memory, GPA + (4 << 20)).unwrap();
        file.map_into(&memory, GPA + (8 << 20)).unwrap_err();
        // What is behind the file is writable as well, and kept by nobody.
        assert!(is_writable(&memory, 4 << 20, 2 << 20));
        assert!(!is_writable(&memory, (4 << 20) - 1, 2));
        assert!(!is_writable(&memory, (6 << 20) - 1, 2));
        let at = GuestAddress(GPA + (4 << 20) + 7);
        memory.write_slice(&[round; 3], at).unwrap();
        file.check_whole().unwrap();
        file.unmap(&memory, GPA + (4 << 20)).unwrap();
        assert!(!is_writable(&memory, 4 << 20, 1));
        // Who was told to write before does no harm.
        memory.write_slice(b"late", at).unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap()[7..10], [round; 3]);
    }

    // Not where it does not fit.
    let file = MappedFile::open(&path, false).unwrap();
    for gpa in [0, GPA + 4096, GPA + (15 << 20), GPA + (16 << 20)] {
        file.map_into(&memory, gpa).unwrap_err();
    }
    // Gone without a word, nobody may write there either.
    file.map_into(&memory, GPA).unwrap();
    drop(file);
    assert!(!is_writable(&memory, 0, 1));
}

#[test]
fn nothing_reaches_a_read_only_file_that_comes() {
    let directory = TempDir::new();
    let memory = window();
    let path = directory.file("file", 1 << 20);
    let file = MappedFile::open(&path, true).unwrap();
    file.map_into(&memory, GPA).unwrap();
    assert!(!is_writable(&memory, 0, 1));
    let mut bytes = vec![0; 1 << 20];
    memory.read_slice(&mut bytes, GuestAddress(GPA)).unwrap();
    assert!(bytes == pattern(1 << 20));
    // A device that was told to write to what was there before.
    memory.write_slice(b"late", GuestAddress(GPA)).unwrap();
    assert!(std::fs::read(&path).unwrap() == pattern(1 << 20));
    // Cut, it is zeroes, and whoever writes there late finds room.
    let other = OpenOptions::new().write(true).open(&path).unwrap();
    other.set_len(4096).unwrap();
    memory
        .write_slice(b"late", GuestAddress(GPA + (1 << 19)))
        .unwrap();
    file.check_whole().unwrap_err();
}
