//! The first process of a guest that runs commands for mote, in the place of the shell that the default guest has:
//!
//! `agent TERMINAL [ROOT]`
//!
//! It says by the job port (/dev/port) that all is set up, and stands still in that instruction: a template is taken there, and each guest that
//! is restored from it goes on with a job of its own. It runs that as the terminal's session, in ROOT if there is one,
//! and hands its status over; the machine ends with that.
#![expect(unsafe_code, reason = "system calls that std does not have")]

use std::env;
use std::ffi::{CString, OsStr, OsString, c_int, c_uint, c_ulong, c_void};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use agent::{DATA_PORT, DATA_PORTS, Job, PORT, WAITS};

/// The ports, for the handler of signals.
static PORTS: AtomicI32 = AtomicI32::new(-1);

const SIGUSR1: c_int = 10;
const SIGUSR2: c_int = 12;
const SIGTERM: c_int = 15;
const SIGTTOU: c_int = 22;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
/// Programs of the default guest, and those of a root file system.
const PATH: &str = "/bin";
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A status as shells have it: there is no such program, or it cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

unsafe extern "C" {
    fn pwrite(descriptor: c_int, bytes: *const c_void, count: usize, offset: i64) -> isize;
    fn reboot(how: c_int) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn getpid() -> c_int;
    fn setpgid(process: c_int, group: c_int) -> c_int;
    fn tcsetpgrp(descriptor: c_int, group: c_int) -> c_int;
    fn tcdrain(descriptor: c_int) -> c_int;
    fn setsid() -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn chroot(path: *const std::ffi::c_char) -> c_int;
    fn sethostname(name: *const std::ffi::c_char, length: usize) -> c_int;
    fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
}

fn main() {
    let mut arguments = env::args_os().skip(1);
    let terminal = arguments.next().unwrap_or_else(|| "/dev/null".into());
    let root = arguments.next();
    if let Err(error) = serve(&terminal, root.as_deref()) {
        eprintln!("mote: cannot use /dev/port: {error}");
    }
    // The machine has ended with the job. One that has no such port has not.
    // SAFETY: a system call without memory.
    unsafe { reboot(RB_POWER_OFF) };
}

/// Waits for a job, runs it, and hands its status over.
fn serve(terminal: &OsStr, root: Option<&OsStr>) -> io::Result<()> {
    let ports = File::options().read(true).write(true).open("/dev/port")?;
    let tty = File::options().read(true).write(true).open(terminal)?;
    // It leads the terminal's session, with whose leader's end a terminal forgets what has not left it.
    // SAFETY: system calls without memory.
    unsafe {
        setsid();
        ioctl(tty.as_raw_fd(), TIOCSCTTY, 1 as c_uint);
        // Not in the foreground, it still waits for output to leave.
        signal(SIGTTOU, SIG_IGN);
    }
    PORTS.store(ports.as_raw_fd(), Ordering::Relaxed);
    for number in [SIGUSR1, SIGUSR2, SIGTERM] {
        // SAFETY: the handler makes one system call.
        unsafe { signal(number, end as extern "C" fn(c_int) as usize) };
    }
    ports.write_all_at(&[WAITS], PORT)?;
    // From here on it is one of many.
    let mut size = [0; 4];
    ports.read_exact_at(&mut size, PORT)?;
    let mut job = vec![0; u32::from_le_bytes(size) as usize];
    for part in job.chunks_mut(DATA_PORTS) {
        ports.read_exact_at(part, DATA_PORT)?;
    }
    let status = run(Job::decode(&job), &tty, root);
    ports.write_all_at(&[status], DATA_PORT)
}

/// What busybox's poweroff, halt and reboot send to the first process: whoever asks for the end has it.
extern "C" fn end(_: c_int) {
    // SAFETY: the kernel reads one byte.
    unsafe {
        pwrite(
            PORTS.load(Ordering::Relaxed),
            ptr::from_ref(&0_u8).cast(),
            1,
            DATA_PORT as i64,
        );
    }
}

/// Runs it to its end, and all processes that come to this one meanwhile.
fn run(job: Job, tty: &File, root: Option<&OsStr>) -> u8 {
    let Job {
        arguments,
        environment,
        hostname,
        window,
    } = job;
    if !hostname.is_empty() {
        // SAFETY: the name is as long as it is said to be.
        unsafe { sethostname(hostname.as_ptr().cast(), hostname.len()) };
    }
    if window != (0, 0) {
        let (columns, rows) = window;
        let size: [u16; 4] = [rows, columns, 0, 0];
        // SAFETY: the kernel reads a `struct winsize`, which is that.
        unsafe { ioctl(tty.as_raw_fd(), TIOCSWINSZ, size.as_ptr()) };
    }
    let arguments = if arguments.is_empty() {
        vec![b"sh".to_vec()]
    } else {
        arguments
    };
    let mut words = arguments.into_iter().map(OsString::from_vec);
    let program = words.next().unwrap_or_default();
    let found = find(&program, root);
    let mut command = Command::new(&found);
    command.arg0(&program).args(words);
    command.env("PATH", if root.is_some() { ROOT_PATH } else { PATH });
    for variable in environment {
        let mut parts = variable.splitn(2, |byte| *byte == b'=');
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
    }
    let root = root.and_then(|root| CString::new(root.as_bytes()).ok());
    let copy = || tty.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
    command.stdin(copy()).stdout(copy()).stderr(copy());
    let before = move || {
        // SAFETY: system calls that take no memory but a string that lives as long as this closure.
        unsafe {
            // What is typed is for it, and so is Ctrl-C.
            setpgid(0, 0);
            tcsetpgrp(0, getpid());
            signal(SIGTTOU, SIG_DFL);
            if let Some(root) = &root
                && chroot(root.as_ptr()) != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        // Where the user's files are, if anywhere.
        env::set_current_dir("/root").or_else(|_| env::set_current_dir("/"))
    };
    // SAFETY: what it calls are system calls.
    unsafe { command.pre_exec(before) };
    let status = match command.spawn() {
        Ok(child) => wait(child.id()),
        Err(error) => {
            let name = program.to_string_lossy();
            let _ = writeln!(&*tty, "mote: cannot run {name:?}: {error}");
            match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_RUN,
            }
        }
    };
    // What was written has left by then.
    // SAFETY: a system call without memory.
    unsafe { tcdrain(tty.as_raw_fd()) };
    status
}

/// The program as `PATH` has it; a path is what it is.
fn find(program: &OsStr, root: Option<&OsStr>) -> OsString {
    if program.as_bytes().contains(&b'/') {
        return program.into();
    }
    let path = if root.is_some() { ROOT_PATH } else { PATH };
    let in_root = |path: &OsStr| {
        let mut whole = root.unwrap_or_default().to_owned();
        whole.push(path);
        whole
    };
    let mut all = path.split(':').map(|directory| {
        let mut path = OsString::from(directory);
        path.push("/");
        path.push(program);
        path
    });
    all.find(|path| fs::symlink_metadata(in_root(path)).is_ok())
        .unwrap_or_else(|| program.into())
}

/// Waits for a process, and for those whose parents have ended; the status as shells have it.
fn wait(process: u32) -> u8 {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes the status to where it is told.
        let ended = unsafe { waitpid(-1, ptr::from_mut(&mut status), 0) };
        if ended < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return NOT_RUN;
        }
        if u32::try_from(ended) == Ok(process) {
            // As wait(2) has it: a signal's number in the low seven bits, else the status above.
            let signal = (status & 0x7f) as u8;
            return if signal == 0 {
                (status >> 8) as u8
            } else {
                128 + signal
            };
        }
    }
}
