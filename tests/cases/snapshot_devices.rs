//! What a Linux guest has of its devices goes on in another process: what was plugged, what was unplugged, half a line.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::ctl::Host;
use tests::disk::filled;
use tests::driven::{SCRIPT, guest_does, until};
use tests::executable::counting_kernel;
use tests::guest;
use tests::live::Live;
use tests::service::{Service, snapshot_from, snapshot_to};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_line_is_finished_by_another_process", half_a_line),
    ("what_came_while_linux_ran_goes_on", what_came),
    ("huge_pages_go_on", huge_pages),
];

const MIB: u64 = 1 << 20;

/// Asks a guest's API for something.
#[track_caller]
fn api(host: &Host, id: &str, method: &str, path: &str, body: &Value) -> String {
    host.ask(&["api", "--id", id, method, path, &body.to_string()])
}

/// A guest on a virtio console that has printed half a line, and has not read what was typed.
fn half_a_line() {
    let host = Host::new();
    let initrd = guest::probing(host.path(), SCRIPT);
    let initrd = initrd.to_str().unwrap();
    let options = ["run", "--id", "first", "--api-sock", "--console", "virtio"];
    let mut first = Live::start(host.command(&[&options[..], &["--initrd", initrd]].concat()));
    first.expect("READY");
    // It goes on when its window has a size that it will have in the other process only.
    first.send(
        "printf 'half '; until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do usleep 10000; done; read -r rest; \
         echo \"a line: $rest\"\nand what was typed",
    );
    until("half a line", || {
        host.ask(&["logs", "first"])
            .ends_with("half ")
            .then_some(())
    });
    let saved = host.path().join("saved");
    let saved = saved.to_str().unwrap();
    host.ask(&["snapshot", "first", saved]);
    assert!(first.kill().ends_with("half \n"));
    let mut second = Live::start(host.command(&["restore", saved, "--id", "second"]));
    until("the other one", || {
        host.ask(&["ps", "-q"]).contains("second").then_some(())
    });
    let size = json!({"columns": 101, "rows": 33});
    until("the window", || {
        (host.state("second") == "Running").then_some(())
    });
    api(&host, "second", "PATCH", "/console", &size);
    let line = second.expect("a line: ");
    assert_eq!(line.trim_end(), "a line: and what was typed");
    second.expect("=DONE=");
    assert!(guest_does(&mut second, "echo still $((40 + 2))").contains("still 42"));
    second.send("end");
    guest::expect_success(&second.wait());
}

/// The names of drives and of persistent memory that the API has.
fn names(service: &Service) -> Vec<String> {
    let document = service.get("/vm/config");
    let mut names = Vec::new();
    for (section, id) in [("drives", "drive_id"), ("pmem", "id")] {
        for entry in document[section].as_array().into_iter().flatten() {
            names.push(entry[id].as_str().unwrap().to_owned());
        }
    }
    names
}

