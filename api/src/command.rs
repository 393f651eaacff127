//! The complete list of what a monitor can be asked, what it answers, and when each request is legal.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::states::Request;
use crate::types::shape::wire;
use crate::types::{
    Action, Balloon, BalloonPatch, BalloonStatistics, BalloonStatisticsPatch, BootSource,
    ConsolePatch, CpuConfig, Drive, DrivePatch, Entropy, Fork, ForkedGuests, HintingStart,
    HintingStatus, InstanceInfo, Logger, MachineConfig, MachineConfigPatch, MemoryHotplug,
    MemoryHotplugPatch, MemoryHotplugStatus, Metrics, MmdsConfig, NetworkInterface,
    NetworkInterfacePatch, Pmem, PmemPatch, Serial, SnapshotCreate, SnapshotLoad, Version,
    VmConfig, VmPatch, Vsock,
};

/// How far a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum State {
    /// It is being configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand.
    Paused,
}

wire!(Text: State);

impl State {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::NotStarted, Self::Running, Self::Paused];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        })
    }
}

/// A request. What it carries has the right shape and values in their ranges.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `GET /`.
    GetInstance,
    /// `GET /version`.
    GetVersion,
    /// `GET /vm/config`.
    GetConfig,
    /// `GET /metrics`.
    GetMetrics,
    /// `PUT /boot-source`.
    PutBootSource(BootSource),
    /// `GET /machine-config`.
    GetMachineConfig,
    /// `PUT /machine-config`.
    PutMachineConfig(MachineConfig),
    /// `PATCH /machine-config`.
    PatchMachineConfig(MachineConfigPatch),
    /// `PUT /cpu-config`.
    PutCpuConfig(CpuConfig),
    /// `PUT /drives/{drive_id}`.
    PutDrive(Drive),
    /// `PATCH /drives/{drive_id}`.
    PatchDrive(DrivePatch),
    /// `DELETE /drives/{drive_id}`.
    DeleteDrive(String),
    /// `PUT /network-interfaces/{iface_id}`.
    PutInterface(NetworkInterface),
    /// `PATCH /network-interfaces/{iface_id}`.
    PatchInterface(NetworkInterfacePatch),
    /// `DELETE /network-interfaces/{iface_id}`.
    DeleteInterface(String),
    /// `PUT /pmem/{id}`.
    PutPmem(Pmem),
    /// `PATCH /pmem/{id}`.
    PatchPmem(PmemPatch),
    /// `DELETE /pmem/{id}`.
    DeletePmem(String),
    /// `PUT /vsock`.
    PutVsock(Vsock),
    /// `PUT /balloon`.
    PutBalloon(Balloon),
    /// `GET /balloon`.
    GetBalloon,
    /// `PATCH /balloon`.
    PatchBalloon(BalloonPatch),
    /// `GET /balloon/statistics`.
    GetBalloonStatistics,
    /// `PATCH /balloon/statistics`.
    PatchBalloonStatistics(BalloonStatisticsPatch),
    /// `PATCH /balloon/hinting/start`.
    StartHinting(HintingStart),
    /// `GET /balloon/hinting/status`.
    GetHinting,
    /// `PATCH /balloon/hinting/stop`.
    StopHinting,
    /// `PUT /entropy`.
    PutEntropy(Entropy),
    /// `PUT /serial`.
    PutSerial(Serial),
    /// `PUT /hotplug/memory`.
    PutMemoryHotplug(MemoryHotplug),
    /// `GET /hotplug/memory`.
    GetMemoryHotplug,
    /// `PATCH /hotplug/memory`.
    PatchMemoryHotplug(MemoryHotplugPatch),
    /// `PUT /logger`.
    PutLogger(Logger),
    /// `PUT /metrics`.
    PutMetrics(Metrics),
    /// `PUT /mmds/config`.
    PutMmdsConfig(MmdsConfig),
    /// `PUT /mmds`.
    PutMmds(Value),
    /// `PATCH /mmds`.
    PatchMmds(Value),
    /// `GET /mmds`.
    GetMmds,
    /// `PUT /snapshot/create`.
    CreateSnapshot(SnapshotCreate),
    /// `PUT /snapshot/load`.
    LoadSnapshot(SnapshotLoad),
    /// `PUT /fork`.
    Fork(Fork),
    /// `PATCH /console`.
    PatchConsole(ConsolePatch),
    /// `PATCH /vm`.
    PatchVm(VmPatch),
    /// `PUT /actions`.
    Act(Action),
}

impl Command {
    /// Whether `state` allows it: what [`crate::states`] has in its table.
    pub fn check(&self, state: State) -> Result<(), Fault> {
        Request::from(self).check(state)
    }

    /// Method and path, and what is asked for where the state table tells it apart.
    pub fn name(&self) -> &'static str {
        Request::from(self).name()
    }
}

/// What a request that succeeds is answered with.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are a few at a time, and each is written out at once"
)]
pub enum Response {
    /// Nothing but that.
    Empty,
    /// Who answers.
    Instance(InstanceInfo),
    /// Versions.
    Version(Version),
    /// The whole configuration.
    Config(Box<VmConfig>),
    /// vCPUs and memory.
    MachineConfig(MachineConfig),
    /// The balloon, with its size of now.
    Balloon(Balloon),
    /// What the guest said of its memory.
    BalloonStatistics(BalloonStatistics),
    /// How far a round of hints is.
    Hinting(HintingStatus),
    /// What the guest has plugged.
    MemoryHotplug(MemoryHotplugStatus),
    /// The guest's metadata.
    Mmds(Value),
    /// Copies of the guest.
    Forked(ForkedGuests),
    /// Metrics, as OpenMetrics text.
    Text(String),
}

/// Why a request fails.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Fault {
    /// Status of HTTP.
    pub status: u16,
    /// What is wrong: the resource, the field and the reason.
    pub message: String,
}

/// Longest message, in bytes: what was sent is repeated in some, and may be long.
const MAX_MESSAGE: usize = 2048;

/// What errors of a body begin with. Clients match it.
pub(crate) const BAD_JSON: &str =
    "An error occurred when deserializing the json body of a request: ";

impl Fault {
    /// The request is wrong, or its time is.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message.into())
    }

    /// A value is wrong: that of `field` in the body of `resource`, a path.
    pub fn value(resource: &str, field: &str, reason: impl fmt::Display) -> Self {
        Self::bad(format!("{resource}, `{field}`: {reason}"))
    }

    fn new(status: u16, mut message: String) -> Self {
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        Self { status, message }
    }

    /// The guest's metadata would be larger than it may be.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, message.into())
    }
}
