//! Which destinations the guest may reach.
//!
//! The order of rules says nothing. Of all that name a destination the most specific one decides: the
//! one with the longest prefix; among those, one that names ports before one that does not; among
//! those, `deny`. What no rule names is allowed if there is no `allow` rule at all, and refused else.
//!
//! The addresses are those that the guest uses: the gateway's stands for the host. The DNS relay is the
//! exception to the last sentence: a list of allowed destinations leaves it open, as names are needed
//! to reach them. `allow=none` and `deny` close it; an `allow` rule for its address opens it again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// What is wrong with a rule.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// Neither `allow=` nor `deny=`.
    #[error("Rule '{rule}' is neither allow=… nor deny=…")]
    Action {
        /// The rule as given.
        rule: String,
    },
    /// The address is none.
    #[error("'{text}' is not an IP address, a network such as 10.0.0.0/8 or [2001:db8::]/32, or *")]
    Address {
        /// What stands in its place.
        text: String,
    },
    /// The prefix length is none, or too long.
    #[error("'{text}' is not a prefix length up to {max}")]
    Prefix {
        /// What stands in its place.
        text: String,
        /// Bits of such an address.
        max: u8,
    },
    /// The address has bits that the prefix does not cover.
    #[error(
        "{address}/{prefix} names a host in its network: write {network}/{prefix}, or {address}"
    )]
    HostBits {
        /// The address as given.
        address: IpAddr,
        /// The prefix length as given.
        prefix: u8,
        /// The address without those bits.
        network: IpAddr,
    },
    /// A port is none, or a range of ports is empty.
    #[error("'{text}' is not a port, a range such as 80-90, a list such as 80+443, or *")]
    Ports {
        /// What stands in its place.
        text: String,
    },
}

/// Some destinations: a network, and ports there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// None is every address of both families.
    network: Option<(IpAddr, u8)>,
    /// None is every port, and what has no ports.
    ports: Vec<RangeInclusive<u16>>,
}

/// One rule: `allow=CIDR[:PORTS]`, `deny=CIDR[:PORTS]` or `allow=none`.
///
/// CIDR is an IPv4 address or network, an IPv6 one with its address in brackets, or `*`. PORTS is a
/// port, a range (`80-90`), several of these joined by `+`, or `*`. A rule with ports says nothing of
/// ICMP, which has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// These destinations may be reached.
    Allow(Target),
    /// Only what other rules allow may be reached, and not the DNS relay either.
    AllowNone,
    /// These destinations may not be reached.
    Deny(Target),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(rule: &str) -> Result<Self, RuleError> {
        match rule.split_once('=') {
            Some(("allow", "none")) => Ok(Self::AllowNone),
            Some(("allow", target)) => Ok(Self::Allow(target.parse()?)),
            Some(("deny", target)) => Ok(Self::Deny(target.parse()?)),
            _ => Err(RuleError::Action {
                rule: rule.to_owned(),
            }),
        }
    }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        // The colon before the ports is the first one outside brackets.
        let bracket = text.rfind(']').unwrap_or(0);
        let colon = text.get(bracket..).and_then(|rest| rest.find(':'));
        let (network, ports) = match colon {
            Some(colon) => (&text[..bracket + colon], &text[bracket + colon + 1..]),
            None => (text, "*"),
        };
        Ok(Self {
            network: parse_network(network)?,
            ports: parse_ports(ports)?,
        })
    }
}

fn parse_network(text: &str) -> Result<Option<(IpAddr, u8)>, RuleError> {
    if text == "*" {
        return Ok(None);
    }
    let bad_address = || RuleError::Address {
        text: text.to_owned(),
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let bracketed = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = match bracketed {
        Some(address) => address.parse().map(IpAddr::V6),
        None => address.parse().map(IpAddr::V4),
    }
    .map_err(|_| bad_address())?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => max,
        Some(text) => match text.parse() {
            Ok(prefix) if prefix <= max && !text.starts_with('+') => prefix,
            _ => {
                return Err(RuleError::Prefix {
                    text: text.to_owned(),
                    max,
                });
            }
        },
    };
    let network = mask(address, prefix);
    if network != address {
        return Err(RuleError::HostBits {
            address,
            prefix,
            network,
        });
    }
    Ok(Some((address, prefix)))
}

