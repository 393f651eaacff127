//! `mote template` and `mote run --template` with Linux guests.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::ctl::{Host, PoolEnds};
use tests::guest::tuned_kernel;
use tests::monitor::Running;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("commands_run_in_guests_from_a_template", commands),
    ("what_a_command_before_it_has_done_is_there", setup),
    ("a_template_is_made_again_when_a_file_changes", outdated),
    ("a_guest_that_does_not_get_there", never_ready),
    ("guests_of_a_pool_are_each_their_own", pool),
];

fn commands() {
    let host = Host::new();
    assert_eq!(
        host.ask(&["template", "create", "t", "--memory", "64m"]),
        "t\n"
    );
    // What its first job took until its status, and nothing of those that come.
    let folder = host.path().join("data/mote/templates/t");
    let info = ["snapshot", "info", folder.to_str().unwrap(), "--json"];
    let noted = || host.ask_json(&info)["last_restore"].take();
    let first = noted();
    assert_eq!(first["reply"]["kind"], "job_status", "{first}");
    let pages = host.ask_json(&info)["working_set"]["written"].as_u64();
    assert!(pages > Some(0), "{pages:?}");
    let run = |words: &[&str]| host.mote(&[&["run", "--template", "t"], words].concat());
    let ended = run(&["--", "echo", "one  two", "$HOME"]);
    assert_eq!(
        (ended.status, ended.text().trim_end()),
        (0, "one  two $HOME"),
        "{ended:?}"
    );
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 255", 255)] {
        let ended = run(&["--", "sh", "-c", script]);
        assert_eq!(ended.status, status, "{ended:?}");
    }
    assert_eq!(noted(), first);
    let ended = run(&["--", "/no/such"]);
    assert_eq!(ended.status, 127);
    assert!(
        ended.text().contains("cannot run \"/no/such\""),
        "{ended:?}"
    );
    assert_eq!(run(&["--", "/etc/passwd"]).status, 126);
    assert_eq!(run(&["--", "poweroff", "-f"]).status, 0);
    // All of what it prints arrives, and what nobody waits for ends with it.
    let ended = run(&[
        "--id",
        "named",
        "--",
        "sh",
        "-c",
        "sleep 1000 & hostname; seq 1 3000",
    ]);
    let text = ended.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((ended.status, lines.len()), (0, 3001));
    assert_eq!((lines[0], lines[3000]), ("named", "3000"));

    // Side by side, each a guest of its own.
    let names: Vec<String> = (0..4).map(|index| format!("g{index}")).collect();
    thread::scope(|scope| {
        for name in &names {
            let host = &host;
            scope.spawn(move || {
                let script = "echo $0 >/tmp/file; sleep 0.2; cat /tmp/file; hostname";
                let ended = host.mote(&[
                    "run",
                    "--template",
                    "t",
                    "--id",
                    name,
                    "--",
                    "sh",
                    "-c",
                    script,
                    name,
                ]);
                let text = ended.text();
                assert_eq!(
                    text.split_whitespace().collect::<Vec<_>>(),
                    [name, name],
                    "{ended:?}"
                );
            });
        }
    });

    // Without a command it is a shell.
    let mut command = host.command(&["run", "--template", "t"]);
    command.stdin(fs::File::open(host.write("input", "echo $((6*7)); exit 5\n")).unwrap());
    let ended = Running::start(command).wait();
    assert_eq!(ended.status, 5, "{ended:?}");
    assert!(
        ended.text().lines().any(|line| line.trim_end() == "42"),
        "{ended:?}"
    );

    let ended = run(&["--timeout", "1s", "--", "sleep", "1000"]);
    assert_eq!(ended.status, 124, "{ended:?}");
    let list = host.ask(&["template", "ls"]);
    assert!(
        list.lines()
            .any(|line| line.starts_with("t ") && line.ends_with("ready")),
        "{list}"
    );
    let known = host.ask_json(&["template", "inspect", "t"]);
    assert_eq!(known["manifest"]["arguments"]["memory"], 64 << 20);
    host.mote(&["template", "create", "t"])
        .expect_error(125, &["'t' already", "--replace"]);
    assert_eq!(host.ask(&["template", "rm", "t"]), "t\n");
    run(&[]).expect_error(125, &["no template 't'", "mote template create t"]);
}

