//! What is told of the host.

use std::path::Path;

use ::bench::host;
use ::bench::record::Host;
use vmm::host::{Severity, examine, hypervisor};

/// What `mote doctor` finds of KVM that matters here.
const TOLD: [&str; 2] = ["kvm", "self-test"];

pub(super) fn facts(cgroup: Option<u32>) -> Host {
    let findings = examine(Path::new(vmm::DEFAULT_DEVICE));
    let told = findings
        .iter()
        .filter(|finding| TOLD.contains(&finding.check) || finding.severity == Severity::Fatal);
    let told: Vec<&str> = told.map(|finding| finding.found.as_str()).collect();
    let kvm = Path::new(vmm::DEFAULT_DEVICE)
        .exists()
        .then(|| told.join("; "));
    host::facts(kvm, emulator().map(str::to_owned), cgroup)
}

/// What shows that this host is itself emulated.
pub(super) fn emulator() -> Option<&'static str> {
    hypervisor()?.emulator
}
