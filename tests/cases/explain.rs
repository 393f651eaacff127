//! `mote run --explain`: where the time of a start goes, with guests of a few instructions.

use std::fs;

use bench::waterfall::{Origin, Waterfall};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tests::ctl::{Host, PoolEnds};
use tests::driven::until;
use tests::executable::{echo_kernel, idle_kernel, job_kernel, program};
use tests::live::Live;
use tests::monitor::{Ended, files};
use tests::terminal::Session;
use tests::tiny::{code_asm::CodeAssembler, out, reset};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_start_is_explained", explained),
    ("explained_in_each_form", forms),
    ("explained_starts_that_fail", failures),
    ("signals_reach_a_guest_that_is_explained", signals),
    ("an_explained_guest_on_a_terminal", terminal),
    ("guests_of_a_template_are_explained", template),
    ("two_configurations_side_by_side", side_by_side),
];

const SCHEMA: &str = include_str!("../../docs/bench-waterfall.schema.json");

/// A kernel that prints this and resets the machine.
fn printing(text: &[u8]) -> Vec<u8> {
    program(|a: &mut CodeAssembler| {
        for &byte in text {
            out(a, arch::layout::SERIAL_PORT, byte)?;
        }
        reset(a)
    })
}

/// What standard error ends with.
#[track_caller]
pub(crate) fn last_line(ended: &Ended) -> (String, Waterfall) {
    let (before, last) = match ended.stderr.trim_end().rsplit_once('\n') {
        Some((before, last)) => (format!("{before}\n"), last),
        None => (String::new(), ended.stderr.trim_end()),
    };
    (before, checked(last))
}

/// One that agrees with the schema, in order and without a gap.
#[track_caller]
fn checked(json: &str) -> Waterfall {
    let value: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}: {json}");
    let waterfall: Waterfall = serde_json::from_value(value).unwrap();
    let mut end = 0.0;
    for phase in &waterfall.phases {
        assert!(
            phase.ms >= 0.0 && (phase.start - end).abs() < 1e-6,
            "{phase:?} in {json}"
        );
        end = phase.start + phase.ms;
    }
    let sum: f64 = waterfall.phases.iter().map(|phase| phase.ms).sum();
    assert!((sum - waterfall.total).abs() < 1e-3, "{sum}: {json}");
    assert_eq!(
        waterfall
            .phases
            .iter()
            .filter(|phase| phase.slowest)
            .count(),
        1
    );
    for line in waterfall.text().lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    waterfall
}

/// Fails unless all of these are there, in this order.
#[track_caller]
pub(crate) fn expect_phases(waterfall: &Waterfall, ids: &[&str]) {
    let mut all = waterfall.phases.iter();
    for id in ids {
        assert!(
            all.any(|phase| phase.id == *id),
            "no {id} in {waterfall:#?}"
        );
    }
}

/// What each boot has before the guest.
pub(crate) const MACHINE: [&str; 20] = [
    "exec",
    "arguments",
    "files",
    "console",
    "checked",
    "devices",
    "memory",
    "kvm-open",
    "kvm-vm",
    "kvm-memory",
    "kvm-irqchip",
    "buses",
    "kvm-cpuid",
    "kvm-vcpus",
    "kvm-features",
    "kernel",
    "initrd",
    "tables",
    "attended",
    "entry",
];

fn explained() {
    let host = Host::new();
    let kernel = host.write("kernel", printing(b"hello\n"));
    let initrd = host.write("initrd", "none");
    let plain = ["run", "--kernel", &kernel, "--initrd", &initrd];
    let before = host.mote(&plain);
    let ended = host.mote(&[&plain[..], &["--explain=json"]].concat());
    assert_eq!(
        (ended.status, &ended.stdout),
        (before.status, &before.stdout)
    );
    let (rest, waterfall) = last_line(&ended);
    assert_eq!(rest, before.stderr);
    assert_eq!((waterfall.origin, waterfall.status), (Origin::Boot, 0));
    expect_phases(&waterfall, &MACHINE);
    expect_phases(
        &waterfall,
        &[
            "entry",
            "place-serial-port",
            "ended",
            "flushed",
            "taken-down",
            "reported",
            "exit",
            "gone",
        ],
    );
    assert!(waterfall.phase("output").is_some(), "{waterfall:#?}");
    assert_eq!(waterfall.facts.printed.bytes, 6);
    assert_eq!(waterfall.facts.memory, 128 << 20);
    let serial = waterfall
        .facts
        .places
        .iter()
        .find(|place| place.name == "serial port")
        .unwrap();
    assert_eq!(serial.accesses, 6);
    assert!(waterfall.facts.exits >= 7, "{waterfall:#?}");
    assert!(
        waterfall
            .command
            .iter()
            .any(|word| word == "--explain=json")
    );
    // Nobody has measured what there is no guest for.
    assert_eq!(waterfall.phase("init"), None);
    assert!(
        waterfall.unseen[0].contains("when init began"),
        "{:?}",
        waterfall.unseen
    );
}

