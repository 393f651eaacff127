//! An OCI bundle: what crun, runc, youki and runsc start.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxBuilder, ProcessBuilder, RootBuilder, Spec};

/// Writes the bundle `directory`: what `runc spec` makes, with a read-only root, for these words, in this control group if one is given.
pub fn write_bundle(
    directory: &Path,
    rootfs: &Path,
    words: &[&str],
    cgroup: Option<&str>,
) -> io::Result<()> {
    let spec = spec(rootfs, words, cgroup).map_err(io::Error::other)?;
    fs::create_dir_all(directory)?;
    fs::write(directory.join("config.json"), serde_json::to_vec(&spec)?)
}

fn spec(rootfs: &Path, words: &[&str], cgroup: Option<&str>) -> Result<Spec, OciSpecError> {
    let mut spec = Spec::default();
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let process = ProcessBuilder::default()
        .args(words)
        .terminal(false)
        .cwd("/");
    spec.set_process(Some(process.build()?));
    spec.set_root(Some(
        RootBuilder::default().path(rootfs).readonly(true).build()?,
    ));
    if let Some(cgroup) = cgroup {
        let mut linux = spec
            .linux()
            .clone()
            .unwrap_or(LinuxBuilder::default().build()?);
        linux.set_cgroups_path(Some(cgroup.into()));
        spec.set_linux(Some(linux));
    }
    Ok(spec)
}
