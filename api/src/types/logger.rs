//! `/logger`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Validate;
use super::shape::wire;

/// Where log lines go and what is in them. What is absent stays as it is, but for the level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Logger {
    /// File or FIFO, made if missing.
    pub log_path: Option<String>,
    /// What is logged; `Info` if absent.
    pub level: Option<LogLevel>,
    /// Whether lines have their level in them.
    pub show_level: Option<bool>,
    /// Whether lines have the place in the source in them.
    pub show_log_origin: Option<bool>,
    /// The only modules whose lines are logged: the start of their path.
    pub module: Option<String>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// And what may lead to one.
    Warn,
    /// And what happens.
    #[default]
    Info,
    /// And what helps to find faults.
    Debug,
    /// All.
    Trace,
}

wire!(Object: Logger);

impl std::str::FromStr for LogLevel {
    type Err = String;

    /// In upper and lower case.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(format!(
                "{text:?} is no log level: write Off, Error, Warn, Info, Debug or Trace"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Validate for Logger {}
