//! What mote itself weighs beside an idle guest of 128 MiB, guest memory not counted.
//!
//! ```text
//! cargo bench -p tests --bench memory
//! ```
//! The guest is Linux where it can boot, else a kernel that halts at once. RSS and PSS are sums over
//! `/proc/PID/smaps`; guest memory is left out by its addresses: it starts where the kernel's file is
//! mapped, less the kernel's GPA, or, where the kernel was copied, at the one mapping of its size.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use tests::{executable, guest, monitor};
use vmm_sys_util::tempdir::TempDir;

const GUEST_MEMORY: u64 = 128 << 20;
/// Where the first segment of an x86-64 Linux is loaded.
const KERNEL_GPA: u64 = 0x100_0000;
/// By then an idle guest is idle.
const SETTLE: Duration = Duration::from_secs(2);

fn main() {
    let directory = TempDir::new().unwrap();
    let linux = monitor::can_boot_linux().is_ok();
    let kernel = if linux {
        fs::canonicalize(guest::tuned_kernel().join("vmlinux")).unwrap()
    } else {
        let path = directory.as_path().join("idle");
        fs::write(&path, executable::idle_kernel()).unwrap();
        path
    };
    let mut command = Command::new(monitor::path());
    command.args(["run", "--memory", &GUEST_MEMORY.to_string(), "--kernel"]);
    command.arg(&kernel);
    if linux {
        command.args(["--", "sh", "-c", "echo ready; sleep 1000"]);
    } else {
        command.args(["--boot-timer", "--initrd"]).arg(&kernel);
    }
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut mote = command.spawn().unwrap();
    wait_until_up(&mut mote, linux);
    thread::sleep(SETTLE);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", mote.id())).unwrap();
    mote.kill().unwrap();
    mote.wait().unwrap();

    let mappings = parse(&smaps);
    let kernel = kernel.to_str().unwrap();
    let start = mappings
        .iter()
        .find(|mapping| mapping.file == kernel)
        .map(|mapping| mapping.start - KERNEL_GPA)
        .or_else(|| {
            let ram = |mapping: &&Mapping| mapping.end - mapping.start >= GUEST_MEMORY;
            Some(mappings.iter().find(ram)?.start)
        })
        .expect("the guest's memory is not among the mappings");
    let ram = start..start + GUEST_MEMORY;
    let (inside, outside): (Vec<_>, Vec<_>) = mappings
        .iter()
        .partition(|mapping| ram.contains(&mapping.start));
    let guest = if linux { "Linux" } else { "halted" };
    println!("{guest} guest of 128 MiB, KiB:    RSS     PSS");
    for (name, part) in [("monitor", outside), ("guest memory", inside)] {
        let rss: u64 = part.iter().map(|mapping| mapping.rss).sum();
        let pss: u64 = part.iter().map(|mapping| mapping.pss).sum();
        println!("{name:24} {rss:10} {pss:7}");
    }
}

/// Waits for the boot mark on standard error, or for the guest's first output.
fn wait_until_up(mote: &mut Child, linux: bool) {
    let mut first = [0];
    let up = if linux {
        mote.stdout.as_mut().unwrap().read_exact(&mut first)
    } else {
        mote.stderr.as_mut().unwrap().read_exact(&mut first)
    };
    up.expect("mote ended at once");
}

/// A mapping of `/proc/PID/smaps`; sizes in KiB.
struct Mapping {
    start: u64,
    end: u64,
    file: String,
    rss: u64,
    pss: u64,
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap();
        if let Some((start, end)) = first.split_once('-') {
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16).unwrap(),
                end: u64::from_str_radix(end, 16).unwrap(),
                // After permissions, offset, device and inode.
                file: words.nth(4).unwrap_or_default().to_owned(),
                rss: 0,
                pss: 0,
            });
        } else if let Some(mapping) = mappings.last_mut() {
            let size = words.next().and_then(|word| word.parse().ok());
            match first {
                "Rss:" => mapping.rss = size.unwrap(),
                "Pss:" => mapping.pss = size.unwrap(),
                _ => {}
            }
        }
    }
    mappings
}
