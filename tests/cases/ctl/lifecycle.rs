//! Which guests there are, and what becomes of them.

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::{button_kernel, idle_kernel, tiny_kernel};
use tests::live::stop;
use tests::monitor::files;

pub(super) fn listed() {
    let host = Host::new();
    assert_eq!(host.ask_json(&["ps", "--json"]), json!([]));
    let header = "ID  STATE  PID  UPTIME  CPUS  MEMORY  KIND\n";
    assert_eq!(host.ask(&["ps"]), header);
    assert_eq!(host.ask(&["ps", "-q"]), "");

    let waiting = host.vmm("waiting", &[]);
    let idle = host.idle("idle", &[]);
    let front = host.run("front", &idle_kernel(), &["--cpus", "3", "--memory", "32m"]);
    assert_eq!(host.ask(&["ps", "-q"]), "front\nidle\nwaiting\n");
    let table = host.ask(&["ps"]);
    let rows: Vec<Vec<&str>> = (table.lines().skip(1))
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    for (row, expected) in rows.iter().zip([
        ["front", "Running", "3", "32 MiB", "run"],
        ["idle", "Running", "2", "64 MiB", "vmm"],
        ["waiting", "Not started", "1", "128 MiB", "vmm"],
    ]) {
        let [id, state, _pid, _uptime, cpus, memory, kind] = row[..] else {
            panic!("{table}");
        };
        assert_eq!([id, state, cpus, memory, kind], expected, "{table}");
    }
    let all = host.ask_json(&["ps", "--json"]);
    assert_eq!(all[1]["pid"], idle.pid().as_raw_nonzero().get());
    assert_eq!(all[1]["mem_size_mib"], 64);
    assert!(all[1]["uptime_seconds"].is_u64() && all[1].get("error").is_none());

    let about = host.ask_json(&["inspect", "idle"]);
    assert_eq!(about["id"], "idle");
    assert_eq!(about["kind"], "vmm");
    assert_eq!(about["pid"], idle.pid().as_raw_nonzero().get());
    assert_eq!(about["instance"]["state"], "Running");
    assert_eq!(about["instance"]["id"], "idle");
    assert!(about["version"]["mote_version"].is_string());
    assert_eq!(about["config"]["machine-config"]["vcpu_count"], 2);
    let socket = host.run_dir().join("idle/api.sock");
    assert_eq!(about["socket"], socket.to_str().unwrap());
    let memory = |name: &str| about["memory"][name].as_u64().unwrap();
    assert!(memory("rss_bytes") >= memory("pss_bytes") && memory("pss_bytes") > 0);
    assert_eq!(about["command"][1], "vmm");
    // Several, a line each.
    let lines = host.ask(&["inspect", "--json", "front", "waiting"]);
    let lines: Vec<Value> = (lines.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&lines[0]["id"], &lines[1]["id"]),
        (&json!("front"), &json!("waiting"))
    );
    assert_eq!(lines[0]["kind"], "run");

    for live in [waiting, idle, front] {
        kill_process(live.pid(), Signal::TERM).unwrap();
        assert_eq!(live.wait().status, 143);
    }
    assert_eq!(files(host.run_dir()), [""; 0]);
}

pub(super) fn pause_and_resume() {
    let host = Host::new();
    let a = host.idle("a", &[]);
    let b = host.idle("b", &[]);
    let waiting = host.vmm("waiting", &[]);
    assert_eq!(host.ask(&["pause", "a", "b"]), "a\nb\n");
    assert_eq!((&*host.state("a"), &*host.state("b")), ("Paused", "Paused"));
    assert_eq!(host.ask(&["pause", "a"]), "a\n");
    assert_eq!(
        host.ask_json(&["resume", "--json", "a"]),
        json!({"id": "a", "done": "resumed"})
    );
    assert_eq!(
        (&*host.state("a"), &*host.state("b")),
        ("Running", "Paused")
    );
    // One of two that cannot.
    let ended = host.mote(&["pause", "waiting", "a"]).expect_status(125);
    assert_eq!(ended.text(), "a\n");
    assert!(
        ended
            .stderr
            .contains("'waiting' refuses: The requested operation"),
        "{ended:?}"
    );
    let ended = host.mote(&["pause", "--json", "nobody"]).expect_status(125);
    let line: Value = serde_json::from_str(&ended.text()).unwrap();
    assert!(
        line["error"]
            .as_str()
            .unwrap()
            .contains("no guest 'nobody'")
    );
    assert_eq!(host.ask(&["kill", "a", "b", "waiting"]), "a\nb\nwaiting\n");
    for live in [a, b, waiting] {
        assert_eq!(live.wait().status, 0);
    }
}

