//! `/drives`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shape::{or_default, wire};
use super::{RateLimiter, Validate, check_id, rate_limiter};
use crate::command::Fault;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub is_read_only: bool,
    /// Image or block device of the host. Never empty in a drive that is valid.
    #[serde(default, deserialize_with = "or_default")]
    pub path_on_host: String,
    /// Bytes and requests.
    #[serde(default, deserialize_with = "rate_limiter::in_force")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the host's file is read and written.
    #[serde(default, deserialize_with = "or_default")]
    pub io_engine: IoEngine,
    /// Socket of a vhost-user server, which mote does not have: `None` in a drive that is valid.
    pub socket: Option<String>,
    /// Format of the image. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub format: DriveFormat,
    /// Where the guest's writes go. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
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
    pub iothread: bool,
}

/// What can be changed of a drive while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

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

impl Validate for Drive {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.drive_id)
    }
}

impl Validate for DrivePatch {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.drive_id)
    }
}
