//! From wire types to configuration: what was sent has the right shape, and is checked against mote's own
//! bounds here.

use std::sync::Arc;
use std::time::Duration;

use api::command::Fault;
use api::types::{
    Backend, Balloon, CacheType, CpuConfig, CpuidRegister, Drive, DriveFormat, Entropy, IoEngine,
    KvmCapability, MemoryHotplug, MmdsConfig, MmdsVersion, NetworkInterface, Overlay, Pmem,
    RateLimiter, TokenBucket, Vsock,
};
use arch::cpu_config::{self, CapabilityModifier, CpuidModifier, MsrModifier};
use devices::backend::disk;
use devices::backend::tap::{TapConfig, TapSource};
use devices::backend::user_net;
use devices::backend::user_net::policy::{Policy, Rule};
use devices::mmds::{self, Mmds};
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::balloon;
use devices::virtio::block::{BlockConfig, MAX_QUEUES};
use devices::virtio::mem::MemConfig;
use devices::virtio::net::{MAX_MTU, MIN_MTU, Mac, NetConfig};
use devices::virtio::pmem::PmemConfig;
use devices::virtio::vsock::VsockConfig;

use crate::config::{Device, DeviceKind, NetDevice, Network};

/// Bytes of a MiB.
pub(super) const MIB: u64 = 1 << 20;

/// The limit that a bucket is, if it is one.
pub fn bucket(bucket: TokenBucket) -> Option<Bucket> {
    Bucket::new(
        bucket.size,
        bucket.refill_time,
        bucket.one_time_burst.unwrap_or(0),
    )
}

/// How metadata presents itself to the guest.
pub fn metadata_config(config: &MmdsConfig) -> mmds::MmdsConfig {
    mmds::MmdsConfig {
        version: match config.version {
            MmdsVersion::V1 => mmds::Version::V1,
            MmdsVersion::V2 => mmds::Version::V2,
        },
        address: config.ipv4_address,
        imds_compat: config.imds_compat,
    }
}

pub(super) fn limits(limiter: Option<&RateLimiter>) -> RateLimit {
    let bucket_of =
        |pick: fn(&RateLimiter) -> Option<TokenBucket>| limiter.and_then(pick).and_then(bucket);
    RateLimit {
        bandwidth: bucket_of(|limiter| limiter.bandwidth),
        ops: bucket_of(|limiter| limiter.ops),
    }
}

pub(super) fn drive(drive: &Drive) -> Result<Device, Fault> {
    let queues = drive.queues.unwrap_or(1);
    if queues == 0 || queues > MAX_QUEUES {
        return Err(Fault::bad(format!(
            "Drive '{}': queues is from 1 to {MAX_QUEUES}, not {queues}",
            drive.drive_id
        )));
    }
    let config = BlockConfig {
        read_only: drive.is_read_only,
        format: match drive.format {
            DriveFormat::Raw => disk::Format::Raw,
            DriveFormat::Qcow2 => disk::Format::Qcow2,
            DriveFormat::Auto => disk::Format::ByContent,
        },
        engine: match drive.io_engine {
            IoEngine::Sync => disk::EngineKind::Sync,
            IoEngine::Async => disk::EngineKind::IoUring,
        },
        cache: match drive.cache_type {
            CacheType::Unsafe => disk::Cache::Unsafe,
            CacheType::Writeback => disk::Cache::Writeback,
        },
        overlay: match &drive.overlay {
            Overlay::None => disk::Overlay::None,
            Overlay::Temp => disk::Overlay::Temporary,
            Overlay::File(path) => disk::Overlay::File(path.into()),
        },
        serial: drive.serial.clone(),
        queues,
        // Clients hold places with empty files, and give them others later.
        any_size: true,
        rate: limits(drive.rate_limiter.as_ref()),
        ..BlockConfig::new(drive.drive_id.clone(), &drive.path_on_host)
    };
    Ok(Device {
        kind: DeviceKind::Block(config),
        iothread: drive.iothread,
    })
}

pub(super) fn interface(
    interface: &NetworkInterface,
    mmds: Option<Arc<Mmds>>,
) -> Result<Device, Fault> {
    let id = &interface.iface_id;
    let wrong = |what: String| Fault::bad(format!("Network interface '{id}': {what}"));
    let mac = match interface.guest_mac {
        Some(mac) => Some(Mac::new(mac.0).map_err(|error| wrong(format!("guest_mac: {error}")))?),
        None => None,
    };
    if let Some(mtu) = interface.mtu
        && !(MIN_MTU..=MAX_MTU).contains(&mtu)
    {
        return Err(wrong(format!(
            "mtu is from {MIN_MTU} to {MAX_MTU}, not {mtu}"
        )));
    }
    let network = match interface.backend {
        Backend::Tap => tap(interface).map_err(wrong)?,
        Backend::User => user(interface).map_err(wrong)?,
    };
    let card = NetConfig {
        id: id.clone(),
        mac,
        mtu: interface.mtu,
        rx_rate: limits(interface.rx_rate_limiter.as_ref()),
        tx_rate: limits(interface.tx_rate_limiter.as_ref()),
    };
    Ok(Device {
        kind: DeviceKind::Net(NetDevice {
            card,
            network,
            mmds,
        }),
        iothread: interface.iothread,
    })
}

