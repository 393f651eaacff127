//! `mote bench`: what it measures counts only if it is right, and nothing of it is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bench::record::{Kind, Measured, Purpose};
use rustix::process::{Signal, kill_process};
use tests::bench::{Bench, failures, row, runs, words};
use tests::driven::until;
use tests::live::Live;
use tests::monitor::{self, Running};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("adapters_that_lie_are_caught", lies),
    (
        "what_is_left_behind_is_found_without_control_groups",
        unprivileged,
    ),
    ("what_is_not_there_is_missing", missing),
    ("milestones_are_in_order", milestones),
    ("an_api_is_asked", requests),
    (
        "ctrl_c_leaves_nothing_and_prints_what_there_is",
        interrupted,
    ),
    ("ctrl_c_in_a_preparation_leaves_nothing", interrupted_early),
    ("instances_stand_side_by_side", density),
    ("instances_that_do_not_stay_are_told", density_lies),
    ("what_cannot_be_measured_is_told", wrong),
    ("adapters_are_listed_and_printed", adapters),
];

const GOOD: &str = "echo \"$token\"; exit 7";
/// Once, and nothing else.
const ONCE: &str = "startup -n 1 --warmups 0 --traced 0";
/// Fast, and with each kind of run.
const QUICK: &str = "startup -n 2 --warmups 1 --traced 1 --pause 1ms";

fn lies() {
    let bench = Bench::default();
    let liars = [
        ("silent", "exit 7", "the program's output is missing"),
        (
            "wrong-word",
            "echo nonsense; exit 7",
            "printed \"nonsense\"",
        ),
        (
            "old-word",
            "echo 0123456789abcdef; exit 7",
            "the program's output is missing",
        ),
        (
            "chatty",
            "echo hello; echo \"$token\"; exit 7",
            "printed \"hello\" as well",
        ),
        (
            "stutters",
            "echo \"$token\"; echo \"$token\"; exit 7",
            "came 2 times",
        ),
        (
            "wrong-status",
            "echo \"$token\"; echo because >&2; exit 3",
            "exit status 3 in place of 7: because",
        ),
        (
            "killed",
            "echo \"$token\"; kill -9 $$",
            "exit status 137 in place of 7",
        ),
        (
            "hangs",
            "echo \"$token\"; sleep 1000",
            "did not end within 1 s",
        ),
        ("floods", "yes", "printed too much"),
        (
            "leaves",
            "echo \"$token\"; sleep 1000 >/dev/null 2>&1 & exit 7",
            "left processes behind: sleep",
        ),
        (
            "hides",
            "echo \"$token\"; setsid setsid sleep 1000 >/dev/null 2>&1 & sleep 0.05; exit 7",
            "left processes behind: sleep",
        ),
    ];
    let mut files = vec![bench.script("good", GOOD)];
    files.extend(liars.map(|(name, script, _)| bench.script(name, script)));
    files.push(bench.adapter("no-exec", "kind = \"process\"\nrun = [\"/etc/passwd\"]\n"));
    files.push(bench.adapter(
        "unready",
        "kind = \"vm\"\nrun = [\"true\"]\nprepare = 'echo not today >&2; exit 4'\n",
    ));
    files.push(bench.adapter(
        "before",
        "kind = \"vm\"\nrun = [\"true\"]\nbefore = 'exit 5'\n",
    ));
    files.push(bench.adapter("socketless", "kind = \"vm\"\nrun = [\"sleep\", \"1000\"]\n[[requests]]\nsocket = \"${run_dir}/a\"\nmethod = \"PUT\"\npath = \"/a\"\n"));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    // What is left behind is waited for, each time.
    let arguments = words(ONCE, &[&["--timeout", "1s"], &files[..]].concat());
    let (ended, record) = bench.run(&arguments);
    let ended = ended.expect_status(0);

    assert_eq!(failures(row(&record, "good")), [""; 0]);
    let more = [
        ("no-exec", "cannot be executed"),
        (
            "unready",
            "cannot be prepared: a script of the adapter failed: exit status 4 in place of 0: not today",
        ),
        ("before", "a script of the adapter failed: exit status 5"),
        ("socketless", "PUT /a: there is no socket ${run_dir}/a"),
    ];
    let expected = liars.iter().map(|(name, _, why)| (*name, *why)).chain(more);
    let text = ended.text();
    for (name, why) in expected {
        let row = row(&record, name);
        let [failure] = failures(row)[..] else {
            panic!("{name}: {:?}", failures(row));
        };
        assert!(failure.contains(why), "{name}: {failure}");
        assert_eq!((row.summary.counted, row.summary.failed), (0, 1), "{name}");
        assert!(text.contains(name), "{name} is not in the table: {text}");
    }
    let good = text.lines().find(|line| line.starts_with("good ")).unwrap();
    assert!(good.contains("1/1"), "{good}");
}

