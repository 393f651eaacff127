//! Guests as files, from the command line.

use std::fs;
use std::path::Path;

use serde_json::json;
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::{counting_kernel, idle_kernel};
use tests::live::Live;
use vmm::snapshot::directory;

/// Starts a monitor with a guest that counts lines.
fn counting(host: &Host, id: &str, options: &[&str]) -> Live {
    start(host, id, options, &counting_kernel(), false)
}

/// Starts a monitor with a guest of 64 MiB.
pub(super) fn start(
    host: &Host,
    id: &str,
    options: &[&str],
    kernel: &[u8],
    track_dirty_pages: bool,
) -> Live {
    let live = host.vmm(id, options);
    let kernel = host.write("kernel", kernel);
    let source = json!({ "kernel_image_path": kernel }).to_string();
    host.ask(&["api", "--id", id, "PUT", "/boot-source", &source]);
    let machine = json!({
        "vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": track_dirty_pages,
    });
    let machine = machine.to_string();
    host.ask(&["api", "--id", id, "PUT", "/machine-config", &machine]);
    let start = r#"{"action_type": "InstanceStart"}"#;
    host.ask(&["api", "--id", id, "PUT", "/actions", start]);
    live
}

pub(super) fn goes_on() {
    for options in [&[][..], &["--enable-pci"]] {
        let host = Host::new();
        let mut first = counting(&host, "first", options);
        assert_eq!(first.count(), 1);
        let saved = host.path().join("saved");
        let saved = saved.to_str().unwrap();
        assert_eq!(
            host.ask(&["snapshot", "first", saved, "--resume"]),
            "first\n"
        );
        // It runs on, and so do copies of it, each on its own.
        assert_eq!(host.state("first"), "Running");
        assert_eq!(first.count(), 2);
        let mut copies: Vec<Live> = ["second", "third"]
            .map(|id| Live::start(host.command(&["restore", saved, "--id", id])))
            .into();
        for copy in &mut copies {
            assert_eq!(copy.count(), 2);
            assert_eq!(copy.count(), 3);
        }
        assert_eq!(first.count(), 3);
        assert_eq!(host.state("third"), "Running");

        // Without --resume it stays as it was written.
        host.ask(&["snapshot", "third", saved]);
        assert_eq!(host.state("third"), "Paused");
        let mut paused =
            Live::start(host.command(&["restore", saved, "--id", "fourth", "--paused"]));
        until("the fourth one", || {
            let ids = host.ask(&["ps", "-q"]);
            (ids.contains("fourth") && host.state("fourth") == "Paused").then_some(())
        });
        host.ask(&["resume", "fourth"]);
        assert_eq!(paused.count(), 4);

        let info = host.ask_json(&["snapshot", "info", saved, "--json"]);
        assert_eq!(info["vcpus"], 1);
        assert_eq!(info["memory_bytes"], 64 << 20);
        assert_eq!(
            info["transport"],
            if options.is_empty() { "mmio" } else { "pci" }
        );
        assert_eq!(info["config"]["machine-config"]["mem_size_mib"], 64);
        let info = host.ask(&["snapshot", "info", saved]);
        assert!(
            info.contains("64.0 MiB") && info.contains("stored"),
            "{info}"
        );
        assert!(info.contains("restore     possible here"), "{info}");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(info.contains(&format!("Linux {}", kernel.trim())), "{info}");
        host.ask(&["kill", "first", "second", "third", "fourth"]);
    }
}

/// Guests of `mote run`, whose devices are in an order of its own.
pub(super) fn of_foreground_guests() {
    for options in [
        &["--console", "virtio"][..],
        &["--console", "virtio", "--pci"],
        &["--console", "serial", "--pci"],
        &["--console", "off"],
    ] {
        let host = Host::new();
        let disk = host.write("disk", [7; 1 << 16]);
        let pmem = host.write("pmem", [7; 1 << 16]);
        let disk = format!("{disk},overlay=temp");
        let all = [
            options,
            &[
                "--memory-hotplug",
                "total=1g",
                "--entropy",
                "--balloon",
                "1m",
            ],
            &["--pmem", &pmem, "--disk", &disk, "--net", "user"],
        ]
        .concat();
        let guest = host.run("first", &idle_kernel(), &all);
        let saved = host.path().join("saved");
        let saved = saved.to_str().unwrap();
        host.ask(&["snapshot", "first", saved]);
        let info = host.ask_json(&["snapshot", "info", saved, "--json"]);
        host.ask(&["kill", "first"]);
        assert_eq!(guest.wait().status, 0);
        // And what has come from a snapshot, again.
        for (id, next) in [("second", "next"), ("third", "last")] {
            let from = if id == "second" { "saved" } else { "next" };
            let from = host.path().join(from);
            let from = from.to_str().unwrap();
            let copy = Live::start(host.command(&["restore", from, "--id", id]));
            until(id, || {
                let ids = host.ask(&["ps", "-q"]);
                (ids.contains(id) && host.state(id) == "Running").then_some(())
            });
            let next = host.path().join(next);
            let next = next.to_str().unwrap();
            host.ask(&["snapshot", id, next]);
            let again = host.ask_json(&["snapshot", "info", next, "--json"]);
            assert_eq!(again["devices"], info["devices"]);
            let names = info["devices"].to_string();
            assert_eq!(
                names.contains("virtio console"),
                options.contains(&"virtio")
            );
            host.ask(&["kill", id]);
            assert_eq!(copy.wait().status, 0);
        }
    }
}

