use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;

const PAGES: usize = 16;

/// A file in memory, and its mapping.
fn mapping(pages: usize) -> (File, GuestMemoryMmap, Guard) {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a string, and the descriptor is nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"lost-pages".as_ptr(), 0)) };
    let len = pages * PAGE;
    file.set_len(len as u64).unwrap();
    file.write_all_at(&vec![7; len], 0).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let ranges = [(GuestAddress(0), len, Some(offset))];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
    let address = vm_memory::GuestMemoryBackend::get_host_address(&memory, GuestAddress(0));
    let guard = Guard::new(file.as_fd(), address.unwrap().addr(), len, true).unwrap();
    (file, memory, guard)
}

fn read(memory: &GuestMemoryMmap, page: usize) -> u8 {
    memory.read_obj(GuestAddress((page * PAGE) as u64)).unwrap()
}

#[test]
fn what_is_cut_off_reads_as_zeroes() {
    let (file, memory, guard) = mapping(PAGES);
    assert!(guard.is_whole());
    assert_eq!(read(&memory, 9), 7);
    file.set_len(3 * PAGE as u64 + 1).unwrap();
    // All of it is replaced with the first page that is looked at.
    assert_eq!(read(&memory, 9), 0);
    assert!(!guard.is_whole());
    assert_eq!(guard.0.pieces.load(Ordering::Relaxed), 1);
    memory
        .write_obj(5_u8, GuestAddress(4 * PAGE as u64))
        .unwrap();
    assert_eq!((4..PAGES).map(|page| read(&memory, page)).max(), Some(5));
    assert_eq!(guard.0.pieces.load(Ordering::Relaxed), 1);
    // What is left is the file's.
    assert_eq!([0, 1, 2, 3].map(|page| read(&memory, page)), [7; 4]);
    memory.write_obj(9_u8, GuestAddress(0)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [9]);
    // Once more, and to a larger one, which is no file for this mapping any more.
    file.set_len(PAGE as u64).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| read(&memory, page)), [9, 0, 0, 0]);
    file.set_len((PAGES * PAGE) as u64).unwrap();
    assert_eq!([0, 1, 4].map(|page| read(&memory, page)), [9, 0, 5]);
}

#[test]
fn vcpus_have_it_replaced_before_anyone_looks() {
    let (file, memory, guard) = mapping(PAGES);
    let mut vcpus = [Replaced::default(), Replaced::default()];
    file.set_len(0).unwrap();
    // The second one has nothing left to replace, and goes on as well.
    assert!(vcpus[0].is_new());
    assert!(vcpus[1].is_new());
    assert!(!guard.is_whole());
    assert_eq!(read(&memory, 0), 0);
    assert_eq!(guard.0.pieces.load(Ordering::Relaxed), 1);
    // What else is wrong is not tried for ever; other tests replace pages meanwhile.
    for vcpu in &mut vcpus {
        while vcpu.is_new() {}
    }
}

#[test]
fn pages_go_one_by_one_until_there_are_too_many() {
    let (_file, memory, guard) = mapping(PAGES);
    // As if the host had no room for them.
    let page = |index: usize| guard.0.start.load(Ordering::Relaxed) + index * PAGE;
    assert!(guard.0.replace_at(page(3) + 17));
    assert_eq!([2, 3, 4].map(|page| read(&memory, page)), [7, 0, 7]);
    guard.0.pieces.store(MAX_PIECES, Ordering::Relaxed);
    assert!(guard.0.replace_at(page(10)));
    assert_eq!(
        [9, 10, PAGES - 1].map(|page| read(&memory, page)),
        [7, 0, 0]
    );
}

#[test]
fn threads_that_come_and_go_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (file, memory, guard) = mapping(PAGES);
                    assert!(guard.is_whole());
                    file.set_len(PAGE as u64).unwrap();
                    assert_eq!(read(&memory, 5), 0);
                    drop(guard);
                }
            });
        }
    });
}

/// A page that nobody looks after: the process ends as ever.
#[test]
fn other_faults_are_what_they_were() {
    const CHILD: &str = "MOTE_TEST_LOST_PAGES_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let (file, memory, guard) = mapping(1);
        drop(guard);
        file.set_len(0).unwrap();
        let _ = read(&memory, 0);
        return;
    }
    let name = "backend::lost_pages::tests::other_faults_are_what_they_were";
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}