pub(super) fn stop_and_kill() {
    let host = Host::new();
    // One that hears of its button, and one that has to be resumed for it.
    let polite = host.run("polite", &button_kernel(), &[]);
    let paused = host.run("paused", &button_kernel(), &[]);
    host.ask(&["pause", "paused"]);
    assert_eq!(
        host.ask(&["stop", "--time", "500", "polite", "paused"]),
        "polite\npaused\n"
    );
    assert_eq!(polite.wait().status, 0);
    assert_eq!(paused.wait().status, 0);
    // Those that do not, or cannot.
    let deaf = host.idle("deaf", &[]);
    let waiting = host.vmm("waiting", &[]);
    let front = host.run("front", &idle_kernel(), &[]);
    assert_eq!(
        host.ask(&["stop", "-t", "1", "deaf", "waiting", "front"]),
        "deaf\nwaiting\nfront\n"
    );
    for live in [deaf, waiting, front] {
        assert_eq!(live.wait().status, 0);
    }
    let idle = host.idle("idle", &[]);
    assert_eq!(
        host.ask_json(&["kill", "--json", "idle"]),
        json!({"id": "idle", "done": "killed"})
    );
    assert_eq!(idle.wait().status, 0);
    assert_eq!(files(host.run_dir()), [""; 0]);
    // A guest that ends by itself leaves nothing, either.
    let kernel = host.write("tiny", tiny_kernel());
    let initrd = host.write("initrd", "none");
    host.ask(&[
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--api-sock",
    ]);
    assert_eq!(files(host.run_dir()), [""; 0]);
}

pub(super) fn hanging() {
    let host = Host::new();
    let stuck = host.idle("stuck", &[]);
    let other = host.idle("other", &[]);
    stop(stuck.pid());
    let table = host.ask(&["ps"]);
    let row = table
        .lines()
        .find(|line| line.starts_with("stuck"))
        .unwrap();
    assert!(row.contains("No answer"), "{table}");
    assert!(table.contains("Running"), "{table}");
    let all = host.ask_json(&["ps", "--json"]);
    assert_eq!(all[1]["state"], Value::Null);
    let why = all[1]["error"].as_str().unwrap();
    assert!(why.contains("did not answer in time"), "{why}");
    host.mote(&["pause", "other", "stuck"])
        .expect_error(125, &["'stuck'", "did not answer in time"]);
    // What is known of it without its help, and all of the next one.
    let ended = host.mote(&["inspect", "--json", "stuck", "other"]);
    let said: Vec<Value> = (ended.text().lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&said[0]["id"], &said[1]["id"]),
        (&"stuck".into(), &"other".into())
    );
    assert!(said[0]["pid"].is_u64() && said[0]["memory"]["rss_bytes"].is_u64());
    assert_eq!(said[0]["config"], Value::Null);
    assert_eq!(said[1]["instance"]["state"], "Paused");
    let why = said[0]["error"].as_str().unwrap();
    assert!(why.contains("did not answer in time"), "{why}");
    ended.expect_error(
        125,
        &["'stuck'", "did not answer in time", "run-time directory"],
    );
    assert_eq!(host.ask(&["kill", "stuck"]), "stuck\n");
    assert_eq!(stuck.wait().status, 128 + 9);
    assert_eq!(files(host.run_dir()), ["other"]);
    host.ask(&["kill", "other"]);
    assert_eq!(other.wait().status, 0);
}

pub(super) fn without_api() {
    let host = Host::new();
    let kernel = host.write("idle", idle_kernel());
    let document = json!({"boot-source": {"kernel_image_path": kernel}});
    let file = host.write("config.json", document.to_string());
    let options = ["--no-api", "--config-file", &file];
    let live = host.vmm("silent", &options);
    until("the row", || {
        host.ask(&["ps"]).contains("No API").then_some(())
    });
    let about = host.ask_json(&["inspect", "silent"]);
    assert_eq!(about["socket"], Value::Null);
    assert!(about["memory"]["rss_bytes"].is_u64());
    for command in ["pause", "attach", "logs", "events"] {
        host.mote(&[command, "silent"])
            .expect_error(125, &["'silent' has no API"]);
    }
    assert_eq!(host.ask(&["stop", "silent"]), "silent\n");
    assert_eq!(live.wait().status, 143);
    let live = host.vmm("silent", &options);
    assert_eq!(host.ask(&["kill", "silent"]), "silent\n");
    assert_eq!(live.wait().status, 128 + 9);
}
