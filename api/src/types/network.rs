//! `/network-interfaces`.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shape::{is_default, or_default, wire};
use super::{RateLimiter, Validate, check_id, rate_limiter};
use crate::command::Fault;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name, the same as in the path.
    pub iface_id: String,
    /// Tap of the host; must be there if the `backend` is `tap`, and only then.
    pub host_dev_name: Option<String>,
    /// The card's address; if not given, the guest chooses one.
    pub guest_mac: Option<MacAddress>,
    /// Largest packet, in bytes, that the guest is told of.
    pub mtu: Option<u16>,
    /// Limits from the host to the guest.
    #[serde(default, deserialize_with = "rate_limiter::in_force")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits from the guest to the host.
    #[serde(default, deserialize_with = "rate_limiter::in_force")]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// What the card leads to. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<Backend>"))]
    pub backend: Backend,
    /// Ports of the host that lead into the guest, of the user network:
    /// `[ADDRESS:]HOSTPORT:GUESTPORT[/udp]`. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub forwards: Vec<String>,
    /// Destinations that the guest may reach, of the user network: `CIDR[:PORTS]`. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub allow: Vec<String>,
    /// Destinations that the guest may not reach, of the user network: `CIDR[:PORTS]`. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[cfg_attr(test, schemars(with = "Option<Vec<String>>"))]
    pub deny: Vec<String>,
    /// Name that the user network gives the guest. An extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Number of pairs of queues, of a tap, 1 if not given. An extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether the host's kernel moves the frames (vhost-net), of a tap. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub vhost: bool,
    /// Whether a thread of its own serves it. An extension.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    #[cfg_attr(test, schemars(with = "Option<bool>"))]
    pub iothread: bool,
}

/// What can be changed of an interface while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkInterfacePatch {
    /// Its name, the same as in the path.
    pub iface_id: String,
    /// New limits from the host to the guest; a bucket that is absent stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// New limits from the guest to the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// What a card leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", rename_all = "lowercase")]
pub enum Backend {
    /// A tap of the host.
    #[default]
    Tap,
    /// A network of the monitor's own, which needs no rights at the host.
    User,
}

/// Address of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

wire!(Object: NetworkInterface, NetworkInterfacePatch);
wire!(Text: Backend);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no MAC address: write it as 06:00:ac:10:00:02");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(wrong()),
        }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Smallest MTU, in bytes. Any larger one can be written.
const MIN_MTU: u16 = 68;

/// Most pairs of queues of a card.
const MAX_QUEUES: u16 = 16;

impl Validate for NetworkInterface {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.iface_id)?;
        let wrong = |field, reason: &str| Err(Fault::value("/network-interfaces", field, reason));
        if self.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return wrong("mtu", "It must be from 68 to 65535 bytes.");
        }
        if self
            .queues
            .is_some_and(|queues| !(1..=MAX_QUEUES).contains(&queues))
        {
            return wrong("queues", "There can be from 1 to 16 pairs of queues.");
        }
        match self.backend {
            Backend::Tap => {
                if self.host_dev_name.is_none() {
                    return wrong(
                        "host_dev_name",
                        "missing field `host_dev_name`: the `backend` `tap` needs the name of a tap.",
                    );
                }
                let of_user_network = [
                    ("forwards", !self.forwards.is_empty()),
                    ("allow", !self.allow.is_empty()),
                    ("deny", !self.deny.is_empty()),
                    ("hostname", self.hostname.is_some()),
                ];
                match of_user_network.into_iter().find(|(_, given)| *given) {
                    Some((field, _)) => wrong(field, "It is for the `backend` `user` only."),
                    None => Ok(()),
                }
            }
            Backend::User if self.host_dev_name.is_some() => wrong(
                "host_dev_name",
                "It names a tap, and the `backend` `user` has none.",
            ),
            Backend::User if self.queues.is_some_and(|queues| queues > 1) => wrong(
                "queues",
                "The `backend` `user` has one pair of queues; several are of a tap.",
            ),
            Backend::User if self.vhost => wrong("vhost", "It is for the `backend` `tap` only."),
            Backend::User => Ok(()),
        }
    }
}

impl Validate for NetworkInterfacePatch {
    fn validate(&self) -> Result<(), Fault> {
        check_id(&self.iface_id)
    }
}
