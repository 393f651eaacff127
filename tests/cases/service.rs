//! Linux guests driven through the API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::disk::{FileSystem, filled, generations, sparse};
use tests::driven::{SCRIPT, guest_does, until};
use tests::guest::{self, packaged_kernel, tuned_kernel};
use tests::service::Service;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

const MIB: u64 = 1 << 20;
const WORDS: &str = "console=ttyS0 quiet reboot=k panic=-1";

pub(crate) const CASES: &[Case] = &[
    ("a_session_with_curl", session_with_curl),
    ("a_paused_linux_goes_on", paused_linux),
    ("devices_change_while_linux_runs", devices_change),
    ("devices_come_and_go", devices_come_and_go),
    ("places_for_disks", places_for_disks),
    ("linux_reads_its_metadata", metadata),
    ("ctrl_alt_del_restarts_linux", ctrl_alt_del),
    ("linux_under_the_name_firecracker", under_another_name),
];

/// Gives a monitor Linux and a guest that does what it is told on its console.
fn put_linux(service: &Service, directory: &Path) {
    let initrd = guest::probing(directory, SCRIPT);
    service.put(
        "/boot-source",
        json!({"kernel_image_path": tuned_kernel().join("vmlinux"), "initrd_path": initrd, "boot_args": WORDS}),
    );
}

/// Starts it, and waits until it does what it is told.
fn start(service: &mut Service) {
    service.act("InstanceStart");
    service.live().expect("READY");
}

fn in_guest(service: &mut Service, command: &str) -> String {
    guest_does(service.live(), command)
}

fn end(mut service: Service) {
    service.live().send("end");
    guest::expect_success(&service.wait());
}

/// The script that the documentation shows.
fn session_with_curl() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let disk = sparse(directory, "disk", MIB);
    let init = "acpid() { :; }; while sleep 1; do :; done";
    let initrd = guest::probing(directory, init);
    let service = Service::start(directory, &["--id", "curl"]);
    let mut session = Command::new("sh");
    session
        .arg(script("api-session.sh"))
        .arg(service.socket())
        .arg(tuned_kernel().join("vmlinux"))
        .arg(initrd)
        .arg(disk);
    let said = tests::disk::run(session);
    let answers: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 3, "{said}");
    assert_eq!(answers[0]["state"], "Running");
    assert_eq!(answers[1]["state"], "Paused");
    assert_eq!(answers[2]["machine-config"]["vcpu_count"], 2);
    assert_eq!(answers[2]["drives"][0]["drive_id"], "data");
    // The guest was not told to mind its power button.
    service.act("Stop");
    assert_eq!(service.wait().status, 0);
}

/// `$EXAMPLES`, else that of this source tree.
fn script(name: &str) -> PathBuf {
    match std::env::var_os("EXAMPLES") {
        Some(path) => Path::new(&path).join(name),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../resources/examples")
            .join(name),
    }
}

/// Nothing of it moves while it is paused, and nothing of it minds.
fn paused_linux() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let disk = filled(directory, "disk", 8 * MIB, 1);
    let mut service = Service::start(directory, &[""; 0]);
    put_linux(&service, directory);
    service.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": 128}),
    );
    service.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk, "cache_type": "Writeback"}),
    );
    start(&mut service);
    in_guest(
        &mut service,
        "guest-probe block verify /dev/vda --seed 1 --threads 2 --operations 400 --direct >/tmp/log 2>&1 & true",
    );
    for _ in 0..10 {
        service.patch("/vm", json!({"state": "Paused"}));
        assert_eq!(service.state(), "Paused");
        std::thread::sleep(std::time::Duration::from_millis(50));
        service.patch("/vm", json!({"state": "Resumed"}));
    }
    in_guest(&mut service, "must wait $!; cat /tmp/log");
    end(service);
}

