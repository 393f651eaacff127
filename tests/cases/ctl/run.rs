//! `mote run --api-sock`: the API beside a guest in the foreground.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use rustix::process::{Signal, kill_process};
use serde_json::json;
use tests::ctl::Host;
use tests::disk::{qcow2, sparse};
use tests::executable::{echo_kernel, idle_kernel};
use tests::monitor::files;

pub(super) fn beside() {
    let host = Host::new();
    let first = sparse(host.path(), "first", 1 << 20);
    let second = qcow2(host.path(), "second.qcow2", 1 << 20);
    let vsock = host.path().join("v.sock");
    let options = [
        "--cpus".to_owned(),
        "2".into(),
        "--memory=48m".into(),
        "--cmdline=quiet 8250.nr_uarts=1".into(),
        format!("--rootfs={},rate=1m", first.display()),
        format!("--disk={},id=data,ro,serial=S1", second.display()),
        "--net=user,forward=0:22,deny=10.0.0.0/8,id=eth0".into(),
        format!("--vsock=7:{}", vsock.display()),
        "--balloon=8m,stats=2".into(),
        "--entropy".into(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut live = host.run("front", &echo_kernel(), &options);
    live.expect("ready");
    let socket = host.run_dir().join("front/api.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let about = host.ask_json(&["inspect", "front"]);
    assert_eq!(about["instance"]["state"], "Running");
    assert_eq!(about["instance"]["id"], "front");
    let config = &about["config"];
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["machine-config"]["mem_size_mib"], 48);
    let boot = &config["boot-source"];
    assert_eq!(boot["boot_args"], "quiet 8250.nr_uarts=1");
    assert!(
        boot["kernel_image_path"]
            .as_str()
            .unwrap()
            .ends_with("front-kernel")
    );
    let drives = config["drives"].as_array().unwrap();
    assert_eq!(drives.len(), 2);
    assert_eq!(drives[0]["is_root_device"], true);
    assert_eq!(drives[0]["path_on_host"], first.to_str().unwrap());
    assert!(drives[0]["rate_limiter"]["bandwidth"]["size"].is_u64());
    let data = &drives[1];
    assert_eq!(
        (&data["drive_id"], &data["format"]),
        (&json!("data"), &json!("qcow2"))
    );
    assert_eq!(
        (&data["is_read_only"], &data["serial"]),
        (&json!(true), &json!("S1"))
    );
    let card = &config["network-interfaces"][0];
    assert_eq!(card["backend"], "user");
    assert_eq!(card["forwards"], json!(["127.0.0.1:0:22"]));
    assert_eq!(card["deny"], json!(["10.0.0.0/8"]));
    assert_eq!(config["vsock"]["guest_cid"], 7);
    assert_eq!(config["balloon"]["amount_mib"], 8);
    assert_eq!(config["balloon"]["stats_polling_interval_s"], 2);
    assert_eq!(config["entropy"], json!({"rate_limiter": null}));

    // What is for the time before the start is too late.
    host.mote(&["api", "--id", "front", "PUT", "/entropy", "{}"])
        .expect_status(22);
    let start = r#"{"action_type": "InstanceStart"}"#;
    let again = host.mote(&["api", "--id", "front", "PUT", "/actions", start]);
    let again = again.expect_status(22);
    assert!(
        again
            .text()
            .contains("not supported after starting the microVM")
    );
    live.send("q");
    let ended = live.wait();
    assert_eq!(ended.status, 0);
    assert!(ended.stderr.contains("guest front: API on "), "{ended:?}");
    assert_eq!(files(host.run_dir()), [""; 0]);
    assert!(!vsock.exists());

    // A signal, with a command under way and someone attached.
    let live = host.run("front", &idle_kernel(), &[]);
    host.ask(&["pause", "front"]);
    kill_process(live.pid(), Signal::TERM).unwrap();
    assert_eq!(live.wait().status, 143);
    assert_eq!(files(host.run_dir()), [""; 0]);
}

pub(super) fn changed() {
    let host = Host::new();
    let disk = sparse(host.path(), "disk", 1 << 20);
    let other = sparse(host.path(), "other", 2 << 20);
    let disk = format!("--disk={},id=data", disk.display());
    let options = ["--pci", &disk, "--net=user", "--balloon=0"];
    let mut live = host.run("front", &echo_kernel(), &options);
    live.expect("ready");
    let ask = |method: &str, path: &str, body: serde_json::Value| {
        host.ask(&["api", "--id", "front", method, path, &body.to_string()]);
    };
    let config = || host.ask_json(&["api", "--id", "front", "GET", "/vm/config"]);
    ask(
        "PATCH",
        "/drives/data",
        json!({"drive_id": "data", "path_on_host": other}),
    );
    ask(
        "PATCH",
        "/drives/data",
        json!({"drive_id": "data", "rate_limiter": {"ops": {"size": 5, "refill_time": 100}}}),
    );
    let drive = &config()["drives"][0];
    assert_eq!(drive["path_on_host"], other.to_str().unwrap());
    assert_eq!(drive["rate_limiter"]["ops"]["size"], 5);
    let bucket = json!({"bandwidth": {"size": 1000, "refill_time": 100}});
    ask(
        "PATCH",
        "/network-interfaces/net0",
        json!({"iface_id": "net0", "rx_rate_limiter": bucket}),
    );
    let limit = &config()["network-interfaces"][0]["rx_rate_limiter"];
    assert_eq!(limit["bandwidth"]["size"], 1000);
    ask("PATCH", "/balloon", json!({"amount_mib": 10}));
    assert_eq!(config()["balloon"]["amount_mib"], 10);
    // A disk comes.
    let new = sparse(host.path(), "new", 1 << 20);
    let wire = json!({"drive_id": "new", "is_root_device": false, "path_on_host": new});
    ask("PUT", "/drives/new", wire);
    assert_eq!(config()["drives"].as_array().unwrap().len(), 2);
    // A guest that stands still echoes nothing.
    host.ask(&["pause", "front"]);
    live.send("late");
    assert_eq!(host.state("front"), "Paused");
    assert!(!host.ask(&["logs", "front"]).contains("late"));
    host.ask(&["resume", "front"]);
    live.expect("late");
    host.ask(&[
        "api",
        "--id",
        "front",
        "PUT",
        "/actions",
        r#"{"action_type": "Stop"}"#,
    ]);
    assert_eq!(live.wait().status, 0);
    assert_eq!(files(host.run_dir()), [""; 0]);
}

pub(super) fn refused() {
    let host = Host::new();
    let kernel = host.write("kernel", idle_kernel());
    let initrd = host.write("initrd", "none");
    let run = |options: &[&str]| {
        let common = ["run", "--kernel", &kernel, "--initrd", &initrd];
        host.mote(&[&common, options].concat())
    };
    // Where nobody can listen.
    run(&["--api-sock", "/no/such/folder/s"]).expect_error(125, &["no folder", "/no/such/folder"]);
    let path = host.write("file", "a file");
    run(&["--api-sock", &path]).expect_error(125, &["not a socket"]);
    let taken = host.path().join("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    run(&["--api-sock", taken.to_str().unwrap()]).expect_error(125, &["listens on it"]);
    assert_eq!(files(host.run_dir()), [""; 0]);
    // A guest that cannot be built.
    let socket = host.path().join("api.sock");
    let socket = socket.to_str().unwrap();
    let ended = run(&["--api-sock", socket, "--disk", "/no/such/disk"]);
    ended.expect_error(125, &["/no/such/disk"]);
    assert!(!fs::exists(socket).unwrap());
    assert_eq!(files(host.run_dir()), [""; 0]);
    // A stale one of ours is replaced.
    drop(UnixListener::bind(socket).unwrap());
    let live = host.run("named", &idle_kernel(), &[socket]);
    assert_eq!(host.ask_json(&["inspect", "named"])["socket"], socket);
    host.ask(&["kill", "named"]);
    assert_eq!(live.wait().status, 0);
    assert!(!fs::exists(socket).unwrap());
    assert_eq!(files(host.path().join("run")), ["mote"]);
}