fn forms() {
    let host = Host::new();
    let kernel = host.write("kernel", idle_kernel());
    let initrd = host.write("initrd", "none");
    let file = host.path().join("all.json").display().to_string();
    let run = |words: &[&str]| {
        let fixed = [
            "run",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--timeout",
            "50ms",
        ];
        host.mote(&[&fixed, words].concat()).expect_status(124)
    };
    let text = run(&["--explain"]).stderr;
    assert!(text.contains("until the guest's mark 1"), "{text}");
    assert!(text.contains("status 124"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("* ")), "{text}");
    assert!(!text.contains("boot timer:"), "{text}");
    assert!(run(&["--explain=text"]).stderr.contains("status 124"));
    let ended = run(&[&format!("--explain=json:{file}"), "--boot-timer"]);
    // The mark is printed as it is without.
    assert!(ended.stderr.contains("boot timer: mark 1"), "{ended:?}");
    let waterfall = checked(fs::read_to_string(&file).unwrap().trim_end());
    expect_phases(&waterfall, &["entry", "mark-1", "ended", "gone"]);
    assert!(
        waterfall
            .unseen
            .iter()
            .any(|line| line.contains("there was none")),
        "{waterfall:#?}"
    );
    let fixed = ["run", "--kernel", &kernel, "--initrd", &initrd];
    let none = ["--explain=json:/no/such/file"];
    host.mote(&[&fixed[..], &none].concat())
        .expect_error(125, &["/no/such/file"]);
    for bad in ["--explain=yaml", "--explain=json:"] {
        let ended = host.mote(&[&fixed[..], &[bad]].concat());
        assert_eq!(ended.status, 125, "{ended:?}");
        assert!(
            ended.stderr.contains("text, json or json:FILE"),
            "{ended:?}"
        );
    }
    for bad in [
        "--explain-report=1",
        "--explain-report=77",
        "--explain-report=-1",
        "--explain-report=x",
    ] {
        assert_eq!(
            host.mote(&[&["run", bad], &fixed[1..]].concat()).status,
            125,
            "{bad}"
        );
    }
}

fn failures() {
    let host = Host::new();
    let initrd = host.write("initrd", "none");
    let kernel = host.write("kernel", "nothing that boots");
    let ended = host.mote(&[
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--explain=json",
    ]);
    let (rest, waterfall) = last_line(&ended);
    assert!(rest.contains("not a kernel"), "{rest}");
    assert_eq!((ended.status, waterfall.status), (125, 125));
    expect_phases(&waterfall, &["exec", "arguments", "exit", "gone"]);
    assert!(waterfall.unseen[0].contains("no vCPU"), "{waterfall:#?}");
    // A guest that crashes.
    let kernel = host.write("kernel", program(|a| a.ud2()));
    let plain = ["run", "--kernel", &kernel, "--initrd", &initrd];
    let status = host.mote(&plain).status;
    let ended = host.mote(&[&plain[..], &["--explain=json"]].concat());
    assert_eq!(ended.status, status);
    let (rest, waterfall) = last_line(&ended);
    assert!(rest.contains("crashed"), "{rest}");
    expect_phases(
        &waterfall,
        &["entry", "ended", "taken-down", "exit", "gone"],
    );
    assert_eq!(waterfall.status, status);
}

/// Processes that were made by this one and are there.
fn children(process: Pid) -> Vec<Pid> {
    let pid = process.as_raw_nonzero();
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    pids.collect()
}

/// A guest that is there, explained.
fn idle(host: &Host) -> (Live, Pid) {
    let kernel = host.write("kernel", echo_kernel());
    let initrd = host.write("initrd", "none");
    let mut live = Live::start(host.command(&[
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--explain=json",
    ]));
    live.expect("ready");
    let children = children(live.pid());
    assert_eq!(children.len(), 1);
    (live, children[0])
}

fn signals() {
    let host = Host::new();
    let before = files(host.path());
    for (signal, number) in [
        (Signal::TERM, 15),
        (Signal::INT, 2),
        (Signal::HUP, 1),
        (Signal::QUIT, 3),
    ] {
        let (live, child) = idle(&host);
        kill_process(live.pid(), signal).unwrap();
        let ended = live.wait();
        assert_eq!(ended.status, 128 + number, "{ended:?}");
        let (rest, waterfall) = last_line(&ended);
        assert!(
            rest.contains(&format!("stopped by signal {number}")),
            "{rest}"
        );
        assert_eq!(waterfall.status, 128 + number);
        expect_phases(&waterfall, &["entry", "ended", "exit", "gone"]);
        assert!(test_kill_process(child).is_err());
    }
    // Whoever waits goes, and the guest with it.
    let (live, child) = idle(&host);
    live.kill();
    until("the guest's end", || {
        test_kill_process(child).is_err().then_some(())
    });
    // The guest goes, and whoever waits says so.
    let (live, child) = idle(&host);
    kill_process(child, Signal::KILL).unwrap();
    let ended = live.wait();
    assert_eq!(ended.status, 137);
    expect_phases(&last_line(&ended).1, &["exit", "gone"]);
    let mut left = files(host.path());
    left.retain(|name| name != "kernel" && name != "initrd");
    assert_eq!(left, before);
}

