//! The monitor as a process: its socket, its names, its flags, its end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use tests::disk::sparse;
use tests::monitor::{self, Running, mote};
use tests::service::Service;
use vmm_sys_util::tempdir::TempDir;

use super::{idle_kernel, put_kernel, short_kernel};

pub(super) fn ends() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    // By a signal, in each state.
    for steps in 0..3 {
        let service = Service::start(directory, &[""; 0]);
        let mode = fs::metadata(service.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        if steps > 0 {
            put_kernel(&service, &kernel);
            service.act("InstanceStart");
        }
        if steps > 1 {
            service.patch("/vm", json!({"state": "Paused"}));
        }
        let ended = service.terminate();
        assert_eq!((ended.status, &*ended.stderr), (143, ""));
    }
    // By the API, in each state.
    for steps in 0..3 {
        let service = Service::start(directory, &[""; 0]);
        if steps > 0 {
            put_kernel(&service, &kernel);
            service.act("InstanceStart");
        }
        if steps > 1 {
            service.patch("/vm", json!({"state": "Paused"}));
        }
        service.act("Stop");
        assert_eq!(service.wait().status, 0);
    }
    // A socket that a monitor has left is replaced, and nothing else.
    let socket = directory.join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let service = Service::start(directory, &[""; 0]);
    mote(["vmm", "--api-sock", socket.to_str().unwrap()])
        .expect_error(125, &["Failed to open the API socket at", "api.sock"]);
    assert_eq!(service.state(), "Not started");
    assert_eq!(service.terminate().status, 143);
    fs::write(&socket, "a file").unwrap();
    mote(["vmm", "--api-sock", socket.to_str().unwrap()]).expect_error(125, &["not a socket"]);
    assert_eq!(fs::read(&socket).unwrap(), b"a file");
}

pub(super) fn firecracker() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = short_kernel(directory);
    let mut service = Service::start_named(directory, "firecracker", &["--id", "fc"]);
    let process = format!("/proc/{}", service.live().pid().as_raw_nonzero());
    let process = Path::new(&process);
    assert_eq!(
        fs::read_to_string(process.join("comm")).unwrap(),
        "firecracker\n"
    );
    let arguments = fs::read_to_string(process.join("cmdline")).unwrap();
    assert!(arguments.contains("\0--api-sock\0"), "{arguments:?}");
    let boot_source = json!({"kernel_image_path": kernel});
    service.put("/boot-source", boot_source);
    service.act("InstanceStart");
    let ended = service.wait();
    assert_eq!(ended.status, 0);
    // The log is on standard output.
    assert!(ended.text().contains(" [fc:main] "), "{ended:?}");
    assert!(ended.text().contains("API server started."), "{ended:?}");

    let link = directory.join("firecracker");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&link);
        command.args(arguments).stdin(std::process::Stdio::null());
        Running::start(command).wait()
    };
    let version = run(&["--version"]).expect_status(0);
    assert!(version.text().starts_with("Firecracker v1."), "{version:?}");
    for wrong in [
        &["--nonsense"][..],
        &["--id", "a b"],
        &["--id", ""],
        &["--id", &"x".repeat(65)],
        &["--no-api"],
        &["--http-api-max-payload-size", "many"],
        &["--seccomp-filter", "/tmp/filter"],
        &["run"],
    ] {
        let ended = run(wrong);
        assert!(!ended.stderr.is_empty());
        ended.expect_status(153);
    }
    run(&["--level", "loud"]).expect_status(152);
    // Clients remove an old socket themselves.
    let socket = directory.join("old.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let ended = run(&["--api-sock", socket.to_str().unwrap()]).expect_status(1);
    let message = format!("Failed to open the API socket at: {}", socket.display());
    assert!(ended.stderr.contains(&message), "{ended:?}");
    assert!(socket.exists());
}

