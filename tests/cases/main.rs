//! All end-to-end cases in one binary; `tests/run.sh` runs it where its guests can run.
//!
//! A case whose needs the host does not meet is listed as ignored, with the reason in its kind. Where
//! `TEST_LINUX` is set, a host that cannot boot Linux guests is a failure.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod boot;
mod console;
mod end;
mod tiny;

use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Arguments, Trial};
use tests::monitor::can_boot_linux;

/// Cases that look at this whole process: nothing else may run meanwhile.
const ALONE: [&str; 1] = ["machines_leave_nothing_behind"];

/// A name and what it runs.
type Case = (&'static str, fn());

fn main() {
    let arguments = Arguments::from_args();
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
    let no_kvm_to_replace = no_kvm.clone().or_else(|| tests::sandbox::can_mount().err());
    let mut trials = Vec::new();
    for (group, cases, skipped) in [
        ("tiny", tiny::CASES, &no_kvm),
        ("bad_input", bad_input::CASES, &None),
        ("bad_input", bad_input::HOST_CASES, &no_kvm_to_replace),
        ("bad_input", bad_input::CRASH_CASES, &no_kvm),
        ("bad_input", bad_input::MUTANT_CASES, &no_kvm),
        ("boot", boot::CASES, &no_linux),
        ("end", end::CASES, &no_linux),
        ("console", console::CASES, &no_linux),
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
