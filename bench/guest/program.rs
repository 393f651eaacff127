//! What every runtime starts: `program TOKEN MODE`. It prints the token, which is another one for each start, and exits with a status that
//! nobody would make up.
//!
//! MODE: `run`; `mark`, which prints a line before it, so that its first instruction is seen; `hold`, which stays, and does nothing.
#![no_std]
#![no_main]
#![no_builtins]

mod sys;

use sys::{EXIT, PAUSE, STATUS, Words, bytes, call, print};

/// The longest token.
const LONGEST: usize = 64;

fn main(words: Words) -> ! {
    let token = bytes(words.get(1));
    let mode = bytes(words.get(2));
    if mode == b"mark" {
        print(b"init\n");
    }
    // One write, so that it comes in one piece.
    let mut line = [b'\n'; LONGEST + 1];
    let length = if token.len() < LONGEST { token.len() } else { LONGEST };
    let mut at = 0;
    while at < length {
        line[at] = token[at];
        at += 1;
    }
    print(&line[..length + 1]);
    while mode == b"hold" {
        call(PAUSE, 0, 0, 0, 0);
    }
    loop {
        call(EXIT, STATUS, 0, 0, 0);
    }
}