fn unprivileged() {
    let bench = Bench::default();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Where nobody can read it.
    let mote = bench.host.path().join("mote");
    fs::copy(monitor::path(), &mote).unwrap();
    let open = |path: &std::path::Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    };
    let leaves = bench.script(
        "leaves",
        "echo \"$token\"; setsid setsid sleep 1000 >/dev/null 2>&1 & sleep 0.05; exit 7",
    );
    let good = bench.script("good", GOOD);
    let original = bench.command(&words(QUICK, &["--timeout", "5s", &good, &leaves]));
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&mote);
    command.args(original.get_args());
    for (name, value) in original.get_envs() {
        command.env(name, value.unwrap());
    }
    command
        .env("XDG_CACHE_HOME", bench.host.path().join("cache"))
        .stdin(std::process::Stdio::null());
    open(bench.host.path());
    open(&bench.host.path().join("tmp"));
    Running::start(command).wait().expect_status(0);
    bench.expect_nothing_left();
    let record = bench.record();
    assert_eq!(record.host.cgroup, None);
    let good = row(&record, "good");
    assert_eq!(failures(good), [""; 0]);
    assert!(
        good.runs
            .iter()
            .all(|run| run.cpu.is_none() && run.milestones.gone.is_some())
    );
    assert_eq!(
        failures(row(&record, "leaves")),
        ["left processes behind: sleep"]
    );
}

fn missing() {
    let bench = Bench::default();
    let good = bench.script("good", GOOD);
    let program = bench.adapter(
        "program",
        "kind = \"vm\"\nneeds = [\"no-such-program\"]\nrun = [\"x\"]\n",
    );
    let file = bench.adapter(
        "file",
        "kind = \"vm\"\nneeds_files = [\"/no/such/file\"]\nrun = [\"x\"]\n",
    );
    let (ended, record) = bench.run(&words(QUICK, &[&good, &program, &file]));
    let text = ended.expect_status(0).text();
    let missing: Vec<_> = record
        .missing
        .iter()
        .map(|missing| (&*missing.name, &*missing.why))
        .collect();
    assert_eq!(
        missing,
        [
            ("program", "there is no program no-such-program"),
            ("file", "there is no /no/such/file")
        ]
    );
    assert!(
        text.contains("there is no program no-such-program"),
        "{text}"
    );
    let Measured::Startup(startup) = &record.measured else {
        panic!("{record:?}");
    };
    assert_eq!(startup.rows.len(), 1);
    assert_eq!(startup.baseline, "good");
}

fn milestones() {
    let bench = Bench::default();
    let slow = bench.script(
        "slow",
        "sleep 0.02; \"$program\" \"$token\" \"$mode\"; status=$?; sleep 0.02; exit $status",
    );
    let (ended, record) = bench.run(&words(QUICK, &["process", &slow]));
    ended.expect_status(0);
    for name in ["process", "slow"] {
        let row = row(&record, name);
        assert_eq!(failures(row), [""; 0]);
        assert_eq!(row.runtime.kind, Kind::Process);
        let counts = [Purpose::Warmup, Purpose::Sample, Purpose::Traced]
            .map(|purpose| runs(row, purpose).len());
        assert_eq!(counts, [1, 2, 1]);
        for run in &row.runs {
            let it = run.milestones;
            let is_traced = run.purpose == Purpose::Traced;
            assert_eq!(it.init.is_some(), is_traced, "{name}: {it:?}");
            let all = [it.spawned, it.init, it.output, it.exit, it.gone];
            let seen: Vec<f64> = all.into_iter().flatten().collect();
            assert!(seen.len() >= 4 && seen.is_sorted(), "{name}: {it:?}");
        }
    }
    let slow = row(&record, "slow");
    // It has slept that long at least, whatever the machine does.
    for run in runs(slow, Purpose::Sample) {
        let (output, exit) = (run.milestones.output.unwrap(), run.milestones.exit.unwrap());
        assert!(output >= 20.0 && exit >= output + 20.0, "{run:?}");
    }
    assert!(slow.summary.ratios["exit"].value > 1.0);
}