fn devices_change() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let first = filled(directory, "first", MIB, 1);
    let second = filled(directory, "second", 2 * MIB, 2);
    let mut service = Service::start(directory, &[""; 0]);
    put_linux(&service, directory);
    let socket = directory.join("v.sock");
    service.put("/vsock", json!({"guest_cid": 5, "uds_path": socket}));
    service.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": first}),
    );
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    service.put(
        "/balloon",
        json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}),
    );
    service.put(
        "/entropy",
        json!({"rate_limiter": {"bandwidth": {"size": 65536, "refill_time": 100}}}),
    );
    start(&mut service);
    in_guest(
        &mut service,
        "must guest-probe block check /dev/vda --seed 1",
    );
    service.patch(
        "/drives/d",
        json!({"drive_id": "d", "path_on_host": second}),
    );
    in_guest(
        &mut service,
        &format!("await is /sys/block/vda/size {}", 2 * MIB / 512),
    );
    in_guest(
        &mut service,
        "must guest-probe block check /dev/vda --seed 2",
    );
    // A file that is not there leaves the drive as it is.
    let missing = json!({"drive_id": "d", "path_on_host": "/no/such"});
    service.refused(
        "PATCH",
        "/drives/d",
        Some(&missing),
        &["Error manipulating the backing file: No such file or directory (os error 2) /no/such"],
    );
    in_guest(
        &mut service,
        "must guest-probe block check /dev/vda --seed 2",
    );
    // The same path again: another size of the same file.
    fs::File::options()
        .write(true)
        .open(&second)
        .unwrap()
        .set_len(3 * MIB)
        .unwrap();
    service.patch(
        "/drives/d",
        json!({"drive_id": "d", "path_on_host": second}),
    );
    in_guest(
        &mut service,
        &format!("await is /sys/block/vda/size {}", 3 * MIB / 512),
    );

    let bucket = json!({"size": 10, "refill_time": 1000});
    service.patch(
        "/drives/d",
        json!({"drive_id": "d", "rate_limiter": {"ops": bucket}}),
    );
    service.patch(
        "/network-interfaces/e",
        json!({"iface_id": "e", "rx_rate_limiter": {"ops": bucket}}),
    );
    service.patch(
        "/drives/d",
        json!({"drive_id": "d", "rate_limiter": {"ops": {"size": 0, "refill_time": 0}}}),
    );
    assert_eq!(
        service.get("/vm/config")["drives"][0]["rate_limiter"],
        Value::Null
    );

    service.patch("/balloon", json!({"amount_mib": 32}));
    let inflated = until("the balloon", || {
        let statistics = service.get("/balloon/statistics");
        (statistics["actual_mib"] == 32 && statistics["free_memory"].is_u64()).then_some(statistics)
    });
    assert_eq!(inflated["target_pages"], 32 * 256);
    service.patch(
        "/balloon/statistics",
        json!({"stats_polling_interval_s": 5}),
    );
    let off = json!({"stats_polling_interval_s": 0});
    service.refused(
        "PATCH",
        "/balloon/statistics",
        Some(&off),
        &["stats_polling_interval_s"],
    );
    service.patch("/balloon", json!({"amount_mib": 0}));
    until("its end", || {
        (service.get("/balloon/statistics")["actual_mib"] == 0).then_some(())
    });
    // The guest tells of free memory when it is asked, and has it again as soon as it has told all.
    for (acknowledge, host) in [(true, 1), (false, 3)] {
        service.patch(
            "/balloon/hinting/start",
            json!({ "acknowledge_on_stop": acknowledge }),
        );
        until("the hints", || {
            let status = service.get("/balloon/hinting/status");
            (status == json!({"host_cmd": host, "guest_cmd": 0})).then_some(())
        });
    }
    let answer = service.request("PATCH", "/balloon/hinting/stop", None);
    assert_eq!(answer.status, 204);
    assert_eq!(service.get("/balloon/hinting/status")["host_cmd"], 1);
    let hinted = service.get("/metrics");
    let hinted =
        hinted.as_str().unwrap().lines().find(|line| {
            line.starts_with("mote_balloon_moved_bytes_total") && line.contains("hinted")
        });
    let bytes: f64 = hinted.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(bytes > 1e6, "{hinted:?}");
    in_guest(
        &mut service,
        "must guest-probe random /dev/hwrng --bytes 16k",
    );
    end(service);
    assert!(!socket.exists());
}

