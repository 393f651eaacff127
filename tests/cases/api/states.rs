//! Not started, Running, Paused, and back.

use std::path::Path;
use std::thread;

use api::states::Request;
use serde_json::{Value, json};
use tests::driven::until;
use tests::service::{self, Service, request};
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

/// What a request comes to.
#[derive(Clone, Copy)]
enum Comes {
    /// It is done: 204, or 200 for what only looks.
    Done,
    /// The state forbids it.
    Forbidden,
    /// The state allows it, and it is refused for another reason.
    Refused(&'static str),
}

use Comes::{Done, Forbidden, Refused};

/// A request, and what it comes to in each of the three states.
struct Row {
    method: &'static str,
    path: &'static str,
    body: Value,
    comes: [Comes; 3],
}

const ALWAYS: [Comes; 3] = [Done; 3];
const ONLY_BEFORE: [Comes; 3] = [Done, Forbidden, Forbidden];
const ONLY_AFTER: [Comes; 3] = [Forbidden, Done, Done];

fn get(path: &'static str, comes: [Comes; 3]) -> Row {
    row("GET", path, Value::Null, comes)
}

fn row(method: &'static str, path: &'static str, body: Value, comes: [Comes; 3]) -> Row {
    Row {
        method,
        path,
        body,
        comes,
    }
}

fn action(action: &'static str) -> Row {
    let body = json!({ "action_type": action });
    row("PUT", "/actions", body, ONLY_AFTER)
}

/// What is legal where, of a guest without PCI and without drivers that has one of each device.
fn table(directory: &Path) -> Vec<Row> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let plugged = Refused("PCI is not enabled: not supported after starting the microVM");
    let unplugged = [Forbidden, plugged, plugged];
    let plugged = [Done, plugged, plugged];
    let inactive = Refused("not active");
    let inactive = [Forbidden, inactive, inactive];
    let undriven = Refused("has no driver for it");
    let undriven = [Forbidden, undriven, undriven];
    let serial = Refused("serial");
    let drive = json!({"drive_id": "a", "is_root_device": false, "path_on_host": path("disk")});
    let mut rows = vec![
        get("/", ALWAYS),
        get("/version", ALWAYS),
        get("/vm/config", ALWAYS),
        get("/openapi.json", ALWAYS),
        get("/metrics", ALWAYS),
        get("/machine-config", ALWAYS),
        row(
            "PUT",
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 32}),
            ONLY_BEFORE,
        ),
        row(
            "PATCH",
            "/machine-config",
            json!({"smt": false}),
            ONLY_BEFORE,
        ),
        row(
            "PUT",
            "/boot-source",
            json!({"kernel_image_path": path("idle")}),
            ONLY_BEFORE,
        ),
        row("PUT", "/cpu-config", json!({}), ONLY_BEFORE),
        row("PUT", "/drives/a", drive, plugged),
        row(
            "PATCH",
            "/drives/a",
            json!({"drive_id": "a", "rate_limiter": {}}),
            ONLY_AFTER,
        ),
        row("DELETE", "/drives/a", Value::Null, unplugged),
        row(
            "PUT",
            "/network-interfaces/a",
            json!({"iface_id": "a", "backend": "user"}),
            plugged,
        ),
        row(
            "PATCH",
            "/network-interfaces/a",
            json!({"iface_id": "a"}),
            ONLY_AFTER,
        ),
        row("DELETE", "/network-interfaces/a", Value::Null, unplugged),
        row(
            "PUT",
            "/vsock",
            json!({"guest_cid": 3, "uds_path": path("v.sock")}),
            ONLY_BEFORE,
        ),
        row(
            "PUT",
            "/balloon",
            json!({"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1,
                   "free_page_hinting": true}),
            ONLY_BEFORE,
        ),
        get("/balloon", ALWAYS),
        row("PATCH", "/balloon", json!({"amount_mib": 1}), ONLY_AFTER),
        get("/balloon/statistics", ONLY_AFTER),
        row(
            "PATCH",
            "/balloon/statistics",
            json!({"stats_polling_interval_s": 2}),
            ONLY_AFTER,
        ),
        row("PATCH", "/balloon/hinting/start", Value::Null, inactive),
        get("/balloon/hinting/status", ONLY_AFTER),
        row("PATCH", "/balloon/hinting/stop", Value::Null, inactive),
        row("PUT", "/entropy", json!({}), ONLY_BEFORE),
        row("PUT", "/serial", json!({}), ONLY_BEFORE),
        row(
            "PUT",
            "/hotplug/memory",
            json!({"total_size_mib": 128}),
            ONLY_BEFORE,
        ),
        get("/hotplug/memory", ONLY_AFTER),
        row(
            "PATCH",
            "/hotplug/memory",
            json!({"requested_size_mib": 128}),
            undriven,
        ),
        row("PUT", "/logger", json!({"level": "Warn"}), ONLY_BEFORE),
        row(
            "PUT",
            "/metrics",
            json!({"metrics_path": path("metrics")}),
            ONLY_BEFORE,
        ),
        row(
            "PUT",
            "/mmds/config",
            json!({"network_interfaces": ["a"]}),
            ONLY_BEFORE,
        ),
        row("PUT", "/mmds", json!({"a": 1}), ALWAYS),
        row("PATCH", "/mmds", json!({"b": 1}), ALWAYS),
        get("/mmds", ALWAYS),
        row(
            "PUT",
            "/snapshot/create",
            json!({"snapshot_path": path("s"), "mem_file_path": path("m")}),
            [Forbidden, Refused("pause it first"), Done],
        ),
        row(
            "PUT",
            "/snapshot/create",
            json!({"snapshot_path": path("s"), "mem_file_path": path("m"), "resume_vm": true}),
            [Forbidden, Done, Done],
        ),
        row(
            "PUT",
            "/snapshot/load",
            json!({"snapshot_path": path("s"), "mem_file_path": path("m")}),
            [Refused("has been configured"), Forbidden, Forbidden],
        ),
        row(
            "PUT",
            "/fork",
            json!({"count": 2}),
            [
                Forbidden,
                Refused("drive 'a' can be written to"),
                Refused("drive 'a' can be written to"),
            ],
        ),
        row(
            "PATCH",
            "/console",
            json!({"columns": 80, "rows": 24}),
            [Forbidden, serial, serial],
        ),
        action("FlushMetrics"),
        action("SendCtrlAltDel"),
        action("PowerButton"),
    ];
    for state in ["Paused", "Resumed"] {
        rows.push(row("PATCH", "/vm", json!({ "state": state }), ONLY_AFTER));
    }
    rows
}

