//! Guests as files, from the command line.

use std::fs;

use serde_json::json;
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::counting_kernel;
use tests::live::Live;

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
        host.ask(&["kill", "first", "second", "third", "fourth"]);
    }
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
