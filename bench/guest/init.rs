//! The first process of a guest that is measured: it starts the program, waits for it, and ends the machine. What it has to know are the last words of
//! the kernel's command line, behind `--`:
//!
//! `TOKEN MODE END`: the program's words, and how the machine ends: `reboot` or `poweroff`.
//! `wait END`: it says `ready` on the console, where a snapshot is taken, and then reads a line from there, `TOKEN MODE`.
//!
//! It prints nothing of its own, but in the mode `mark` a line when it begins, and the program's status if it is a wrong one.
#![no_std]
#![no_main]
#![no_builtins]

mod sys;

use sys::{EXECVE, EXIT, FORK, IOCTL, READ, REBOOT, STATUS, WAIT4, Words, bytes, call, print};

const TCGETS: usize = 0x5401;
const TCSETS: usize = 0x5402;
/// With 1: wait until all output has left.
const TCSBRK: usize = 0x5409;
/// In the fourth word of `struct termios`, the local modes.
const ECHO: u32 = 0o10;
const LOCAL_MODES: usize = 3;
const MAGIC1: usize = 0xfee1_dead;
const MAGIC2: usize = 672_274_793;
const RESTART: usize = 0x0123_4567;
const POWER_OFF: usize = 0x4321_fedc;

fn main(words: Words) -> ! {
    let last = |back: usize| words.get(words.count.saturating_sub(back));
    let mut line = [0; 128];
    let (mut token, mut mode) = (last(3), last(2));
    if bytes(mode) == b"wait" {
        (token, mode) = ask(&mut line);
    }
    if bytes(mode) == b"mark" {
        print(b"init\n");
        mode = c"run".as_ptr().cast();
    }
    let status = run(token, mode);
    if status != STATUS << 8 {
        // As wait(2) has it: the signal, or the exit status above it.
        let digit = |shift: usize| b"0123456789abcdef"[status >> shift & 15];
        print(&[b's', b't', b'a', b't', b'u', b's', b' ', digit(12), digit(8), digit(4), digit(0), b'\n']);
    }
    call(IOCTL, 1, TCSBRK, 1, 0);
    let end = if bytes(last(1)) == b"poweroff" { POWER_OFF } else { RESTART };
    loop {
        call(REBOOT, MAGIC1, MAGIC2, end, 0);
    }
}

/// Starts the program and waits for its end.
fn run(token: *const u8, mode: *const u8) -> usize {
    let program: *const u8 = c"/program".as_ptr().cast();
    if call(FORK, 0, 0, 0, 0) == 0 {
        let arguments = [program, token, mode, core::ptr::null()];
        let environment = [core::ptr::null::<u8>()];
        call(EXECVE, program as usize, arguments.as_ptr() as usize, environment.as_ptr() as usize, 0);
        call(EXIT, 127, 0, 0, 0);
    }
    let mut status: u32 = 0;
    call(WAIT4, usize::MAX, &raw mut status as usize, 0, 0);
    status as usize & 0xffff
}

/// Asks for the program's words on the console, which does not repeat them.
fn ask(line: &mut [u8; 128]) -> (*const u8, *const u8) {
    let mut settings = [0_u32; 16];
    call(IOCTL, 0, TCGETS, settings.as_mut_ptr() as usize, 0);
    settings[LOCAL_MODES] &= !ECHO;
    call(IOCTL, 0, TCSETS, settings.as_ptr() as usize, 0);
    print(b"ready\n");
    let read = call(READ, 0, line.as_mut_ptr() as usize, line.len() - 1, 0);
    let read = if read < line.len() { read } else { 0 };
    let mut second = read;
    let mut at = 0;
    while at < read {
        if line[at] == b' ' {
            second = at + 1;
        }
        if line[at] == b' ' || line[at] == b'\n' {
            line[at] = 0;
        }
        at += 1;
    }
    line[read] = 0;
    (line.as_ptr(), &raw const line[second])
}
