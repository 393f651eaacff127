//! `mote run --explain` with Linux guests.

use std::fs;
use std::process::Stdio;

use bench::waterfall::{Origin, Part, Waterfall};
use tests::ctl::{Host, PoolEnds};
use tests::driven::until;
use tests::guest;
use tests::monitor::{Ended, Running};

use crate::Case;
use crate::explain::{MACHINE, expect_phases, last_line};

pub(crate) const CASES: &[Case] = &[
    ("a_boot_of_linux", linux),
    ("what_the_kernel_prints", kernel_messages),
    ("devices_of_linux", devices),
    ("debian_kernel", debian_kernel),
    ("a_template_of_linux", linux_template),
    ("configurations_of_linux", linux_side_by_side),
];

/// Runs a Linux guest and explains it.
#[track_caller]
fn run_linux(options: &[&str], command: &[&str]) -> (Ended, Waterfall) {
    let host = Host::new();
    run_linux_on(&host, options, command)
}

#[track_caller]
fn run_linux_on(host: &Host, options: &[&str], command: &[&str]) -> (Ended, Waterfall) {
    let mut words = vec!["run", "--explain=json"];
    words.extend(options);
    words.push("--");
    words.extend(command);
    let mut command = host.command(&words);
    command.stdin(Stdio::null());
    let ended = Running::start(command).wait();
    assert_eq!(ended.status, 0, "{ended:?}");
    let (rest, waterfall) = last_line(&ended);
    assert_eq!(rest, "");
    println!("{}", waterfall.text());
    (ended, waterfall)
}

fn linux() {
    let (ended, waterfall) = run_linux(&["--console", "serial"], &["echo", "hello"]);
    assert_eq!(guest::output(&ended).trim_end(), "hello");
    expect_phases(&waterfall, &MACHINE);
    expect_phases(
        &waterfall,
        &[
            "entry",
            "console-opened",
            "init",
            "command",
            "printed",
            "ended",
            "taken-down",
            "exit",
            "gone",
        ],
    );
    let places = ["place-serial-port", "place-ioapic"];
    assert!(
        places.iter().all(|id| waterfall.phase(id).is_some()),
        "{waterfall:#?}"
    );
    for part in [
        Part::Monitor,
        Part::Kernel,
        Part::Init,
        Part::Program,
        Part::End,
    ] {
        assert!(waterfall.part(part) > 0.0, "{part:?}");
    }
    assert_eq!(waterfall.unseen, [""; 0]);
    let template = waterfall
        .advice
        .iter()
        .find(|advice| advice.option.contains("template"))
        .unwrap();
    let boot = waterfall.part(Part::Kernel) + waterfall.part(Part::Init);
    assert!((template.ms - boot).abs() < 1e-6);
    assert!(
        !waterfall
            .advice
            .iter()
            .any(|advice| advice.option.contains("build.sh"))
    );
    // The word is for init alone.
    let (ended, _) = run_linux(&[], &["sh", "-c", "echo \"[$mote_explain]\""]);
    assert_eq!(guest::output(&ended).trim_end(), "[]");
}

fn kernel_messages() {
    let options = ["--console", "serial", "--append", "loglevel=7"];
    let (_, waterfall) = run_linux(&options, &["true"]);
    expect_phases(
        &waterfall,
        &[
            "entry",
            "line-memory",
            "line-initmem",
            "line-init",
            "init",
            "command",
            "ended",
        ],
    );
    let printed = waterfall.facts.printed;
    assert!(
        printed.kernel_bytes > 3000 && printed.kernel_bytes <= printed.bytes,
        "{printed:?}"
    );
    for option in ["--console virtio", "quiet"] {
        assert!(
            waterfall
                .advice
                .iter()
                .any(|advice| advice.option.starts_with(option)),
            "{waterfall:#?}"
        );
    }
}

