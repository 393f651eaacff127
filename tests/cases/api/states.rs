//! Not started, Running, Paused, and back.

use std::thread;

use serde_json::{Value, json};
use tests::driven::until;
use tests::service::{Service, request};
use vmm_sys_util::tempdir::TempDir;

use super::{idle_kernel, put_kernel, short_kernel};

const BEFORE: &str = "not supported before starting the microVM";
const AFTER: &str = "not supported after starting the microVM";

pub(super) fn from_start_to_end() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &["--id", "first-1"]);
    let instance = service.get("/");
    assert_eq!(instance["id"], "first-1");
    assert_eq!(instance["state"], "Not started");
    assert_eq!(instance["app_name"], "Firecracker");
    let version = service.get("/version");
    assert_eq!(version["firecracker_version"], instance["vmm_version"]);
    assert!(version["mote_version"].is_string());

    put_kernel(&service, &idle_kernel(directory));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": 32}),
    );
    service.act("InstanceStart");
    assert_eq!(service.state(), "Running");
    for _ in 0..3 {
        service.patch("/vm", json!({"state": "Paused"}));
        assert_eq!(service.state(), "Paused");
        service.patch("/vm", json!({"state": "Paused"}));
        service.patch("/vm", json!({"state": "Resumed"}));
        assert_eq!(service.state(), "Running");
        service.patch("/vm", json!({"state": "Resumed"}));
    }
    let start = json!({"action_type": "InstanceStart"});
    service.refused("PUT", "/actions", Some(&start), &[AFTER]);
    service.patch("/vm", json!({"state": "Paused"}));
    service.refused("PUT", "/actions", Some(&start), &[AFTER]);
    assert_eq!(service.terminate().status, 143);

    // A guest that ends takes its monitor along.
    let service = Service::start(directory, &["--id", "second"]);
    put_kernel(&service, &short_kernel(directory));
    service.act("InstanceStart");
    assert_eq!(service.wait().status, 0);
}

/// A request, and in which of the three states it is done (204 or 200).
type Row = (&'static str, &'static str, Value, [bool; 3]);

/// What is legal where; what needs something that is not there is refused for that reason.
fn table(kernel: &str, disk: &str) -> Vec<Row> {
    let always = [true; 3];
    let before = [true, false, false];
    let after = [false, true, true];
    let drive = json!({"drive_id": "a", "is_root_device": false, "path_on_host": disk});
    vec![
        ("GET", "/", Value::Null, always),
        ("GET", "/version", Value::Null, always),
        ("GET", "/vm/config", Value::Null, always),
        ("GET", "/machine-config", Value::Null, always),
        (
            "PUT",
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 32}),
            before,
        ),
        ("PATCH", "/machine-config", json!({"smt": false}), before),
        (
            "PUT",
            "/boot-source",
            json!({"kernel_image_path": kernel}),
            before,
        ),
        ("PUT", "/cpu-config", json!({}), before),
        ("PUT", "/drives/a", drive, before),
        (
            "PATCH",
            "/drives/a",
            json!({"drive_id": "a", "rate_limiter": {}}),
            after,
        ),
        (
            "PUT",
            "/balloon",
            json!({"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1}),
            before,
        ),
        ("GET", "/balloon", Value::Null, always),
        ("GET", "/balloon/statistics", Value::Null, after),
        ("PATCH", "/balloon", json!({"amount_mib": 1}), after),
        (
            "PATCH",
            "/balloon/statistics",
            json!({"stats_polling_interval_s": 2}),
            after,
        ),
        ("PUT", "/entropy", json!({}), before),
        ("PUT", "/serial", json!({}), before),
        ("PUT", "/logger", json!({"level": "Warn"}), before),
        (
            "PUT",
            "/actions",
            json!({"action_type": "FlushMetrics"}),
            after,
        ),
        (
            "PUT",
            "/actions",
            json!({"action_type": "SendCtrlAltDel"}),
            after,
        ),
        (
            "PUT",
            "/actions",
            json!({"action_type": "PowerButton"}),
            after,
        ),
        ("PATCH", "/vm", json!({"state": "Paused"}), after),
    ]
}

pub(super) fn each_command() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    let service = Service::start(directory, &[""; 0]);
    put_kernel(&service, &kernel);
    let disk = tests::disk::sparse(directory, "disk", 1 << 20);
    let rows = table(kernel.to_str().unwrap(), disk.to_str().unwrap());
    for (state, name) in ["Not started", "Running", "Paused"].into_iter().enumerate() {
        match name {
            "Running" => service.act("InstanceStart"),
            "Paused" => service.patch("/vm", json!({"state": "Paused"})),
            _ => {}
        }
        for (method, path, body, legal) in &rows {
            assert_eq!(service.state(), name);
            let body = (!body.is_null()).then_some(body);
            if legal[state] {
                let answer = service.request(method, path, body);
                let wanted = if *method == "GET" { 200 } else { 204 };
                assert_eq!(answer.status, wanted, "{name}: {method} {path}: {answer:?}");
            } else if *path == "/drives/a" && *method == "PUT" {
                // What would be plugged has another name than what is there.
                let path = "/drives/b";
                let mut drive = body.unwrap().clone();
                drive["drive_id"] = "b".into();
                let body = Some(&drive);
                service.refused(method, path, body, &["PCI is not enabled", AFTER]);
            } else {
                let why = if state == 0 { BEFORE } else { AFTER };
                service.refused(method, path, body, &[why]);
            }
            if name == "Running" && *path == "/vm" {
                service.patch("/vm", json!({"state": "Resumed"}));
            }
        }
    }
    assert_eq!(service.terminate().status, 143);
}

