//! `mote run --config-file`: the sections that are about the monitor more than about its machine.

use std::fs;
use std::path::Path;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::{echo_kernel, idle_kernel};
use tests::live::Live;

/// A configuration file, as an option.
fn file(host: &Host, sections: &Value) -> String {
    let path = host.write("sections.json", sections.to_string());
    format!("--config-file={path}")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Starts `mote run` without an API.
fn start(host: &Host, kernel: &[u8], option: &str) -> Live {
    let kernel = host.write("kernel", kernel);
    let initrd = host.write("initrd", "none");
    let options = ["run", "--kernel", &kernel, "--initrd", &initrd, option];
    Live::start(host.command(&options))
}

pub(super) fn logger() {
    let host = Host::new();
    let path = host.path().join("log");
    let logger = json!({"log_path": path, "level": "Info", "show_level": true});
    let option = file(&host, &json!({ "logger": logger }));
    // An option that has no value is the socket's path.
    let mut live = host.run("front", &echo_kernel(), &[&option]);
    live.expect("ready");
    assert_eq!(host.state("front"), "Running");
    until("the log", || {
        let is_it = |line: &str| line.contains("[front:") && line.contains(":INFO] ");
        read(&path).lines().any(is_it).then_some(())
    });
    let config = host.ask_json(&["api", "--id", "front", "GET", "/vm/config"]);
    assert_eq!(config["logger"]["level"], "Info");
    live.send("q");
    let ended = live.wait();
    assert_eq!(ended.status, 0);
    assert!(!ended.stderr.contains("INFO"), "{ended:?}");

    // The level counts without a path too, unless a flag says more.
    let option = file(&host, &json!({"logger": {"level": "Off"}}));
    for (flags, is_said) in [(&[][..], false), (&["-v"], true)] {
        let options = [&[option.as_str()], flags].concat();
        let mut live = host.run("front", &echo_kernel(), &options);
        live.expect("ready");
        assert_eq!(host.state("front"), "Running");
        live.send("q");
        let ended = live.wait();
        assert_eq!(ended.status, 0);
        let said = ended.stderr.contains("API: GET");
        assert_eq!(said, is_said, "{ended:?}");
    }
}

/// They are written by `mote run` without an API too.
pub(super) fn metrics() {
    let host = Host::new();
    let path = host.path().join("metrics");
    let option = file(&host, &json!({"metrics": {"metrics_path": path}}));
    let mut live = start(&host, &echo_kernel(), &option);
    live.expect("ready");
    live.send("q");
    assert_eq!(live.wait().status, 0);
    let text = read(&path);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sum = |group: &str, name: &str| -> u64 {
        let values = lines.iter().map(|line| line[group][name].as_u64().unwrap());
        values.sum()
    };
    assert!(sum("uart", "write_count") > 0, "{text}");
    assert!(!host.run_dir().exists());

    // With one, a flush is asked for.
    let path = host.path().join("flushed");
    let option = file(&host, &json!({"metrics": {"metrics_path": path}}));
    let live = host.run("front", &idle_kernel(), &[&option]);
    let flush = r#"{"action_type": "FlushMetrics"}"#;
    let before = read(&path).lines().count();
    host.ask(&["api", "--id", "front", "PUT", "/actions", flush]);
    assert!(read(&path).lines().count() > before);
    host.ask(&["kill", "front"]);
    assert_eq!(live.wait().status, 0);
}

pub(super) fn serial() {
    let host = Host::new();
    let path = host.path().join("serial");
    let serial = json!({"serial": {"serial_out_path": path}});
    let option = file(&host, &serial);
    let mut live = start(&host, &echo_kernel(), &option);
    until("output", || read(&path).contains("ready").then_some(()));
    // Nothing is read.
    live.send("q");
    kill_process(live.pid(), Signal::TERM).unwrap();
    let ended = live.wait();
    assert_eq!((ended.status, ended.text().as_str()), (143, ""));
    assert_eq!(read(&path), "ready\r\n");

    // A flag is in its place.
    let kernel = host.write("kernel", echo_kernel());
    let initrd = host.write("initrd", "none");
    let options = ["run", "--kernel", &kernel, "--initrd", &initrd, &option];
    let options = [&options[..], &["--console", "serial"]].concat();
    let mut live = Live::start(host.command(&options));
    live.expect("ready");
    live.send("q");
    assert_eq!(live.wait().status, 0);
    assert_eq!(read(&path), "ready\r\n");

    // Only a limit: standard input and output.
    let limit = json!({"serial": {"rate_limiter": {"size": 3, "refill_time": 1_000_000_000}}});
    let mut live = start(&host, &echo_kernel(), &file(&host, &limit));
    live.send("q");
    let ended = live.wait();
    assert_eq!((ended.status, ended.text().as_str()), (0, "rea\n"));
}

pub(super) fn metadata() {
    let host = Host::new();
    let sections = json!({
        "network-interfaces": [
            {"iface_id": "a", "backend": "user"},
            {"iface_id": "b", "backend": "user"}],
        "mmds-config": {"network_interfaces": ["b"], "version": "V2", "ipv4_address": "169.254.7.7"},
    });
    let option = file(&host, &sections);
    let live = host.run("front", &idle_kernel(), &[&option]);
    let get = |path: &str| host.ask_json(&["api", "--id", "front", "GET", path]);
    let config = get("/vm/config")["mmds-config"].clone();
    assert_eq!(config["network_interfaces"], json!(["b"]));
    assert_eq!(config["ipv4_address"], "169.254.7.7");
    assert_eq!(config["version"], "V2");
    let document = r#"{"a": 1}"#;
    host.ask(&["api", "--id", "front", "PUT", "/mmds", document]);
    assert_eq!(get("/mmds"), json!({"a": 1}));
    host.ask(&["kill", "front"]);
    assert_eq!(live.wait().status, 0);

    // With what it is to say, and a card that says it too.
    let document = host.write("metadata", r#"{"from": "file"}"#);
    let flag = format!("--metadata={document},version=v1");
    let options = [
        option.as_str(),
        &flag,
        "--net=user,mmds=on,id=c",
        "--net=user",
    ];
    let live = host.run("front", &idle_kernel(), &options);
    let config = get("/vm/config")["mmds-config"].clone();
    assert_eq!(config["network_interfaces"], json!(["b", "c"]));
    assert_eq!(config["ipv4_address"], "169.254.7.7");
    assert_eq!(config["version"], "V1");
    assert_eq!(get("/mmds"), json!({"from": "file"}));
    host.ask(&["kill", "front"]);
    assert_eq!(live.wait().status, 0);
}

pub(super) fn refused() {
    let host = Host::new();
    for (sections, parts) in [
        (
            json!({"logger": {"log_path": "/no/folder/log"}}),
            ["the log", "/no/folder/log"],
        ),
        (
            json!({"metrics": {"metrics_path": "/no/folder/m"}}),
            ["metrics_path", "/no/folder/m"],
        ),
        (
            json!({"serial": {"serial_out_path": "/no/folder/s"}}),
            ["serial_out_path", "/no/folder/s"],
        ),
        (
            json!({"mmds-config": {"network_interfaces": ["e"]}}),
            ["network interface IDs", "at least one ID"],
        ),
    ] {
        let live = start(&host, &idle_kernel(), &file(&host, &sections));
        live.wait().expect_error(125, &parts);
    }
}
