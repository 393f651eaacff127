//! `/machine-config`.

use std::fmt::Display;

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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs; with `smt`, 1 or an even one.
    pub vcpu_count: u8,
    /// Memory in MiB; with huge pages a multiple of their size.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// Names of Firecracker's static CPU templates, by the host's CPU that they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum CpuTemplate {
    /// Intel, from Skylake to Ice Lake, as the `C3` of EC2.
    C3,
    /// Intel, from Skylake to Ice Lake, as the `T2` of EC2.
    T2,
    /// Intel Skylake and Cascade Lake.
    T2S,
    /// Intel Cascade Lake and Ice Lake.
    T2CL,
    /// AMD Milan.
    T2A,
    /// No template.
    None,
}

/// Pages of the host that back the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

fn wrong(field: &str, reason: impl Display) -> Result<(), Fault> {
    Err(Fault::value("/machine-config", field, reason))
}

fn check_vcpus(count: u8, smt: bool) -> Result<(), Fault> {
    let whole_cores = !smt || count == 1 || count.is_multiple_of(2);
    if (1..=MAX_VCPUS).contains(&count) && whole_cores {
        return Ok(());
    }
    wrong(
        "vcpu_count",
        format_args!(
            "It is {count}, and must be from 1 to {MAX_VCPUS}; with `smt`, 1 or an even number."
        ),
    )
}

fn check_memory(size_mib: u64, pages: HugePages) -> Result<(), Fault> {
    if size_mib == 0 || pages == HugePages::M2 && !size_mib.is_multiple_of(2) {
        return wrong(
            "mem_size_mib",
            "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
        );
    }
    if size_mib < MIN_MEMORY_MIB {
        return wrong(
            "mem_size_mib",
            format_args!("It is {size_mib}, and must be at least {MIN_MEMORY_MIB}."),
        );
    }
    Ok(())
}

impl Validate for MachineConfig {
    fn validate(&self) -> Result<(), Fault> {
        check_vcpus(self.vcpu_count, self.smt)?;
        check_memory(self.mem_size_mib, self.huge_pages)
    }

    fn is_deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }
}

impl Validate for MachineConfigPatch {
    /// Checks what does not depend on what stays.
    fn validate(&self) -> Result<(), Fault> {
        if *self == Self::default() {
            return Err(Fault::bad("Empty PATCH request."));
        }
        if let Some(count) = self.vcpu_count {
            check_vcpus(count, self.smt.unwrap_or(false))?;
        }
        if let Some(size) = self.mem_size_mib {
            check_memory(size, self.huge_pages.unwrap_or_default())?;
        }
        Ok(())
    }

    fn is_deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }
}
