//! Linux guests: which kernels there are, initial RAM disks made for a case, commands run inside.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};
use image::cache::Cache;

use crate::monitor::{Ended, mote};

/// The directory of mote's own kernel, with `vmlinux` and `bzImage-<compression>`.
pub fn tuned_kernel() -> PathBuf {
    kernels().join("tuned")
}

/// The directory of Debian's kernel, with `vmlinuz` and `modules`.
pub fn packaged_kernel() -> PathBuf {
    kernels().join("packaged")
}

fn kernels() -> PathBuf {
    Cache::from_env().root().unwrap().join("kernel")
}

/// Runs a shell script in a guest that boots with these options; fails unless all ends well. Returns
/// what the script printed.
#[track_caller]
pub fn run(options: &[&str], script: &str) -> String {
    let command = ["--", "sh", "-c", script];
    let arguments = ["run"].iter().chain(options).chain(&command);
    let ended = mote(arguments).expect_status(0);
    let output = output(&ended);
    assert!(!output.contains("mote: command exited"), "{ended:#?}");
    output
}

/// What was printed on the console, without the kernel's messages.
pub fn output(ended: &Ended) -> String {
    ended
        .text()
        .split_inclusive('\n')
        .filter(|line| !is_kernel_message(line))
        .collect()
}

/// `[    0.123456] …`
fn is_kernel_message(line: &str) -> bool {
    line.strip_prefix('[')
        .and_then(|rest| rest.trim_start().split_once("] "))
        .is_some_and(|(time, _)| {
            time.bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
}

/// An initial RAM disk of busybox and this script as its first process.
pub fn initrd(directory: &Path, init: &str) -> PathBuf {
    let path = directory.join("initrd.cpio");
    let busybox = fs::read("/bin/busybox").unwrap();
    let script = format!("#!/bin/busybox sh\n{init}\n");
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "proc", "sys"] {
        add(
            &mut archive,
            entry(directory, 0o755, ModeFileType::Directory),
            &[],
        );
    }
    let console = entry("dev/console", 0o600, ModeFileType::Char);
    add(&mut archive, console.rdev_major(5).rdev_minor(1), &[]);
    add(
        &mut archive,
        entry("bin/busybox", 0o755, ModeFileType::Regular),
        &busybox,
    );
    add(
        &mut archive,
        entry("init", 0o755, ModeFileType::Regular),
        script.as_bytes(),
    );
    fs::write(&path, newc::trailer(archive).unwrap()).unwrap();
    path
}

/// An initial RAM disk of this one program.
pub fn initrd_of_program(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    add(
        &mut archive,
        entry("init", 0o755, ModeFileType::Regular),
        init,
    );
    newc::trailer(archive).unwrap()
}

fn entry(name: &str, mode: u32, kind: ModeFileType) -> newc::Builder {
    newc::Builder::new(name).mode(mode).set_mode_file_type(kind)
}

fn add(archive: &mut Vec<u8>, entry: newc::Builder, contents: &[u8]) {
    let mut writer = entry.write(archive, contents.len().try_into().unwrap());
    writer.write_all(contents).unwrap();
    writer.finish().unwrap();
}
