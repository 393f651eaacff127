//! Guests that go on while their memory is written.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::driven::until;
use tests::service::{self, Service, snapshot_to};
use tests::{DEADLINE, executable};
use vmm_sys_util::tempdir::TempDir;

use super::put_kernel;
use super::snapshots::load;

/// The process that writes the memory of a monitor's guest, stopped; none if it has ended by then, as what it is for may have.
fn writer_of(service: &Service, has_ended: impl Fn() -> bool) -> Option<Pid> {
    let tasks = format!("/proc/{}/task", service.pid().as_raw_nonzero());
    let children = || {
        let tasks = fs::read_dir(&tasks).unwrap().flatten();
        let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")));
        lists
            .flatten()
            .find_map(|list| list.split_whitespace().next()?.parse().ok())
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(child) = children().and_then(Pid::from_raw) {
            // It lets go of its parent's descriptors first.
            let descriptors = format!("/proc/{}/fd", child.as_raw_nonzero());
            while fs::read_dir(&descriptors).is_ok_and(|all| all.count() > 3) {
                assert!(Instant::now() < deadline, "it keeps them");
            }
            let stopped = kill_process(child, Signal::STOP).is_ok();
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero()));
            return (stopped && stat.is_ok_and(|stat| !stat.contains(") Z "))).then_some(child);
        }
        if has_ended() {
            return None;
        }
        assert!(Instant::now() < deadline, "nothing is written");
    }
}

/// A monitor with a guest that writes to all of its memory, and a disk.
fn churning(directory: &Path) -> Service {
    let kernel = directory.join("churning");
    fs::write(&kernel, executable::churning_kernel(256 << 20)).unwrap();
    let disk = directory.join("disk");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let mut service = Service::start(directory, &[""; 0]);
    put_kernel(&service, &kernel);
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 256}),
    );
    service.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk}),
    );
    service.act("InstanceStart");
    service.live().expect("=0");
    service
}

/// All that a monitor says to a request for a snapshot, until it closes the connection; it may be killed before that.
fn answer_to(socket: &Path, body: &str) -> String {
    let mut stream = service::connect(socket);
    let length = body.len();
    let request = format!(
        "PUT /snapshot/create HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The guest and the API go on while memory is written; whoever ends what writes it ends only that.
pub(super) fn while_it_is_written() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut service = churning(directory);
    let mut order = snapshot_to(directory);
    order["resume_vm"] = json!(true);
    let socket = service.socket().to_owned();
    let begin = |service: &Service| {
        // As often as it takes to be there while it is written.
        for _ in 0..100 {
            let (socket, body) = (socket.clone(), order.to_string());
            let asked = thread::spawn(move || answer_to(&socket, &body));
            if let Some(writer) = writer_of(service, || asked.is_finished()) {
                return (asked, writer);
            }
            asked.join().unwrap();
        }
        panic!("it is always written at once");
    };
    let (asked, writer) = begin(&service);
    service.refused(
        "PUT",
        "/snapshot/create",
        Some(&order),
        &["another one is being written"],
    );
    assert_eq!(service.state(), "Running");
    assert_eq!(service.live().count(), 1);
    service.patch("/vm", json!({"state": "Paused"}));
    service.patch("/vm", json!({"state": "Resumed"}));
    // It has its file, what it answers by, and what the host says of its pages; nothing that is anyone else's.
    let of_writer = |name: &str| format!("/proc/{}/{name}", writer.as_raw_nonzero());
    assert!(fs::read_dir(of_writer("fd")).unwrap().count() <= 3);
    let maps = fs::read_to_string(of_writer("maps")).unwrap();
    let is_shared = |line: &&str| line.split_whitespace().nth(1).unwrap().ends_with('s');
    assert_eq!(maps.lines().find(is_shared), None, "{maps}");
    kill_process(writer, Signal::CONT).unwrap();
    let answer = asked.join().unwrap();
    assert!(answer.contains("204"), "{answer}");

    let (asked, writer) = begin(&service);
    let before = fs::read(directory.join("state")).unwrap();
    kill_process(writer, Signal::KILL).unwrap();
    let answer = asked.join().unwrap();
    assert!(answer.contains("400"), "{answer}");
    assert!(answer.contains("writes the memory file"), "{answer}");
    assert_eq!(fs::read(directory.join("state")).unwrap(), before);
    assert_eq!(service.live().count(), 1);
    let left = || {
        let names = fs::read_dir(directory).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".new")).count()
    };
    assert_eq!(left(), 0);

    // The end of the monitor is that of the writer, which has held nothing of it.
    let (asked, writer) = begin(&service);
    assert_eq!(service.terminate().status, 143);
    drop(asked.join());
    assert!(kill_process(writer, Signal::CONT).is_err());
    assert_eq!(left(), 0);
    let mut service = Service::start(directory, &[""; 0]);
    let resumed = load(directory, &json!({"resume_vm": true}));
    service.put("/snapshot/load", resumed.clone());
    assert_eq!(service.live().count(), 1);
    let (asked, writer) = begin(&service);
    assert_eq!(service.hit(Signal::KILL).status, 128 + 9);
    drop(asked.join());
    until("the writer's end", || {
        kill_process(writer, Signal::CONT).is_err().then_some(())
    });
    let again = Service::start(directory, &[""; 0]);
    again.put("/snapshot/load", resumed);
    assert_eq!(again.terminate().status, 143);
}
