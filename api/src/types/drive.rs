//! `/drives`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shape::{is_default, or_default, wire};
use super::{RateLimiter, Validate, check_id, rate_limiter};
use crate::command::Fault;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Drive {
    /// Its name, the same as in the path.
    pub drive_id: String,
    /// The UUID of the partition that is the root file system, if the drive is the root device.
    pub partuuid: Option<String>,
    /// Whether the guest's root file system is on it.
    pub is_root_device: bool,
    /// Whether flushes of the guest make anything durable.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest cannot write.
    #[serde(default, deserialize_with = "or_default")]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub is_read_only: bool,
    /// Image or block device of the host, never empty.
    #[serde(default, deserialize_with = "or_default")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub path_on_host: String,
    /// Bytes and requests.
    #[serde(default, deserialize_with = "rate_limiter::in_force")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the host's file is read and written.
    #[serde(default, deserialize_with = "or_default")]
    #[cfg_attr(test, schemars(with = "Option<IoEngine>"))]
    pub io_engine: IoEngine,
    /// Socket of a vhost-user server. Not supported: always `null`.
    pub socket: Option<String>,
    /// Format of the image. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<DriveFormat>"))]
    pub format: DriveFormat,
    /// Where the guest's writes go. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<Overlay>"))]
    pub overlay: Overlay,
    /// Serial number that the guest sees, at most 20 bytes. An extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Number of queues, 1 if not given. An extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether a thread of its own serves it. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

/// What can be changed of a drive while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DrivePatch {
    /// Its name, the same as in the path.
    pub drive_id: String,
    /// Another file in the place of the former, or the former, whose size is looked at again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// New limits; a bucket that is absent stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Whether flushes of the guest make anything durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum CacheType {
    /// The guest is offered no flush.
    #[default]
    Unsafe,
    /// A flush makes durable what was written.
    Writeback,
}

/// How the host's file is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum IoEngine {
    /// With system calls that wait.
    #[default]
    Sync,
    /// With io_uring.
    Async,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", rename_all = "lowercase")]
pub enum DriveFormat {
    /// The disk's bytes.
    #[default]
    Raw,
    /// qcow2.
    Qcow2,
    /// qcow2 if the first bytes say so.
    Auto,
}

/// Where the guest's writes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// Into the image.
    #[default]
    None,
    /// Into a file that disappears.
    Temp,
    /// Into this file.
    File(String),
}

wire!(Object: Drive, DrivePatch);
wire!(Text: CacheType, IoEngine, DriveFormat);

impl Serialize for Overlay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::None => "none",
            Self::Temp => "temp",
            Self::File(path) => path,
        })
    }
}

impl<'de> Deserialize<'de> for Overlay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "none" => Self::None,
            "temp" => Self::Temp,
            _ => Self::File(text),
        })
    }
}

/// Most queues of a drive.
const MAX_QUEUES: u16 = 8;

/// Longest serial number, in bytes.
const MAX_SERIAL: usize = 20;

impl Validate for Drive {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.drive_id)?;
        let wrong = |field, reason: &str| Err(Fault::value("/drives", field, reason));
        if self.socket.is_some() {
            return wrong(
                "socket",
                "Drives of vhost-user are not supported: give `path_on_host` instead.",
            );
        }
        if self.path_on_host.is_empty() {
            return wrong("path_on_host", "It is missing or empty.");
        }
        // It becomes a part of a word of the kernel's command line.
        let is_word = |text: &str| text.chars().all(|letter| letter.is_ascii_graphic());
        if self.partuuid.as_deref().is_some_and(|uuid| !is_word(uuid)) {
            return wrong("partuuid", "It can have visible ASCII characters only.");
        }
        if self.overlay == Overlay::File(String::new()) {
            return wrong("overlay", "It is empty: write none, temp or a path.");
        }
        if self
            .serial
            .as_ref()
            .is_some_and(|text| text.len() > MAX_SERIAL)
        {
            return wrong("serial", "It is longer than 20 bytes.");
        }
        if self
            .queues
            .is_some_and(|queues| !(1..=MAX_QUEUES).contains(&queues))
        {
            return wrong("queues", "There can be from 1 to 8 queues.");
        }
        Ok(())
    }
}

impl Validate for DrivePatch {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.drive_id)?;
        if self.path_on_host.is_none() && self.rate_limiter.is_none() {
            // To Firecracker it means to read the configuration of a vhost-user server again.
            return Err(Fault::bad(
                "/drives: Running method expected different backend. Give `path_on_host` or `rate_limiter`.",
            ));
        }
        Ok(())
    }
}
