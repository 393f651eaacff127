//! What has changed since a snapshot, and what is made of both.

use std::fs;
use std::path::Path;

use tests::ctl::Host;
use tests::executable::{churning_kernel, counting_kernel};
use tests::live::Live;

use super::snapshot::start;
use super::snapshot_crash::expect_tidy;

/// Where a snapshot of this name is.
fn place(host: &Host, name: &str) -> String {
    host.path().join(name).to_str().unwrap().to_owned()
}

fn restore(host: &Host, directory: &str, id: &str, options: &[&str]) -> Live {
    let arguments = [&["restore", directory, "--id", id], options].concat();
    Live::start(host.command(&arguments))
}

#[track_caller]
fn fails(host: &Host, arguments: &[&str], parts: &[&str]) {
    let ended = host.mote(arguments);
    assert_eq!(ended.status, 125, "{arguments:?}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?}: {ended:?}");
    }
}

/// One on the other, each merged into what there is by then, on both transports.
pub(super) fn chain() {
    for options in [&[][..], &["--enable-pci"]] {
        let host = Host::new();
        let mut first = start(&host, "first", options, &counting_kernel(), true);
        assert_eq!(first.count(), 1);
        let [base, one, two, whole] =
            ["base", "one", "two", "whole"].map(|name| place(&host, name));
        host.ask(&["snapshot", "first", &base, "--resume"]);
        assert_eq!(first.count(), 2);
        host.ask(&["snapshot", "first", &one, "--diff", "--resume"]);
        assert_eq!(first.count(), 3);
        assert_eq!(first.count(), 4);
        host.ask(&["snapshot", "first", &two, "--diff"]);
        assert_eq!(host.state("first"), "Paused");
        host.ask(&["kill", "first"]);

        let info = |directory: &str| host.ask_json(&["snapshot", "info", directory, "--json"]);
        let [of_base, of_one, of_two] = [&base, &one, &two].map(|name| info(name));
        assert!(of_base["base_memory_id"].is_null());
        assert_eq!(of_one["base_memory_id"], of_base["memory_id"]);
        assert_eq!(of_two["base_memory_id"], of_one["memory_id"]);
        let stored = |info: &serde_json::Value| info["memory_file_bytes"].as_u64().unwrap();
        assert!(stored(&of_one) < stored(&of_base), "{of_one} {of_base}");
        let text = host.ask(&["snapshot", "info", &one]);
        let id = of_base["memory_id"].as_str().unwrap();
        assert!(text.contains("differential") && text.contains(id), "{text}");
        fails(
            &host,
            &["restore", &one],
            &["differential", "mote snapshot merge"],
        );

        let merged = host.ask(&["snapshot", "merge", &base, &one, "--into", &whole]);
        assert_eq!(merged.trim(), whole);
        assert_eq!(info(&whole)["memory_id"], of_one["memory_id"]);
        assert_eq!(info(&base), of_base);
        let copies = [(&base, "of-base", 2), (&whole, "of-whole", 3)];
        let _copies = copies.map(|(directory, id, count)| {
            let mut copy = restore(&host, directory, id, &[]);
            assert_eq!(copy.count(), count);
            assert_eq!(copy.count(), count + 1);
            copy
        });
        // What the guests run on goes, and they do not.
        host.ask(&["snapshot", "merge", &whole, &two]);
        let mut last = restore(&host, &whole, "last", &[]);
        assert_eq!(last.count(), 5);
        expect_tidy(Path::new(&whole));
        host.ask(&["kill", "of-base", "of-whole", "last"]);
    }
}