fn setup() {
    let host = Host::new();
    let script = "mkdir /data; echo warm >/data/file; setsid sleep 10000 & until pidof sleep; do usleep 1000; done";
    host.ask(&["template", "create", "warm", "--", "sh", "-c", script]);
    let script = "cat /data/file; ps | grep -c 'sleep 1000[0]'";
    let text = host.ask(&["run", "--template", "warm", "--", "sh", "-c", script]);
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["warm", "1"]);
}

fn outdated() {
    let host = Host::new();
    let kernel = host.path().join("kernel");
    fs::copy(tuned_kernel().join("vmlinux"), &kernel).unwrap();
    let kernel = kernel.to_str().unwrap();
    host.ask(&["template", "create", "t", "--kernel", kernel]);
    let created = |host: &Host| {
        host.ask_json(&["template", "inspect", "t"])["manifest"]["created_ms"].clone()
    };
    let before = created(&host);
    let run = ["run", "--template", "t", "--", "echo", "out"];
    assert!(!host.mote(&run).stderr.contains("again"));
    fs::copy(tuned_kernel().join("vmlinux"), kernel).unwrap();
    let known = host.ask_json(&["template", "inspect", "t"]);
    assert!(
        known["outdated"].as_str().unwrap().contains(kernel),
        "{known}"
    );
    let ended = host.mote(&run);
    assert_eq!(
        (ended.status, ended.text().trim_end()),
        (0, "out"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("template t is made again"),
        "{ended:?}"
    );
    assert_ne!(created(&host), before);
    assert!(!host.mote(&run).stderr.contains("again"));
    // And if it cannot be, it says so.
    fs::write(kernel, "no kernel").unwrap();
    let ended = host.mote(&run);
    assert!(ended.stderr.contains("cannot be made again"), "{ended:?}");
    ended.expect_status(125);
}

fn never_ready() {
    let host = Host::new();
    let ended = host.mote(&[
        "template",
        "create",
        "t",
        "--",
        "sh",
        "-c",
        "echo told; exit 3",
    ]);
    for part in ["ended before it waited", "powered off", "told", "status 3"] {
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    ended.expect_status(125);
    host.mote(&[
        "template",
        "create",
        "t",
        "--timeout",
        "2s",
        "--",
        "sleep",
        "1000",
    ])
    .expect_error(125, &["within 2 s", "--timeout"]);
    let left = fs::read_dir(host.path().join("data/mote/templates")).unwrap();
    assert_eq!(left.count(), 0);
}

fn pool() {
    let host = Host::new();
    host.ask(&["template", "create", "t", "--memory", "64m"]);
    let _ends = PoolEnds(&host);
    host.ask(&["pool", "start", "t", "-n", "3"]);
    // They have waited for a while when somebody comes.
    thread::sleep(Duration::from_secs(3));
    let script = "date +%s; head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'; echo; hostname";
    let said = |name: &str| {
        let before = SystemTime::now();
        let ended = host.mote(&[
            "run",
            "--template",
            "t",
            "--id",
            name,
            "--",
            "sh",
            "-c",
            script,
        ]);
        let after = SystemTime::now();
        let text = ended.text();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            (ended.status, lines.len(), lines[2]),
            (0, 3, name),
            "{ended:?}"
        );
        // Whole seconds of a clock that may be a moment apart from the host's.
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let time: u64 = lines[0].parse().unwrap();
        assert!(
            (seconds(before) - 1..=seconds(after) + 1).contains(&time),
            "{ended:?}"
        );
        lines[1].to_owned()
    };
    let random = ["one", "two"].map(said);
    assert_ne!(random[0], random[1]);
    assert_eq!(host.taken(), 2);
    // More at once than there are, each with input of its own.
    thread::scope(|scope| {
        for index in 0..5 {
            let host = &host;
            scope.spawn(move || {
                let mut command = host.command(&["run", "--template", "t", "--", "cat"]);
                let input = host.write(&format!("input-{index}"), format!("{index} came\n\x04"));
                command.stdin(fs::File::open(input).unwrap());
                let ended = Running::start(command).wait();
                assert!(ended.text().contains(&format!("{index} came")), "{ended:?}");
                assert_eq!(ended.status, 0, "{ended:?}");
            });
        }
    });
    let before = host.taken();
    assert!(before > 2);
    let ended = host.mote(&[
        "run",
        "--template",
        "t",
        "--",
        "sh",
        "-c",
        "seq 1 3000; exit 9",
    ]);
    assert_eq!((ended.status, ended.text().lines().count()), (9, 3000));
}