fn tap(interface: &NetworkInterface) -> Result<Network, String> {
    let name = interface.host_dev_name.clone().ok_or_else(|| {
        format!(
            "the tap of card '{}' has no name that lasts: one that mote has made goes with the guest. Use \
             `--net tap=NAME`, or host_dev_name",
            interface.iface_id
        )
    })?;
    Ok(Network::Tap {
        tap: TapConfig {
            source: TapSource::Existing(name),
            queues: interface.queues.unwrap_or(1).into(),
            mtu: interface.mtu,
        },
        vhost: interface.vhost,
    })
}

fn user(interface: &NetworkInterface) -> Result<Network, String> {
    let mut config = user_net::Config {
        hostname: interface.hostname.clone(),
        ..user_net::Config::default()
    };
    if let Some(mtu) = interface.mtu {
        config.mtu = mtu;
    }
    for text in &interface.forwards {
        let forward = text
            .parse()
            .map_err(|error| format!("forwards: {text}: {error}"))?;
        config.forwards.push(forward);
    }
    let mut rules = Vec::new();
    for (key, texts) in [("deny", &interface.deny), ("allow", &interface.allow)] {
        for text in texts {
            let rule: Rule = format!("{key}={text}")
                .parse()
                .map_err(|error| format!("{key}: {text}: {error}"))?;
            rules.push(rule);
        }
    }
    config.policy = Policy::new(rules);
    Ok(Network::User(Box::new(config)))
}

pub(super) fn cpu_config(wire: &CpuConfig) -> cpu_config::CpuConfig {
    let capabilities = wire.kvm_capabilities.iter().map(|change| match *change {
        KvmCapability::Require(number) => CapabilityModifier::Require(number),
        KvmCapability::Waive(number) => CapabilityModifier::Drop(number),
    });
    let cpuid = wire.cpuid_modifiers.iter().flat_map(|leaf| {
        leaf.modifiers.iter().map(|change| CpuidModifier {
            leaf: leaf.leaf,
            subleaf: leaf.subleaf,
            flags: leaf.flags,
            register: match change.register {
                CpuidRegister::Eax => cpu_config::CpuidRegister::Eax,
                CpuidRegister::Ebx => cpu_config::CpuidRegister::Ebx,
                CpuidRegister::Ecx => cpu_config::CpuidRegister::Ecx,
                CpuidRegister::Edx => cpu_config::CpuidRegister::Edx,
            },
            mask: low_half(change.bitmap.mask),
            value: low_half(change.bitmap.value),
        })
    });
    let msrs = wire.msr_modifiers.iter().map(|change| MsrModifier {
        index: change.addr,
        mask: change.bitmap.mask,
        value: change.bitmap.value,
    });
    cpu_config::CpuConfig {
        capabilities: capabilities.collect(),
        cpuid: cpuid.collect(),
        msrs: msrs.collect(),
    }
}

/// A bitmap of 32 bits has no others.
#[expect(clippy::cast_possible_truncation, reason = "the upper half is empty")]
fn low_half(bits: u64) -> u32 {
    bits as u32
}

pub(super) fn vsock(vsock: &Vsock) -> Device {
    Device {
        kind: DeviceKind::Vsock(VsockConfig {
            cid: vsock.guest_cid,
            path: (&vsock.uds_path).into(),
        }),
        iothread: vsock.iothread,
    }
}

pub(super) fn balloon(balloon: &Balloon) -> Device {
    Device {
        kind: DeviceKind::Balloon(balloon::Config {
            target: u64::from(balloon.amount_mib) * MIB,
            deflate_on_oom: balloon.deflate_on_oom,
            free_page_reporting: balloon.free_page_reporting,
            free_page_hinting: balloon.free_page_hinting,
            stats_interval: Duration::from_secs(balloon.stats_polling_interval_s.into()),
        }),
        iothread: balloon.iothread,
    }
}

pub(super) fn pmem(pmem: &Pmem) -> Device {
    Device {
        kind: DeviceKind::Pmem(PmemConfig {
            id: pmem.id.clone(),
            path: (&pmem.path_on_host).into(),
            read_only: pmem.read_only,
            rate: limits(pmem.rate_limiter.as_ref()),
        }),
        iothread: pmem.iothread,
    }
}

pub(super) fn memory_hotplug(memory: &MemoryHotplug) -> Result<Device, Fault> {
    let bytes = |mib: u64| mib.saturating_mul(MIB);
    let config = MemConfig::new(
        bytes(memory.total_size_mib),
        bytes(memory.block_size_mib),
        bytes(memory.slot_size_mib),
    );
    let config = config.map_err(|error| {
        Fault::bad(format!(
            "Cannot have {} MiB plugged (total_size_mib): {error}",
            memory.total_size_mib
        ))
    })?;
    Ok(Device {
        kind: DeviceKind::Mem(config),
        iothread: false,
    })
}

pub(super) fn entropy(entropy: &Entropy) -> Device {
    Device {
        kind: DeviceKind::Entropy(limits(entropy.rate_limiter.as_ref())),
        iothread: entropy.iothread,
    }
}
