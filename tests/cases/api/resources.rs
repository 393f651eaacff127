//! What is configured before the start.

use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tests::disk::{qcow2, sparse};
use tests::monitor::files;
use tests::service::Service;
use vmm_sys_util::tempdir::TempDir;

use super::{idle_kernel, put_kernel};

pub(super) fn reads_back() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    let service = Service::start(directory, &[""; 0]);
    let empty = json!({
        "balloon": null,
        "drives": [],
        "boot-source": {"kernel_image_path": "", "initrd_path": null, "boot_args": null},
        "cpu-config": null,
        "logger": null,
        "metrics": null,
        "machine-config": {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None",
        },
        "mmds-config": null,
        "network-interfaces": [],
        "vsock": null,
        "entropy": null,
        "pmem": [],
        "memory-hotplug": null,
    });
    assert_eq!(service.get("/vm/config"), empty);
    let first = sparse(directory, "first", 1 << 20);
    let second = qcow2(directory, "second", 1 << 20);
    let bucket = json!({"size": 1000, "refill_time": 100, "one_time_burst": null});
    service.put(
        "/drives/data",
        json!({"drive_id": "data", "is_root_device": false, "path_on_host": second,
               "format": "qcow2", "serial": "one", "io_engine": "Async", "cache_type": "Writeback",
               "rate_limiter": {"bandwidth": bucket, "ops": {"size": 0, "refill_time": 0}}}),
    );
    service.put(
        "/drives/root",
        json!({"drive_id": "root", "is_root_device": true, "path_on_host": first, "partuuid": "0eaa91a0-01"}),
    );
    service.put(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "backend": "user", "guest_mac": "06:00:AC:10:00:02",
               "forwards": ["127.0.0.1:0:22"], "allow": ["10.0.0.0/8:80"]}),
    );
    service.put(
        "/vsock",
        json!({"guest_cid": 3, "uds_path": directory.join("v.sock")}),
    );
    service.put("/entropy", json!({"rate_limiter": {"bandwidth": bucket}}));
    service.put("/balloon", json!({"amount_mib": 8, "deflate_on_oom": true}));
    service.put(
        "/boot-source",
        json!({"kernel_image_path": kernel, "boot_args": ""}),
    );
    service.put(
        "/machine-config",
        json!({"vcpu_count": 3, "mem_size_mib": 64}),
    );
    service.patch(
        "/machine-config",
        json!({"mem_size_mib": 32, "huge_pages": null}),
    );
    let check = |config: Value| {
        let drives = config["drives"].as_array().unwrap();
        // The root comes first.
        assert_eq!(drives[0]["drive_id"], "root");
        assert_eq!(drives[0]["io_engine"], "Sync");
        assert_eq!(drives[0]["cache_type"], "Unsafe");
        assert_eq!(drives[0]["is_read_only"], false);
        assert_eq!(drives[0]["partuuid"], "0eaa91a0-01");
        assert_eq!(drives[0].get("format"), None);
        assert_eq!(drives[1]["format"], "qcow2");
        assert_eq!(
            drives[1]["rate_limiter"],
            json!({"bandwidth": bucket, "ops": null})
        );
        let card = &config["network-interfaces"][0];
        assert_eq!(card["guest_mac"], "06:00:ac:10:00:02");
        assert_eq!(card["backend"], "user");
        assert_eq!(config["vsock"]["guest_cid"], 3);
        assert_eq!(config["balloon"]["amount_mib"], 8);
        assert_eq!(config["boot-source"]["boot_args"], "");
        assert_eq!(config["machine-config"]["vcpu_count"], 3);
        assert_eq!(config["machine-config"]["mem_size_mib"], 32);
    };
    check(service.get("/vm/config"));
    service.act("InstanceStart");
    check(service.get("/vm/config"));
    // Changes while it runs are in it as well.
    service.patch(
        "/drives/root",
        json!({"drive_id": "root", "rate_limiter": {"ops": bucket}}),
    );
    let third = sparse(directory, "third", 2 << 20);
    service.patch(
        "/drives/root",
        json!({"drive_id": "root", "path_on_host": third}),
    );
    service.patch(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "tx_rate_limiter": {"ops": bucket}}),
    );
    service.patch("/balloon", json!({"amount_mib": 4}));
    let config = service.get("/vm/config");
    assert_eq!(config["drives"][0]["rate_limiter"]["ops"], bucket);
    assert_eq!(config["drives"][0]["path_on_host"], json!(third));
    assert_eq!(
        config["network-interfaces"][0]["tx_rate_limiter"]["ops"],
        bucket
    );
    assert_eq!(
        config["network-interfaces"][0]["rx_rate_limiter"],
        Value::Null
    );
    assert_eq!(config["balloon"]["amount_mib"], 4);
    assert_eq!(service.get("/balloon")["amount_mib"], 4);
    assert_eq!(service.terminate().status, 143);
}

