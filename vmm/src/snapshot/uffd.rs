//! Guest memory that another process serves, a page fault at a time (Linux, Documentation/admin-guide/mm/userfaultfd.rst).
//!
//! The protocol is Firecracker's. The handler listens on a Unix socket. It gets one message: a JSON array of the regions
//! of guest memory, and with it the descriptor that page faults arrive at. It answers them with the pages of the memory
//! file, and with zeroes once the guest has given pages back (`UFFD_EVENT_REMOVE`).
//!
//! A thread that touches a page waits in the kernel until the handler has served it: a vCPU, or the event loop for a
//! device. Nothing else can end that wait, and to end it with any other page would be to make up what the guest
//! knows. So when the handler's process ends, the machine is stopped, and if that takes too long, because somebody waits
//! for a page, the process exits as it is.
#![expect(
    unsafe_code,
    reason = "userfaultfd is a matter between this process's memory and the kernel"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

use super::memory::RegionState;
use crate::config::{HUGE_PAGE_SIZE, HugePages};
use crate::events::{Events, StopReason};

const DEVICE: &str = "/dev/userfaultfd";
const PAGE_SIZE: u64 = 4096;
/// How long a machine without a handler has to end.
const GRACE: Duration = Duration::from_secs(3);
/// With what the process exits that does not get there: an error of mote's.
const STATUS: libc::c_int = 125;

/// linux/userfaultfd.h.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFD_FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioZeropage {
    start: u64,
    len: u64,
    mode: u64,
    zeropage: i64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, 0xaa, 0x00);
ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, UffdioApi);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, UffdioRegister);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, 0xaa, 0x04, UffdioZeropage);

/// Why memory cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens.
    #[error("Cannot connect to the page-fault handler at {}", path.display())]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not let this user do it.
    #[error(
        "No permission to have another process serve memory: give this user access to {DEVICE}, or the capability \
         CAP_SYS_PTRACE, or allow it to all, as root, by: echo 1 > /proc/sys/vm/unprivileged_userfaultfd"
    )]
    Permission,
    /// The kernel cannot do it.
    #[error("This host's kernel cannot have another process serve memory (userfaultfd)")]
    Kernel(#[source] io::Error),
    /// Guest memory could not be given away.
    #[error("Cannot have page faults of guest memory at {gpa:#x} served")]
    Register {
        /// The region's first GPA.
        gpa: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The handler could not be told.
    #[error("Cannot tell the page-fault handler of guest memory")]
    Send(#[source] io::Error),
    /// No thread.
    #[error("Cannot look after the page-fault handler")]
    Watch(#[source] io::Error),
}

/// What a handler is told of a region.
#[derive(Debug, Serialize)]
struct Mapping {
    /// Where this process has it.
    base_host_virt_addr: u64,
    /// Bytes.
    size: u64,
    /// Where it begins in the memory file.
    offset: u64,
    /// Bytes of a page.
    page_size: u64,
    /// The same; a name that it had before, and that handlers may know.
    page_size_kib: u64,
}

/// A handler that listens, and what page faults will arrive at.
pub(crate) struct Handler {
    socket: UnixStream,
    faults: OwnedFd,
}

impl Handler {
    /// Connects to the handler.
    pub(crate) fn connect(path: &Path) -> Result<Self, Error> {
        let socket = UnixStream::connect(path).map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            socket,
            faults: make()?,
        })
    }

    /// Has it serve guest memory, of which nothing has been touched, as `regions` says. What `own` is the first GPA of
    /// is a page that is not the handler's. The machine of `events` stops with the handler.
    pub(crate) fn take_over(
        &self,
        memory: &GuestMemoryMmap,
        regions: &[RegionState],
        huge_pages: HugePages,
        own: u64,
        events: &Arc<Events>,
    ) -> Result<Served, Error> {
        let (page_size, features) = match huge_pages {
            HugePages::None => (PAGE_SIZE, UFFD_FEATURE_EVENT_REMOVE),
            HugePages::TwoMiB => (
                HUGE_PAGE_SIZE,
                UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_HUGETLBFS,
            ),
        };
        shake_hands(&self.faults, features).map_err(Error::Kernel)?;
        let mut mappings = Vec::with_capacity(regions.len());
        for region in regions {
            let of = |source| Error::Register {
                gpa: region.gpa,
                source,
            };
            let start = address(memory, region.gpa, region.bytes).map_err(of)?;
            register(&self.faults, start, region.bytes).map_err(of)?;
            mappings.push(Mapping {
                base_host_virt_addr: start,
                size: region.bytes,
                offset: region.offset,
                page_size,
                page_size_kib: page_size,
            });
        }
        if huge_pages == HugePages::None {
            let of = |source| Error::Register { gpa: own, source };
            let start = address(memory, own, PAGE_SIZE).map_err(of)?;
            fill_with_zeroes(&self.faults, start, PAGE_SIZE).map_err(of)?;
        }
        let message =
            serde_json::to_vec(&mappings).map_err(|error| Error::Send(io::Error::other(error)))?;
        let sent = self
            .socket
            .send_with_fd(&message[..], self.faults.as_raw_fd())
            .map_err(|error| Error::Send(io::Error::from_raw_os_error(error.errno())))?;
        if sent != message.len() {
            return Err(Error::Send(io::ErrorKind::WriteZero.into()));
        }
        Served::watch(self, events)
    }
}

/// Guest memory that is being served. Dropped once nobody touches it any more.
pub(crate) struct Served {
    /// Kept open: a page that nobody serves is to be waited for for ever, not to be taken for zeroes.
    _faults: OwnedFd,
    _socket: UnixStream,
    ending: Arc<EventFd>,
    ended: Arc<EventFd>,
    watch: Option<JoinHandle<()>>,
}

impl Served {
    fn watch(handler: &Handler, events: &Arc<Events>) -> Result<Self, Error> {
        let faults = handler.faults.try_clone().map_err(Error::Watch)?;
        let socket = handler.socket.try_clone().map_err(Error::Watch)?;
        let eventfd = || EventFd::new(EFD_CLOEXEC).map(Arc::new);
        let ending = eventfd().map_err(Error::Watch)?;
        let ended = eventfd().map_err(Error::Watch)?;
        let process = listener(&handler.socket).map_err(Error::Watch)?;
        let watch = std::thread::Builder::new()
            .name("page-faults".into())
            .spawn({
                let (ending, ended) = (Arc::clone(&ending), Arc::clone(&ended));
                let events = Arc::clone(events);
                move || look_after(process.as_ref(), &ending, &ended, &events)
            })
            .map_err(Error::Watch)?;
        Ok(Self {
            _faults: faults,
            _socket: socket,
            ending,
            ended,
            watch: Some(watch),
        })
    }

    /// What is told that the machine ends.
    pub(crate) fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.ending))
    }
}