/// Requests that are not in the table, as they end the monitor, answer without an end, or have cases of their own.
const ELSEWHERE: [&str; 8] = [
    "GET /events",
    "GET /console",
    "PUT /actions InstanceStart",
    "PUT /actions Stop",
    "PUT /actions Reset",
    "PUT /pmem/{id}",
    "PATCH /pmem/{id}",
    "DELETE /pmem/{id}",
];

/// No request of the API's own table is forgotten.
pub(super) fn all_requests() {
    let mut rows: Vec<String> = table(Path::new("/tmp"))
        .iter()
        .map(|row| {
            let Row {
                method, path, body, ..
            } = row;
            let mut name = format!("{method} {path}");
            for (id, path) in [
                ("{drive_id}", "/drives/"),
                ("{iface_id}", "/network-interfaces/"),
            ] {
                name = name.replace(&format!("{path}a"), &format!("{path}{id}"));
            }
            for variant in [&body["action_type"], &body["state"]] {
                if let Some(variant) = variant.as_str() {
                    name = format!("{name} {variant}");
                }
            }
            if **path == *"/snapshot/create" {
                name = format!("{name} resume_vm:{}", body["resume_vm"] == true);
            }
            name
        })
        .collect();
    rows.extend(ELSEWHERE.map(str::to_owned));
    rows.sort();
    let mut all: Vec<_> = Request::ALL.iter().map(|request| request.name()).collect();
    all.sort_unstable();
    assert_eq!(rows, all);
}

