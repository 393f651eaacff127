//! Commands that make a request and print what is answered.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::echo_kernel;
use tests::live::{Live, stop};
use tests::monitor::Running;

pub(super) fn api() {
    let host = Host::new();
    let live = host.vmm("guest", &[]);
    let machine = r#"{"vcpu_count": 3, "mem_size_mib": 96}"#;
    let put = ["api", "--id", "guest", "put", "/machine-config"];
    assert_eq!(host.ask(&[&put[..], &[machine]].concat()), "");
    let get = ["api", "--id", "gu", "GET", "/machine-config"];
    assert_eq!(host.ask_json(&get)["vcpu_count"], 3);
    // The body from a file, and from standard input.
    let file = host.write("machine.json", machine.replace('3', "4"));
    host.ask(&[&put[..], &[&format!("@{file}")]].concat());
    assert_eq!(host.ask_json(&get)["vcpu_count"], 4);
    let mut command = host.command(&[&put[..], &["-"]].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut text = &stdin;
    write!(text, "{}", machine.replace('3', "5")).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(host.ask_json(&get)["vcpu_count"], 5);
    // By its socket.
    let socket = host.run_dir().join("guest/api.sock");
    let by_socket = [
        "api",
        "--socket",
        socket.to_str().unwrap(),
        "GET",
        "/version",
    ];
    assert!(host.ask_json(&by_socket)["mote_version"].is_string());

    let refused = host.mote(&["api", "--id", "guest", "GET", "/nonsense"]);
    let refused = refused.expect_status(22);
    let body: Value = serde_json::from_str(&refused.text()).unwrap();
    assert!(body["fault_message"].is_string());
    assert_eq!(refused.stderr, "mote: status 400\n");
    let refused = host.mote(&["api", "--json", "--id", "guest", "PATCH", "/vm", "{}"]);
    let answer: Value = serde_json::from_str(&refused.expect_status(22).text()).unwrap();
    assert_eq!(answer["status"], 400);
    assert!(answer["body"]["fault_message"].is_string());
    let answer = host.ask_json(&["api", "--json", "--id", "guest", "GET", "/"]);
    assert_eq!(answer["body"]["state"], "Not started");
    assert!(answer["headers"].to_string().contains("Content-Length"));
    let done = [&["api", "--json"], &put[1..], &[machine]].concat();
    assert_eq!(host.ask_json(&done)["body"], Value::Null);

    host.mote(&["api", "--socket", "/no/such", "GET", "/"])
        .expect_error(125, &["Cannot connect to /no/such", "os error 2"]);
    host.mote(&["api", "--id", "guest", "GET", "a b"])
        .expect_error(125, &["Not a method and a path"]);
    host.mote(&["api", "--id", "guest", "PUT", "/mmds", "@/no/such"])
        .expect_error(125, &["/no/such"]);
    let usage = host.mote(&["api", "GET", "/"]).expect_status(125);
    assert!(usage.stderr.contains("--id"), "{usage:?}");
    stop(live.pid());
    host.mote(&["api", "--timeout", "1", "--id", "guest", "GET", "/"])
        .expect_error(125, &["'guest'", "did not answer in time"]);
    kill_process(live.pid(), Signal::CONT).unwrap();
    host.ask(&["kill", "guest"]);
    assert_eq!(live.wait().status, 0);
}

/// Also when a test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) fn events() {
    let host = Host::new();
    let live = host.idle("guest", &[]);
    let mut plain = Live::start(host.command(&["events", "guest"]));
    let mut json = Live::start(host.command(&["events", "--json", "guest"]));
    let mut raw = Live::start(host.command(&["api", "--id", "guest", "GET", "/events"]));
    // Events go on until all of them are there and have heard of some.
    let are_there = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetOnDrop(&are_there);
        scope.spawn(|| {
            while !are_there.load(Ordering::Relaxed) {
                host.ask(&["pause", "guest"]);
                host.ask(&["resume", "guest"]);
            }
        });
        let line = plain.expect("state=Paused");
        assert!(line.starts_with("state "), "{line}");
        let line = json.expect(r#""state":"Paused""#);
        assert!(serde_json::from_str::<Value>(&line).is_ok());
        raw.expect(r#""state":"Running""#);
    });
    host.ask(&["kill", "guest"]);
    assert_eq!(live.wait().status, 0);
    for listener in [plain, json, raw] {
        let ended = listener.wait();
        assert_eq!((ended.status, &*ended.stderr), (0, ""));
    }
}

