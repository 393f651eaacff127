//! All end-to-end cases in one binary; `tests/run.sh` runs it where its guests can run.
//!
//! A case whose needs the host does not meet is listed as ignored, with the reason in its kind. Where
//! `TEST_LINUX` is set, a host that cannot boot Linux guests is a failure.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bad_input;
mod balloon;
mod bench;
mod bench_linux;
mod bench_report;
mod block;
mod boot;
mod client;
mod console;
mod console_ends;
mod console_virtio;
mod ctl;
mod end;
mod entropy;
mod explain;
mod explain_linux;
mod fork;
mod golden;
mod live;
mod machine;
mod memory;
mod mmds;
mod net;
mod page;
mod pci;
mod pmem;
mod service;
mod snapshot;
mod snapshot_cards;
mod snapshot_devices;
mod snapshot_diff;
mod template;
mod tiny;
mod tiny_machine;
mod vsock;

use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Arguments, Trial};
use tests::monitor::can_boot_linux;

/// Cases that look at this whole process: nothing else may run meanwhile.
const ALONE: [&str; 1] = ["machines_leave_nothing_behind"];

/// A name and what it runs.
type Case = (&'static str, fn());

fn main() {
    let arguments = Arguments::from_args();
    tests::network::allow_many_files();
    let no_kvm = tests::tiny::kvm()
        .is_none()
        .then(|| "no /dev/kvm".to_owned());
    let no_linux = can_boot_linux().err();
    if let Some(why) = no_linux
        .as_ref()
        .filter(|_| std::env::var_os("TEST_LINUX").is_some())
    {
        panic!("Linux guests have to boot here, and cannot: {why}");
    }
    let or = |first: &Option<String>, second: fn() -> Result<(), String>| {
        first.clone().or_else(|| second().err())
    };
    let no_kvm_to_replace = or(&no_kvm, tests::sandbox::can_mount);
    let no_mounts = or(&no_linux, tests::sandbox::can_mount);
    let no_networks = or(&no_linux, tests::network::can_make_networks);
    let no_vhost = or(&no_networks, net::can_use_vhost);
    let mut trials = Vec::new();
    for (group, cases, skipped) in [
        ("tiny", tiny::CASES, &no_kvm),
        ("api", api::CASES, &no_kvm),
        ("tiny", tiny_machine::CASES, &no_kvm),
        ("tiny", explain::CASES, &no_kvm),
        ("ctl", ctl::CASES, &no_kvm),
        ("golden", golden::CASES, &no_kvm),
        ("golden", golden::WRITE, &golden::written_on_demand()),
        ("bad_input", bad_input::CASES, &None),
        ("bad_input", bad_input::DEVICE_CASES, &None),
        ("bad_input", bad_input::HOST_CASES, &no_kvm_to_replace),
        ("bad_input", bad_input::CRASH_CASES, &no_kvm),
        ("bad_input", bad_input::MUTANT_CASES, &no_kvm),
        ("bench", bench::CASES, &None),
        ("bench_report", bench_report::CASES, &None),
        ("bench_linux", bench_linux::CASES, &no_linux),
        ("page", page::CASES, &page::no_browser()),
        ("boot", boot::CASES, &no_linux),
        ("end", end::CASES, &no_linux),
        ("attach", ctl::LINUX_CASES, &no_linux),
        ("console", console::CASES, &no_linux),
        ("console_virtio", console_virtio::CASES, &no_linux),
        ("console_ends", console_ends::CASES, &no_linux),
        ("block", block::CASES, &no_linux),
        ("block", block::HOST_CASES, &no_mounts),
        ("net", net::CASES, &no_networks),
        ("net", net::VHOST_CASES, &no_vhost),
        ("mmds", mmds::CASES, &no_networks),
        ("vsock", vsock::CASES, &no_linux),
        ("balloon", balloon::CASES, &no_linux),
        ("entropy", entropy::CASES, &no_linux),
        ("machine", machine::CASES, &no_linux),
        ("pci", pci::CASES, &no_linux),
        ("pci", pci::NETWORK_CASES, &no_networks),
        ("service", service::CASES, &no_linux),
        ("snapshot", snapshot::CASES, &no_linux),
        ("snapshot_devices", snapshot_devices::CASES, &no_linux),
        ("snapshot_devices", snapshot_cards::CASES, &no_networks),
        ("snapshot_devices", snapshot_cards::VHOST_CASES, &no_vhost),
        ("fork", fork::CASES, &no_linux),
        ("fork", fork::NETWORK_CASES, &no_networks),
        ("snapshot", snapshot_diff::CASES, &no_linux),
        ("template", template::CASES, &no_linux),
        ("explain", explain_linux::CASES, &no_linux),
        ("client", client::CASES, &no_networks),
        ("pmem", pmem::CASES, &no_linux),
        ("memory", memory::CASES, &no_linux),
        ("live", live::CASES, &no_linux),
        ("live", live::NETWORK_CASES, &no_networks),
        ("live", live::VHOST_CASES, &no_vhost),
        ("live", live::CONSOLE_CASES, &no_linux),
    ] {
        for &(name, case) in cases {
            trials.push(trial(group, name, case, skipped.as_deref()));
        }
    }
    if let Some((index, count)) = shard() {
        let mut number = 0;
        trials.retain(|_| {
            number += 1;
            number % count == index % count
        });
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// `TEST_SHARD=2/3` runs every third case, from the second on: for machines side by side.
fn shard() -> Option<(usize, usize)> {
    let shard = std::env::var("TEST_SHARD").ok()?;
    let (index, count) = shard.split_once('/').expect("TEST_SHARD is INDEX/COUNT");
    Some((index.parse().unwrap(), count.parse().unwrap()))
}

fn trial(group: &str, name: &str, case: fn(), skipped: Option<&str>) -> Trial {
    static RUNNING: RwLock<()> = RwLock::new(());
    let alone = ALONE.contains(&name);
    let trial = Trial::test(format!("{group}::{name}"), move || {
        if alone {
            let _guard = RUNNING.write().unwrap_or_else(PoisonError::into_inner);
            case();
        } else {
            let _guard = RUNNING.read().unwrap_or_else(PoisonError::into_inner);
            case();
        }
        Ok(())
    });
    match skipped {
        Some(why) => trial.with_kind(why).with_ignored_flag(true),
        None => trial,
    }
}
