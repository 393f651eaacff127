//! Guests that go on in another process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};
use tests::executable;
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;

const MEMORY_MIB: u64 = 64;

/// A monitor with a guest that counts, and devices of all kinds that need nothing of the host.
fn counting(directory: &Path, options: &[&str]) -> Service {
    let kernel = directory.join("counting");
    fs::write(&kernel, executable::counting_kernel()).unwrap();
    let disk = directory.join("disk");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let service = Service::start(directory, options);
    put_kernel(&service, &kernel);
    service.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": MEMORY_MIB}),
    );
    service.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk}),
    );
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    service.put(
        "/vsock",
        json!({"guest_cid": 3, "uds_path": directory.join("v.sock")}),
    );
    service.put(
        "/balloon",
        json!({"amount_mib": 1, "deflate_on_oom": false}),
    );
    service.put("/entropy", json!({}));
    service.put("/hotplug/memory", json!({"total_size_mib": 1024}));
    service.act("InstanceStart");
    service
}

fn load(directory: &Path, more: &Value) -> Value {
    let mut load = snapshot_from(directory);
    for (field, value) in more.as_object().unwrap() {
        load[field] = value.clone();
    }
    load
}

pub(super) fn goes_on() {
    for options in [&[][..], &["--enable-pci"]] {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        let mut first = counting(directory, options);
        assert_eq!(first.live().count(), 1);
        assert_eq!(first.live().count(), 2);
        first.patch("/vm", json!({"state": "Paused"}));
        first.put("/snapshot/create", snapshot_to(directory));
        let memory = fs::metadata(directory.join("memory")).unwrap();
        assert_eq!(memory.len(), (MEMORY_MIB << 20) + 16);
        assert!(memory.blocks() * 512 < 8 << 20, "{}", memory.blocks());
        assert_eq!(memory.mode() & 0o777, 0o600);
        // It goes on as if nothing had been.
        assert_eq!(first.state(), "Paused");
        first.patch("/vm", json!({"state": "Resumed"}));
        assert_eq!(first.live().count(), 3);
        let document = first.get("/vm/config");
        assert_eq!(first.terminate().status, 143);

        // And again and again: each generation from the last one's snapshot.
        for generation in 0..3 {
            let mut next = Service::start(directory, options);
            next.put("/snapshot/load", load(directory, &json!({})));
            assert_eq!(next.state(), "Paused");
            let mut found = next.get("/vm/config");
            // Its address was made up, and is known now.
            let mac = found["network-interfaces"][0]["guest_mac"].take();
            assert!(mac.is_string(), "{mac}");
            let mut expected = document.clone();
            expected["network-interfaces"][0]["guest_mac"].take();
            assert_eq!(found, expected);
            next.patch("/vm", json!({"state": "Resumed"}));
            assert_eq!(next.live().count(), 3 + generation);
            next.patch("/vm", json!({"state": "Paused"}));
            next.put("/snapshot/create", snapshot_to(directory));
            assert_eq!(next.terminate().status, 143);
        }
        let mut last = Service::start(directory, options);
        let resumed = load(directory, &json!({"resume_vm": true}));
        last.put("/snapshot/load", resumed);
        assert_eq!(last.state(), "Running");
        assert_eq!(last.live().count(), 6);
        assert_eq!(last.terminate().status, 143);
    }
}