pub(super) fn logs() {
    let host = Host::new();
    let mut live = host.run("echo", &echo_kernel(), &[]);
    live.expect("ready");
    live.send("one");
    live.expect("one");
    // It is remembered once it has been printed.
    until("what was printed", || {
        (host.ask(&["logs", "echo"]) == "ready\none\n").then_some(())
    });
    let lines = host.ask(&["logs", "--json", "echo"]);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first, json!({"source": "console", "line": "ready"}));
    let mut follower = Live::start(host.command(&["logs", "-f", "echo"]));
    follower.expect("one");
    live.send("two");
    follower.expect("two");
    live.send("q");
    assert_eq!(live.wait().status, 0);
    assert!(
        follower
            .wait()
            .expect_status(0)
            .text()
            .ends_with("two\nq\n")
    );

    // With a log of the monitor's own.
    let log = host.path().join("log");
    let log = log.to_str().unwrap();
    let live = host.idle("logged", &["--log-path", log, "--level", "Info"]);
    let text = host.ask(&["logs", "logged"]);
    assert!(text.contains("[logged:main] API server started."), "{text}");
    assert_eq!(host.ask(&["logs", "--console", "logged"]), "");
    let mut follower = Live::start(host.command(&["logs", "--follow", "--json", "logged"]));
    follower.expect("API server started");
    host.ask(&["api", "--id", "logged", "GET", "/vm/config"]);
    let line = follower.expect("/vm/config");
    assert_eq!(
        serde_json::from_str::<Value>(&line).unwrap()["source"],
        "log"
    );
    host.ask(&["kill", "logged"]);
    assert_eq!(live.wait().status, 0);
    // Until its last word.
    let text = follower.wait().expect_status(0).text();
    assert!(text.contains("Stopped."), "{text}");

    // One that came through the API, and one that nobody can read twice.
    let live = host.vmm("late", &[]);
    let logger = json!({"log_path": host.write("late.log", "a line\n")}).to_string();
    host.ask(&["api", "--id", "late", "PUT", "/logger", &logger]);
    assert!(host.ask(&["logs", "late"]).starts_with("a line\n"));
    host.ask(&["kill", "late"]);
    assert_eq!(live.wait().status, 0);
    let live = host.vmm("null", &["--log-path", "/dev/null"]);
    host.mote(&["logs", "null"])
        .expect_error(125, &["no regular file", "--console"]);
    host.ask(&["kill", "null"]);
    assert_eq!(live.wait().status, 0);
}

pub(super) fn completion() {
    let host = Host::new();
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef mote"),
        ("fish", "complete -c mote"),
    ] {
        let script = host.ask(&["completion", shell]);
        for word in [word, "attach", "no-stdin", "api-sock"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        let script = host.write(shell, script);
        // Those that are there.
        let mut command = Command::new(shell);
        command.args(["-n", &script]).stdin(Stdio::null());
        if Command::new(shell).arg("--version").output().is_ok() {
            let ended = Running::start(command).wait();
            assert_eq!((ended.status, &*ended.stderr), (0, ""));
        }
    }
    // What it offers behind `mote pau`.
    let ask = format!(
        ". {}; COMP_WORDS=(mote pau); COMP_CWORD=1; _mote mote pau mote; echo ${{COMPREPLY[@]}}",
        host.path().join("bash").display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &ask]).stdin(Stdio::null());
    let ended = Running::start(command).wait();
    assert_eq!(ended.text(), "pause\n", "{ended:?}");
    host.mote(&["completion", "tcsh"]).expect_status(125);
}