fn devices() {
    let options = [
        "--entropy",
        "--balloon",
        "0",
        "--net",
        "user",
        "--console",
        "virtio",
    ];
    let (ended, waterfall) = run_linux(&options, &["echo", "hello"]);
    assert_eq!(guest::output(&ended).trim_end(), "hello");
    for id in [
        "driver-entropy-device",
        "driver-balloon",
        "driver-virtio-console",
        "place-virtio-balloon",
    ] {
        assert!(waterfall.phase(id).is_some(), "no {id}: {waterfall:#?}");
    }
    expect_phases(
        &waterfall,
        &["driver-virtio-console", "init", "command", "ended"],
    );
    assert!(
        waterfall
            .advice
            .iter()
            .any(|advice| advice.option == "fewer devices"),
        "{waterfall:#?}"
    );
    let (_, waterfall) = run_linux(&["--entropy", "--pci"], &["true"]);
    expect_phases(
        &waterfall,
        &[
            "place-pci-configuration",
            "driver-entropy-device",
            "init",
            "ended",
        ],
    );
    assert!(
        waterfall
            .advice
            .iter()
            .any(|advice| advice.option == "no --pci"),
        "{waterfall:#?}"
    );
}

/// It has no /dev/port.
fn debian_kernel() {
    let host = Host::new();
    let cache = host.path().join("cache");
    fs::create_dir_all(cache.join("mote/kernel")).unwrap();
    std::os::unix::fs::symlink(guest::packaged_kernel(), cache.join("mote/kernel/packaged"))
        .unwrap();
    let run = |host: &Host| {
        let mut command = host.command(&["run", "--explain=json", "--", "echo", "hello"]);
        command.stdin(Stdio::null()).env("XDG_CACHE_HOME", &cache);
        let ended = Running::start(command).wait().expect_status(0);
        last_line(&ended).1
    };
    let waterfall = run(&host);
    println!("{}", waterfall.text());
    expect_phases(
        &waterfall,
        &["entry", "console-opened", "printed", "ended", "gone"],
    );
    assert!(
        waterfall
            .unseen
            .iter()
            .any(|line| line.contains("when init began")),
        "{waterfall:#?}"
    );
    let options: Vec<&str> = waterfall
        .advice
        .iter()
        .map(|advice| &advice.option[..])
        .collect();
    for option in ["resources/kernel/build.sh", "the next start"] {
        assert!(options.contains(&option), "{options:?}");
    }
    // What was made then is there now.
    let facts = run(&host).facts;
    assert!(!facts.kernel.unwrap().unpacked && !facts.initrd.unwrap().made);
}

fn linux_template() {
    let host = Host::new();
    let _ends = PoolEnds(&host);
    host.ask(&["template", "create", "t", "--memory", "64m"]);
    let (ended, waterfall) = run_linux_on(&host, &["--template", "t"], &["echo", "hello"]);
    assert_eq!(ended.text().trim_end(), "hello");
    expect_phases(
        &waterfall,
        &[
            "template",
            "state",
            "memory-file",
            "kvm-vm",
            "restored",
            "pre-fault",
            "entry",
            "job",
            "printed",
            "ended",
            "gone",
        ],
    );
    host.ask(&["pool", "start", "t", "-n", "1"]);
    until("a guest", || (host.pool()["ready"] == 1).then_some(()));
    let (ended, waterfall) = run_linux_on(&host, &["--template", "t"], &["echo", "hello"]);
    assert_eq!(ended.text().trim_end(), "hello");
    assert_eq!(waterfall.origin, Origin::Pool);
    expect_phases(
        &waterfall,
        &[
            "asked", "taken", "given", "entry", "job", "printed", "ended", "replied", "exit",
        ],
    );
}

fn linux_side_by_side() {
    let host = Host::new();
    let mut command = host.command(&[
        "bench",
        "explain",
        "--entropy -- true",
        "--entropy --pci -- true",
        "-n",
        "2",
    ]);
    command.stdin(Stdio::null());
    let ended = Running::start(command).wait().expect_status(0);
    let text = ended.text();
    println!("{text}");
    for name in [
        "kernel, until init runs",
        "kernel, until the PCI configuration",
        "all ",
    ] {
        assert!(text.contains(name), "no {name}: {text}");
    }
}
