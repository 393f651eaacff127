//! `--net`.

use devices::backend::tap::{TapConfig, TapSource};
use devices::backend::user_net;
use devices::backend::user_net::policy::{Policy, Rule};
use devices::rate_limiter::{Bucket, RateLimit, parse_ops};
use devices::virtio::net::{MAX_MTU, MAX_PAIRS, MIN_MTU, NetConfig};
use vmm::config::{Device, DeviceKind, NetDevice, Network};

use crate::options::OptionList;
use crate::quantity::parse_size;

/// A card, without metadata as yet.
pub(crate) struct Card {
    pub(super) net: NetDevice,
    iothread: bool,
    /// Whether its guest is to find metadata through it, if that was said.
    pub(super) wants_metadata: Option<bool>,
}

impl Card {
    pub(super) fn into_device(self) -> Device {
        Device {
            kind: DeviceKind::Net(self.net),
            iothread: self.iothread,
        }
    }

    /// Whether the host's kernel serves it.
    pub(super) fn has_vhost(&self) -> bool {
        matches!(self.net.network, Network::Tap { vhost: true, .. })
    }
}

/// `tap=NAME`, `tap` or `user`, and what follows.
pub(super) fn parse(default_id: &str, text: &str) -> Result<Card, String> {
    let mut options = OptionList::new("--net", text);
    let kind = options.take_first();
    let tap = options.take("tap")?;
    let id = options.take("id")?.unwrap_or_else(|| default_id.into());
    let mac = options.parse("mac")?;
    let mtu = options.parse_with("mtu", mtu)?;
    let rate = rate(&mut options)?;
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    let wants_metadata = options.take_switch("mmds")?;
    let network = match (kind.as_deref(), tap) {
        (None, Some(name)) => tap_network(&mut options, TapSource::Existing(name), mtu)?,
        (Some("tap"), None) => {
            let address = options.parse("ip")?;
            tap_network(&mut options, TapSource::New { address }, mtu)?
        }
        (Some("user"), None) => user_network(&mut options, mtu)?,
        _ => {
            return Err(options.error(format_args!(
                "'{text}' is no network: write tap=NAME, tap or user, and options behind it"
            )));
        }
    };
    options.finish()?;
    let card = NetConfig {
        id,
        mac,
        mtu,
        rx_rate: rate,
        tx_rate: rate,
    };
    let net = NetDevice {
        card,
        network,
        mmds: None,
    };
    Ok(Card {
        net,
        iothread,
        wants_metadata,
    })
}

fn mtu(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
        .ok_or_else(|| format!("write a number of bytes from {MIN_MTU} to {MAX_MTU}"))
}

fn queues(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|queues| (1..=MAX_PAIRS).contains(queues))
        .ok_or_else(|| format!("write a number from 1 to {MAX_PAIRS}"))
}

/// `rate=BYTES[/s][+BURST]` and `iops=N[/s][+BURST]`.
pub(crate) fn rate(options: &mut OptionList) -> Result<RateLimit, String> {
    Ok(RateLimit {
        bandwidth: options.parse_with("rate", |text| Bucket::parse(text, parse_size))?,
        ops: options.parse_with("iops", |text| Bucket::parse(text, parse_ops))?,
    })
}

fn tap_network(
    options: &mut OptionList,
    source: TapSource,
    mtu: Option<u16>,
) -> Result<Network, String> {
    let queues = options.parse_with("queues", queues)?.unwrap_or(1);
    let vhost = options.take_switch("vhost")?.unwrap_or(false);
    let tap = TapConfig {
        source,
        queues,
        mtu,
    };
    Ok(Network::Tap { tap, vhost })
}

fn user_network(options: &mut OptionList, mtu: Option<u16>) -> Result<Network, String> {
    let mut config = user_net::Config::default();
    if let Some(mtu) = mtu {
        config.mtu = mtu;
    }
    config.hostname = options.take("hostname")?;
    for text in options.take_all("forward")? {
        let forward = text
            .parse()
            .map_err(|error| options.error(format_args!("forward={text}: {error}")))?;
        config.forwards.push(forward);
    }
    let mut rules = Vec::new();
    for key in ["deny", "allow"] {
        for text in options.take_all(key)? {
            let rule: Rule = format!("{key}={text}")
                .parse()
                .map_err(|error| options.error(format_args!("{key}={text}: {error}")))?;
            rules.push(rule);
        }
    }
    config.policy = Policy::new(rules);
    Ok(Network::User(Box::new(config)))
}