pub(super) fn config_file() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let disk = sparse(directory, "disk", 1 << 20);
    let write = |document: serde_json::Value| {
        let path = directory.join("config.json");
        fs::write(&path, document.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut document = json!({
        "boot-source": {"kernel_image_path": idle_kernel(directory), "boot_args": "quiet"},
        "drives": [{"drive_id": "d", "is_root_device": true, "path_on_host": disk}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 32},
        "network-interfaces": [{"iface_id": "e", "backend": "user"}],
        "vsock": null,
        "balloon": {"amount_mib": 0, "deflate_on_oom": false},
    });
    let file = write(document.clone());
    let service = Service::start(directory, &["--config-file", &file]);
    // It starts while the API is there already.
    tests::driven::until("the start", || (service.state() == "Running").then_some(()));
    let config = service.get("/vm/config");
    assert_eq!(config["machine-config"]["vcpu_count"], 2);
    assert_eq!(config["drives"][0]["drive_id"], "d");
    // What it gives back is a configuration file.
    service.act("Stop");
    assert_eq!(service.wait().status, 0);
    let file = write(config);
    let service = Service::start(directory, &["--config-file", &file]);
    tests::driven::until("the start", || (service.state() == "Running").then_some(()));
    assert_eq!(service.terminate().status, 143);

    // Without an API, for a guest that ends.
    document["boot-source"] = json!({"kernel_image_path": short_kernel(directory)});
    let file = write(document.clone());
    mote(["vmm", "--no-api", "--config-file", &file]).expect_status(0);

    let before = monitor::files(directory);
    let refused = |document: serde_json::Value, parts: &[&str]| {
        let file = write(document);
        mote(["vmm", "--no-api", "--config-file", &file]).expect_error(125, parts);
        assert_eq!(monitor::files(directory), before);
    };
    document["drives"][0]["path_on_host"] = "/no/such".into();
    refused(document.clone(), &["config.json", "/no/such"]);
    document["drives"] = json!([]);
    document["machine-config"]["vcpu_count"] = 0.into();
    refused(document.clone(), &["config.json", "vcpu_count"]);
    document["machine-config"]["vcpu_count"] = "two".into();
    refused(document.clone(), &["config.json", "machine-config"]);
    document["machine-config"]["vcpu_count"] = 1.into();
    document["boot-sauce"] = json!({});
    refused(document.clone(), &["config.json", "boot-sauce"]);
    mote(["vmm", "--no-api", "--config-file", "/no/such"]).expect_error(125, &["/no/such"]);
}

pub(super) fn wrong_flags() {
    for (flags, part) in [
        (
            &["vmm", "--api-sock", "/no/such/folder/s"][..],
            "/no/such/folder",
        ),
        (
            &["vmm", "--api-sock", &format!("/tmp/{}", "x".repeat(200))],
            "too long",
        ),
        (&["vmm", "--api-sock", "/tmp/s", "--level", "loud"], "loud"),
        (
            &["vmm", "--api-sock", "/tmp/s", "--log-path", "/no/such/log"],
            "/no/such/log",
        ),
        (&["vmm", "--api-sock", "/tmp/s", "--id", "a/b"], "a/b"),
        (
            &["vmm", "--api-sock", "/tmp/s", "--seccomp-filter", "f"],
            "no system call filters",
        ),
    ] {
        let ended = mote(flags).expect_status(125);
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    // Standard input that ends is no end.
    let directory = TempDir::new().unwrap();
    let socket = directory.as_path().join("s");
    let mut command = Command::new(monitor::path());
    command.arg("vmm").arg("--api-sock").arg(&socket);
    command.stdin(std::process::Stdio::null());
    let running = Running::start(command);
    tests::driven::until("the socket", || socket.exists().then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(200));
    let answer = tests::service::request(&socket, "GET", "/", None);
    assert_eq!(answer.status, 200);
    running.signal(Signal::TERM);
    running.wait().expect_status(143);
}
