//! The host's resolvers, as /etc/resolv.conf names them now.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::shared::Shared;

/// The file is looked at no more often than this.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// More resolvers than this are not tried.
const MAX_RESOLVERS: usize = 3;
/// More of the file is not read.
const MAX_LINES: usize = 1000;

/// Tells one version of the file from another.
type Version = Option<(u64, i64, i64, u64)>;

/// The resolvers.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    addresses: Vec<SocketAddr>,
    version: Version,
    looked: Option<Instant>,
    /// The one to ask: the last that did not fail.
    current: usize,
}

impl Resolver {
    /// The resolver to ask now.
    pub(super) fn address(&mut self, shared: &Shared) -> SocketAddr {
        self.look(shared);
        let fallback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), shared.config.resolver_port);
        let index = self.current % self.addresses.len().max(1);
        self.addresses.get(index).copied().unwrap_or(fallback)
    }

    /// The resolver at `address` has not answered: the next one is asked from now on.
    pub(super) fn failed(&mut self, address: SocketAddr) {
        let index = self.current % self.addresses.len().max(1);
        if self.addresses.get(index) == Some(&address) {
            self.current = (index + 1) % self.addresses.len();
        }
    }

    /// Reads the file if it has changed.
    fn look(&mut self, shared: &Shared) {
        let now = shared.now;
        let recent = |looked| now.saturating_duration_since(looked) < LOOK_INTERVAL;
        if self.looked.is_some_and(recent) {
            return;
        }
        let first = self.looked.replace(now).is_none();
        let path = &shared.config.resolv_conf;
        let version = version(path);
        if version == self.version && !first {
            return;
        }
        self.version = version;
        self.current = 0;
        // A host without the file has its resolver at the loopback address, by custom (resolv.conf(5)).
        let text = fs::read_to_string(path).unwrap_or_default();
        self.addresses = parse(&text, shared.config.resolver_port);
    }
}

fn version(path: &Path) -> Version {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

fn parse(text: &str, port: u16) -> Vec<SocketAddr> {
    text.lines()
        .take(MAX_LINES)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(address)) => parse_address(address, port),
                _ => None,
            }
        })
        .take(MAX_RESOLVERS)
        .collect()
}

/// An address, maybe with the interface that a link-local one is at.
fn parse_address(text: &str, port: u16) -> Option<SocketAddr> {
    let (address, scope) = match text.split_once('%') {
        Some((address, interface)) => (address, scope_id(interface)?),
        None => (text, 0),
    };
    Some(match address.parse().ok()? {
        IpAddr::V4(address) => (address, port).into(),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scope).into(),
    })
}

/// The index of an interface that is given by it or by name.
fn scope_id(interface: &str) -> Option<u32> {
    if let Ok(index) = interface.parse() {
        return Some(index);
    }
    if interface.contains('/') || interface.starts_with('.') {
        return None;
    }
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
    index.trim().parse().ok()
}

#[cfg(test)]
#[path = "resolver_test.rs"]
mod tests;
