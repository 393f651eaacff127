//! All end-to-end cases in one binary; `tests/run.sh` runs it where its guests can run.
//!
//! A case whose needs the host does not meet is listed as ignored, with the reason in its kind.

mod tiny;

use std::sync::{PoisonError, RwLock};

use libtest_mimic::{Arguments, Trial};

/// Cases that look at this whole process: nothing else may run meanwhile.
const ALONE: [&str; 1] = ["machines_leave_nothing_behind"];

/// A name and what it runs.
type Case = (&'static str, fn());

fn main() {
    let arguments = Arguments::from_args();
    let without_kvm = tests::tiny::kvm().is_none();
    let mut trials = Vec::new();
    for &(name, case) in tiny::CASES {
        trials.push(trial(
            "tiny",
            name,
            case,
            without_kvm.then_some("no /dev/kvm"),
        ));
    }
    libtest_mimic::run(&arguments, trials).exit();
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
