//! The objects of the API, as they are on the wire: one file a resource.
//!
//! - Objects are objects: a JSON array in the place of one is refused, and so is a field that does not exist.
//! - `null` is the same as an absent field, where a field may be absent.
//! - What was read reads back in one form: limits that limit nothing are `null`, addresses are in lower case.
//! - [`Validate`] checks what can be known of a value without asking the host or other resources.

mod action;
mod balloon;
mod boot_source;
mod config;
mod console;
mod cpu_config;
mod drive;
mod entropy;
mod fork;
mod instance;
mod logger;
mod machine_config;
mod memory_hotplug;
mod metrics;
mod mmds;
mod network;
mod pmem;
mod rate_limiter;
mod serial;
pub(crate) mod shape;
mod snapshot;
mod vm;
mod vsock;

pub use action::{Action, ActionType};
pub use balloon::{
    Balloon, BalloonPatch, BalloonStatistics, BalloonStatisticsPatch, HintingStart, HintingStatus,
};
pub use boot_source::BootSource;
pub use config::{Error as ConfigError, VmConfig};
pub use console::ConsolePatch;
pub use cpu_config::{
    Bitmap, CpuConfig, CpuConfigSource, CpuidModifier, CpuidRegister, KvmCapability, MsrModifier,
    RegisterModifier,
};
pub use drive::{CacheType, Drive, DriveFormat, DrivePatch, IoEngine, Overlay};
pub use entropy::Entropy;
pub use fork::{COPY_NUMBER, Fork, ForkedGuest, ForkedGuests, MAX_COPIES};
pub use instance::{APP_NAME, FIRECRACKER_VERSION, InstanceInfo, Version};
pub use logger::{LogLevel, Logger};
pub use machine_config::{
    CpuTemplate, HugePages, MAX_VCPUS, MIN_MEMORY_MIB, MachineConfig, MachineConfigPatch,
};
pub use memory_hotplug::{MemoryHotplug, MemoryHotplugPatch, MemoryHotplugStatus};
pub use metrics::Metrics;
pub use mmds::{MmdsConfig, MmdsVersion};
pub use network::{Backend, MacAddress, NetworkInterface, NetworkInterfacePatch};
pub use pmem::{Pmem, PmemPatch};
pub use rate_limiter::{RateLimiter, TokenBucket};
pub use serial::Serial;
pub use snapshot::{
    MemBackend, MemBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};
pub use vm::{VmPatch, VmState};
pub use vsock::Vsock;

use crate::command::Fault;

/// What can be known of a value without asking the host or other resources.
pub trait Validate {
    /// Says what is wrong: the resource, the field and the reason.
    fn validate(&self) -> Result<(), Fault> {
        Ok(())
    }

    /// Whether it asks for something that Firecracker deprecates.
    fn is_deprecated(&self) -> bool {
        false
    }
}

/// What is said of a resource without a name. Clients match it.
pub(crate) fn empty_id() -> Fault {
    Fault::bad("The ID cannot be empty.")
}

/// Whether an id names a resource: letters, digits and `_`, at least one.
pub(crate) fn check_id(id: &str) -> Result<(), Fault> {
    if id.is_empty() {
        return Err(empty_id());
    }
    if id.chars().all(|c| c.is_alphanumeric() || c == '_') {
        Ok(())
    } else {
        Err(Fault::bad(format!(
            "The ID {id:?} can have letters, digits and underscores only."
        )))
    }
}
