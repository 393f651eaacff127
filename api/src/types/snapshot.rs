//! `/snapshot/create` and `/snapshot/load`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;
use crate::command::{BAD_JSON, Fault};

/// Where a snapshot goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct SnapshotCreate {
    /// File of the machine's state.
    pub snapshot_path: String,
    /// File of the guest's memory.
    pub mem_file_path: String,
    /// What is written of the memory.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Whether the guest runs on as soon as its state has been taken. It may run before, too: then it stands still for that only. An extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume_vm: bool,
}

/// What is written of the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What changed since the last snapshot.
    Diff,
}

/// Where a snapshot comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct SnapshotLoad {
    /// File of the machine's state.
    pub snapshot_path: String,
    /// Where the guest's memory comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// File of the guest's memory. Deprecated: the same as a `mem_backend` of type `File`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<String>,
    /// Deprecated: the same as `track_dirty_pages`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub enable_diff_snapshots: bool,
    /// Whether pages that the guest writes to are kept account of.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the guest runs at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other taps than those of the snapshot.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket than that of the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock is advanced to the host's.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Whether what is merely risky is let pass: a file that may have changed, another CPU. An extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Where the guest's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemBackend {
    /// What `backend_path` is.
    pub backend_type: MemBackendType,
    /// A file, or a socket.
    pub backend_path: String,
}

/// What gives memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum MemBackendType {
    /// A file.
    File,
    /// A process that serves page faults, by a Unix socket.
    Uffd,
}

/// Another tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkOverride {
    /// Interface of the snapshot.
    pub iface_id: String,
    /// Tap of the host.
    pub host_dev_name: String,
    /// Whether the host's kernel moves the frames (vhost-net); as in the snapshot if not given. An extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost: Option<bool>,
}

/// Another socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct VsockOverride {
    /// Unix socket of the host.
    pub uds_path: String,
}

wire!(Object: SnapshotCreate, SnapshotLoad, MemBackend, NetworkOverride, VsockOverride);
wire!(Text: SnapshotType, MemBackendType);

impl Validate for SnapshotCreate {}

impl Validate for SnapshotLoad {
    fn validate(&self) -> Result<(), Fault> {
        let wrong = |reason| Err(Fault::bad(format!("{BAD_JSON}{reason}.")));
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(_), Some(_)) => wrong(
                "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
            ),
            (None, None) => {
                wrong("missing field: either `mem_backend` or `mem_file_path` is required")
            }
            _ => Ok(()),
        }
    }

    fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots
    }
}