fn parse_ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, RuleError> {
    if text == "*" {
        return Ok(Vec::new());
    }
    let bad_ports = || RuleError::Ports {
        text: text.to_owned(),
    };
    text.split('+')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = first.parse::<u16>().map_err(|_| bad_ports())?;
            let last = last.parse::<u16>().map_err(|_| bad_ports())?;
            if first > last || first == 0 {
                return Err(bad_ports());
            }
            Ok(first..=last)
        })
        .collect()
}

/// `address` with all bits behind the first `prefix` cleared.
fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    let bits = u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits));
            Ipv4Addr::from_bits(address.to_bits() & mask.unwrap_or(0)).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits));
            Ipv6Addr::from_bits(address.to_bits() & mask.unwrap_or(0)).into()
        }
    }
}

/// Whether `address` is in the network `network`/`prefix`.
pub(super) fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    network.is_ipv4() == address.is_ipv4() && mask(address, prefix) == mask(network, prefix)
}

impl Target {
    /// How specific the target is for this destination; None if it does not name it.
    fn matches(&self, address: IpAddr, port: Option<u16>) -> Option<(u8, bool)> {
        let prefix = match self.network {
            // Below every network, /0 too.
            None => 0,
            Some((network, prefix)) if contains(network, prefix, address) => prefix + 1,
            Some(_) => return None,
        };
        if self.ports.is_empty() {
            return Some((prefix, false));
        }
        let port = port?;
        let named = self.ports.iter().any(|ports| ports.contains(&port));
        named.then_some((prefix, true))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            None => f.write_str("*")?,
            Some((IpAddr::V4(address), 32)) => write!(f, "{address}")?,
            Some((IpAddr::V6(address), 128)) => write!(f, "[{address}]")?,
            Some((IpAddr::V4(address), prefix)) => write!(f, "{address}/{prefix}")?,
            Some((IpAddr::V6(address), prefix)) => write!(f, "[{address}]/{prefix}")?,
        }
        for (index, ports) in self.ports.iter().enumerate() {
            f.write_str(if index == 0 { ":" } else { "+" })?;
            write!(f, "{}", ports.start())?;
            if ports.start() != ports.end() {
                write!(f, "-{}", ports.end())?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(target) => write!(f, "allow={target}"),
            Self::AllowNone => f.write_str("allow=none"),
            Self::Deny(target) => write!(f, "deny={target}"),
        }
    }
}

/// All rules.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// The policy that these rules make.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The rules that make it.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether the guest may reach `port` of `address`. ICMP has no port.
    pub fn allows(&self, address: IpAddr, port: Option<u16>) -> bool {
        let is_allow = |rule: &Rule| matches!(rule, Rule::Allow(_) | Rule::AllowNone);
        self.verdict(address, port)
            .unwrap_or_else(|| !self.rules.iter().any(is_allow))
    }

    /// Whether the guest may use the DNS relay at `address`.
    pub fn allows_dns(&self, address: IpAddr) -> bool {
        self.verdict(address, Some(53))
            .unwrap_or_else(|| !self.rules.contains(&Rule::AllowNone))
    }

    /// What the most specific rule says.
    fn verdict(&self, address: IpAddr, port: Option<u16>) -> Option<bool> {
        let matching = self.rules.iter().filter_map(|rule| match rule {
            Rule::Allow(target) => Some((target.matches(address, port)?, true)),
            Rule::Deny(target) => Some((target.matches(address, port)?, false)),
            Rule::AllowNone => None,
        });
        // Of equals, the one that denies is the greatest.
        matching
            .max_by_key(|&(specific, allow)| (specific, !allow))
            .map(|(_, allow)| allow)
    }
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
