//! The first process of a guest that runs commands for mote, in the place of the shell that the default guest has:
//!
//! `agent TERMINAL [ROOT]`
//!
//! It says by the job port that all is set up, and waits in that instruction: a template is taken there, and each guest that
//! is restored from it goes on with a job of its own. It runs that as the terminal's session, in ROOT if there is one,
//! and hands its status over; the machine ends with that.
#![expect(
    unsafe_code,
    reason = "port I/O, and system calls that std does not have"
)]

use std::arch::asm;
use std::env;
use std::ffi::{CString, OsStr, OsString, c_int, c_uint, c_ulong};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;
use std::thread;
use std::time::Duration;

use agent::{DATA_PORT, Job, PORT, WAITS};

const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSWINSZ: c_ulong = 0x5414;
/// Programs of the default guest, and those of a root file system.
const PATH: &str = "/bin";
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A status as shells have it: there is no such program, or it cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

unsafe extern "C" {
    fn iopl(level: c_int) -> c_int;
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
    // SAFETY: a system call without memory.
    if unsafe { iopl(3) } != 0 {
        eprintln!("mote: no access to ports: {}", io::Error::last_os_error());
        return;
    }
    out_long(PORT, WAITS);
    // From here on it is one of many.
    let job = Job::decode(&read_job());
    let status = run(job, &terminal, root.as_deref());
    out_byte(DATA_PORT, status);
    // The machine ends with that. One that was put into another monitor, which has no such port, does not.
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

fn read_job() -> Vec<u8> {
    let mut bytes = vec![0; in_long(PORT) as usize];
    in_bytes(DATA_PORT, &mut bytes);
    bytes
}

/// Runs it to its end, and all processes that come to this one meanwhile.
fn run(job: Job, terminal: &OsStr, root: Option<&OsStr>) -> u8 {
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
    let Ok(tty) = File::options().read(true).write(true).open(terminal) else {
        return NOT_RUN;
    };
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
    command.env(
        "PATH",
        if root.is_some() { ROOT_PATH } else { PATH },
    );
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
            setsid();
            ioctl(0, TIOCSCTTY, 1 as c_uint);
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
            let _ = writeln!(&tty, "mote: cannot run {name:?}: {error}");
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

fn out_long(port: u16, value: u32) {
    // SAFETY: this process may use ports; the device is mote's, and writes to no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

fn out_byte(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn in_long(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

fn in_bytes(port: u16, bytes: &mut [u8]) {
    // SAFETY: it writes as many bytes as there are; the direction flag is clear by the ABI.
    unsafe {
        asm!(
            "rep insb",
            in("dx") port,
            inout("rdi") bytes.as_mut_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack)
        );
    };
}