/// Each names what is wrong, and changes nothing.
pub(super) fn refused() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &[""; 0]);
    let disk = sparse(directory, "disk", 1 << 20);
    let taken = sparse(directory, "taken", 1 << 20);
    let elsewhere = TempDir::new().unwrap();
    let other = Service::start(elsewhere.as_path(), &[""; 0]);
    other.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": taken}),
    );
    service.put(
        "/drives/there",
        json!({"drive_id": "there", "is_root_device": true, "path_on_host": disk}),
    );
    let mac = "06:00:00:00:00:01";
    service.put(
        "/network-interfaces/there",
        json!({"iface_id": "there", "backend": "user", "guest_mac": mac}),
    );
    let drive = |id: &str, path: &str, root: bool| json!({"drive_id": id, "is_root_device": root, "path_on_host": path});
    let before = (service.get("/vm/config"), files(directory));
    let directory_path = directory.to_str().unwrap();
    let taken = taken.to_str().unwrap();
    for (path, body, parts) in [
        (
            "/drives/a",
            drive("a", "/no/such", false),
            &["No such file or directory (os error 2)", "/no/such"][..],
        ),
        (
            "/drives/a",
            drive("a", directory_path, false),
            &["drive 'a'"],
        ),
        (
            "/drives/a",
            drive("a", taken, false),
            &["drive 'a'", "in use"],
        ),
        (
            "/drives/a",
            drive("a", taken, true),
            &["A root block device already exists"],
        ),
        (
            "/drives/there",
            drive("there", "/no/such", true),
            &["/no/such"],
        ),
        ("/drives/a", drive("b", taken, false), &["a", "b"]),
        (
            "/network-interfaces/a",
            json!({"iface_id": "a", "backend": "user", "guest_mac": mac}),
            &["The MAC address is already in use", mac],
        ),
        (
            "/network-interfaces/a",
            json!({"iface_id": "a", "host_dev_name": "nosuchtap0"}),
            &["nosuchtap0"],
        ),
        (
            "/network-interfaces/a",
            json!({"iface_id": "a", "backend": "user", "forwards": ["x"]}),
            &["forwards", "x"],
        ),
        (
            "/vsock",
            json!({"guest_cid": 3, "uds_path": disk}),
            &["disk"],
        ),
        (
            "/vsock",
            json!({"guest_cid": 2, "uds_path": "/tmp/x"}),
            &["guest_cid"],
        ),
        (
            "/boot-source",
            json!({"kernel_image_path": "/no/such"}),
            &[
                "The kernel file cannot be opened: No such file or directory (os error 2)",
                "/no/such",
            ],
        ),
        (
            "/boot-source",
            json!({"kernel_image_path": disk, "initrd_path": "/no/initrd"}),
            &["initrd", "No such file or directory (os error 2)"],
        ),
        (
            "/boot-source",
            json!({"kernel_image_path": disk, "boot_args": "x".repeat(3000)}),
            &["command line"],
        ),
        (
            "/machine-config",
            json!({"vcpu_count": 0, "mem_size_mib": 64}),
            &["vcpu_count"],
        ),
        (
            "/machine-config",
            json!({"vcpu_count": 65, "mem_size_mib": 64}),
            &["vcpu_count"],
        ),
        (
            "/machine-config",
            json!({"vcpu_count": 1, "mem_size_mib": 0}),
            &["memory size"],
        ),
        (
            "/balloon",
            json!({"amount_mib": 128, "deflate_on_oom": false}),
            &["128 MiB"],
        ),
        (
            "/snapshot/load",
            json!({
                "snapshot_path": "/no/snapshot",
                "mem_backend": {"backend_type": "File", "backend_path": "/no/memory"},
            }),
            &[],
        ),
        ("/nowhere", json!({}), &["nowhere"]),
    ] {
        service.refused("PUT", path, Some(&body), parts);
        assert_eq!(
            (service.get("/vm/config"), files(directory)),
            before,
            "{path} {body}"
        );
    }
    assert_eq!(other.terminate().status, 143);
    // What was in its way is gone.
    service.put("/drives/a", drive("a", taken, false));
    assert_eq!(service.terminate().status, 143);
    let fresh = Service::start(directory, &[""; 0]);
    let load = json!({
        "snapshot_path": "/no/snapshot",
        "mem_backend": {"backend_type": "File", "backend_path": "/no/memory"},
    });
    fresh.refused(
        "PUT",
        "/snapshot/load",
        Some(&load),
        &["No such file or directory (os error 2) /no/snapshot"],
    );
    assert_eq!(fresh.terminate().status, 143);
}