/// Is told that the machine ends.
pub(crate) struct Ending(Arc<EventFd>);

impl Ending {
    /// From now on it has a moment to do so.
    pub(crate) fn begin(&self) {
        let _ = self.0.write(1);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.ended.write(1);
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

/// The thread: waits for the end of the handler's process or of the machine.
fn look_after(process: Option<&OwnedFd>, ending: &EventFd, ended: &EventFd, events: &Events) {
    let [ending, ended] = [ending, ended].map(|event| {
        // SAFETY: the eventfd is open for as long as this function has a reference to it.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
    });
    let mut fds = vec![
        PollFd::from_borrowed_fd(ended, PollFlags::IN),
        PollFd::from_borrowed_fd(ending, PollFlags::IN),
    ];
    if let Some(process) = process {
        fds.push(PollFd::new(process, PollFlags::IN));
    }
    wait(&mut fds, None);
    let has = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
    if has(fds.first()) {
        return;
    }
    if has(fds.get(2)) {
        events.stop(StopReason::MemoryLost);
    }
    let mut last = [PollFd::from_borrowed_fd(ended, PollFlags::IN)];
    if !wait(&mut last, Some(GRACE)) {
        eprintln!("mote: a thread waits for guest memory that nobody serves: exiting without it");
        // SAFETY: ends the process, whatever its threads wait for.
        unsafe { libc::_exit(STATUS) };
    }
}

/// The process that has listened at the other end of a socket. None if it cannot be looked after: it is one of another
/// PID namespace, or has left the socket to another process.
fn listener(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of_val(&credentials) as libc::socklen_t;
    // SAFETY: the option has this structure for its value, and the length is that of it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = Pid::from_raw(credentials.pid);
    Ok(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
}

/// Waits until there is something; false if the time is up.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> bool {
    let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
    loop {
        match poll(fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return false,
            // What cannot be waited for has come.
            Ok(_) | Err(_) => return true,
        }
    }
}

/// Where guest memory is in this process.
fn address(memory: &GuestMemoryMmap, gpa: u64, bytes: u64) -> io::Result<u64> {
    let size = usize::try_from(bytes).map_err(io::Error::other)?;
    let slice = memory
        .get_slice(GuestAddress(gpa), size)
        .map_err(io::Error::other)?;
    Ok(slice.ptr_guard_mut().as_ptr() as u64)
}

/// A descriptor that page faults, those of KVM too, can arrive at. The device asks for less than the system call does.
fn make() -> Result<OwnedFd, Error> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE);
    let fd = match device {
        // SAFETY: the call has a number for its argument, and makes a descriptor.
        Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW() as _, flags) },
        #[expect(clippy::cast_possible_truncation, reason = "a descriptor, or -1")]
        // SAFETY: the call has a number for its argument, and makes a descriptor.
        Err(_) => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int },
    };
    owned(fd).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission,
        _ => Error::Kernel(error),
    })
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn shake_hands(faults: &OwnedFd, features: u64) -> io::Result<()> {
    let mut api = UffdioApi {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: the structure is that of this call.
    unsafe { call(faults, UFFDIO_API(), &mut api) }
}

fn register(faults: &OwnedFd, start: u64, len: u64) -> io::Result<()> {
    let mut register = UffdioRegister {
        start,
        len,
        mode: UFFDIO_REGISTER_MODE_MISSING,
        ioctls: 0,
    };
    // SAFETY: the structure is that of this call. The range is guest memory, which nobody relies on what it holds.
    unsafe { call(faults, UFFDIO_REGISTER(), &mut register) }
}

fn fill_with_zeroes(faults: &OwnedFd, start: u64, len: u64) -> io::Result<()> {
    let mut zeropage = UffdioZeropage {
        start,
        len,
        mode: 0,
        zeropage: 0,
    };
    // SAFETY: the structure is that of this call. The range is guest memory, which nobody relies on what it holds.
    unsafe { call(faults, UFFDIO_ZEROPAGE(), &mut zeropage) }
}

/// # Safety
///
/// `argument` has the type that `request` takes.
unsafe fn call<T>(
    faults: &impl AsRawFd,
    request: libc::c_ulong,
    argument: &mut T,
) -> io::Result<()> {
    // SAFETY: by the contract of this function.
    let result = unsafe { libc::ioctl(faults.as_raw_fd(), request as _, &raw mut *argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[path = "uffd_test.rs"]
mod tests;
