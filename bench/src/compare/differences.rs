//! What is not the same in two records, besides what was measured.

use super::Difference;
use crate::record::{Density, Host, Runtime, Startup};

/// Adds what is different.
#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn look(&mut self, what: &str, a: &(impl ToString + ?Sized), b: &(impl ToString + ?Sized)) {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            self.0.push(Difference {
                what: what.into(),
                a,
                b,
            });
        }
    }
}

/// None as a word.
fn or_none<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".into(), ToString::to_string)
}

pub(super) fn of_hosts(a: &Host, b: &Host) -> Vec<Difference> {
    let Host {
        cpu,
        cpus,
        memory,
        kernel,
        kvm,
        governor,
        cgroup,
        emulated,
    } = a;
    let mut found = Differences::default();
    found.look("CPU", cpu, &b.cpu);
    found.look("CPUs", cpus, &b.cpus);
    found.look("memory of the host", memory, &b.memory);
    found.look("kernel", kernel, &b.kernel);
    found.look("KVM", &or_none(kvm.as_ref()), &or_none(b.kvm.as_ref()));
    found.look(
        "governor",
        &or_none(governor.as_ref()),
        &or_none(b.governor.as_ref()),
    );
    found.look(
        "cgroup",
        &or_none(cgroup.as_ref()),
        &or_none(b.cgroup.as_ref()),
    );
    found.look(
        "emulation",
        &or_none(emulated.as_ref()),
        &or_none(b.emulated.as_ref()),
    );
    found.0
}

pub(super) fn of_startups(a: &Startup, b: &Startup) -> Vec<Difference> {
    let mut found = Differences::default();
    found.look("memory of guests", &a.memory, &b.memory);
    found.look("runs", &a.runs, &b.runs);
    found.look("warm-ups", &a.warmups, &b.warmups);
    found.0
}

pub(super) fn of_densities(a: &Density, b: &Density) -> Vec<Difference> {
    let mut found = Differences::default();
    found.look("memory of guests", &a.memory, &b.memory);
    found.look("limit", &a.limit, &b.limit);
    found.look("concurrency", &a.concurrency, &b.concurrency);
    found.0
}

pub(super) fn of_runtimes(a: &Runtime, b: &Runtime) -> Vec<Difference> {
    let mut found = Differences::default();
    let name = &a.name;
    let look = |what: &str| format!("{what} of {name}");
    found.look(
        &look("version"),
        &or_none(a.version.as_ref()),
        &or_none(b.version.as_ref()),
    );
    found.look(&look("command"), &a.command.join(" "), &b.command.join(" "));
    found.look(
        &look("requests"),
        &a.requests.join(", "),
        &b.requests.join(", "),
    );
    found.0
}