/// Debian's kernel, with memory and persistent memory that were plugged, a disk that was unplugged, and one whose
/// overlay is temporary.
fn what_came() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let options = ["--enable-pci"];
    let mut service = Service::start(directory, &options);
    let image = |name: &str, seed| filled(directory, name, 4 * MIB, seed);
    let drive = |name: &str| json!({"drive_id": name, "is_root_device": false, "path_on_host": image(name, 1)});
    let mut temporary = drive("kept");
    temporary["overlay"] = json!("temp");
    service.put(
        "/boot-source",
        json!({
            "kernel_image_path": guest::packaged_vmlinuz(),
            "initrd_path": guest::probing_packaged(directory, SCRIPT),
            "boot_args": "console=ttyS0 quiet reboot=k panic=-1 memhp_default_state=online_movable",
        }),
    );
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 256}),
    );
    service.put("/drives/gone", drive("gone"));
    service.put("/drives/kept", temporary);
    service.put("/hotplug/memory", json!({"total_size_mib": 512}));
    service.put(
        "/pmem/there",
        json!({"id": "there", "path_on_host": image("there", 2)}),
    );
    service.act("InstanceStart");
    service.live().expect("READY");
    let does = |service: &mut Service, command: &str| guest_does(service.live(), command);
    let plugs = |service: &Service, mib: u64| {
        service.patch("/hotplug/memory", json!({"requested_size_mib": mib}));
        until("the memory", || {
            (service.get("/hotplug/memory")["plugged_size_mib"] == mib).then_some(())
        });
    };
    plugs(&service, 128);
    service.put(
        "/pmem/late",
        json!({"id": "late", "path_on_host": image("late", 3)}),
    );
    does(&mut service, "await test -e /dev/pmem1");
    service.delete("/drives/gone");
    // What is movable is put into plugged memory first.
    does(
        &mut service,
        "more() { [ $(awk '/^MemTotal/ { print $2 }' /proc/meminfo) -gt 300000 ]; }; await more; \
         must mount -t tmpfs -o size=100m tmp /mnt; must touch /mnt/file; must guest-probe block fill /mnt/file --size 64m --seed 4",
    );
    does(
        &mut service,
        "must guest-probe block fill /dev/vdb --size 4m --seed 5; must guest-probe block fill /dev/pmem1 --size 4m \
         --seed 6; must sync",
    );
    let kept = fs::read(directory.join("kept")).unwrap();
    for _ in 0..2 {
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", snapshot_to(directory));
        assert_eq!(service.terminate().status, 143);
        service = Service::start(directory, &[""; 0]);
        let mut load = snapshot_from(directory);
        load["resume_vm"] = json!(true);
        service.put("/snapshot/load", load);
        assert_eq!(names(&service), ["kept", "there", "late"]);
        assert_eq!(service.get("/hotplug/memory")["plugged_size_mib"], 128);
        does(
            &mut service,
            "must guest-probe block check /mnt/file --seed 4; must guest-probe block check /dev/vdb --seed 5 --direct; \
             must guest-probe block check /dev/pmem0 --seed 2; must guest-probe block check /dev/pmem1 --seed 6; \
             must test ! -e /dev/vda",
        );
    }
    // All of it comes and goes as it did where it began.
    does(&mut service, "must umount /mnt");
    plugs(&service, 0);
    plugs(&service, 256);
    service.delete("/pmem/late");
    does(
        &mut service,
        "await gone /dev/pmem1; must test -e /dev/pmem0",
    );
    service.put("/drives/new", drive("new"));
    does(
        &mut service,
        "await test -e /dev/vda; must guest-probe block check /dev/vda --seed 1 --direct",
    );
    assert_eq!(names(&service), ["kept", "new", "there"]);
    service.live().send("end");
    guest::expect_success(&service.wait());
    // Nothing of it ever got into the base.
    assert!(fs::read(directory.join("kept")).unwrap() == kept);
}

/// A guest whose memory is huge pages has such again.
fn huge_pages() {
    const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let number = |name: &str| -> u64 {
        let text = fs::read_to_string(format!("{PAGES}/{name}")).unwrap();
        text.trim().parse().unwrap()
    };
    fs::write(format!("{PAGES}/nr_hugepages"), "32").unwrap();
    let directory = TempDir::new().unwrap();
    let directory: &Path = directory.as_path();
    let kernel = directory.join("counting");
    fs::write(&kernel, counting_kernel()).unwrap();
    let mut service = Service::start(directory, &[""; 0]);
    service.put("/boot-source", json!({ "kernel_image_path": kernel }));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"}),
    );
    service.act("InstanceStart");
    assert_eq!(service.live().count(), 1);
    for generation in 0..2 {
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", snapshot_to(directory));
        assert_eq!(service.terminate().status, 143);
        until("all pages", || {
            (number("free_hugepages") == 32).then_some(())
        });
        service = Service::start(directory, &[""; 0]);
        let mut load = snapshot_from(directory);
        load["resume_vm"] = json!(true);
        service.put("/snapshot/load", load);
        assert_eq!(number("free_hugepages") - number("resv_hugepages"), 0);
        assert_eq!(service.live().count(), 2 + generation);
        // Only those that have something in them were touched.
        assert!(number("resv_hugepages") > 20);
    }
    assert_eq!(service.terminate().status, 143);
    fs::write(format!("{PAGES}/nr_hugepages"), "0").unwrap();
}
