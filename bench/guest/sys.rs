//! System calls, without a C library: so that the programs are a page each, and start as fast as the kernel can start any.

#![allow(dead_code, reason = "each program needs some of it")]

use core::arch::{asm, global_asm};

pub const WRITE: usize = 1;
pub const READ: usize = 0;
pub const IOCTL: usize = 16;
pub const PAUSE: usize = 34;
pub const FORK: usize = 57;
pub const EXECVE: usize = 59;
pub const EXIT: usize = 60;
pub const WAIT4: usize = 61;
pub const REBOOT: usize = 169;

/// What the program of a start exits with, so that a status that somebody made up is not taken for it.
pub const STATUS: usize = 7;

// The kernel leaves argc, argv and the environment on the stack (System V ABI for x86-64, 3.4.1).
global_asm!(
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: argc words follow argc, each the address of a string that ends with a zero and stays.
    let (count, words) = unsafe { (*stack, stack.add(1).cast::<*const u8>()) };
    crate::main(Words { count, words })
}

/// The arguments, the first of which is the program's name.
#[derive(Clone, Copy)]
pub struct Words {
    pub count: usize,
    words: *const *const u8,
}

impl Words {
    /// The word at `index`, and an empty one where there is none.
    pub fn get(self, index: usize) -> *const u8 {
        if index < self.count {
            // SAFETY: it is one of those that are there.
            unsafe { *self.words.add(index) }
        } else {
            c"".as_ptr().cast()
        }
    }
}

/// The bytes of a string that ends with a zero.
pub fn bytes(word: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: `word` is a string of the kernel's or a literal, which ends with a zero and stays.
    unsafe {
        while *word.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(word, length)
    }
}

/// A system call; what it returns is an error if it is close to the largest number.
pub fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> usize {
    let result;
    // SAFETY: callers pass addresses of memory that is there for as long as the call takes.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Writes all to standard output.
pub fn print(text: &[u8]) {
    let mut at = 0;
    while at < text.len() {
        let written = call(WRITE, 1, text.as_ptr() as usize + at, text.len() - at, 0);
        if written == 0 || written > text.len() {
            return;
        }
        at += written;
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        call(EXIT, 125, 0, 0, 0);
    }
}

/// Named by the core library's tables for unwinding, which nothing does here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
