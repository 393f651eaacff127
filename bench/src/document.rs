//! Records in files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::record::{FORMAT, Measured, Record};
use crate::summary::summarize;

/// Why a file is no record that can be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The file.
    #[error("Cannot read {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("{path:?} is not JSON")]
    Json {
        /// Which.
        path: PathBuf,
        /// Where it is not.
        #[source]
        source: serde_json::Error,
    },
    /// JSON of another kind.
    #[error(
        "{path:?} is no record of a measurement: those are written by --json of mote bench startup and mote bench density"
    )]
    Other {
        /// Which.
        path: PathBuf,
    },
    /// Of an older or newer program.
    #[error("{path:?} has the format '{format}'; this program reads '{FORMAT}'")]
    Version {
        /// Which.
        path: PathBuf,
        /// What it says of itself.
        format: String,
    },
    /// It says that it is one.
    #[error("{path:?} is not as a record has to be, at '{at}'")]
    Content {
        /// Which.
        path: PathBuf,
        /// Where.
        at: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a record. Its summaries are made anew of its runs, so that what is shown is always what was measured.
///
/// # Errors
///
/// There is no such file, or it is not a record of this version.
pub fn read(path: &Path) -> Result<Record, Error> {
    let owned = || path.to_owned();
    let text = fs::read(path).map_err(|source| Error::Read {
        path: owned(),
        source,
    })?;
    let value: Value = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: owned(),
        source,
    })?;
    match value.get("format").and_then(Value::as_str) {
        Some(FORMAT) => {}
        Some(format) if is_of_this_kind(format) => {
            return Err(Error::Version {
                path: owned(),
                format: format.into(),
            });
        }
        _ => return Err(Error::Other { path: owned() }),
    }
    let mut record: Record =
        serde_path_to_error::deserialize(value).map_err(|error| Error::Content {
            path: owned(),
            at: error.path().to_string(),
            source: error.into_inner(),
        })?;
    if let Measured::Startup(startup) = &mut record.measured {
        summarize(startup);
    }
    Ok(record)
}

/// Whether it is the format of a record, of whatever version.
fn is_of_this_kind(format: &str) -> bool {
    let name = FORMAT.split('/').next();
    format.split('/').next() == name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Summary;
    use crate::sample;

    /// What reading a file with this in it comes to.
    fn read_text(name: &str, text: &str) -> Result<Record, Error> {
        let name = format!("mote-bench-document-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        let record = read(&path);
        fs::remove_file(&path).unwrap();
        record
    }

    #[test]
    fn summaries_are_made_anew() {
        let row = sample::row("crun", &[1.0, 2.0, 4.0]);
        let record = sample::record(Measured::Startup(sample::startup(vec![row])));
        let mut changed = record.clone();
        if let Measured::Startup(startup) = &mut changed.measured {
            startup.rows[0].summary = Summary::default();
        }
        let text = serde_json::to_string(&changed).unwrap();
        assert_eq!(read_text("anew", &text).unwrap(), record);
    }

    #[test]
    fn what_is_no_record_is_told() {
        let good = serde_json::to_value(sample::starts()).unwrap();
        let with = |key: &str, value: Value| {
            let mut changed = good.clone();
            changed[key] = value;
            changed.to_string()
        };
        let of = |text: &str| read_text("wrong", text).unwrap_err();
        assert!(matches!(of("{"), Error::Json { .. }));
        assert!(matches!(of(""), Error::Json { .. }));
        for text in [
            "{}",
            "[]",
            "7",
            r#"{"format": "other/1"}"#,
            r#"{"format": 1}"#,
        ] {
            assert!(matches!(of(text), Error::Other { .. }), "{text}");
        }
        let newer = of(&with("format", "mote-bench/2".into()));
        assert!(matches!(newer, Error::Version { format, .. } if format == "mote-bench/2"));
        let unknown = of(&with("extra", 1.into()));
        assert!(matches!(unknown, Error::Content { .. }));
        let wrong = of(&with("host", serde_json::json!({"cpu": 7})));
        assert!(matches!(wrong, Error::Content { at, .. } if at == "host.cpu"));
        let missing = read(Path::new("/no/such/file")).unwrap_err();
        assert!(matches!(missing, Error::Read { .. }));
    }
}
