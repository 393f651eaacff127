//! Guests that go on in another process.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::driven::until;
use tests::executable;
use tests::monitor::{self, Running};
use tests::service::{self, Service, snapshot_from, snapshot_to};
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

pub(super) fn load(directory: &Path, more: &Value) -> Value {
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

/// What is known of the snapshot in a directory.
fn info(directory: &Path) -> Value {
    let mut command = Command::new(monitor::path());
    command.args(["snapshot", "info", "--json"]).arg(directory);
    let ended = Running::start(command).wait();
    assert_eq!(ended.status, 0, "{ended:?}");
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// The pages that a guest touches until its first reply, and what that took.
pub(super) fn noted() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut first = counting(directory, &[]);
    assert_eq!(first.live().count(), 1);
    first.patch("/vm", json!({"state": "Paused"}));
    first.put("/snapshot/create", snapshot_to(directory));
    first.terminate();
    // One that stands still, and ends so, leaves nothing.
    let paused = Service::start(directory, &[""; 0]);
    paused.put("/snapshot/load", load(directory, &json!({})));
    paused.terminate();
    let before = info(directory);
    assert!(before["last_restore"].is_null(), "{before}");
    assert!(before["working_set"].is_null(), "{before}");

    let mut second = Service::start(directory, &[""; 0]);
    second.put("/snapshot/load", load(directory, &json!({})));
    second.patch("/vm", json!({"state": "Resumed"}));
    assert_eq!(second.live().count(), 2);
    second.terminate();
    let after = info(directory);
    let restored = &after["last_restore"];
    assert_eq!(restored["reply"]["kind"], "console", "{after}");
    assert!(restored["working_set"].is_null(), "{after}");
    assert!(
        after["working_set"]["written"].as_u64() >= Some(1),
        "{after}"
    );

    // It is asked for at once, and its list is used.
    let mut third = Service::start(directory, &[""; 0]);
    third.put(
        "/snapshot/load",
        load(directory, &json!({"resume_vm": true})),
    );
    assert_eq!(third.live().count(), 2);
    third.patch("/vm", json!({"state": "Paused"}));
    until("what is noted", || {
        let known = info(directory);
        (known["last_restore"]["working_set"] == after["working_set"]).then_some(())
    });
    // What is written in its place is another one.
    third.put("/snapshot/create", snapshot_to(directory));
    assert!(!directory.join("memory.pages").exists());
    assert!(!directory.join("memory.restored").exists());
    third.terminate();
    let next = info(directory);
    assert!(next["last_restore"].is_null(), "{next}");
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
    // Files of the guest, by whatever name.
    let document = first.get("/vm/config");
    let disk = document["drives"][0]["path_on_host"].as_str().unwrap();
    let kernel = document["boot-source"]["kernel_image_path"]
        .as_str()
        .unwrap();
    let linked = directory.join("linked");
    fs::hard_link(disk, &linked).unwrap();
    for path in [disk, kernel, linked.to_str().unwrap()] {
        let before = fs::read(path).unwrap();
        for body in [
            json!({"snapshot_path": directory.join("s"), "mem_file_path": path}),
            json!({"snapshot_path": path, "mem_file_path": directory.join("m")}),
        ] {
            let parts = [path, "is a file of the guest"];
            first.refused("PUT", "/snapshot/create", Some(&body), &parts);
        }
        assert!(fs::read(path).unwrap() == before);
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

/// Types a line at a guest that counts them, the `count`th; a digit has it give up what is in that slot.
#[track_caller]
fn type_line(service: &mut Service, text: &str, count: &mut u8) {
    *count += 1;
    service.live().send(text);
    let line = service.live().expect("=");
    let number = char::from(b'0' + *count);
    assert!(line.ends_with(&format!("={number}")), "{line}");
}

/// The names of drives and of persistent memory that the guest has.
fn names(service: &Service) -> Vec<String> {
    let document = service.get("/vm/config");
    let all = [("drives", "drive_id"), ("pmem", "id")];
    let of = |(section, id): (&str, &str)| -> Vec<String> {
        let entries = document[section].as_array().cloned().unwrap_or_default();
        let name = |entry: &Value| entry[id].as_str().unwrap().to_owned();
        entries.iter().map(name).collect()
    };
    all.into_iter().flat_map(of).collect()
}

/// Devices come and go while the guest goes from process to process, ten times: each is where it was.
pub(super) fn of_what_has_moved() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let file = |name: &str| {
        let path = directory.join(name);
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        path
    };
    let plug = |service: &Service, name: &str| {
        let path = file(name);
        match name.as_bytes()[0] {
            b'p' => service.put(
                &format!("/pmem/{name}"),
                json!({"id": name, "path_on_host": path, "read_only": name.ends_with('4')}),
            ),
            _ => service.put(
                &format!("/drives/{name}"),
                json!({"drive_id": name, "is_root_device": false, "path_on_host": path}),
            ),
        }
    };
    let mut service = counting(directory, &["--enable-pci"]);
    let mut count = 0;
    type_line(&mut service, "", &mut count);
    // Slot 1 is free then, and what came is in slots 7 and 8.
    plug(&service, "x7");
    plug(&service, "p8");
    type_line(&mut service, "1", &mut count);
    assert_eq!(names(&service), ["x7", "p8"]);
    let mut slots = BTreeMap::from([(7, "x7".to_owned()), (8, "p8".to_owned())]);
    for generation in 0..10 {
        let before = service.get("/vm/config");
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", snapshot_to(directory));
        assert_eq!(service.terminate().status, 143);
        service = Service::start(directory, &[""; 0]);
        service.put(
            "/snapshot/load",
            load(directory, &json!({"resume_vm": true})),
        );
        let mut found = service.get("/vm/config");
        if generation == 0 {
            let mac = found["network-interfaces"][0]["guest_mac"].take();
            assert!(mac.is_string(), "{mac}");
        }
        assert_eq!(found, before);
        type_line(&mut service, "", &mut count);
        // What was in a slot is still there, and goes from there.
        let last = generation % 2 == 1;
        let slot = *(if last {
            slots.keys().next_back()
        } else {
            slots.keys().next()
        })
        .unwrap();
        let gone = slots.remove(&slot).unwrap();
        assert!(names(&service).contains(&gone), "{generation}");
        type_line(&mut service, &slot.to_string(), &mut count);
        assert!(!names(&service).contains(&gone), "{generation}");
        // Something else of the other kind comes.
        let comes = format!(
            "{}{generation}",
            if gone.starts_with('x') { 'p' } else { 'x' }
        );
        plug(&service, &comes);
        let free = [1, 7, 8].into_iter().find(|slot| !slots.contains_key(slot));
        slots.insert(free.unwrap(), comes);
    }
    assert_eq!(service.terminate().status, 143);
}

/// By the API, with names of the client's own: what changed is a file of its own, and cannot be loaded by itself.
pub(super) fn differential() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut first = counting(directory, &[]);
    assert_eq!(first.live().count(), 1);
    let mut body = snapshot_to(directory);
    // Nothing is known of what was before: it is all of it, and can be loaded.
    body["snapshot_type"] = json!("Diff");
    body["resume_vm"] = json!(true);
    first.put("/snapshot/create", body.clone());
    assert_eq!(first.state(), "Running");
    assert_eq!(first.live().count(), 2);
    assert_eq!(first.terminate().status, 143);

    let mut second = Service::start(directory, &[""; 0]);
    let tracked = load(
        directory,
        &json!({"track_dirty_pages": true, "resume_vm": true}),
    );
    second.put("/snapshot/load", tracked);
    assert_eq!(
        second.get("/machine-config")["track_dirty_pages"],
        json!(true)
    );
    assert_eq!(second.live().count(), 2);
    let whole = fs::metadata(directory.join("memory")).unwrap();
    let (_, mut events) = service::open(second.socket(), "/events", "");
    for (state, memory) in [("s1", "m1"), ("s2", "m2")] {
        let mut diff = body.clone();
        diff["snapshot_path"] = json!(directory.join(state));
        diff["mem_file_path"] = json!(directory.join(memory));
        second.put("/snapshot/create", diff);
        let part = fs::metadata(directory.join(memory)).unwrap();
        assert!(part.len() > whole.len(), "there is no table: {part:?}");
        assert!(part.blocks() < whole.blocks(), "{part:?} {whole:?}");
        assert_eq!(part.mode() & 0o777, 0o600);
        let mut line = String::new();
        while !line.contains(r#""event":"snapshot""#) {
            line.clear();
            assert!(events.read_line(&mut line).unwrap() > 0);
        }
        assert!(
            line.contains(r#""differential":true"#) && line.contains("pause_us"),
            "{line}"
        );
    }
    assert_eq!(second.terminate().status, 143);
    let third = Service::start(directory, &[""; 0]);
    let mut part = load(directory, &json!({}));
    part["snapshot_path"] = json!(directory.join("s1"));
    part["mem_backend"]["backend_path"] = json!(directory.join("m1"));
    third.refused(
        "PUT",
        "/snapshot/load",
        Some(&part),
        &["differential", "mote snapshot merge"],
    );
    assert_eq!(third.state(), "Not started");
    assert_eq!(third.terminate().status, 143);
}

/// A guest with a drive whose overlay is temporary: each that goes on has it for itself.
pub(super) fn of_temporary_overlays() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = directory.join("counting");
    fs::write(&kernel, executable::counting_kernel()).unwrap();
    let disk = directory.join("disk");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let mut first = Service::start(directory, &[""; 0]);
    put_kernel(&first, &kernel);
    first.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 64}),
    );
    first.put(
        "/drives/t",
        json!({"drive_id": "t", "is_root_device": false, "path_on_host": disk, "overlay": "temp"}),
    );
    first.act("InstanceStart");
    assert_eq!(first.live().count(), 1);
    first.patch("/vm", json!({"state": "Paused"}));
    // Where there is no room for one of the files, there are none.
    let overlay = directory.join("state.overlay-t");
    fs::create_dir(&overlay).unwrap();
    let body = snapshot_to(directory);
    first.refused("PUT", "/snapshot/create", Some(&body), &["state.overlay-t"]);
    assert!(!directory.join("state").exists() && !directory.join("memory").exists());
    fs::remove_dir(&overlay).unwrap();
    first.put("/snapshot/create", body.clone());
    assert_eq!(fs::metadata(&overlay).unwrap().mode() & 0o777, 0o600);

    let from = load(directory, &json!({"resume_vm": true}));
    let copy = |name: &str| {
        let place = directory.join(name);
        fs::create_dir(&place).unwrap();
        Service::start(&place, &[""; 0])
    };
    let (mut second, third) = (copy("second"), copy("third"));
    second.put("/snapshot/load", from.clone());
    assert_eq!(second.live().count(), 2);
    let good = fs::read(&overlay).unwrap();
    let refused = |bytes: &[u8], part: &str| {
        fs::write(&overlay, bytes).unwrap();
        third.refused("PUT", "/snapshot/load", Some(&from), &["disk", part]);
        assert_eq!(third.state(), "Not started");
    };
    refused(b"", "not an overlay");
    refused(&vec![0; good.len()], "not an overlay");
    let mut other = good.clone();
    other[64] ^= 1;
    refused(&other, "another snapshot");
    fs::remove_file(&overlay).unwrap();
    third.refused(
        "PUT",
        "/snapshot/load",
        Some(&from),
        &["state.overlay-t", "No such file"],
    );
    fs::write(&overlay, &good).unwrap();
    third.put("/snapshot/load", from.clone());
    // A snapshot of one that comes from a snapshot takes the place of the one that it comes from.
    second.patch("/vm", json!({"state": "Paused"}));
    second.put("/snapshot/create", body);
    let mut fourth = copy("fourth");
    fourth.put("/snapshot/load", from);
    assert_eq!(fourth.live().count(), 3);
    for service in [first, second, third, fourth] {
        assert_eq!(service.terminate().status, 143);
    }
}
