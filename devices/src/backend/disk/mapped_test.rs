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
