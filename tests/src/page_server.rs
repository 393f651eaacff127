//! A page-fault handler as Firecracker's users have them: it gets a guest's memory by one message on a Unix socket, and
//! serves it from a memory file. Memory that the guest has given back is zero from then on.
#![expect(unsafe_code, reason = "maps a file, and talks to userfaultfd")]

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::DEADLINE;
use crate::process::Process;

/// How often a socket that does not exist yet is looked at.
const INTERVAL: Duration = Duration::from_millis(2);
const PAGE: u64 = 4096;
/// linux/userfaultfd.h.
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

mod calls {
    use super::UffdioCopy;
    vmm_sys_util::ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, UffdioCopy);
}

/// A region, as the message has it.
struct Mapping {
    start: u64,
    size: u64,
    offset: u64,
}

/// Serves one guest until it ends.
pub fn serve(socket: &Path, file: &Path) -> io::Result<()> {
    let file = File::open(file)?;
    let listener = UnixListener::bind(socket)?;
    let (stream, _) = listener.accept()?;
    let mut message = vec![0; 64 << 10];
    let (read, faults) = stream
        .recv_with_fd(&mut message[..])
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let mut faults = faults.ok_or(io::ErrorKind::InvalidData)?;
    let mappings: Vec<Value> = serde_json::from_slice(&message[..read])?;
    let number = |mapping: &Value, name: &str| {
        mapping[name]
            .as_u64()
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
    };
    let mappings = mappings
        .iter()
        .map(|mapping| {
            assert_eq!(mapping["page_size"], PAGE);
            Ok(Mapping {
                start: number(mapping, "base_host_virt_addr")?,
                size: number(mapping, "size")?,
                offset: number(mapping, "offset")?,
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    let mut given_back = HashSet::new();
    loop {
        let ready = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = [
            ready(std::os::fd::AsFd::as_fd(&faults)),
            ready(std::os::fd::AsFd::as_fd(&stream)),
        ];
        poll(&mut fds, None)?;
        let [event, end] = fds.map(|fd| fd.revents());
        if !end.is_empty() {
            return Ok(());
        }
        if event.is_empty() {
            continue;
        }
        let mut message = [0; 32];
        match faults.read_exact(&mut message) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result?,
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&message[at..at + 8]);
            u64::from_le_bytes(word)
        };
        match message[0] {
            EVENT_PAGEFAULT => {
                let address = word(16) / PAGE * PAGE;
                let place = mappings
                    .iter()
                    .find(|mapping| address.wrapping_sub(mapping.start) < mapping.size)
                    .ok_or(io::ErrorKind::InvalidData)?;
                let mut page = [0; PAGE as usize];
                if !given_back.contains(&address) {
                    file.read_exact_at(&mut page, place.offset + address - place.start)?;
                }
                give(&faults, address, &page)?;
            }
            EVENT_REMOVE => {
                let (start, end) = (word(8), word(16));
                given_back.extend((start..end).step_by(PAGE as usize));
            }
            _ => {}
        }
    }
}

fn give(faults: &File, address: u64, page: &[u8; PAGE as usize]) -> io::Result<()> {
    let mut copy = UffdioCopy {
        dst: address,
        src: page.as_ptr() as u64,
        len: PAGE,
        mode: 0,
        copy: 0,
    };
    // SAFETY: the structure is that of this call, and the page is there for as long as it takes.
    let result =
        unsafe { libc::ioctl(faults.as_raw_fd(), calls::UFFDIO_COPY() as _, &raw mut copy) };
    match io::Error::last_os_error() {
        // Somebody else has been served the same page.
        error if result < 0 && error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// The handler as a process.
pub struct PageServer {
    child: Process,
    socket: PathBuf,
}

impl PageServer {
    /// Starts it, and waits until it listens.
    #[track_caller]
    pub fn start(directory: &Path, file: &Path) -> Self {
        let socket = directory.join("pages.sock");
        // What one that was killed has left.
        let _ = std::fs::remove_file(&socket);
        let test = std::env::current_exe().unwrap();
        let server = test.ancestors().nth(2).unwrap().join("mote-page-server");
        let child = Command::new(server).arg(&socket).arg(file).spawn();
        let child = Process(child.unwrap());
        let deadline = Instant::now() + DEADLINE;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "no page server comes");
            std::thread::sleep(INTERVAL);
        }
        Self { child, socket }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Ends it, the hard way.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
