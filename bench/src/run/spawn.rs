//! A process that begins in a control group: fork and exec, with nothing between them that takes time. To move a process there after it was made
//! makes the kernel wait for a grace period, which would be counted.
#![expect(
    unsafe_code,
    reason = "clone3(2), and what is done between it and exec"
)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// In linux/sched.h; libc's is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a process is to be.
#[derive(Debug)]
pub struct Program {
    /// The file.
    pub path: CString,
    /// Its arguments, itself first.
    pub arguments: Vec<CString>,
    /// `NAME=VALUE`.
    pub environment: Vec<CString>,
    /// Where it works.
    pub directory: CString,
    /// Its standard input and output are a terminal, which passes on what it gets as it is.
    pub terminal: bool,
}

/// A process.
#[derive(Debug)]
pub struct Child {
    /// Refers to it, and can be waited for.
    pub pidfd: OwnedFd,
    /// Its number.
    pub pid: u32,
    /// Becomes readable when exec has been done: at its end if that succeeded; otherwise it has the error's number.
    pub executed: File,
    /// Its standard input.
    pub stdin: File,
    /// Its standard output, which does not block.
    pub stdout: File,
    /// Its standard error, which does not block.
    pub stderr: File,
}

/// Starts it, in this group if there is one. It leads a session of its own, so that no key of the terminal reaches it, and is killed when the thread
/// ends that calls this.
pub fn spawn(program: &Program, group: Option<&File>) -> io::Result<Child> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (stdin_end, stdin, stdout, stdout_end) = if program.terminal {
        let (ours, theirs) = terminal()?;
        (theirs.try_clone()?, ours.try_clone()?, ours, theirs)
    } else {
        let ((stdin_end, stdin), (stdout, stdout_end)) = (pipe()?, pipe()?);
        (stdin_end, stdin, stdout, stdout_end)
    };
    let (stderr, stderr_end) = pipe()?;
    let (executed, executed_end) = pipe()?;
    for end in [&stdout, &stderr] {
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
    }
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let plan = Plan {
        path: &program.path,
        arguments: &arguments,
        environment: &environment,
        directory: &program.directory,
        streams: [
            stdin_end.as_raw_fd(),
            stdout_end.as_raw_fd(),
            stderr_end.as_raw_fd(),
        ],
        executed: executed_end.as_raw_fd(),
    };

    let mut pidfd: c_int = -1;
    // SAFETY: an all-zero `clone_args` asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of everything. `arguments` and what it points to stay for the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: this is the child, and it does nothing else.
        unsafe { become_it(&plan) };
    }
    // SAFETY: the kernel has just put a descriptor there that nobody else has.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pidfd,
        pid: u32::try_from(pid).unwrap_or_default(),
        executed: executed.into(),
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
    })
}

/// A terminal: our end and the program's.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    let mut settings = tcgetattr(&theirs)?;
    settings.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &settings)?;
    Ok((ours, theirs))
}

/// What the child needs, made before it is there: between fork and exec nothing may be allocated, as another thread may have held the lock.
struct Plan<'a> {
    path: &'a CStr,
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    directory: &'a CStr,
    streams: [RawFd; 3],
    executed: RawFd,
}

fn pointers(words: &[CString]) -> Vec<*const c_char> {
    let words = words.iter().map(|word| word.as_ptr());
    words.chain([ptr::null()]).collect()
}

/// # Safety
/// Only in a process that was just forked.
unsafe fn become_it(plan: &Plan) -> ! {
    // SAFETY: functions that are async-signal-safe, on memory that is there; arrays end with a null.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // What the harness has blocked or ignores is not to be inherited.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let is_ready = (plan.streams.iter().zip(0..)).all(|(from, to)| libc::dup2(*from, to) == to)
            && libc::chdir(plan.directory.as_ptr()) == 0;
        if is_ready {
            libc::execve(
                plan.path.as_ptr(),
                plan.arguments.as_ptr(),
                plan.environment.as_ptr(),
            );
        }
        let error = *libc::__errno_location();
        libc::write(
            plan.executed,
            (&raw const error).cast(),
            size_of_val(&error),
        );
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    fn program(path: &str, words: &[&str]) -> Program {
        let word = |word: &str| CString::new(word).unwrap();
        Program {
            path: word(path),
            arguments: words.iter().map(|it| word(it)).collect(),
            environment: vec![word("COLOUR=red")],
            directory: word("/"),
            terminal: false,
        }
    }

    fn status(child: &Child) -> i32 {
        use std::os::fd::AsFd;
        let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
        ended.unwrap().unwrap().exit_status().unwrap_or(-1)
    }

    #[test]
    fn a_program_runs_with_its_words_and_variables() {
        let mut child = spawn(
            &program("/bin/sh", &["sh", "-c", "echo $COLOUR; pwd; exit 3"]),
            None,
        )
        .unwrap();
        assert_eq!(status(&child), 3);
        let mut text = String::new();
        rustix::fs::fcntl_setfl(&child.stdout, OFlags::empty()).unwrap();
        child.stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, "red\n/\n");
        let mut executed = Vec::new();
        child.executed.read_to_end(&mut executed).unwrap();
        assert!(executed.is_empty());
    }

    #[test]
    fn a_program_can_have_a_terminal() {
        let mut program = program(
            "/bin/sh",
            &["sh", "-c", "test -t 0 && test -t 1 && head -c 3"],
        );
        program.terminal = true;
        let mut child = spawn(&program, None).unwrap();
        io::Write::write_all(&mut child.stdin, b"a\nb").unwrap();
        assert_eq!(status(&child), 0);
        let mut text = [0; 3];
        child.stdout.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"a\nb");
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let mut child = spawn(&program("/nothing", &["nothing"]), None).unwrap();
        let mut error = [0; 4];
        child.executed.read_exact(&mut error).unwrap();
        assert_eq!(i32::from_ne_bytes(error), libc::ENOENT);
        assert_eq!(status(&child), 127);
    }
}