/// Whatever is missing or wrong: the monitor stays, with all that was put, and can be corrected.
pub(super) fn failed_start() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &[""; 0]);
    let start = json!({"action_type": "InstanceStart"});
    service.refused("PUT", "/actions", Some(&start), &["kernel"]);
    let disk = tests::disk::sparse(directory, "disk", 1 << 20);
    let drive = json!({"drive_id": "d", "is_root_device": true, "path_on_host": disk});
    service.put("/drives/d", drive);
    let socket = directory.join("v.sock");
    service.put("/vsock", json!({"guest_cid": 3, "uds_path": socket}));
    // No kernel, though it is a file.
    put_kernel(&service, &disk);
    let before = service.get("/vm/config");
    service.refused(
        "PUT",
        "/actions",
        Some(&start),
        &["Cannot start the microVM"],
    );
    // More memory than there can be.
    put_kernel(&service, &idle_kernel(directory));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 1u64 << 40}),
    );
    service.refused("PUT", "/actions", Some(&start), &["memory"]);
    assert_eq!(service.state(), "Not started");
    let after = service.get("/vm/config");
    assert_eq!(after["drives"], before["drives"]);
    assert_eq!(after["vsock"], before["vsock"]);
    assert!(socket.exists());
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 32}),
    );
    service.act("InstanceStart");
    assert_eq!(service.state(), "Running");
    assert_eq!(service.terminate().status, 143);
    assert!(!socket.exists());
}

/// A guest that never lets go of what it is asked for. Whoever asks for something else is served meanwhile.
pub(super) fn waiting() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &["--enable-pci"]);
    put_kernel(&service, &idle_kernel(directory));
    for id in ["a", "b"] {
        let disk = tests::disk::sparse(directory, id, 1 << 20);
        let drive = json!({"drive_id": id, "is_root_device": false, "path_on_host": disk});
        service.put(&format!("/drives/{id}"), drive);
    }
    service.act("InstanceStart");
    let pmem = tests::disk::sparse(directory, "pmem", 1 << 20);
    service.put("/pmem/a", json!({"id": "a", "path_on_host": pmem}));
    assert_eq!(service.get("/vm/config")["pmem"][0]["id"], "a");

    let ask = |path: &'static str| {
        let socket = service.socket().to_owned();
        thread::spawn(move || request(&socket, "DELETE", path, None))
    };
    let asked = [ask("/drives/a"), ask("/pmem/a")];
    let leaves = &["is being unplugged"];
    // Until the monitor has got both.
    let patch = json!({"drive_id": "a", "rate_limiter": {}});
    until("a removal", || {
        let drive = service.request("PATCH", "/drives/a", Some(&patch));
        let pmem = service.request("PATCH", "/pmem/a", Some(&json!({"id": "a"})));
        (drive.status == 400 && pmem.status == 400).then_some(())
    });
    service.refused("PATCH", "/drives/a", Some(&patch), leaves);
    service.refused("DELETE", "/drives/a", None, leaves);
    let again = json!({"drive_id": "a", "is_root_device": false, "path_on_host": pmem});
    service.refused("PUT", "/drives/a", Some(&again), leaves);
    service.refused("DELETE", "/pmem/a", None, leaves);
    // Others are none of that.
    service.patch("/drives/b", json!({"drive_id": "b", "rate_limiter": {}}));
    service.patch("/vm", json!({"state": "Paused"}));
    assert_eq!(service.get("/vm/config")["drives"][0]["drive_id"], "a");
    service.get("/metrics");
    service.patch("/vm", json!({"state": "Resumed"}));
    assert!(
        asked.iter().all(|asked| !asked.is_finished()),
        "all of this waited for the guest"
    );
    for asked in asked {
        let answer = asked.join().unwrap();
        assert_eq!(answer.status, 400);
        let message = answer.body["fault_message"].to_string();
        assert!(message.contains("has not let go"), "{message}");
    }
    // It can be asked again, and the end does not wait for it.
    let asked = ask("/drives/a");
    until("a removal", || {
        let answer = service.request("PATCH", "/drives/a", Some(&patch));
        (answer.status == 400).then_some(())
    });
    service.act("Stop");
    assert_eq!(service.wait().status, 0);
    // It hears of that, or finds nobody.
    let _ = asked.join();
}
