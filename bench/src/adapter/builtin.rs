//! The adapters that mote has.

use super::Adapter;

/// Names and texts, in the order in which they take turns.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("process", include_str!("../../adapters/process.toml")),
    ("crun", include_str!("../../adapters/crun.toml")),
    ("runc", include_str!("../../adapters/runc.toml")),
    ("youki", include_str!("../../adapters/youki.toml")),
    ("runsc", include_str!("../../adapters/runsc.toml")),
    ("podman", include_str!("../../adapters/podman.toml")),
    ("docker", include_str!("../../adapters/docker.toml")),
    ("ctr", include_str!("../../adapters/ctr.toml")),
    ("mote", include_str!("../../adapters/mote.toml")),
    (
        "mote-restore",
        include_str!("../../adapters/mote-restore.toml"),
    ),
    (
        "mote-template",
        include_str!("../../adapters/mote-template.toml"),
    ),
    ("mote-pool", include_str!("../../adapters/mote-pool.toml")),
    ("mote-fork", include_str!("../../adapters/mote-fork.toml")),
    (
        "firecracker",
        include_str!("../../adapters/firecracker.toml"),
    ),
    (
        "firecracker-restore",
        include_str!("../../adapters/firecracker-restore.toml"),
    ),
    (
        "cloud-hypervisor",
        include_str!("../../adapters/cloud-hypervisor.toml"),
    ),
    (
        "cloud-hypervisor-restore",
        include_str!("../../adapters/cloud-hypervisor-restore.toml"),
    ),
    (
        "qemu-microvm",
        include_str!("../../adapters/qemu-microvm.toml"),
    ),
    ("kvmtool", include_str!("../../adapters/kvmtool.toml")),
];

/// The text of one.
pub fn source(name: &str) -> Option<&'static str> {
    let mut all = BUILT_IN.iter();
    all.find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// One of them.
pub fn built_in(name: &str) -> Option<Adapter> {
    // A unit test has read them all.
    Adapter::parse(source(name)?, name).ok()
}
