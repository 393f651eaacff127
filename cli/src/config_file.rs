//! `--config-file`: Firecracker's JSON document, as `GET /vm/config` gives it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use api::types::{ConfigError, CpuConfigSource, VmConfig};
use thiserror::Error;

/// Longer files are no configuration of a microVM, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// It cannot be read.
    #[error("Cannot read the {what} {path:?}")]
    Read {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is too long.
    #[error("The {what} {path:?} is longer than 1 MiB")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// It is not what it should be; the source names the place.
    #[error("The {what} {path:?} is wrong")]
    Wrong {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ConfigError,
    },
    /// There are sections that nobody knows.
    #[error("The configuration file {path:?} has sections that do not exist: {}", .names.join(", "))]
    UnknownSections {
        /// The file.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
}

/// What sections mean that do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A mistake.
    Refuse,
    /// Something that another monitor has, and that is worth a line of the log.
    Warn,
}

/// Reads and checks a configuration file, and the file with the CPU configuration that it may name.
pub(crate) fn read(path: &Path, unknown: Unknown) -> Result<VmConfig, Error> {
    const WHAT: &str = "configuration file";
    let text = read_small(WHAT, path)?;
    let (mut config, names) = VmConfig::read(&text).map_err(|source| Error::Wrong {
        what: WHAT,
        path: path.to_owned(),
        source,
    })?;
    match unknown {
        _ if names.is_empty() => {}
        Unknown::Refuse => {
            return Err(Error::UnknownSections {
                path: path.to_owned(),
                names,
            });
        }
        Unknown::Warn => log::warn!(
            "The configuration file {path:?} has sections that do not exist: {}",
            names.join(", ")
        ),
    }
    if let Some(CpuConfigSource::File(file)) = &config.cpu_config {
        const WHAT: &str = "CPU configuration";
        let file = PathBuf::from(file);
        let text = read_small(WHAT, &file)?;
        let inline = serde_json::from_slice(&text).map_err(|source| Error::Wrong {
            what: WHAT,
            path: file,
            source: ConfigError::Shape {
                path: ".".into(),
                source,
            },
        })?;
        config.cpu_config = Some(CpuConfigSource::Inline(inline));
    }
    Ok(config)
}

/// A file of at most a MiB. The size of a pipe or a device is not known before.
pub(crate) fn read_small(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut text))
        .map_err(|source| Error::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::TooLong {
            what,
            path: path.to_owned(),
        });
    }
    Ok(text)
}