/// Files are locked, sockets there, names free again, as soon as the answer is.
pub(super) fn made_at_once() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &[""; 0]);
    let socket = directory.join("v.sock");
    for cid in [3, 4] {
        // The same path again, and another.
        service.put("/vsock", json!({"guest_cid": cid, "uds_path": socket}));
        assert!(UnixListener::bind(&socket).is_err());
    }
    let other = directory.join("w.sock");
    service.put(
        "/vsock/old_style",
        json!({"guest_cid": 4, "uds_path": other, "vsock_id": "v"}),
    );
    assert!(other.exists() && !socket.exists());
    let disk = sparse(directory, "disk", 1 << 20);
    for read_only in [false, true, false] {
        service.put(
            "/drives/d",
            json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk, "is_read_only": read_only}),
        );
    }
    assert_eq!(
        service.get("/vm/config")["drives"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    put_kernel(&service, &idle_kernel(directory));
    service.act("InstanceStart");
    assert_eq!(service.terminate().status, 143);
    assert!(!other.exists());
}

/// The document and the interfaces that lead to it.
pub(super) fn metadata() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let limit = ["--mmds-size-limit", "100"];
    let service = Service::start(directory, &limit);
    assert_eq!(service.get("/mmds"), json!({}));
    let patch = json!({"a": 1});
    service.refused(
        "PATCH",
        "/mmds",
        Some(&patch),
        &["The MMDS data store is not initialized."],
    );
    service.put("/mmds", json!({"a": {"b": 1}, "c": [1, 2]}));
    service.patch("/mmds", json!({"a": {"b": null, "d": "e"}}));
    let document = json!({"a": {"d": "e"}, "c": [1, 2]});
    assert_eq!(service.get("/mmds"), document);
    let large = json!({"large": "x".repeat(100)});
    for method in ["PUT", "PATCH"] {
        let answer = service.request(method, "/mmds", Some(&large));
        assert_eq!(answer.status, 413, "{answer:?}");
        assert!(answer.body["fault_message"].is_string(), "{answer:?}");
    }
    assert_eq!(service.get("/mmds"), document);

    let config = json!({"network_interfaces": ["e"]});
    service.refused("PUT", "/mmds/config", Some(&config), &["at least one ID"]);
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    let answer = service.request("PUT", "/mmds/config", Some(&config));
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("deprecation"), Some("true"));
    let v2 = json!({"network_interfaces": ["e"], "version": "V2", "ipv4_address": "169.254.7.7"});
    let answer = service.request("PUT", "/mmds/config", Some(&v2));
    assert_eq!((answer.status, answer.header("deprecation")), (204, None));
    let wrong = json!({"network_interfaces": ["e"], "ipv4_address": "10.0.0.1"});
    service.refused("PUT", "/mmds/config", Some(&wrong), &["ipv4_address"]);
    let config = service.get("/vm/config")["mmds-config"].clone();
    assert_eq!(config["ipv4_address"], "169.254.7.7");
    // It stays with the interface of this name.
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user", "mtu": 1400}),
    );
    put_kernel(&service, &idle_kernel(directory));
    service.act("InstanceStart");
    service.patch("/mmds", json!({"c": null}));
    assert_eq!(service.get("/mmds"), json!({"a": {"d": "e"}}));
    assert_eq!(service.terminate().status, 143);

    // A guest that cannot reach it has none; a file can bring it along.
    let file = directory.join("metadata.json");
    std::fs::write(&file, r#"{"from": "file"}"#).unwrap();
    let service = Service::start(directory, &["--metadata", file.to_str().unwrap()]);
    assert_eq!(service.get("/mmds"), json!({"from": "file"}));
    put_kernel(&service, &idle_kernel(directory));
    service.act("InstanceStart");
    for (method, body) in [
        ("GET", None),
        ("PUT", Some(&patch)),
        ("PATCH", Some(&patch)),
    ] {
        service.refused(
            method,
            "/mmds",
            body,
            &["The MMDS data store is not initialized"],
        );
    }
    assert_eq!(service.terminate().status, 143);
}
