//! A process that writes guest memory as it was, while the guest goes on.
//!
//! It is forked off while nothing changes the memory: the host copies a page as soon as one of both writes to it. The new
//! process has one thread, which was in the midst of whatever others had begun: it must not allocate, take a lock or
//! unwind. It gives up all that others could want as soon as this monitor lets go of it (descriptors, shared
//! mappings), and dies with its parent.
#![expect(
    unsafe_code,
    reason = "makes a process, which only system calls give things up for"
)]

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

use super::memory::Error;

/// What the process says before it ends: what became of it, what the host said, and two numbers of that.
type Message = [u64; 4];
const MESSAGE_SIZE: usize = size_of::<Message>();

/// The process.
pub(super) struct Child {
    process: OwnedFd,
    result: PipeReader,
}

/// Something that ends it.
pub struct Killer(OwnedFd);

impl Killer {
    /// Ends it, if it is still there.
    pub fn kill(&self) {
        kill(&self.0);
    }
}

fn kill(process: &OwnedFd) {
    let nothing = null_mut::<libc::siginfo_t>();
    // SAFETY: sends a signal to a process of ours, named by its descriptor.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            nothing,
            0,
        );
    }
}

impl Child {
    /// Forks off a process that does `work` with `file` and ends. It has none of the `shared` mappings. The thread that calls this has to
    /// be there until the process has ended.
    pub(super) fn fork(
        file: &File,
        shared: &[Range<u64>],
        work: impl FnOnce(&File) -> Result<u64, Error>,
    ) -> io::Result<Self> {
        let (result, writer) = pipe()?;
        let mut pidfd: libc::c_int = -1;
        let parent = std::process::id();
        let mask = BlockedSignals::new();
        // SAFETY: as fork(2): memory is not shared but copied. What the child does is `child`, which does not return.
        let pid = unsafe {
            // Its end is no signal to anyone.
            let no_stack = 0;
            libc::syscall(
                libc::SYS_clone,
                libc::CLONE_PIDFD,
                no_stack,
                &raw mut pidfd,
                0,
                0,
            )
        };
        if pid == 0 {
            child(file, &writer, parent, shared, work);
        }
        let error = io::Error::last_os_error();
        drop(mask);
        if pid < 0 {
            return Err(error);
        }
        // SAFETY: the kernel has just made it, for us.
        let process = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { process, result })
    }

    /// What ends it from elsewhere.
    pub(super) fn killer(&self) -> io::Result<Killer> {
        self.process.try_clone().map(Killer)
    }

    /// Waits until it has ended; says how many bytes it has written.
    pub(super) fn wait(mut self) -> Result<u64, Error> {
        let mut bytes = [0; MESSAGE_SIZE];
        // Ends with the process, however that ends.
        let read = self.result.read_exact(&mut bytes);
        let signal = self.reap();
        if read.is_err() {
            return Err(match signal {
                Some(signal) => Error::Killed { signal },
                None => Error::Writer(io::ErrorKind::BrokenPipe.into()),
            });
        }
        let mut message = Message::default();
        for (word, bytes) in message.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        decode(message)
    }

    /// Waits for its end, and says which signal that was by, if any.
    fn reap(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
            // SAFETY: waits for a process of ours; `info` has room for what is said of it.
            let waited = unsafe {
                libc::waitid(
                    libc::P_PIDFD,
                    self.process.as_raw_fd() as libc::id_t,
                    info.as_mut_ptr(),
                    // Nobody hears a signal of its end.
                    libc::WEXITED | libc::__WALL,
                )
            };
            if waited == 0 {
                // SAFETY: it was all zeroes, and the kernel has filled in what is known of a child.
                let (info, signal) =
                    unsafe { (info.assume_init(), info.assume_init().si_status()) };
                let is_signal = [libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
                return is_signal.then_some(signal);
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return None;
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        kill(&self.process);
        self.reap();
    }
}

/// No signal is handled by this thread, or by a process that it makes: what this process has to say to them is said by its
/// other threads.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> Self {
        let (mut all, mut before) = (
            MaybeUninit::<libc::sigset_t>::zeroed(),
            MaybeUninit::<libc::sigset_t>::zeroed(),
        );
        // SAFETY: both sets are there and as large as the C library has them; all zeroes is a set.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is one that the C library has given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, null_mut()) };
    }
}

/// Ends the process, also if something in it panics: nothing of the parent's is to be unwound.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: ends this process, at once.
        unsafe { libc::_exit(0) };
    }
}

/// What the process does.
fn child(
    file: &File,
    mut result: &PipeWriter,
    parent: u32,
    shared: &[Range<u64>],
    work: impl FnOnce(&File) -> Result<u64, Error>,
) -> ! {
    let end = End;
    let mut keep = [file.as_raw_fd(), result.as_raw_fd()];
    keep.sort_unstable();
    // SAFETY: system calls of a process with one thread. Descriptors that it closes are used by nobody here, nor is
    // what it unmaps: neither guest memory, nor the heap, the stack or the program are shared.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"mote-snapshot".as_ptr());
        // The parent may have died before that.
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(0);
        }
        let mut first = 0;
        for fd in keep {
            #[expect(clippy::cast_sign_loss, reason = "a descriptor is not negative")]
            let fd = fd as libc::c_uint;
            if fd > first {
                libc::syscall(libc::SYS_close_range, first, fd - 1, 0);
            }
            first = fd + 1;
        }
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
        for range in shared {
            let address = std::ptr::with_exposed_provenance_mut(range.start as usize);
            libc::munmap(address, (range.end - range.start) as usize);
        }
    }
    let message = encode(&work(file));
    let mut bytes = [0; MESSAGE_SIZE];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(message) {
        *bytes = word.to_ne_bytes();
    }
    let _ = result.write_all(&bytes);
    drop(end);
    unreachable!("the process has ended");
}

fn encode(result: &Result<u64, Error>) -> Message {
    #[expect(clippy::cast_sign_loss, reason = "numbers of errors are positive")]
    let number = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO) as u64;
    match result {
        Ok(bytes) => [0, 0, *bytes, 0],
        Err(Error::Pages(error)) => [1, number(error), 0, 0],
        Err(Error::NotRam { gpa, bytes }) => [2, 0, *gpa, *bytes],
        Err(Error::Write(error)) => [3, number(error), 0, 0],
        // It does nothing else that can fail.
        Err(_) => [4, 0, 0, 0],
    }
}

fn decode([kind, number, first, second]: Message) -> Result<u64, Error> {
    let error = || io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(libc::EIO));
    match kind {
        0 => Ok(first),
        1 => Err(Error::Pages(error())),
        2 => Err(Error::NotRam {
            gpa: first,
            bytes: second,
        }),
        3 => Err(Error::Write(error())),
        _ => Err(Error::Writer(error())),
    }
}

#[cfg(test)]
#[path = "fork_test.rs"]
mod tests;