/// Without any tracking: what a guest was restored from is what its snapshots are relative to.
pub(super) fn since_load() {
    let host = Host::new();
    let mut first = start(&host, "first", &[], &counting_kernel(), false);
    assert_eq!(first.count(), 1);
    let [base, one, two, tracked] =
        ["base", "one", "two", "tracked"].map(|name| place(&host, name));
    // Here nothing is: it is a whole one.
    host.ask(&["snapshot", "first", &base, "--diff"]);
    host.ask(&["kill", "first"]);
    let info = |directory: &str| host.ask_json(&["snapshot", "info", directory, "--json"]);
    let base_id = &info(&base)["memory_id"];
    assert!(info(&base)["base_memory_id"].is_null());

    let mut second = restore(&host, &base, "second", &[]);
    assert_eq!(second.count(), 2);
    host.ask(&["snapshot", "second", &one, "--diff", "--resume"]);
    assert_eq!(second.count(), 3);
    host.ask(&["snapshot", "second", &two, "--diff", "--resume"]);
    for directory in [&one, &two] {
        assert_eq!(&info(directory)["base_memory_id"], base_id);
    }
    // With it the second one is relative to the first.
    let mut third = restore(&host, &base, "third", &["--track-dirty-pages"]);
    assert_eq!(third.count(), 2);
    let third_one = place(&host, "third-one");
    host.ask(&["snapshot", "third", &third_one, "--diff", "--resume"]);
    assert_eq!(&info(&third_one)["base_memory_id"], base_id);
    assert_eq!(third.count(), 3);
    host.ask(&["snapshot", "third", &tracked, "--diff"]);
    assert_eq!(
        info(&tracked)["base_memory_id"],
        info(&third_one)["memory_id"]
    );
    host.ask(&["kill", "second", "third"]);

    let merge = |name: &str, parts: &[&str]| {
        let result = place(&host, name);
        let mut whole = base.as_str();
        for part in parts {
            host.ask(&["snapshot", "merge", whole, part, "--into", &result]);
            whole = &result;
        }
        result
    };
    let copies = [
        ("a", &[two.as_str()][..], 4),
        ("b", &[&one], 3),
        ("c", &[&third_one, &tracked], 4),
    ];
    let _copies = copies.map(|(name, parts, count)| {
        let mut copy = restore(&host, &merge(name, parts), name, &[]);
        assert_eq!(copy.count(), count, "{name}");
        copy
    });
    host.ask(&["kill", "a", "b", "c"]);
}

/// All of memory is as it was at one moment, however long it takes to be written.
pub(super) fn running() {
    for tracks in [false, true] {
        let host = Host::new();
        let kernel = churning_kernel(64 << 20);
        let mut first = start(&host, "first", &[], &kernel, tracks);
        first.expect("=0");
        let base = place(&host, "base");
        let diff = place(&host, "diff");
        for round in 0..3 {
            host.ask(&["snapshot", "first", &base, "--resume"]);
            if tracks {
                host.ask(&["snapshot", "first", &diff, "--diff", "--resume"]);
                host.ask(&["snapshot", "merge", &base, &diff]);
                fs::remove_dir_all(&diff).unwrap();
            }
            assert_eq!(host.state("first"), "Running");
            let id = format!("copy-{round}");
            let mut copy = restore(&host, &base, &id, &[]);
            assert_eq!(copy.count(), 1);
            assert_eq!(first.count(), 1);
            host.ask(&["kill", &id]);
        }
        host.ask(&["kill", "first"]);
    }
}

pub(super) fn refused() {
    let host = Host::new();
    let first = start(&host, "first", &[], &counting_kernel(), true);
    let [base, one, two, none] = ["base", "one", "two", "none"].map(|name| place(&host, name));
    host.ask(&["snapshot", "first", &base, "--resume"]);
    host.ask(&["snapshot", "first", &one, "--resume", "--diff"]);
    host.ask(&["snapshot", "first", &two, "--resume", "--diff"]);
    fails(
        &host,
        &["snapshot", "first", &base, "--diff"],
        &["a snapshot in", "already"],
    );
    assert_eq!(host.state("first"), "Running");
    fails(&host, &["snapshot", "merge", &base], &["DIFF_DIR"]);
    fails(
        &host,
        &["snapshot", "merge", &base, &two],
        &["another one", "in the order"],
    );
    fails(
        &host,
        &["snapshot", "merge", &one, &two],
        &["differential itself"],
    );
    fails(&host, &["snapshot", "merge", &base, &base], &["is whole"]);
    fails(
        &host,
        &["snapshot", "merge", &base, &none],
        &["cannot be used", "No such file"],
    );
    let nowhere = place(&host, "no/where");
    fails(
        &host,
        &["snapshot", "merge", &base, &one, "--into", &nowhere],
        &["Cannot write", &nowhere],
    );
    // All is as it was.
    host.ask(&["snapshot", "merge", &base, &one]);
    host.ask(&["snapshot", "merge", &base, &two]);
    host.ask(&["kill", "first"]);
    drop(first);
}