fn requests() {
    let bench = Bench::default();
    // The kernel's marks are not asked for: what serves the API is mote itself, whose guest does nothing.
    let adapter = "kind = \"vm\"\nstatus = 0\nnoisy = true\nneeds_files = [\"/dev/kvm\"]\n\
        run = [\"sh\", \"-c\", 'echo \"$token\"; exec \"$mote\" vmm --api-sock \"$run_dir/api.sock\"']\n\
        [[requests]]\nsocket = \"${run_dir}/api.sock\"\nmethod = \"PUT\"\npath = \"/machine-config\"\n\
        body = '{\"vcpu_count\": 1, \"mem_size_mib\": COUNT}'\n";
    let good = bench.adapter("good", &adapter.replace("COUNT", "${memory}"));
    let bad = bench.adapter("bad", &adapter.replace("COUNT", "0"));
    let arguments = words(ONCE, &["--timeout", "2s", &good, &bad]);
    let (ended, record) = bench.run(&arguments);
    ended.expect_status(0);
    // Nothing ends it: the request was right, and that is all.
    assert_eq!(
        row(&record, "good").runtime.requests,
        ["PUT /machine-config"]
    );
    assert!(failures(row(&record, "good"))[0].starts_with("did not end within 2 s"));
    let bad = failures(row(&record, "bad"))[0];
    assert!(
        bad.starts_with("PUT /machine-config was answered with 400"),
        "{bad}"
    );
}

/// Presses Ctrl-C when it is time.
fn interrupt(bench: &Bench, arguments: &[&str], is_time: impl Fn() -> bool) -> monitor::Ended {
    let live = Live::start(bench.command(arguments));
    until("the time", || is_time().then_some(()));
    kill_process(live.pid(), Signal::INT).unwrap();
    let ended = live.wait();
    bench.expect_nothing_left();
    ended
}

fn interrupted() {
    let bench = Bench::default();
    let good = bench.script("good", GOOD);
    let begun = bench.host.path().join("begun");
    let daemon = "kind = \"container\"\nprepare = 'setsid sleep 1001 >/dev/null 2>&1 &'\nfinish = 'echo over >FINISHED'\n\
        run = [\"sh\", \"-c\", 'echo x >>BEGUN; [ $(wc -l <BEGUN) -lt 3 ] || sleep 1000; echo \"$token\"; exit 7']\n";
    let finished = bench.host.path().join("finished");
    let daemon = daemon
        .replace("BEGUN", begun.to_str().unwrap())
        .replace("FINISHED", finished.to_str().unwrap());
    let daemon = bench.adapter("daemon", &daemon);
    let endless = "startup -n 1000 --warmups 0 --pause 1ms";
    let arguments = words(endless, &[&good, &daemon]);
    let ended = interrupt(&bench, &arguments, || {
        fs::read_to_string(&begun).is_ok_and(|text| text.lines().count() == 3)
    });
    let ended = ended.expect_status(128 + 2);
    let record = bench.record();
    assert!(record.interrupted);
    // The third round was cut off in the second row.
    assert_eq!(row(&record, "good").runs.len(), 3);
    assert_eq!(row(&record, "daemon").runs.len(), 2);
    assert_eq!(failures(row(&record, "daemon")), [""; 0]);
    let text = ended.text();
    assert!(
        text.to_lowercase().contains("interrupted") || text.contains("cut off"),
        "{text}"
    );
    assert!(finished.exists());
}

fn interrupted_early() {
    let bench = Bench::default();
    let begun = bench.host.path().join("begun");
    let slow = format!(
        "kind = \"vm\"\nrun = [\"true\"]\nprepare = 'touch {}; setsid sleep 1000 & sleep 1000'\n",
        begun.display()
    );
    let slow = bench.adapter("slow", &slow);
    let ended = interrupt(&bench, &words(QUICK, &[&slow]), || begun.exists());
    ended.expect_status(128 + 2);
    assert!(bench.record().interrupted);
}

fn density() {
    let bench = Bench::default();
    let line = "density process -n 12 --starts 10 --concurrency 3 --settle 1ms";
    let (ended, record) = bench.run(&words(line, &[]));
    let text = ended.expect_status(0).text();
    let Measured::Density(density) = &record.measured else {
        panic!("{record:?}");
    };
    let row = &density.rows[0];
    assert_eq!(row.ended, None);
    let counts: Vec<u32> = row.points.iter().map(|point| point.count).collect();
    assert_eq!(counts, (0..=12).collect::<Vec<u32>>());
    assert_eq!((row.points[0].pss, row.points[0].start), (Some(0), None));
    let pss = |index: usize| row.points[index].pss.unwrap();
    // Each has pages of its own; the kernel tells whole KiB of each.
    let adds = |index: usize| pss(index) >= pss(index - 1) + 2048;
    assert!((1..=12).all(adds), "{row:?}");
    assert!(
        row.points[1..]
            .iter()
            .all(|point| point.start.is_some() && point.available > 0)
    );
    let rate = row.rate.as_ref().unwrap();
    assert_eq!((rate.started, rate.failures.len()), (10, 0));
    assert!(text.contains("12/12"), "{text}");
}

