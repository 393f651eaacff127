//! Guests whose memory another process serves.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::executable;
use tests::live::stop;
use tests::page_server::PageServer;
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;

/// Writes a snapshot of a guest that has counted to 1.
fn snapshot(directory: &Path) {
    let kernel = directory.join("counting");
    fs::write(&kernel, executable::counting_kernel()).unwrap();
    let mut first = Service::start(directory, &[""; 0]);
    put_kernel(&first, &kernel);
    first.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": 64}),
    );
    first.put(
        "/balloon",
        json!({"amount_mib": 1, "deflate_on_oom": false}),
    );
    first.act("InstanceStart");
    assert_eq!(first.live().count(), 1);
    first.patch("/vm", json!({"state": "Paused"}));
    first.put("/snapshot/create", snapshot_to(directory));
    assert_eq!(first.terminate().status, 143);
}

fn load(directory: &Path, socket: &Path) -> Value {
    json!({
        "snapshot_path": directory.join("state"),
        "mem_backend": {"backend_type": "Uffd", "backend_path": socket},
    })
}

pub(super) fn goes_on() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    snapshot(directory);
    let mut service = Service::start(directory, &[""; 0]);
    let nobody = directory.join("nobody");
    service.refused(
        "PUT",
        "/snapshot/load",
        Some(&load(directory, &nobody)),
        &["page-fault handler", "nobody"],
    );
    assert_eq!(service.state(), "Not started");
    let server = PageServer::start(directory, &directory.join("memory"));
    service.put("/snapshot/load", load(directory, server.socket()));
    service.patch("/vm", json!({"state": "Resumed"}));
    assert_eq!(service.live().count(), 2);
    // Its own snapshot has all of its memory, what nobody has touched here too.
    service.patch("/vm", json!({"state": "Paused"}));
    let before = directory.join("memory");
    fs::rename(&before, directory.join("before")).unwrap();
    service.put("/snapshot/create", snapshot_to(directory));
    assert_eq!(service.terminate().status, 143);
    drop(server);
    let text = executable::counting_kernel();
    let after = fs::read(directory.join("memory")).unwrap();
    let kernel = &after[1 << 20..][..text.len()];
    assert!(kernel == text, "the kernel, which was mapped");
    let mut last = Service::start(directory, &[""; 0]);
    let mut from = snapshot_from(directory);
    from["resume_vm"] = json!(true);
    last.put("/snapshot/load", from);
    assert_eq!(last.live().count(), 3);
    assert_eq!(last.terminate().status, 143);
}

/// The guest ends with what serves its memory, whether anybody waits for a page or not.
pub(super) fn ends() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    snapshot(directory);
    for runs in [true, false] {
        let mut service = Service::start(directory, &[""; 0]);
        let mut server = PageServer::start(directory, &directory.join("memory"));
        service.put("/snapshot/load", load(directory, server.socket()));
        if runs {
            service.patch("/vm", json!({"state": "Resumed"}));
            assert_eq!(service.live().count(), 2);
            server.kill();
        } else {
            server.kill();
            // Whoever asks may see the end of the monitor instead of an answer.
            rustix::process::test_kill_process(service.pid()).unwrap();
        }
        let ended = service.wait();
        assert_eq!(ended.status, 125, "{ended:?}");
        assert!(ended.stderr.contains("page-fault handler"), "{ended:?}");
    }
}

/// A vCPU waits for a page that does not come; the monitor can be ended all the same.
pub(super) fn stands_still() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    snapshot(directory);
    let service = Service::start(directory, &[""; 0]);
    let server = PageServer::start(directory, &directory.join("memory"));
    service.put("/snapshot/load", load(directory, server.socket()));
    stop(server.pid());
    service.patch("/vm", json!({"state": "Resumed"}));
    assert_eq!(service.state(), "Running");
    // Where KVM's wait for a page cannot be interrupted, the process ends as it is.
    let ended = service.hit(Signal::TERM);
    assert!(matches!(ended.status, 143 | 125), "{ended:?}");
}
