//! Good kernels with one field changed: whatever it says, mote and its host come to no harm.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;

use tests::executable::{HEADERS, SETUP_HEADER, bzimage, tiny_kernel};
use tests::monitor::Ended;
use tests::sandbox::Sandbox;

use super::run;
use crate::Case;

/// They come to boot, some of them.
pub(crate) const CASES: &[Case] = &[
    ("mutants_of_an_elf_kernel", elf),
    ("mutants_of_a_bzimage", bzimage_for_the_host),
    ("mutants_of_a_bzimage_for_the_guest", bzimage_for_the_guest),
];

/// Each with what was changed.
type Mutants = BTreeMap<Vec<u8>, String>;

fn elf() {
    all_end(&tiny_kernel(), 0..HEADERS as usize);
}

fn bzimage_for_the_host() {
    all_end(&bzimage(&tiny_kernel()), SETUP_HEADER);
}

/// The host does not know what it unpacks to, so the guest is to do that, as the header has it.
fn bzimage_for_the_guest() {
    all_end(&bzimage(b"no vmlinux"), SETUP_HEADER);
}

/// Every byte, and every aligned field of more bytes, with values at the edges of what it can hold.
fn mutants(good: &[u8], header: Range<usize>) -> Mutants {
    let mut mutants = Mutants::new();
    for width in [1, 2, 4, 8] {
        let max = u64::MAX >> (64 - 8 * width);
        let start = header.start.next_multiple_of(width);
        for offset in (start..header.end + 1 - width).step_by(width) {
            let mut field = [0; 8];
            field[..width].copy_from_slice(&good[offset..offset + width]);
            let old = u64::from_le_bytes(field);
            // The last one overflows when a page is added.
            for value in [0, max, max >> 1, old ^ 1, old ^ (max / 2 + 1), max & !0xffe] {
                let mut mutant = good.to_vec();
                mutant[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
                let change = format!("{width} bytes at {offset:#x} are {value:#x}");
                mutants.insert(mutant, change);
            }
        }
    }
    mutants.remove(good);
    mutants
}

fn boot(sandbox: &Sandbox, kernel: &[u8]) -> Ended {
    let kernel = sandbox.file("mutant", kernel);
    let arguments = ["--kernel", &kernel, "--memory", "32m", "--timeout", "200ms"];
    sandbox.run(sandbox.mote(run(sandbox, &arguments)))
}

/// Runs each mutant; fails unless all come to a proper end.
fn all_end(good: &[u8], header: Range<usize>) {
    boot(&Sandbox::new(), good).expect_status(0);
    let mutants = mutants(good, header);
    let left = Mutex::new(mutants.iter());
    let failures = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let sandbox = Sandbox::new();
                loop {
                    let Some((mutant, change)) = left.lock().unwrap().next() else {
                        break;
                    };
                    let ended = boot(&sandbox, mutant);
                    if !is_orderly(&ended) {
                        failures.lock().unwrap().push((change, ended));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// It may run, crash, or not be a kernel; each is said as it is for every kernel. A panic or an abort
/// for lack of memory is none of these.
fn is_orderly(ended: &Ended) -> bool {
    let stderr = &ended.stderr;
    match ended.status {
        0 => stderr.is_empty(),
        124 | 125 => stderr.starts_with("mote: ") && stderr.lines().count() == 1,
        134 => stderr.contains(" crashed: "),
        _ => false,
    }
}
