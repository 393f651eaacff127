//! Cards on taps of the host, and the threads of devices: what of them is in snapshots.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use serde_json::{Value, json};
use tests::driven::threads;
use tests::executable::counting_kernel;
use tests::network::{can_make_networks, in_namespace, tap};
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;

/// What a guest has whose devices have threads of their own, and what these are called.
const THREADS: [&str; 7] = [
    "io-console",
    "io-d",
    "io-u",
    "io-vsock",
    "io-balloon",
    "io-p",
    "io-entropy",
];

fn with_threads(directory: &Path) -> Vec<(&'static str, Value)> {
    let file = |name: &str| {
        let path = directory.join(name);
        fs::write(&path, vec![0; 2 << 20]).unwrap();
        path
    };
    vec![
        ("/serial", json!({"iothread": true})),
        (
            "/drives/d",
            json!({"drive_id": "d", "is_root_device": false, "path_on_host": file("disk"), "iothread": true}),
        ),
        (
            "/network-interfaces/u",
            json!({"iface_id": "u", "backend": "user", "iothread": true}),
        ),
        (
            "/vsock",
            json!({"guest_cid": 3, "uds_path": directory.join("v.sock"), "iothread": true}),
        ),
        (
            "/balloon",
            json!({"amount_mib": 0, "deflate_on_oom": true, "iothread": true}),
        ),
        (
            "/pmem/p",
            json!({"id": "p", "path_on_host": file("pmem"), "iothread": true}),
        ),
        ("/entropy", json!({"iothread": true})),
    ]
}

/// Each has its thread where it begins, and where it goes on.
pub(super) fn own_threads() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = directory.join("counting");
    fs::write(&kernel, counting_kernel()).unwrap();
    let has_all = |pid: Pid| {
        let there = threads(pid);
        for name in THREADS {
            assert!(
                there.iter().any(|thread| thread == name),
                "{name}: {there:?}"
            );
        }
    };
    let mut service = Service::start(directory, &[""; 0]);
    put_kernel(&service, &kernel);
    for (path, body) in with_threads(directory) {
        service.put(path, body);
    }
    service.act("InstanceStart");
    assert_eq!(service.live().count(), 1);
    has_all(service.live().pid());
    let sections = ["serial", "drives", "vsock", "balloon", "pmem", "entropy"];
    let document = service.get("/vm/config");
    for generation in 0..2 {
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", snapshot_to(directory));
        assert_eq!(service.terminate().status, 143);
        service = Service::start(directory, &[""; 0]);
        let mut load = snapshot_from(directory);
        load["resume_vm"] = json!(true);
        service.put("/snapshot/load", load);
        assert_eq!(service.live().count(), 2 + generation);
        has_all(service.live().pid());
        let now = service.get("/vm/config");
        for section in sections {
            assert_eq!(now[section], document[section]);
        }
    }
    assert_eq!(service.terminate().status, 143);
}

/// A tap with several pairs of queues is opened with as many again.
pub(super) fn of_several_pairs() {
    if let Err(why) = can_make_networks() {
        eprintln!("skipped: {why}");
        return;
    }
    in_namespace(several_pairs);
}

fn several_pairs() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    for (name, is_multi) in [("tap0", true), ("tap1", true), ("tap2", false)] {
        tap(name, 1500, is_multi, &[]);
    }
    let kernel = directory.join("counting");
    fs::write(&kernel, counting_kernel()).unwrap();
    let mut first = Service::start(directory, &[""; 0]);
    put_kernel(&first, &kernel);
    let path = "/network-interfaces/e";
    let card =
        |tap: &str| json!({"iface_id": "e", "host_dev_name": tap, "queues": 4, "iothread": true});
    first.refused("PUT", path, Some(&card("tap2")), &["tap2"]);
    first.put(path, card("tap0"));
    first.act("InstanceStart");
    assert_eq!(first.live().count(), 1);
    first.patch("/vm", json!({"state": "Paused"}));
    first.put("/snapshot/create", snapshot_to(directory));
    assert_eq!(first.terminate().status, 143);

    let load = |tap: &str, vhost: Option<bool>| {
        let mut load = snapshot_from(directory);
        load["resume_vm"] = json!(true);
        load["network_overrides"] = json!([{"iface_id": "e", "host_dev_name": tap}]);
        if let Some(vhost) = vhost {
            load["network_overrides"][0]["vhost"] = json!(vhost);
        }
        load
    };
    let mut second = Service::start(directory, &[""; 0]);
    let refused = |second: &Service, load: &Value, parts: &[&str]| {
        second.refused("PUT", "/snapshot/load", Some(load), parts);
    };
    refused(&second, &load("tap2", None), &["'e'", "tap2"]);
    if !Path::new("/dev/vhost-net").exists() {
        refused(
            &second,
            &load("tap1", Some(true)),
            &["'e'", "/dev/vhost-net", "vhost=off"],
        );
    }
    second.put("/snapshot/load", load("tap1", Some(false)));
    let card = &second.get("/vm/config")["network-interfaces"][0];
    assert_eq!(
        (&card["host_dev_name"], &card["queues"], &card["iothread"]),
        (&json!("tap1"), &json!(4), &json!(true))
    );
    assert_eq!(card.get("vhost"), None);
    assert_eq!(second.live().count(), 2);
    assert!(threads(second.live().pid()).contains(&"io-e".to_owned()));
    assert_eq!(second.terminate().status, 143);
}