/// A memory file that is cut while a guest runs from it ends the guest, with a reason.
pub(super) fn cut() {
    let host = Host::new();
    let mut first = counting(&host, "first", &[]);
    assert_eq!(first.count(), 1);
    let saved = host.path().join("saved");
    let saved = saved.to_str().unwrap();
    host.ask(&["snapshot", "first", saved]);
    let memory = directory::memory(Path::new(saved));
    host.ask(&["kill", "first"]);
    let bytes = fs::read(&memory).unwrap();
    let cut = || {
        fs::OpenOptions::new()
            .write(true)
            .open(&memory)
            .unwrap()
            .set_len(4096)
            .unwrap();
    };

    // The guest itself touches what is gone.
    let mut runs = Live::start(host.command(&["restore", saved, "--id", "runs"]));
    assert_eq!(runs.count(), 2);
    cut();
    let ended = runs.wait();
    assert_eq!(ended.status, 125, "{ended:?}");
    // A real KVM says so at once, one in software has the guest crash first.
    for part in ["memory file", "was cut while the guest ran"] {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }

    // What writes a snapshot does, and only that has failed.
    fs::write(&memory, bytes).unwrap();
    let paused = Live::start(host.command(&["restore", saved, "--id", "paused", "--paused"]));
    until("the other one", || {
        let ids = host.ask(&["ps", "-q"]);
        (ids.contains("paused") && host.state("paused") == "Paused").then_some(())
    });
    cut();
    let next = host.path().join("next");
    let failed = host.mote(&["snapshot", "paused", next.to_str().unwrap()]);
    assert_eq!(failed.status, 125, "{failed:?}");
    for part in ["memory", "cut", "signal 7"] {
        assert!(failed.stderr.contains(part), "no {part:?}: {failed:?}");
    }
    assert!(!next.exists());
    assert_eq!(host.state("paused"), "Paused");
    host.ask(&["kill", "paused"]);
    paused.kill();
}

/// What is merely risky is named, and let pass if that is asked for.
pub(super) fn forced() {
    let host = Host::new();
    let disk = host.write("disk", [7; 4096]);
    let drive = json!({ "drive_id": "d", "is_root_device": false, "path_on_host": disk });
    let config = json!({
        "boot-source": { "kernel_image_path": host.write("counting", counting_kernel()) },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        "drives": [drive],
    });
    let config = host.write("config", config.to_string());
    let mut first = host.vmm("first", &["--config-file", &config]);
    assert_eq!(first.count(), 1);
    let saved = host.path().join("saved");
    let saved = saved.to_str().unwrap();
    host.ask(&["snapshot", "first", saved]);
    host.ask(&["kill", "first"]);
    first.kill();
    let info = || host.ask_json(&["snapshot", "info", saved, "--json"])["obstacles"].take();
    assert_eq!(info(), json!([]));
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let found = info();
    assert_eq!(found[0]["risky"], true, "{found}");
    let text = host.ask(&["snapshot", "info", saved]);
    assert!(text.contains("only with --force"), "{text}");
    let refused = host.mote(&["restore", saved, "--id", "second"]);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains("if this is forced"), "{refused:?}");
    let mut second = Live::start(host.command(&["restore", saved, "--id", "second", "--force"]));
    assert_eq!(second.count(), 2);
    host.ask(&["kill", "second"]);
    second.kill();
    file.set_len(1).unwrap();
    let found = info();
    assert_eq!(found[0]["risky"], false, "{found}");
    let refused = host.mote(&["restore", saved, "--id", "second", "--force"]);
    assert_eq!(refused.status, 125, "{refused:?}");
    fs::remove_file(directory::memory(Path::new(saved))).unwrap();
    let text = host.ask(&["snapshot", "info", saved]);
    assert_eq!(text.matches("impossible here").count(), 2, "{text}");
    let refused = host.mote(&["restore", saved, "--clock", "sundial"]);
    assert!(refused.stderr.contains("realtime, stopped"), "{refused:?}");
}

pub(super) fn refused() {
    let host = Host::new();
    let mut first = counting(&host, "first", &[]);
    let missing = host.path().join("no/such");
    let missing = missing.to_str().unwrap();
    let fails = |arguments: &[&str], parts: &[&str]| {
        let ended = host.mote(arguments);
        assert_eq!(ended.status, 125, "{arguments:?}: {ended:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
        }
    };
    fails(&["snapshot", "nobody", missing], &["nobody"]);
    fails(
        &["snapshot", "first", missing],
        &["Cannot make the directory", missing],
    );
    fails(&["snapshot", "first"], &["DIR"]);
    fails(
        &["snapshot", "info", missing],
        &["Cannot open", "No such file"],
    );
    fails(
        &["restore", missing],
        &["No such file or directory", missing],
    );
    fails(&["restore"], &["DIR"]);
    fails(&["restore", missing, "--net", "x"], &["CARD=TAP"]);
    fails(
        &["restore", missing, "--config-file", "x"],
        &["cannot be used with"],
    );
    // Where there is no room for the files, nothing of them is left, and the guest runs on.
    let taken = host.path().join("taken");
    fs::create_dir_all(taken.join("state")).unwrap();
    let taken = taken.to_str().unwrap();
    fails(&["snapshot", "first", taken], &["first", "directory"]);
    assert_eq!(fs::read_dir(taken).unwrap().count(), 1);
    assert_eq!(host.state("first"), "Running");
    assert_eq!(first.count(), 1);
    // One that cannot be loaded leaves no guest.
    let broken = host.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(
        broken.join("state"),
        "no state at all, but long enough to have a header in it, or nearly",
    )
    .unwrap();
    fails(
        &["restore", broken.to_str().unwrap()],
        &["not a state file"],
    );
    assert_eq!(host.ask(&["ps", "-q"]), "first\n");
    host.ask(&["kill", "first"]);
}
