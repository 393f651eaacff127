//! Bad input: one clear line, nothing left behind. No case boots Linux.

mod devices;
mod host;
mod kernels;
mod mutants;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;

use arch::layout::CMDLINE_MAX_SIZE;
use rustix::fs::{CWD, Mode, mkfifoat};
use tests::executable::tiny_kernel;
use tests::monitor::Ended;
use tests::sandbox::Sandbox;

use crate::Case;

pub(crate) use devices::CASES as DEVICE_CASES;
pub(crate) use host::{CASES as HOST_CASES, CRASH_CASES};
pub(crate) use mutants::CASES as MUTANT_CASES;

/// Cases that do not come to use KVM.
pub(crate) const CASES: &[Case] = &[
    ("kernel_missing", kernels::missing),
    ("kernel_is_no_file", kernels::no_file),
    ("kernel_empty", kernels::empty),
    ("kernel_truncated", kernels::truncated),
    ("kernel_unreadable", kernels::unreadable),
    (
        "kernel_of_another_architecture",
        kernels::wrong_architecture,
    ),
    ("kernel_is_something_else", kernels::something_else),
    ("kernel_corrupt", kernels::corrupt),
    ("kernel_larger_than_memory", kernels::too_large),
    ("kernel_without_pvh_entry", kernels::no_pvh_entry),
    ("initrd", initrd),
    ("command_line", command_line),
    ("cpus", cpus),
    ("memory", memory),
    ("timeout_and_id", timeout_and_id),
    ("unknown_words", unknown_words),
    ("contradictions", contradictions),
    ("config_file", config_file),
    ("config_file_settings", config_file_settings),
];

/// `mote run` with these arguments and, where they name none, a kernel and an initrd that are good.
fn run(sandbox: &Sandbox, arguments: &[&str]) -> Vec<String> {
    let mut all = vec!["run".to_owned()];
    if !arguments.contains(&"--console") {
        all.extend(["--console".to_owned(), "off".into()]);
    }
    for (flag, contents) in [("--kernel", tiny_kernel()), ("--initrd", b"initrd".into())] {
        if !arguments.contains(&flag) {
            all.extend([flag.to_owned(), sandbox.file(&flag[2..], contents)]);
        }
    }
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    all
}

/// Fails unless `mote run` with these arguments fails with one line that has these parts.
#[track_caller]
fn fails(sandbox: &Sandbox, arguments: &[&str], parts: &[&str]) {
    let command = sandbox.mote(run(sandbox, arguments));
    sandbox.run(command).expect_error(125, parts);
}

/// The same for what is wrong with the arguments themselves, which takes several lines to say.
#[track_caller]
fn is_refused(arguments: &[&str], parts: &[&str]) {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(sandbox.mote(arguments)).expect_status(125);
    assert!(ended.stderr.starts_with("error: "), "{ended:#?}");
    assert_says(&ended, parts);
}

#[track_caller]
fn assert_says(ended: &Ended, parts: &[&str]) {
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?} in {ended:#?}");
    }
}

fn initrd() {
    let sandbox = Sandbox::new();
    let large = sandbox.path("large");
    // Takes no space on the disk.
    File::create(&large).unwrap().set_len(64 << 20).unwrap();
    fails(
        &sandbox,
        &["--memory", "32m", "--initrd", &large],
        &[&large, "67108864 bytes does not fit", "--memory"],
    );
    File::create(&large)
        .unwrap()
        .set_len(i64::MAX as u64 >> 20)
        .unwrap();
    fails(&sandbox, &["--initrd", &large], &[&large, "does not fit"]);

    let directory = sandbox.path("directory");
    fs::create_dir(&directory).unwrap();
    let pipe = sandbox.path("pipe");
    mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
    for path in [&directory, &pipe, "/dev/zero"] {
        let parts = ["Cannot use the initrd", path, "it is no regular file"];
        fails(&sandbox, &["--initrd", path], &parts);
    }
    let empty = sandbox.file("empty", "");
    fails(&sandbox, &["--initrd", &empty], &[&empty, "it is empty"]);
    let missing = sandbox.path("missing");
    fails(
        &sandbox,
        &["--initrd", &missing],
        &[&missing, "No such file"],
    );
    // The line stays one.
    let missing = sandbox.path("two\nlines");
    fails(
        &sandbox,
        &["--initrd", &missing],
        &["two\\nlines", "No such file"],
    );
}