fn devices_come_and_go() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let disk = filled(directory, "disk", MIB, 1);
    let mut service = Service::start(directory, &["--enable-pci"]);
    put_linux(&service, directory);
    let root = sparse(directory, "there", MIB);
    service.put(
        "/drives/there",
        json!({"drive_id": "there", "is_root_device": false, "path_on_host": root}),
    );
    start(&mut service);
    let drive =
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk, "serial": "new"});
    let card = json!({"iface_id": "e", "backend": "user", "guest_mac": "06:00:00:00:00:07"});
    for _ in 0..3 {
        service.put("/drives/d", drive.clone());
        in_guest(
            &mut service,
            "await test -b /dev/vdb; await is /sys/block/vdb/serial new",
        );
        in_guest(
            &mut service,
            "must guest-probe block check /dev/vdb --seed 1",
        );
        service.refused("PUT", "/drives/d", Some(&drive), &["Device ID in use"]);
        service.put("/network-interfaces/e", card.clone());
        in_guest(&mut service, "await test -d /sys/class/net/eth0");
        let mac = in_guest(&mut service, "cat /sys/class/net/eth0/address");
        assert_eq!(mac, "06:00:00:00:00:07\n");
        assert_eq!(
            service.get("/vm/config")["drives"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        service.delete("/drives/d");
        service.delete("/network-interfaces/e");
        assert_eq!(
            in_guest(
                &mut service,
                "ls /sys/block /sys/class/net | grep -c 'vdb\\|eth'"
            ),
            "0\n"
        );
        assert_eq!(
            service.get("/vm/config")["drives"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        service.refused("DELETE", "/drives/d", None, &["Device not found"]);
        service.refused(
            "DELETE",
            "/network-interfaces/e",
            None,
            &["Device not found"],
        );
    }
    // What the guest gives up by itself is forgotten.
    service.put("/drives/d", drive.clone());
    in_guest(&mut service, "await test -b /dev/vdb");
    let power_off = "for slot in /sys/bus/pci/slots/*; do
        [ -e /sys/bus/pci/devices/$(cat $slot/address).0/virtio*/block/vdb ] && echo 0 >$slot/power; done; true";
    in_guest(&mut service, &power_off.replace('\n', " "));
    until("the end of the disk", || {
        let drives = service.get("/vm/config")["drives"].clone();
        (drives.as_array().unwrap().len() == 1).then_some(())
    });
    service.put("/drives/d", drive.clone());
    service.delete("/drives/d");
    let second_root = json!({"drive_id": "r", "is_root_device": true, "path_on_host": disk});
    service.refused("PUT", "/drives/r", Some(&second_root), &["root"]);
    end(service);
    assert_eq!(generations(&disk, 1, MIB), (1, 1));
}

/// Empty files hold the places of disks that come later, without PCI.
fn places_for_disks() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let empty = sparse(directory, "empty", 0);
    let mut service = Service::start(directory, &[""; 0]);
    put_linux(&service, directory);
    for number in 0..4 {
        let id = format!("drive_{number}");
        service.put(
            &format!("/drives/{id}"),
            json!({"drive_id": id, "is_root_device": false, "path_on_host": empty, "rate_limiter": {}}),
        );
    }
    start(&mut service);
    assert_eq!(in_guest(&mut service, "cat /sys/block/vdc/size"), "0\n");
    let disk = filled(directory, "disk", MIB, 3);
    service.patch(
        "/drives/drive_2",
        json!({"drive_id": "drive_2", "path_on_host": disk}),
    );
    in_guest(&mut service, "await is /sys/block/vdc/size 2048");
    in_guest(
        &mut service,
        "must guest-probe block check /dev/vdc --seed 3",
    );
    in_guest(
        &mut service,
        "must guest-probe block verify /dev/vdc --seed 3 --operations 100 --direct",
    );
    end(service);
}

fn metadata() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut service = Service::start(directory, &[""; 0]);
    put_linux(&service, directory);
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    service.put(
        "/mmds/config",
        json!({"version": "V2", "network_interfaces": ["e"]}),
    );
    service.put("/mmds", json!({"role": "web", "tags": {"a": 1}}));
    start(&mut service);
    in_guest(
        &mut service,
        "must ip addr add 10.0.2.15/24 dev eth0; must ip link set eth0 up; \
         must ip route add 169.254.169.254 dev eth0",
    );
    // busybox's wget has no PUT: the request is written by hand.
    in_guest(
        &mut service,
        "ask() { printf \"$1 HTTP/1.1\\r\\n$2\\r\\nConnection: close\\r\\n\\r\\n\" | \
         timeout 30 nc 169.254.169.254 80 | tail -n 1; }",
    );
    let token = in_guest(
        &mut service,
        "token=$(ask 'PUT /latest/api/token' 'X-metadata-token-ttl-seconds: 60'); echo \"${#token}\"",
    );
    assert!(token.trim().parse::<usize>().unwrap() > 20, "{token}");
    let role = "ask 'GET /role' \"X-metadata-token: $token\"; echo";
    assert_eq!(in_guest(&mut service, role), "web\n");
    service.patch("/mmds", json!({"role": "db", "tags": null}));
    assert_eq!(in_guest(&mut service, role), "db\n");
    let refused = in_guest(&mut service, "ask 'GET /role' 'Accept: */*'; echo");
    assert!(refused.contains("token"), "{refused}");
    assert_eq!(service.get("/mmds"), json!({"role": "db"}));
    end(service);
}

/// Debian's kernel has a driver for the keyboard.
fn ctrl_alt_del() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut service = Service::start(directory, &[""; 0]);
    let initrd = guest::initrd(directory, "echo READY; while :; do sleep 1; done");
    service.put(
        "/boot-source",
        json!({"kernel_image_path": packaged_kernel().join("vmlinuz"), "initrd_path": initrd, "boot_args": WORDS}),
    );
    service.put(
        "/machine-config",
        json!({"vcpu_count": 1, "mem_size_mib": 256}),
    );
    start(&mut service);
    service.act("SendCtrlAltDel");
    assert_eq!(service.wait().status, 0);
}

/// As clients of Firecracker start it: a configuration file, standard input that is not theirs, SIGTERM.
fn under_another_name() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let root = tests::disk::root(directory, "echo READY; while :; do sleep 1; done");
    let rootfs = FileSystem::Squashfs("zstd").image(directory, "root.img", &root);
    let configuration = directory.join("config.json");
    let document = json!({
        "boot-source": {"kernel_image_path": tuned_kernel().join("vmlinux"), "boot_args": WORDS},
        "drives": [{"drive_id": "rootfs", "is_root_device": true, "is_read_only": true, "path_on_host": rootfs}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    fs::write(&configuration, document.to_string()).unwrap();
    let mut service = Service::start_named(
        directory,
        "firecracker",
        &[
            "--config-file",
            configuration.to_str().unwrap(),
            "--no-seccomp",
        ],
    );
    service.live().expect("READY");
    assert_eq!(service.state(), "Running");
    assert_eq!(service.terminate().status, 143);
}
