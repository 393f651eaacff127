use std::io::Read;
use std::os::unix::net::UnixListener;

use vm_memory::Bytes;
use vmm_sys_util::tempdir::TempDir;

use super::super::memory::lay_out;
use super::*;

const MIB: u64 = 1 << 20;

/// Memory as the builder makes it.
fn guest_memory() -> GuestMemoryMmap {
    crate::memory::allocate(4 * MIB, HugePages::None, Vec::new()).unwrap()
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, UffdioCopy);

/// Takes the message, and so many events: serves faults with pages full of sevens, and gives back what ranges were
/// given up.
fn serve(listener: &UnixListener, events: usize) -> (Vec<serde_json::Value>, Vec<[u64; 2]>) {
    let (socket, _) = listener.accept().unwrap();
    let mut bytes = [0; 4096];
    let (read, faulted) = socket.recv_with_fd(&mut bytes[..]).unwrap();
    let mut faulted = faulted.unwrap();
    let mappings = serde_json::from_slice(&bytes[..read]).unwrap();
    let page = [7u8; PAGE_SIZE as usize];
    let mut given_up = Vec::new();
    for _ in 0..events {
        wait(&mut [PollFd::new(&faulted, PollFlags::IN)], None);
        let mut message = [0; 32];
        faulted.read_exact(&mut message).unwrap();
        let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().unwrap());
        // UFFD_EVENT_REMOVE.
        if message[0] == 0x15 {
            given_up.push([word(8), word(16)]);
            continue;
        }
        assert_eq!(message[0], 0x12, "a page fault");
        let address = word(16);
        let mut copy = UffdioCopy {
            dst: address / PAGE_SIZE * PAGE_SIZE,
            src: page.as_ptr() as u64,
            len: PAGE_SIZE,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the structure is that of this call, and the page is one that is waited for.
        unsafe { call(&faulted, UFFDIO_COPY(), &mut copy).unwrap() };
    }
    (mappings, given_up)
}

#[test]
fn a_handler_serves_what_is_touched() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("handler");
    let refused = Handler::connect(&path).err().unwrap();
    assert!(matches!(refused, Error::Connect { .. }), "{refused}");
    let listener = UnixListener::bind(&path).unwrap();
    let handler = match Handler::connect(&path) {
        // Not everybody may.
        Err(Error::Permission) => return,
        handler => handler.unwrap(),
    };
    let server = std::thread::spawn(move || serve(&listener, 3));
    let memory = guest_memory();
    let events = Arc::new(Events::new().unwrap());
    let regions = lay_out([(0, 4 * MIB)]);
    let own = 0xf_f000;
    let served = handler
        .take_over(&memory, &regions, HugePages::None, own, &events)
        .unwrap();
    let byte = |gpa| memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
    assert_eq!(byte(own), 0, "nobody was asked");
    assert_eq!(byte(0x1234), 7);
    assert_eq!(byte(0x1fff), 7);
    assert_eq!(byte(4 * MIB - 1), 7);
    // As the balloon does.
    let page = address(&memory, 0x1000, PAGE_SIZE).unwrap();
    // SAFETY: the page is guest memory, which nobody relies on what it holds.
    let advised = unsafe { libc::madvise(page as *mut _, PAGE_SIZE as usize, libc::MADV_DONTNEED) };
    assert_eq!(advised, 0);
    let (mappings, given_up) = server.join().unwrap();
    assert_eq!(given_up, [[page, page + PAGE_SIZE]]);
    assert_eq!(mappings.len(), 1);
    assert_eq!(mappings[0]["size"], 4 * MIB);
    assert_eq!(mappings[0]["offset"], 0);
    assert_eq!(mappings[0]["page_size"], PAGE_SIZE);
    assert!(mappings[0]["base_host_virt_addr"].is_u64());
    assert!(!events.is_stopping(), "this process is still there");
    drop(served);
}
