//! `/machine-config`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;
use crate::command::Fault;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 64;

/// Least memory of a machine, in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;

/// vCPUs and memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, from 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Memory in MiB, from [`MIN_MEMORY_MIB`].
    pub mem_size_mib: u64,
    /// Whether two vCPUs are the threads of a core.
    #[serde(default)]
    pub smt: bool,
    /// A static CPU template. Deprecated.
    #[serde(skip_serializing_if = "CpuTemplate::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages that the guest writes to are kept account of.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Pages of the host that back the guest's memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

/// Changes of [`MachineConfig`]: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MachineConfigPatch {
    /// Number of vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs are the threads of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// A static CPU template. Deprecated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages that the guest writes to are kept account of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Pages of the host that back the guest's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// Names of Firecracker's static CPU templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum CpuTemplate {
    /// C3.
    C3,
    /// T2.
    T2,
    /// T2S.
    T2S,
    /// T2CL.
    T2CL,
    /// T2A.
    T2A,
    /// No template.
    None,
}

/// Pages of the host that back the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum HugePages {
    /// Those of 4 KiB.
    #[default]
    None,
    /// Those of 2 MiB, from the host's pool of them.
    #[serde(rename = "2M")]
    M2,
}

wire!(Object: MachineConfig, MachineConfigPatch);
wire!(Text: CpuTemplate, HugePages);

impl CpuTemplate {
    /// Whether there is no template: not asked for, or asked for none.
    #[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
    fn is_none(template: &Option<Self>) -> bool {
        template.is_none_or(|template| template == Self::None)
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// What a PUT of `self` makes of `former`: a template that is not named stays.
    pub fn in_place_of(mut self, former: &Self) -> Self {
        self.cpu_template = self.cpu_template.or(former.cpu_template);
        self
    }

    /// What `patch` makes of it. Checked as a whole.
    pub fn patched(&self, patch: &MachineConfigPatch) -> Result<Self, Fault> {
        let MachineConfigPatch {
            vcpu_count,
            mem_size_mib,
            smt,
            cpu_template,
            track_dirty_pages,
            huge_pages,
        } = *patch;
        let changed = Self {
            vcpu_count: vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: smt.unwrap_or(self.smt),
            cpu_template: cpu_template.or(self.cpu_template),
            track_dirty_pages: track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: huge_pages.unwrap_or(self.huge_pages),
        };
        changed.validate()?;
        Ok(changed)
    }
}

impl Validate for MachineConfig {}
impl Validate for MachineConfigPatch {}
