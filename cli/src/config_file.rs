//! `--config-file`: Firecracker's JSON document, the part of it that `mote run` knows.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// Longer files are no configuration of a microVM, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// It cannot be read.
    #[error("Cannot read the configuration file {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is too long.
    #[error("The configuration file {path:?} is longer than 1 MiB")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not what it should be; the source names line, column and field.
    #[error("The configuration file {path:?} is wrong")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A setting that mote does not have.
    #[error("The configuration file {path:?} asks for {setting}, which mote does not have")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        setting: &'static str,
    },
}

/// The document. Sections that mote does not know are errors, not silence.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ConfigFile {
    /// What is booted.
    pub boot_source: Option<BootSource>,
    /// The machine.
    #[serde(default)]
    pub machine_config: MachineConfig,
}

/// `boot-source`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    /// Kernel file; a relative path is relative to the working directory.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk.
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line, complete.
    pub boot_args: Option<String>,
}

/// `machine-config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: Option<u32>,
    /// Memory in MiB.
    pub mem_size_mib: Option<u64>,
    /// Two threads a core.
    #[serde(default)]
    pub smt: bool,
    /// Dirty page tracking.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// "None" or nothing.
    cpu_template: Option<String>,
    /// What memory is made of.
    #[serde(default)]
    huge_pages: HugePages,
}

impl MachineConfig {
    /// Whether memory is made of huge pages.
    pub(crate) fn huge_pages(&self) -> bool {
        matches!(self.huge_pages, HugePages::TwoMiB)
    }
}

/// `huge_pages`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum HugePages {
    #[default]
    None,
    #[serde(rename = "2M")]
    TwoMiB,
}

/// Reads and checks a configuration file.
pub(crate) fn read(path: &Path) -> Result<ConfigFile, Error> {
    let path = path.to_path_buf();
    let text = match read_start(&path) {
        Ok(text) => text,
        Err(source) => return Err(Error::Read { path, source }),
    };
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::TooLong { path });
    }
    let file: ConfigFile = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(source) => return Err(Error::Parse { path, source }),
    };
    let machine = &file.machine_config;
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| name != "None");
    if named(&machine.cpu_template) {
        let setting = "a cpu_template";
        return Err(Error::Unsupported { path, setting });
    }
    Ok(file)
}

/// Up to one byte more than there may be. The size of a pipe or a device is not known before.
fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_SIZE + 1)
        .read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecrackers_document_is_read_and_unknown_fields_are_named() {
        let file: ConfigFile = serde_json::from_str(
            r#"{"boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"},
                "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": false}}"#,
        )
        .unwrap();
        assert_eq!(
            file.boot_source.unwrap().kernel_image_path,
            Path::new("vmlinux")
        );
        assert_eq!(file.machine_config.vcpu_count, Some(2));
        assert_eq!(file.machine_config.mem_size_mib, Some(256));
        assert!(!file.machine_config.smt && !file.machine_config.huge_pages());
        let file: ConfigFile = serde_json::from_str(
            r#"{"machine-config": {"vcpu_count": 2, "smt": true, "huge_pages": "2M"}}"#,
        )
        .unwrap();
        assert!(file.machine_config.smt && file.machine_config.huge_pages());

        let error = serde_json::from_str::<ConfigFile>(r#"{"drives": []}"#).unwrap_err();
        assert!(error.to_string().contains("drives"), "{error}");
    }
}