fn terminal() {
    let host = Host::new();
    let kernel = host.write("kernel", echo_kernel());
    let initrd = host.write("initrd", "none");
    let command = host.command(&["run", "--kernel", &kernel, "--initrd", &initrd, "--explain"]);
    let mut session = Session::start(command);
    session.expect("ready");
    assert!(session.is_raw());
    session.type_in("abc");
    session.expect("abc");
    // It is the guest's, as is all that is typed.
    session.type_in("\u{3}q");
    session.expect("explained:\r\n");
    session.expect("until nothing is left");
    session.expect_end(0);
    let command = host.command(&["run", "--kernel", &kernel, "--initrd", &initrd, "--explain"]);
    let mut session = Session::start(command);
    session.expect("ready");
    session.type_in("\u{1}x");
    session.expect("until the guest's end");
    session.expect_end(0);
}

fn template() {
    let host = Host::new();
    let _ends = PoolEnds(&host);
    let kernel = host.write("kernel", job_kernel());
    let initrd = host.write("initrd", "none");
    let machine = [
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--console",
        "serial",
        "--memory",
        "32m",
    ];
    host.ask(&[&["template", "create", "t"], &machine[..]].concat());
    let run = ["run", "--template", "t", "--explain=json", "--", "words-3"];
    let ended = host.mote(&run);
    assert_eq!(ended.status, 3, "{ended:?}");
    assert!(ended.text().contains("words-3"), "{ended:?}");
    let (rest, waterfall) = last_line(&ended);
    assert_eq!(rest, "");
    assert_eq!(waterfall.origin, Origin::Template);
    expect_phases(
        &waterfall,
        &[
            "exec",
            "arguments",
            "template",
            "console",
            "state",
            "memory-file",
            "kvm-open",
            "kvm-vm",
            "kvm-memory",
            "kvm-irqchip",
            "kvm-vcpus",
            "restored",
            "entry",
            "job",
            "ended",
            "taken-down",
            "exit",
            "gone",
        ],
    );
    assert!(
        waterfall
            .advice
            .iter()
            .any(|advice| advice.option.contains("pool")),
        "{waterfall:#?}"
    );
    host.ask(&["pool", "start", "t", "-n", "1"]);
    until("a guest", || (host.pool()["ready"] == 1).then_some(()));
    let ended = host.mote(&run);
    assert_eq!(ended.status, 3, "{ended:?}");
    let (_, waterfall) = last_line(&ended);
    assert_eq!((waterfall.origin, host.taken()), (Origin::Pool, 1));
    expect_phases(
        &waterfall,
        &[
            "exec",
            "arguments",
            "template",
            "asked",
            "taken",
            "given",
            "entry",
            "job",
            "ended",
            "taken-down",
            "replied",
            "exit",
        ],
    );
    assert_eq!(waterfall.phase("kvm-vm"), None);
    assert!(waterfall.phase("output").is_some());
}

fn side_by_side() {
    let host = Host::new();
    let kernel = host.write("a kernel", printing(b"hello\n"));
    let initrd = host.write("initrd", "none");
    let flags = format!("--kernel '{kernel}' --initrd {initrd}");
    let more = format!("{flags} --cpus 2");
    let ended = host.mote(&["bench", "explain", &flags, &more, "-n", "3"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    let text = ended.text();
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    assert!(text.contains("KVM_CREATE_VCPU"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("all ")), "{text}");
    let file = host.path().join("one.json").display().to_string();
    let explain = format!("--explain=json:{file}");
    host.ask(&["run", "--kernel", &kernel, "--initrd", &initrd, &explain]);
    let both = host.ask_json(&["bench", "explain", &file, &more, "-n", "3", "--json"]);
    assert_eq!(
        (&both["a"]["runs"], &both["b"]["runs"]),
        (&1.into(), &3.into())
    );
    assert!(both["total"]["difference"].is_f64(), "{both}");
    assert!(both["total"]["real"].is_null(), "{both}");
    for (a, b, what) in [
        ("--kernel 'open", &flags[..], "quote"),
        ("--explain", &flags, "--explain"),
        ("--kernel /no/such/kernel", &flags, "status 125"),
        ("/no/such.json", &flags, "/no/such.json"),
        (&initrd, &flags, "initrd"),
    ] {
        let ended = host.mote(&["bench", "explain", a, b, "-n", "1"]);
        assert_eq!(ended.status, 125, "{ended:?}");
        assert!(ended.stderr.contains(what), "{a}: {ended:?}");
    }
}