pub(super) fn refused() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut first = counting(directory, &[]);
    assert_eq!(first.live().count(), 1);
    let body = snapshot_to(directory);
    first.refused("PUT", "/snapshot/create", Some(&body), &["pause"]);
    first.patch("/vm", json!({"state": "Paused"}));
    for (what, part) in [
        (
            json!({"snapshot_path": directory, "mem_file_path": directory.join("m")}),
            "directory",
        ),
        (
            json!({"snapshot_path": directory.join("m"), "mem_file_path": directory.join("m")}),
            "same",
        ),
        (
            json!({"snapshot_path": "/dev/null", "mem_file_path": directory.join("m")}),
            "/dev/null",
        ),
        (
            json!({"snapshot_path": directory.join("s"), "mem_file_path": directory.join("m"),
                   "snapshot_type": "Diff"}),
            "snapshot_type",
        ),
        (
            json!({"snapshot_path": "/no/state", "mem_file_path": directory.join("m")}),
            "/no/state",
        ),
        (
            json!({"snapshot_path": directory.join("s"), "mem_file_path": "/no/memory"}),
            "/no/memory",
        ),
    ] {
        first.refused("PUT", "/snapshot/create", Some(&what), &[part]);
        assert!(!directory.join("m").exists() && !directory.join("s").exists());
    }
    first.put("/snapshot/create", body);
    let good = fs::read(directory.join("state")).unwrap();
    // What the first one has, nobody else can have.
    fs::create_dir(directory.join("second")).unwrap();
    let second = Service::start(&directory.join("second"), &[""; 0]);
    let from = load(directory, &json!({}));
    let before = second.get("/vm/config");
    second.refused("PUT", "/snapshot/load", Some(&from), &["disk 'd'"]);
    assert_eq!(second.get("/vm/config"), before);
    assert_eq!(first.terminate().status, 143);

    let refused = |state: &[u8], parts: &[&str]| {
        fs::write(directory.join("state"), state).unwrap();
        second.refused("PUT", "/snapshot/load", Some(&from), parts);
        assert_eq!(second.get("/vm/config"), before);
        assert_eq!(second.state(), "Not started");
    };
    refused(b"", &["cut"]);
    refused(&[0; 100], &["not a state file"]);
    refused(&good[..good.len() - 1], &["cut"]);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    refused(&flipped, &["damaged"]);
    flipped = good.clone();
    flipped[8] ^= 2;
    refused(&flipped, &["damaged", "header"]);
    fs::write(directory.join("state"), &good).unwrap();
    let other = load(
        directory,
        &json!({"network_overrides": [{"iface_id": "f", "host_dev_name": "tap0"}]}),
    );
    second.refused("PUT", "/snapshot/load", Some(&other), &["'f'"]);
    let memory = fs::read(directory.join("memory")).unwrap();
    fs::write(directory.join("memory"), &memory[..memory.len() - 4096]).unwrap();
    second.refused("PUT", "/snapshot/load", Some(&from), &["memory file"]);
    fs::write(directory.join("memory"), &memory).unwrap();
    // That of another snapshot.
    let mut others = memory.clone();
    *others.last_mut().unwrap() ^= 1;
    fs::write(directory.join("memory"), &others).unwrap();
    second.refused(
        "PUT",
        "/snapshot/load",
        Some(&from),
        &["written with this state"],
    );
    fs::write(directory.join("memory"), &memory).unwrap();
    // A disk that has gone on without the guest.
    let disk = fs::File::options()
        .write(true)
        .open(directory.join("disk"))
        .unwrap();
    let modified = disk.metadata().unwrap().modified().unwrap();
    disk.set_modified(modified + std::time::Duration::from_secs(1))
        .unwrap();
    second.refused(
        "PUT",
        "/snapshot/load",
        Some(&from),
        &["disk", "changed since"],
    );
    assert_eq!(second.get("/vm/config"), before);
    // One that is of another size cannot be forced, either.
    let forced = load(directory, &json!({"force": true}));
    disk.set_len(1 << 19).unwrap();
    second.refused(
        "PUT",
        "/snapshot/load",
        Some(&forced),
        &["disk", "524288 bytes"],
    );
    assert_eq!(second.get("/vm/config"), before);
    disk.set_len(1 << 20).unwrap();
    disk.set_modified(modified).unwrap();
    // All of that has left it able to load it.
    second.put("/snapshot/load", from.clone());
    second.refused("PUT", "/snapshot/load", Some(&from), &["after starting"]);
    assert_eq!(second.terminate().status, 143);
    disk.set_modified(modified + std::time::Duration::from_secs(1))
        .unwrap();
    let third = Service::start(&directory.join("second"), &[""; 0]);
    third.refused("PUT", "/snapshot/load", Some(&from), &["changed since"]);
    third.put("/snapshot/load", forced);
    assert_eq!(third.terminate().status, 143);
}

/// What came while the guest ran is not where a new machine would have it.
pub(super) fn of_what_has_moved() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = counting(directory, &["--enable-pci"]);
    let disk = directory.join("late");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    service.put(
        "/drives/late",
        json!({"drive_id": "late", "is_root_device": false, "path_on_host": disk}),
    );
    service.patch("/vm", json!({"state": "Paused"}));
    let body = snapshot_to(directory);
    service.refused(
        "PUT",
        "/snapshot/create",
        Some(&body),
        &["have come or gone"],
    );
    assert!(!directory.join("state").exists() && !directory.join("memory").exists());
    assert_eq!(service.terminate().status, 143);
}
