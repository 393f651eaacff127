//! Linux guests: which kernels there are, initial RAM disks made for a case, commands run inside.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use cpio::newc::{self, ModeFileType};
use image::cache::Cache;
use vmm_sys_util::tempdir::TempDir;

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
pub(crate) fn is_kernel_message(line: &str) -> bool {
    line.strip_prefix('[')
        .and_then(|rest| rest.trim_start().split_once("] "))
        .is_some_and(|(time, _)| {
            time.bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
}

/// An initial RAM disk of busybox and this script as its first process.
pub fn initrd(directory: &Path, init: &str) -> PathBuf {
    initrd_with(directory, init, &[])
}

/// The same with more programs: names and what they are copied from.
pub fn initrd_with(directory: &Path, init: &str, programs: &[(&str, &Path)]) -> PathBuf {
    let path = directory.join("initrd.cpio");
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "proc", "sys", "tmp", "mnt", "modules"] {
        add(
            &mut archive,
            entry(directory, 0o755, ModeFileType::Directory),
            &[],
        );
    }
    let console = entry("dev/console", 0o600, ModeFileType::Char);
    add(&mut archive, console.rdev_major(5).rdev_minor(1), &[]);
    let busybox = ("bin/busybox", Path::new("/bin/busybox"));
    for (name, source) in [busybox].iter().chain(programs) {
        let program = fs::read(source).unwrap();
        add(
            &mut archive,
            entry(name, 0o755, ModeFileType::Regular),
            &program,
        );
    }
    let script = format!("#!/bin/busybox sh\n{init}\n");
    add(
        &mut archive,
        entry("init", 0o755, ModeFileType::Regular),
        script.as_bytes(),
    );
    fs::write(&path, newc::trailer(archive).unwrap()).unwrap();
    path
}

/// The program that exercises devices from inside: `$GUEST_PROBE`, else the one that cargo built
/// beside this test.
pub fn probe() -> PathBuf {
    if let Some(path) = env::var_os("GUEST_PROBE") {
        return path.into();
    }
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("guest-probe");
    assert!(
        path.exists(),
        "there is no {path:?}: run `cargo build` first, or set GUEST_PROBE"
    );
    path
}

/// What runs before and after the script of a [`probing`] guest. A function of this name makes it
/// short to say that something must work.
const PROLOGUE: &str = r#"
    export PATH=/bin HOME=/
    # It finds itself through /proc.
    busybox mount -t proc proc /proc
    busybox --install -s /bin
    mount -t devtmpfs dev /dev; mount -t sysfs sys /sys
    mount -t tmpfs tmp /tmp; mkdir -p /etc
    ip link set lo up 2>/dev/null
    ulimit -n 8192
    cd /tmp
    failures=0
    must() { "$@" || { echo "FAILED ($?): $*"; failures=$((failures + 1)); }; }
    must_not() { "$@" && { echo "SUCCEEDED: $*"; failures=$((failures + 1)); }; }
"#;
const EPILOGUE: &str = r#"
    wait
    echo "FAILURES $failures"
    stty onlcr
    [ -d /sys/firmware/acpi ] && poweroff -f
    reboot -f
"#;

/// An initial RAM disk of busybox, the probe, and this script. In it `must COMMAND` and `must_not
/// COMMAND` count what goes wrong: see [`expect_success`].
pub fn probing(directory: &Path, script: &str) -> PathBuf {
    let init = format!("{PROLOGUE}\n{script}\n{EPILOGUE}");
    initrd_with(directory, &init, &[("bin/guest-probe", &probe())])
}

/// What loads the drivers of Debian's kernel.
const LOAD_MODULES: &str = r#"
    for module in /modules/*.ko; do must insmod "$module"; done
"#;

/// The same for Debian's kernel, which has its drivers as modules, and drivers that mote's own has not: see
/// [`packaged_vmlinuz`].
pub fn probing_packaged(directory: &Path, script: &str) -> PathBuf {
    let init = format!("{PROLOGUE}\n{LOAD_MODULES}\n{script}\n{EPILOGUE}");
    let modules = fs::read_dir(packaged_kernel().join("modules")).unwrap();
    let modules: Vec<(String, PathBuf)> = modules
        .map(|module| {
            let path = module.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            (format!("modules/{name}"), path)
        })
        .collect();
    let probe = probe();
    let mut programs = vec![("bin/guest-probe", probe.as_path())];
    programs.extend(
        modules
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_path())),
    );
    initrd_with(directory, &init, &programs)
}

/// Debian's kernel.
pub fn packaged_vmlinuz() -> String {
    packaged_kernel().join("vmlinuz").display().to_string()
}

/// Runs a [`probing`] guest with these options; fails unless all of the script did well. Returns what
/// it printed.
#[track_caller]
pub fn run_probing<S: AsRef<OsStr>>(options: &[S], script: &str) -> String {
    let directory = TempDir::new().unwrap();
    let initrd = probing(directory.as_path(), script);
    let arguments = [
        OsStr::new("run"),
        OsStr::new("--initrd"),
        initrd.as_os_str(),
    ];
    let options = options.iter().map(AsRef::as_ref);
    expect_success(&mote(arguments.into_iter().chain(options)))
}

/// Fails unless a [`probing`] guest ended, and nothing in it went wrong.
#[track_caller]
pub fn expect_success(ended: &Ended) -> String {
    assert_eq!(ended.status, 0, "{ended:#?}");
    let output = output(ended);
    assert!(output.contains("FAILURES 0\n"), "{ended:#?}");
    output
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