fn command_line() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(CMDLINE_MAX_SIZE);
    let limit = ["2048 bytes long, at most 2047", "--append, --cmdline"];
    fails(&sandbox, &["--cmdline", &long], &limit);
    fails(
        &sandbox,
        &["--append", &long],
        &["at most 2047", "--append"],
    );
    // A guest without ACPI is told of its devices at the end of the line.
    let nearly = format!("acpi=off {}", "x".repeat(CMDLINE_MAX_SIZE - 20));
    let arguments = ["--entropy", "on", "--cmdline", &nearly];
    fails(&sandbox, &arguments, &["at most 2047"]);
    for text in ["a\nb", "a\x01b", "a\x1b[2Jb"] {
        let parts = ["control character at byte 1:", "--cmdline"];
        fails(&sandbox, &["--cmdline", text], &parts);
    }
    // The longest argument that Linux lets pass.
    fails(
        &sandbox,
        &["--append", &"x".repeat((128 << 10) - 1)],
        &["at most 2047"],
    );
    let command = sandbox.mote([
        OsStr::new("run"),
        OsStr::new("--append"),
        OsStr::from_bytes(b"\xff"),
    ]);
    let ended = sandbox.run(command).expect_status(125);
    assert_says(&ended, &["invalid UTF-8"]);
}

fn cpus() {
    let sandbox = Sandbox::new();
    for count in ["0", "65", "100000", "4294967295"] {
        let parts = [&format!("--cpus {count}"), "1 to 64 CPUs"];
        fails(&sandbox, &["--cpus", count], &parts);
    }
    for count in ["x", "", "-1", "1.5", "4294967296"] {
        is_refused(&["run", "--cpus", count], &["--cpus <N>", count]);
    }
}

fn memory() {
    let sandbox = Sandbox::new();
    for (size, bytes) in [("0", "0"), ("1k", "1024"), ("15m", "15728640")] {
        let parts = [&format!("--memory {bytes}"), "at least 16 MiB"];
        fails(&sandbox, &["--memory", size], &parts);
    }
    fails(
        &sandbox,
        &["--memory", "16777217"],
        &["--memory 16777217", "multiple of 4096"],
    );
    for size in ["100t", "16777215t"] {
        fails(&sandbox, &["--memory", size], &["the host has", "--memory"]);
    }
    for size in [
        "12q",
        "",
        "m",
        "-1",
        "1p",
        "1 2",
        "0x1000",
        "16777216t",
        "1e9",
    ] {
        is_refused(&["run", "--memory", size], &["--memory <SIZE>", size]);
    }
}

fn timeout_and_id() {
    for time in ["0", "x", "", "-1", "1d", "0ms", "99999999999h"] {
        is_refused(&["run", "--timeout", time], &["--timeout <DURATION>", time]);
    }
    for id in ["", "two words", "a\nb", "ü", &"x".repeat(65)] {
        is_refused(&["run", "--id", id], &["--id", "1 to 64 of A-Z a-z 0-9 -"]);
    }
}

fn unknown_words() {
    for (arguments, part) in [
        (&["--nope"][..], "--nope"),
        (&["nope"], "nope"),
        (&["run", "--nope"], "--nope"),
        (&["run", "--kernal", "x"], "--kernel"),
        (&["run", "stray"], "stray"),
        (&["doctor", "stray"], "stray"),
        (&["run", "-q"], "-q"),
        (&["run", "--boot", "nope"], "linux, pvh"),
        (&["run", "--kernel"], "--kernel <FILE>"),
        (&["run", "--kernel", ""], "--kernel <FILE>"),
        (&["run", "--initrd", ""], "--initrd <FILE>"),
    ] {
        is_refused(arguments, &[part]);
    }
    // Help, where nothing was asked for.
    let sandbox = Sandbox::new();
    let ended = sandbox.run(sandbox.mote([""; 0])).expect_status(125);
    assert_says(&ended, &["Usage: mote <COMMAND>", "doctor"]);
}

fn contradictions() {
    for (arguments, flags) in [
        (
            &["run", "--cmdline", "a", "--append", "b"][..],
            ["--cmdline", "--append"],
        ),
        (
            &["run", "--initrd", "a", "--", "true"],
            ["--initrd", "[COMMAND]"],
        ),
        (
            &["run", "--cmdline", "a", "--", "true"],
            ["--cmdline", "[COMMAND]"],
        ),
        (
            &["run", "--kernel", "a", "--kernel", "b"],
            ["--kernel", "multiple times"],
        ),
    ] {
        is_refused(arguments, &flags);
    }
}