fn density_lies() {
    let bench = Bench::default();
    let leaves = bench.script("leaves", "echo \"$token\"; [ $mode = run ] && exit 7");
    let silent = bench.script("silent", "[ $mode = hold ] && sleep 1000; exit 7");
    // The first one of all is to fill caches.
    let third = bench.host.path().join("third");
    let third = format!(
        "echo x >>{0}; [ $(wc -l <{0}) -lt 3 ] || exit 9; echo \"$token\"; sleep 1000",
        third.display()
    );
    let third = bench.script("third", &third);
    let line = "density -n 5 --starts 4 --settle 50ms --timeout 1s";
    let (ended, record) = bench.run(&words(line, &[&leaves, &silent, &third]));
    ended.expect_status(0);
    let Measured::Density(density) = &record.measured else {
        panic!("{record:?}");
    };
    let ended: Vec<&str> = density
        .rows
        .iter()
        .map(|row| row.ended.as_deref().unwrap())
        .collect();
    assert_eq!(
        ended,
        [
            "an instance ended: exit status 1",
            "instance 1: printed nothing of the program's within 1 s",
            "instance 2: exit status 9 in place of 7"
        ]
    );
    let counts: Vec<usize> = density.rows.iter().map(|row| row.points.len()).collect();
    assert_eq!(counts, [6, 1, 2]);
    assert_eq!(density.rows[0].rate.as_ref().unwrap().started, 4);
    assert_eq!(density.rows[1].rate, None);
    assert_eq!(
        density.rows[2].rate.as_ref().unwrap().failures["exit status 9 in place of 7"],
        4
    );
}

fn wrong() {
    let bench = Bench::default();
    let good = bench.script("good", GOOD);
    let typo = bench.adapter("typo", "kind = \"vm\"\nrun = [\"${tokn}\"]\n");
    let cut = bench.host.write("cut.toml", "name = \"x");
    let twin = bench.host.write("twin.toml", fs::read(&good).unwrap());
    for (arguments, parts) in [
        (
            &["startup", "nonsense"][..],
            &["There is no runtime 'nonsense'", "crun"][..],
        ),
        (
            &["startup", "no/such.toml"],
            &["no/such.toml", "No such file"],
        ),
        (
            &["startup", &typo],
            &["typo.toml", "run has the unknown place ${tokn}", "token"],
        ),
        (&["startup", &cut], &["cut.toml", "line 1: "]),
        (
            &["startup", &good, &twin],
            &["two adapters of the name 'good'"],
        ),
        (&["startup", &good, "--skip", "nonsense"], &["'nonsense'"]),
        (
            &["startup", &good, "--skip", &good],
            &["No runtime is left"],
        ),
        (
            &["startup", &good, "--baseline", "crun"],
            &["--baseline crun is none of"],
        ),
        (&["startup", &good, "--memory", "1m"], &["--memory", "32m"]),
        (
            &["startup", &good, "--kernel", "/etc/passwd"],
            &["/etc/passwd"],
        ),
        (
            &["density", "nonsense"],
            &["There is no runtime 'nonsense'"],
        ),
    ] {
        let ended = Running::start(bench.command(arguments)).wait();
        ended.expect_error(125, parts);
        bench.expect_nothing_left();
        assert!(!bench.json().exists(), "{arguments:?}");
    }
    let mut command = bench.command(&words(QUICK, &[&good]));
    command.env("TMPDIR", "/no/such/directory");
    Running::start(command)
        .wait()
        .expect_error(125, &["Cannot make a directory in /no/such/directory"]);
}

fn adapters() {
    let bench = Bench::default();
    let list = bench.host.ask(&["bench", "adapters"]);
    assert!(list.lines().any(|line| line.starts_with("crun ")), "{list}");
    for line in list.lines() {
        let name = line.split(' ').next().unwrap();
        let text = bench.host.ask(&["bench", "adapters", name]);
        assert!(text.starts_with(&format!("name = \"{name}\"\n")), "{text}");
    }
    bench
        .host
        .mote(&["bench", "adapters", "nonsense"])
        .expect_error(125, &["There is no runtime 'nonsense'"]);
    // What is printed is a file to begin with.
    let own = bench
        .host
        .ask(&["bench", "adapters", "process"])
        .replace("\"process\"\na", "\"own\"\na");
    let own = bench.host.write("own.toml", own);
    let (ended, record) = bench.run(&words(QUICK, &[&own]));
    ended.expect_status(0);
    assert_eq!(failures(row(&record, "own")), [""; 0]);
}
