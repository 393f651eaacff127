//! Files that are no kernel, or not one for here.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{CWD, Mode, mkfifoat};
use tests::executable::{HEADERS, bzimage, tiny_kernel};
use tests::sandbox::Sandbox;

use super::{fails, run};

/// What is said of a kernel file of these bytes.
#[track_caller]
fn kernel_fails(contents: impl AsRef<[u8]>, parts: &[&str]) {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("my-kernel", contents);
    let parts: Vec<&str> = parts.iter().copied().chain([kernel.as_str()]).collect();
    fails(&sandbox, &["--kernel", &kernel], &parts);
}

/// The tiny kernel with these bytes at an offset.
fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut kernel = tiny_kernel();
    kernel[offset..offset + bytes.len()].copy_from_slice(bytes);
    kernel
}

pub(super) fn missing() {
    let sandbox = Sandbox::new();
    for name in ["missing", "missing/below", "two\nlines"] {
        let path = sandbox.path(name);
        let name = name.replace('\n', "\\n");
        let parts = ["Cannot open the kernel", &name, "No such file"];
        fails(&sandbox, &["--kernel", &path], &parts);
    }
    let path = sandbox.path(&"x".repeat(300));
    fails(
        &sandbox,
        &["--kernel", &path],
        &["Cannot open the kernel", "name too long"],
    );
}

pub(super) fn no_file() {
    let sandbox = Sandbox::new();
    let pipe = sandbox.path("pipe");
    mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
    for (path, what) in [
        (sandbox.path(""), "a directory"),
        (pipe, "a named pipe"),
        ("/dev/zero".into(), "a device"),
    ] {
        let parts = [&path, what, "name a vmlinux or bzImage file"];
        fails(&sandbox, &["--kernel", &path], &parts);
    }
}

pub(super) fn empty() {
    kernel_fails("", &["is empty: copy it again"]);
}

/// In every part that there is.
pub(super) fn truncated() {
    let kernel = tiny_kernel();
    let image = bzimage(&kernel);
    for length in [4, 5, 18, 63, 64, HEADERS as usize - 1, kernel.len() - 1] {
        kernel_fails(&kernel[..length], &["cut short", "copy it again"]);
    }
    for length in 1..4 {
        kernel_fails(&kernel[..length], &["not a kernel"]);
    }
    for length in [0x206, 0x267, 0x268, 0x400, 0x600, image.len() - 1] {
        kernel_fails(&image[..length], &["cut short", "copy it again"]);
    }
}

pub(super) fn unreadable() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("unreadable", tiny_kernel());
    fs::set_permissions(&kernel, Permissions::from_mode(0o0)).unwrap();
    let arguments = run(&sandbox, &["--kernel", &kernel]);
    let command = if rustix::process::geteuid().is_root() {
        sandbox.mote_as_nobody(None, arguments)
    } else {
        sandbox.mote(arguments)
    };
    let parts = ["Cannot open the kernel", &kernel, "Permission denied"];
    sandbox.run(command).expect_error(125, &parts);
}

pub(super) fn wrong_architecture() {
    const CLASS: usize = 4;
    const DATA: usize = 5;
    const MACHINE: usize = 18;
    for (offset, bytes, machine) in [
        (MACHINE, &[183, 0][..], "arm64"),
        (MACHINE, &[243, 0], "RISC-V"),
        (MACHINE, &[3, 0], "32-bit x86"),
        (MACHINE, &[0xff, 0xff], "ELF machine 65535"),
        (CLASS, &[1], "32-bit pointers"),
        (DATA, &[2], "a big-endian processor"),
    ] {
        let parts = ["It is made for", machine, "mote runs x86-64 code only"];
        kernel_fails(patched(offset, bytes), &parts);
    }
    // The Image of another architecture has a magic number in its own header.
    let mut image = vec![0; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    kernel_fails(image, &["an arm64 kernel Image", "x86-64 ELF vmlinux"]);
    let mut image = bzimage(&tiny_kernel());
    image[0x236] = 0;
    kernel_fails(image, &["a 32-bit x86 kernel", "mote runs x86-64 kernels"]);
    // It carries a kernel for another machine, and cannot unpack that by itself, either.
    let mut image = bzimage(&patched(MACHINE, &[183, 0]));
    image[0x206..0x208].copy_from_slice(&[0x08, 0x02]);
    kernel_fails(image, &["unpacks to cannot be booted", "arm64"]);
}

pub(super) fn something_else() {
    const NOTHING_GZIPPED: [u8; 20] = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    for (contents, what) in [
        (&b"just text\n"[..], "something else"),
        (&[0; 4096], "something else"),
        (b"\x7fELG", "something else"),
        (b"#!/bin/sh\nexit 0\n", "a script"),
        (&NOTHING_GZIPPED, "gzip data"),
        (b"070701", "a cpio archive"),
        (b"MZ, and no more", "an EFI program"),
    ] {
        let parts = [what, "not a kernel", "x86-64 ELF vmlinux or a bzImage"];
        kernel_fails(contents, &parts);
    }
}

pub(super) fn corrupt() {
    const ENTRY: usize = 24;
    const PROGRAM_HEADER_SIZE: usize = 54;
    const PROGRAM_HEADERS: usize = 56;
    const TYPE: usize = 16;
    const SEGMENT_TYPE: usize = 64;
    const PHYSICAL: usize = 64 + 24;
    const MEMORY_SIZE: usize = 64 + 40;
    for (offset, bytes, what) in [
        (ENTRY, &[0; 8][..], "the entry point 0x0 is in no loaded"),
        (PROGRAM_HEADER_SIZE, &[1, 0], "1 bytes each; copy it again"),
        (PROGRAM_HEADERS, &[0, 0], "0 program headers"),
        (PROGRAM_HEADERS, &[0xff, 0xff], "65535 program headers"),
        (TYPE, &[1, 0], "an object file"),
        (TYPE, &[4, 0], "a core dump"),
        (SEGMENT_TYPE, &[3], "a dynamically linked program"),
        (SEGMENT_TYPE, &[4], "no segment is to be loaded"),
        (PHYSICAL, &[0; 8], "asks to be loaded at 0x0.."),
        (PHYSICAL, &[0xff; 8], "asks to be loaded at 0xff"),
        (MEMORY_SIZE, &[0xff; 8], "asks to be loaded at 0x100000.."),
        (MEMORY_SIZE, &[1, 0], "in the file but 1 in memory"),
    ] {
        kernel_fails(patched(offset, bytes), &[what]);
    }
}

pub(super) fn too_large() {
    let sandbox = Sandbox::new();
    let memory_size = patched(64 + 40, &(64u64 << 20).to_le_bytes());
    let kernel = sandbox.file("large", memory_size);
    fails(
        &sandbox,
        &["--memory", "32m", "--kernel", &kernel],
        &[&kernel, "needs memory up to 0x4100000", "--memory"],
    );
    // More than is unpacked, and more than can be loaded.
    let image = sandbox.file("huge", bzimage(&tiny_kernel()));
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(1 << 40).unwrap();
    fails(
        &sandbox,
        &["--kernel", &image],
        &[&image, "asks to be loaded"],
    );
}

pub(super) fn no_pvh_entry() {
    let sandbox = Sandbox::new();
    let parts = ["/kernel\"", "no PVH entry point", "without --boot pvh"];
    fails(&sandbox, &["--boot", "pvh"], &parts);
}