/// Fails unless mote fails with one line that has these parts for a file of this text.
#[track_caller]
fn config_fails(text: impl AsRef<[u8]>, parts: &[&str]) {
    let sandbox = Sandbox::new();
    let file = sandbox.file("vm.json", text);
    let command = sandbox.mote(["run", "--config-file", &file]);
    sandbox.run(command).expect_error(125, parts);
}

fn config_file() {
    const WRONG: &str = "vm.json\" is wrong: ";
    for (text, what) in [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("nope", "line 1 column 2"),
        ("\u{feff}{}", "expected value"),
        (r#"{"machine-config": {"cpus": 1}}"#, "unknown field `cpus`"),
        (r#"{"machine-config": 1}"#, "invalid type: integer `1`"),
        (
            r#"{"machine-config": {"vcpu_count": "two"}}"#,
            "invalid type: string \"two\", expected u8",
        ),
        (r#"{"machine-config": {"vcpu_count": -1}}"#, "integer `-1`"),
        (r#"{"machine-config": {"mem_size_mib": 1e30}}"#, "1e+30"),
        (
            r#"{"boot-source": {}}"#,
            "missing field `kernel_image_path`",
        ),
        (
            r#"{"boot-source": {"kernel_image_path": null}}"#,
            "invalid type: null",
        ),
        (
            r#"{"boot-source": {"kernel_image_path": "a", "kernel_image_path": "b"}}"#,
            "duplicate",
        ),
    ] {
        config_fails(text, &[WRONG, what, "at line 1"]);
    }
    config_fails(
        r#"{"drivez": []}"#,
        &["vm.json", "sections that do not exist: drivez"],
    );
    config_fails(b"\xff\xfe", &[WRONG]);
    config_fails("[".repeat(1 << 20), &[WRONG]);
    config_fails(" ".repeat((1 << 20) + 1), &["vm.json", "longer than 1 MiB"]);

    let sandbox = Sandbox::new();
    for (path, what) in [
        (sandbox.path("missing"), "No such file"),
        (sandbox.path(""), "Is a directory"),
        ("/dev/zero".into(), "longer than 1 MiB"),
        ("/dev/null".into(), "EOF while parsing"),
    ] {
        let command = sandbox.mote(["run", "--config-file", &path]);
        let parts = ["configuration file", &path, what];
        sandbox.run(command).expect_error(125, &parts);
    }
}

/// What the file asks for is checked as flags are.
fn config_file_settings() {
    for (settings, parts) in [
        (r#""vcpu_count": 0"#, ["`vcpu_count`", "from 1 to 64"]),
        (r#""vcpu_count": 65"#, ["`vcpu_count`", "from 1 to 64"]),
        (r#""mem_size_mib": 15"#, ["`mem_size_mib`", "at least 16"]),
        (r#""mem_size_mib": 0"#, ["`mem_size_mib`", "either 0"]),
        (
            r#""vcpu_count": 3, "smt": true"#,
            ["`vcpu_count`", "an even number"],
        ),
        (
            r#""mem_size_mib": 17, "huge_pages": "2M""#,
            ["`mem_size_mib`", "multiple of the configured page size"],
        ),
        (r#""huge_pages": "1G""#, ["vm.json", "1G"]),
        (r#""cpu_template": "T2""#, ["T2", "cpu_template"]),
    ] {
        let mut settings = settings.to_owned();
        for (field, value) in [("vcpu_count", 1), ("mem_size_mib", 64)] {
            if !settings.contains(field) {
                settings = format!("{settings}, \"{field}\": {value}");
            }
        }
        config_fails(format!("{{\"machine-config\": {{{settings}}}}}"), &parts);
    }
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("kernel", tiny_kernel());
    let boot = |settings: &str| {
        format!(r#"{{"boot-source": {{"kernel_image_path": "{kernel}", {settings}}}}}"#)
    };
    config_fails(
        r#"{"boot-source": {"kernel_image_path": "/nowhere"}}"#,
        &["Cannot open the kernel \"/nowhere\"", "No such file"],
    );
    config_fails(
        boot(r#""initrd_path": "/nowhere""#),
        &["Cannot use the initrd \"/nowhere\"", "No such file"],
    );
    let long = "x".repeat(CMDLINE_MAX_SIZE);
    config_fails(
        boot(&format!(r#""boot_args": "{long}""#)),
        &["at most 2047"],
    );
    let file = sandbox.file(
        "vm.json",
        r#"{"machine-config": {"vcpu_count": 1, "mem_size_mib": 18446744073709551615}}"#,
    );
    fails(&sandbox, &["--config-file", &file], &["the host has"]);
}
