//! Whether what the monitor does is what its description says, by schemathesis: no 5xx, no hang, no answer that is not
//! described. What it sends is settled in `tests/python/schemathesis.toml`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::disk::sparse;
use tests::monitor::Running;
use tests::python;
use tests::service::Service;
use vmm_sys_util::tempdir::TempDir;

use super::{idle_kernel, put_kernel};

/// Fewer requests than this would be no test.
const LEAST_REQUESTS: u64 = 1000;

pub(super) fn before_start() {
    check(|directory| Service::start(directory, &["--enable-pci"]));
}

pub(super) fn running() {
    check(start);
}

pub(super) fn paused() {
    check(|directory| {
        let service = start(directory);
        service.patch("/vm", json!({"state": "Paused"}));
        service
    });
}

/// A guest that halts, with a device of each kind. The description's example of an id, `root`, is left to what comes while
/// it runs, but for what cannot come.
fn start(directory: &Path) -> Service {
    let service = Service::start(directory, &["--enable-pci"]);
    put_kernel(&service, &idle_kernel(directory));
    let file = |name| sparse(directory, name, 2 << 20);
    for (path, body) in [
        (
            "/machine-config",
            json!({"vcpu_count": 2, "mem_size_mib": 64}),
        ),
        (
            "/drives/system",
            json!({"drive_id": "system", "is_root_device": true, "path_on_host": file("disk")}),
        ),
        (
            "/network-interfaces/card",
            json!({"iface_id": "card", "backend": "user"}),
        ),
        (
            "/mmds/config",
            json!({"version": "V2", "network_interfaces": ["card"]}),
        ),
        ("/mmds", json!({"role": "web"})),
        (
            "/pmem/root",
            json!({"id": "root", "path_on_host": file("pmem")}),
        ),
        ("/vsock", json!({"guest_cid": 3, "uds_path": "v.sock"})),
        (
            "/balloon",
            json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}),
        ),
        ("/entropy", json!({})),
        ("/hotplug/memory", json!({"total_size_mib": 128})),
        (
            "/metrics",
            json!({"metrics_path": directory.join("metrics")}),
        ),
    ] {
        service.put(path, body);
    }
    service.act("InstanceStart");
    service
}

#[track_caller]
fn check(start: impl FnOnce(&Path) -> Service) {
    let mut command = Command::new(python::tools().join("venv/bin/schemathesis"));
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = start(directory);
    let state = service.state();
    command
        .arg("--config-file")
        .arg(python::source("schemathesis.toml"))
        .args(["run", "--no-color", "http://localhost/openapi.json"])
        .env(
            "SCHEMATHESIS_HOOKS",
            python::source("schemathesis_hooks.py"),
        )
        .env("MOTE_SOCKET", service.socket())
        .env("MOTE_STATE", &state)
        .env("MOTE_DISK", sparse(directory, "spare", 2 << 20))
        // Not beside the hooks.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(directory);
    // They are for other hosts than this one.
    for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    let ended = Running::start(command).wait();
    let said = ended.text();
    let after = service.state();
    let described = operations(&service.get("/openapi.json"));
    let monitor = service.terminate();
    assert!(
        ended.status == 0,
        "status {}: {said}{}",
        ended.status,
        ended.stderr
    );
    // All of it was asked for, and a lot of times.
    assert!(said.contains(&format!("  Tested: {described}\n")), "{said}");
    let requests = said.lines().find_map(|line| {
        let (count, _) = line.trim().split_once(" generated, ")?;
        count.parse::<u64>().ok()
    });
    assert!(
        requests.is_some_and(|count| count >= LEAST_REQUESTS),
        "{said}"
    );
    // It is as it was.
    assert_eq!(after, state);
    assert_eq!(monitor.status, 143, "{monitor:?}");
    assert!(!monitor.stderr.contains("panicked"), "{monitor:?}");
}

/// How many pairs of a path and a method there are.
fn operations(description: &Value) -> usize {
    let paths = description["paths"].as_object().unwrap();
    paths
        .values()
        .map(|path| path.as_object().unwrap().len())
        .sum()
}
