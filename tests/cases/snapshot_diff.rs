//! A Linux guest that is written as what has changed, again and again, while it works.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::driven::guest_does;
use tests::monitor::{self, Running};
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm::snapshot::directory;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;
use crate::snapshot::start_tracked;

pub(crate) const CASES: &[Case] = &[("diff_on_diff_of_linux_under_load", chain)];

fn merge(base: &Path, differential: &Path) {
    let mut command = Command::new(monitor::path());
    command
        .args(["snapshot", "merge"])
        .args([base, differential]);
    let ended = Running::start(command).wait();
    assert_eq!(ended.status, 0, "{ended:?}");
}

fn chain() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let places = ["base", "one", "two"].map(|name| directory.join(name));
    for place in &places {
        fs::create_dir(place).unwrap();
    }
    let [base, one, two] = &places;
    let mut service = start_tracked(directory, &[], 2);
    service.live().expect("READY");
    let does = |service: &mut Service, command: &str| guest_does(service.live(), command);
    does(
        &mut service,
        "mkdir /tmp/kept; dd if=/dev/urandom of=/tmp/kept/zero bs=4096 count=1000 2>/dev/null; held=0",
    );
    does(
        &mut service,
        "guest-probe block verify /dev/vda --seed 1 --threads 2 --operations 300 --direct >/tmp/log 2>&1 & true",
    );
    for (place, kind, name) in [
        (base, "Full", "one"),
        (one, "Diff", "two"),
        (two, "Diff", ""),
    ] {
        // It works on while it is written, but for the last time: then its disk stays as it is.
        let mut order = snapshot_to(place);
        order["snapshot_type"] = json!(kind);
        order["resume_vm"] = json!(!name.is_empty());
        if name.is_empty() {
            service.patch("/vm", json!({"state": "Paused"}));
        }
        service.put("/snapshot/create", order);
        if !name.is_empty() {
            does(
                &mut service,
                &format!(
                    "dd if=/dev/urandom of=/tmp/kept/{name} bs=4096 count=500 2>/dev/null; \
                     sha256sum /tmp/kept/* >/tmp/sums; held={name}"
                ),
            );
        }
    }
    assert_eq!(service.terminate().status, 143);
    let stored = |place: &Path| {
        let memory = fs::metadata(directory::memory(place)).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&memory) * 512
    };
    assert!(stored(one) < stored(base) && stored(two) < stored(base));
    merge(base, one);
    merge(base, two);

    let mut load = snapshot_from(base);
    load["mem_backend"]["backend_path"] = json!(directory::memory(base));
    load["resume_vm"] = json!(true);
    let mut service = Service::start(directory, &[""; 0]);
    service.put("/snapshot/load", load);
    let said = does(&mut service, "must sha256sum -c /tmp/sums; echo $held");
    assert!(said.contains("two"), "{said}");
    does(&mut service, "must wait $!; cat /tmp/log");
    does(
        &mut service,
        "must guest-probe block verify /dev/vda --seed 2 --threads 1 --operations 50 --direct",
    );
    service.live().send("end");
    tests::guest::expect_success(&service.wait());
}
