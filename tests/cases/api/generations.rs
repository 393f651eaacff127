//! What a guest that goes on from a snapshot is told of that.

use std::fs;
use std::path::Path;

use serde_json::json;
use tests::executable;
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;

/// What its event device has to tell, and its VM generation ID.
#[track_caller]
fn generation(service: &mut Service) -> (u8, String) {
    service.live().send("");
    let line = service.live().expect("=");
    let (event, id) = line
        .trim_start_matches('=')
        .split_once(':')
        .unwrap_or_else(|| panic!("{line}"));
    assert_eq!(id.len(), 32, "{line}");
    (event.parse().unwrap(), id.to_owned())
}

fn restored(directory: &Path, options: &[&str]) -> Service {
    let service = Service::start(directory, options);
    let mut load = snapshot_from(directory);
    load["resume_vm"] = json!(true);
    service.put("/snapshot/load", load);
    service
}

pub(super) fn differ() {
    for (options, words) in [
        (&[][..], ""),
        (&["--enable-pci"], ""),
        // One that was not told where it is hears of nothing.
        (&[], "acpi=off"),
    ] {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        let kernel = directory.join("kernel");
        fs::write(&kernel, executable::generation_kernel()).unwrap();
        let mut first = Service::start(directory, options);
        if words.is_empty() {
            put_kernel(&first, &kernel);
        } else {
            first.put(
                "/boot-source",
                json!({ "kernel_image_path": kernel, "boot_args": words }),
            );
        }
        first.act("InstanceStart");
        let (event, booted) = generation(&mut first);
        assert_eq!(event, 0);
        first.patch("/vm", json!({"state": "Paused"}));
        first.put("/snapshot/create", snapshot_to(directory));
        // It was nowhere else meanwhile.
        first.patch("/vm", json!({"state": "Resumed"}));
        assert_eq!(generation(&mut first), (0, booted.clone()));
        assert_eq!(first.terminate().status, 143);

        let mut ids = vec![booted];
        for _ in 0..2 {
            let mut next = restored(directory, options);
            let (event, id) = generation(&mut next);
            if words.is_empty() {
                assert_eq!(event, 4, "the event of a new generation");
                assert!(!ids.contains(&id), "{id} again: {ids:?}");
                assert_eq!(generation(&mut next), (0, id.clone()));
                ids.push(id);
            } else {
                assert_eq!((event, &id), (0, &ids[0]));
            }
            assert_eq!(next.terminate().status, 143);
        }
        assert_eq!(
            ids[0].chars().all(|digit| digit == '0'),
            !words.is_empty(),
            "{ids:?}"
        );
    }
}

/// How metadata is reached is the guest's; what is in it is its monitor's.
pub(super) fn metadata() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = directory.join("kernel");
    fs::write(&kernel, executable::idle_kernel()).unwrap();
    let first = Service::start(directory, &[""; 0]);
    put_kernel(&first, &kernel);
    first.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 16}),
    );
    first.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    let config = json!({
        "network_interfaces": ["e"], "version": "V2", "ipv4_address": "169.254.7.7", "imds_compat": true,
    });
    first.put("/mmds/config", config.clone());
    first.put("/mmds", json!({"secret": "of the first"}));
    first.act("InstanceStart");
    first.patch("/vm", json!({"state": "Paused"}));
    first.put("/snapshot/create", snapshot_to(directory));
    assert_eq!(first.terminate().status, 143);
    for file in ["state", "memory"] {
        let bytes = fs::read(directory.join(file)).unwrap();
        let secret = b"of the first";
        assert!(
            !bytes.windows(secret.len()).any(|part| part == secret),
            "{file}"
        );
    }
    let next = Service::start(directory, &[""; 0]);
    next.put("/snapshot/load", snapshot_from(directory));
    assert_eq!(next.get("/vm/config")["mmds-config"], config);
    assert_eq!(next.get("/mmds"), json!({}));
    next.put("/mmds", json!({"for": "the next"}));
    assert_eq!(next.get("/mmds"), json!({"for": "the next"}));
    assert_eq!(next.terminate().status, 143);
}
