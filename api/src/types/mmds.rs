//! `/mmds/config`. The metadata itself is any JSON.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};

use super::Validate;
use super::shape::wire;
use crate::command::Fault;

/// How the guest reaches its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MmdsConfig {
    /// Whether the guest has to ask for a token first.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Interfaces that lead to it.
    pub network_interfaces: Vec<String>,
    /// Its address, link-local.
    #[serde(default = "address", deserialize_with = "or_address")]
    #[cfg_attr(test, schemars(with = "Option<Ipv4Addr>"))]
    pub ipv4_address: Ipv4Addr,
    /// Whether answers are in the form of EC2's metadata service, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

/// Whether the guest has to ask for a token first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self")]
pub enum MmdsVersion {
    /// No. Deprecated.
    #[default]
    V1,
    /// Yes.
    V2,
}

wire!(Object: MmdsConfig);
wire!(Text: MmdsVersion);

fn address() -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 169, 254)
}

fn or_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ipv4Addr, D::Error> {
    let given: Option<Ipv4Addr> = Option::deserialize(deserializer)?;
    Ok(given.unwrap_or_else(address))
}

impl Validate for MmdsConfig {
    fn validate(&self) -> Result<(), Fault> {
        let wrong = |field, reason: &str| Err(Fault::value("/mmds/config", field, reason));
        if self.network_interfaces.is_empty() {
            return wrong(
                "network_interfaces",
                "The list of network interface IDs that allow forwarding MMDS requests is empty.",
            );
        }
        // RFC 3927 keeps the first and the last 256 addresses.
        match self.ipv4_address.octets() {
            [169, 254, 1..=254, _] => Ok(()),
            _ => wrong(
                "ipv4_address",
                "It is not link-local: it must be from 169.254.1.0 to 169.254.254.255.",
            ),
        }
    }

    fn is_deprecated(&self) -> bool {
        self.version == MmdsVersion::V1
    }
}
