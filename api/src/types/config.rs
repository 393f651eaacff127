//! The whole configuration: what `GET /vm/config` answers and `--config-file` reads.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::{
    Balloon, BootSource, CpuConfigSource, Drive, Entropy, Logger, MachineConfig, MemoryHotplug,
    Metrics, MmdsConfig, NetworkInterface, Pmem, Serial, Validate, Vsock,
};
use crate::command::Fault;

/// Why a document is no configuration.
#[derive(Debug, Error)]
pub enum Error {
    /// It is not JSON, or not of the right shape; the source names line and column.
    #[error("The configuration is wrong at `{path}`")]
    Shape {
        /// Where in the document, such as `drives[0].drive_id`; `.` is the document itself.
        path: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A value is out of its range.
    #[error("The section `{section}` of the configuration is wrong")]
    Value {
        /// The section.
        section: &'static str,
        /// What is wrong.
        #[source]
        source: Fault,
    },
}

/// The whole configuration. Sections without contents are `null` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// `/balloon`.
    pub balloon: Option<Balloon>,
    /// `/drives`; the root device first.
    pub drives: Vec<Drive>,
    /// `/boot-source`, without a path before there is one.
    pub boot_source: BootSource,
    /// `/cpu-config`.
    pub cpu_config: Option<CpuConfigSource>,
    /// `/logger`.
    pub logger: Option<Logger>,
    /// `/machine-config`.
    pub machine_config: MachineConfig,
    /// `/metrics`.
    pub metrics: Option<Metrics>,
    /// `/mmds/config`.
    pub mmds_config: Option<MmdsConfig>,
    /// `/network-interfaces`.
    pub network_interfaces: Vec<NetworkInterface>,
    /// `/vsock`.
    pub vsock: Option<Vsock>,
    /// `/entropy`.
    pub entropy: Option<Entropy>,
    /// `/pmem`.
    pub pmem: Vec<Pmem>,
    /// `/hotplug/memory`.
    pub memory_hotplug: Option<MemoryHotplug>,
    /// `/serial`. An extension, absent unless there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
}

impl VmConfig {
    /// Reads a document, checks each of its values, and lists the sections that do not exist.
    pub fn read(text: &[u8]) -> Result<(Self, Vec<String>), Error> {
        let mut unknown = Vec::new();
        let mut json = serde_json::Deserializer::from_slice(text);
        let mut track = serde_path_to_error::Track::new();
        let read = Document(&mut unknown).deserialize(serde_path_to_error::Deserializer::new(
            &mut json, &mut track,
        ));
        let config = read
            .and_then(|config| json.end().map(|()| config))
            .map_err(|source| Error::Shape {
                path: track.path().to_string(),
                source,
            })?;
        config.validate()?;
        Ok((config, unknown))
    }

    /// Checks each value by itself.
    fn validate(&self) -> Result<(), Error> {
        fn check<'a, T: Validate + 'a>(
            section: &'static str,
            values: impl IntoIterator<Item = &'a T>,
        ) -> Result<(), Error> {
            values
                .into_iter()
                .try_for_each(|value| value.validate())
                .map_err(|source| Error::Value { section, source })
        }
        // All of them: a new section does not compile until it is checked.
        let Self {
            balloon,
            drives,
            boot_source,
            cpu_config,
            logger,
            machine_config,
            metrics,
            mmds_config,
            network_interfaces,
            vsock,
            entropy,
            pmem,
            memory_hotplug,
            serial,
        } = self;
        check("balloon", balloon)?;
        check("drives", drives)?;
        check("boot-source", [boot_source])?;
        if let Some(CpuConfigSource::Inline(config)) = cpu_config {
            check("cpu-config", [config])?;
        }
        check("logger", logger)?;
        check("machine-config", [machine_config])?;
        check("metrics", metrics)?;
        check("mmds-config", mmds_config)?;
        check("network-interfaces", network_interfaces)?;
        check("vsock", vsock)?;
        check("entropy", entropy)?;
        check("pmem", pmem)?;
        check("memory-hotplug", memory_hotplug)?;
        check("serial", serial)
    }
}

/// Reads the document by hand: derived code cannot both list what is unknown and say where an error is.
struct Document<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = VmConfig;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<VmConfig, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The value of a section that was not there before.
fn section<'de, A, T>(map: &mut A, name: &'static str, slot: &mut Option<T>) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
    T: Deserialize<'de>,
{
    if slot.is_some() {
        return Err(A::Error::duplicate_field(name));
    }
    *slot = Some(map.next_value()?);
    Ok(())
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = VmConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the sections of a configuration")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VmConfig, A::Error> {
        macro_rules! sections {
            ($($field:ident $name:literal),+ $(,)?) => {
                $(let mut $field = None;)+
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        $($name => section(&mut map, $name, &mut $field)?,)+
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            self.0.push(key);
                        }
                    }
                }
            };
        }
        sections! {
            balloon "balloon", drives "drives", boot_source "boot-source", cpu_config "cpu-config",
            logger "logger", machine_config "machine-config", metrics "metrics",
            mmds_config "mmds-config", network_interfaces "network-interfaces", vsock "vsock",
            entropy "entropy", pmem "pmem", memory_hotplug "memory-hotplug", serial "serial",
        }
        let machine_config: Option<Option<MachineConfig>> = machine_config;
        Ok(VmConfig {
            balloon: balloon.flatten(),
            drives: drives.unwrap_or_default(),
            boot_source: boot_source.unwrap_or_default(),
            cpu_config: cpu_config.flatten(),
            logger: logger.flatten(),
            machine_config: machine_config.flatten().unwrap_or_default(),
            metrics: metrics.flatten(),
            mmds_config: mmds_config.flatten(),
            network_interfaces: network_interfaces.unwrap_or_default(),
            vsock: vsock.flatten(),
            entropy: entropy.flatten(),
            pmem: pmem.unwrap_or_default(),
            memory_hotplug: memory_hotplug.flatten(),
            serial: serial.flatten(),
        })
    }
}

impl<'de> Deserialize<'de> for VmConfig {
    /// As answered by `GET /vm/config`; sections that do not exist are not looked at.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Document(&mut Vec::new()).deserialize(deserializer)
    }
}