pub(super) fn each_command() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    tests::disk::sparse(directory, "disk", 1 << 20);
    let service = Service::start(directory, &[""; 0]);
    put_kernel(&service, &kernel);
    let start = json!({"action_type": "InstanceStart"});
    for (state, name) in ["Not started", "Running", "Paused"].into_iter().enumerate() {
        match name {
            "Running" => service.act("InstanceStart"),
            "Paused" => service.patch("/vm", json!({"state": "Paused"})),
            _ => {}
        }
        for row in table(directory) {
            try_row(&service, &row, state);
            if (*row.path == *"/vm" || row.body["resume_vm"] == true) && state > 0 {
                // Back to the state that this is about.
                let to = ["", "Resumed", "Paused"][state];
                service.patch("/vm", json!({ "state": to }));
            }
            assert_eq!(service.state(), name, "{} {}", row.method, row.path);
        }
        let (answer, _) = service::open(service.socket(), "/events", "");
        assert_eq!(answer.status, 200);
        let upgrade = "Connection: Upgrade\r\nUpgrade: mote-console\r\n";
        let (answer, _) = service::open(service.socket(), "/console", upgrade);
        if state == 0 {
            assert_eq!(answer.status, 400);
            assert!(answer.body.to_string().contains(BEFORE), "{answer:?}");
            let reset = json!({"action_type": "Reset"});
            service.refused("PUT", "/actions", Some(&reset), &[BEFORE]);
        } else {
            assert_eq!(answer.status, 101);
            assert_eq!(answer.header("mote-backlog"), Some("0"));
            service.refused("PUT", "/actions", Some(&start), &[AFTER]);
        }
        service.refused("GET", "/console", None, &["mote-console"]);
    }
    assert_eq!(service.terminate().status, 143);

    // What ends it, in the states in which it may.
    for (action, states) in [("Stop", 0..3), ("Reset", 1..3)] {
        for state in states {
            let service = Service::start(directory, &[""; 0]);
            put_kernel(&service, &kernel);
            if state > 0 {
                service.act("InstanceStart");
            }
            if state > 1 {
                service.patch("/vm", json!({"state": "Paused"}));
            }
            service.act(action);
            assert_eq!(service.wait().status, 0, "{action} {state}");
        }
    }
}

fn try_row(service: &Service, row: &Row, state: usize) {
    let Row {
        method,
        path,
        body,
        comes,
    } = row;
    let body = (!body.is_null()).then_some(body);
    match comes[state] {
        Done => {
            let answer = service.request(method, path, body);
            let wanted = if *method == "GET" { 200 } else { 204 };
            assert_eq!(
                answer.status, wanted,
                "{state}: {method} {path}: {answer:?}"
            );
        }
        Forbidden => {
            let why = if state == 0 { BEFORE } else { AFTER };
            service.refused(method, path, body, &[why]);
        }
        Refused(why) => {
            // What would be plugged has another name than what is there.
            if *method == "PUT" && path.ends_with("/a") {
                let path = path.replace("/a", "/b");
                let mut other = body.unwrap().clone();
                for id in ["drive_id", "iface_id"] {
                    if let Some(id) = other.get_mut(id) {
                        *id = "b".into();
                    }
                }
                service.refused(method, &path, Some(&other), &[why]);
            } else {
                service.refused(method, path, body, &[why]);
            }
        }
    }
}

/// With PCI, drives and interfaces come and go. This guest lets go of nothing.
pub(super) fn with_pci() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &["--enable-pci"]);
    put_kernel(&service, &idle_kernel(directory));
    for name in ["a", "b"] {
        tests::disk::sparse(directory, name, 1 << 20);
    }
    let drive = |id: &str| json!({"drive_id": id, "is_root_device": false, "path_on_host": directory.join(id)});
    let card = |id: &str| json!({"iface_id": id, "backend": "user"});
    service.act("InstanceStart");
    service.put("/drives/a", drive("a"));
    service.put("/network-interfaces/a", card("a"));
    service.refused("DELETE", "/drives/a", None, &["'a'", "has not let go"]);
    service.patch("/vm", json!({"state": "Paused"}));
    service.put("/drives/b", drive("b"));
    service.put("/network-interfaces/b", card("b"));
    service.refused("DELETE", "/network-interfaces/b", None, &["has not let go"]);
    for path in ["/drives/c", "/network-interfaces/c"] {
        service.refused("DELETE", path, None, &["Device not found"]);
    }
    let config = service.get("/vm/config");
    for devices in ["drives", "network-interfaces"] {
        assert_eq!(config[devices].as_array().unwrap().len(), 2, "{devices}");
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
