//! From configuration to wire types: what a machine that was configured in another way says of itself.
//!
//! What the API has no field for is left out: what the console is connected to.

use std::path::Path;

use api::types::{
    Backend, Balloon, BootSource, CacheType, Drive, DriveFormat, Entropy, HugePages, IoEngine,
    MacAddress, MachineConfig, MemoryHotplug, MmdsConfig, MmdsVersion, NetworkInterface, Overlay,
    Pmem, RateLimiter, TokenBucket, VmConfig, Vsock,
};
use devices::backend::disk;
use devices::backend::tap::TapSource;
use devices::backend::user_net;
use devices::backend::user_net::policy::Rule;
use devices::mmds;
use devices::rate_limiter::{Bucket, RateLimit};
use devices::virtio::balloon;
use devices::virtio::block::BlockConfig;
use devices::virtio::net::NetConfig;

use super::convert::MIB;
use crate::config::{self, Config, DeviceKind, NetDevice, Network};

/// What `GET /vm/config` gives of a machine of this configuration, which boots this. `root` is the name of the drive
/// with its root file system.
pub fn document(config: &Config, boot_source: BootSource, root: Option<&str>) -> VmConfig {
    let mut document = VmConfig {
        boot_source,
        machine_config: machine(config),
        ..VmConfig::default()
    };
    for device in config.devices() {
        match &device.kind {
            DeviceKind::Block(disk) => {
                let is_root = root == Some(disk.id.as_str());
                document.drives.push(drive(disk, is_root, device.iothread));
            }
            DeviceKind::Net(net) => {
                let interface = interface(net, device.iothread);
                document.network_interfaces.push(interface);
                if let Some(mmds) = &net.mmds {
                    let config = document
                        .mmds_config
                        .get_or_insert_with(|| metadata(mmds.config()));
                    config.network_interfaces.push(net.card.id.clone());
                }
            }
            DeviceKind::Vsock(vsock) => {
                document.vsock = Some(Vsock {
                    guest_cid: vsock.cid,
                    uds_path: text(&vsock.path),
                    vsock_id: None,
                    iothread: device.iothread,
                });
            }
            DeviceKind::Balloon(config) => {
                document.balloon = Some(balloon(config, device.iothread));
            }
            DeviceKind::Pmem(pmem) => document.pmem.push(Pmem {
                id: pmem.id.clone(),
                path_on_host: text(&pmem.path),
                root_device: false,
                read_only: pmem.read_only,
                rate_limiter: limits(pmem.rate),
                iothread: device.iothread,
            }),
            // It has a thread of its own always.
            DeviceKind::Mem(memory) => {
                document.memory_hotplug = Some(MemoryHotplug {
                    total_size_mib: memory.total() / MIB,
                    block_size_mib: memory.block() / MIB,
                    slot_size_mib: memory.slot() / MIB,
                });
            }
            DeviceKind::Entropy(limit) => {
                document.entropy = Some(Entropy {
                    rate_limiter: limits(*limit),
                    iothread: device.iothread,
                });
            }
        }
    }
    document
}

/// Of a path that is no text, what can be shown.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn machine(config: &Config) -> MachineConfig {
    MachineConfig {
        // There are at most 64.
        vcpu_count: u8::try_from(config.cpus()).unwrap_or(u8::MAX),
        mem_size_mib: config.memory() / MIB,
        smt: config.smt(),
        track_dirty_pages: config.track_dirty_pages(),
        huge_pages: match config.huge_pages() {
            config::HugePages::None => HugePages::None,
            config::HugePages::TwoMiB => HugePages::M2,
        },
        ..MachineConfig::default()
    }
}

fn drive(disk: &BlockConfig, is_root_device: bool, iothread: bool) -> Drive {
    let BlockConfig {
        id,
        path,
        read_only,
        format,
        engine,
        cache,
        overlay,
        serial,
        queues,
        rate,
        any_size: _,
    } = disk;
    let is_qcow2 = path.extension().is_some_and(|name| name == "qcow2");
    Drive {
        drive_id: id.clone(),
        partuuid: None,
        is_root_device,
        cache_type: match cache {
            disk::Cache::Writeback => CacheType::Writeback,
            disk::Cache::Unsafe => CacheType::Unsafe,
        },
        is_read_only: *read_only,
        path_on_host: text(path),
        rate_limiter: limits(*rate),
        io_engine: match engine {
            disk::EngineKind::IoUring => IoEngine::Async,
            disk::EngineKind::Sync => IoEngine::Sync,
        },
        socket: None,
        format: match format {
            disk::Format::ByContent => DriveFormat::Auto,
            disk::Format::Qcow2 => DriveFormat::Qcow2,
            disk::Format::ByName if is_qcow2 => DriveFormat::Qcow2,
            disk::Format::Raw | disk::Format::ByName => DriveFormat::Raw,
        },
        overlay: match overlay {
            disk::Overlay::None => Overlay::None,
            disk::Overlay::Temporary | disk::Overlay::Saved { .. } => Overlay::Temp,
            disk::Overlay::File(path) => Overlay::File(text(path)),
        },
        serial: serial.clone(),
        queues: Some(*queues).filter(|queues| *queues != 1),
        iothread,
    }
}

fn metadata(config: mmds::MmdsConfig) -> MmdsConfig {
    MmdsConfig {
        version: match config.version {
            mmds::Version::V1 => MmdsVersion::V1,
            mmds::Version::V2 => MmdsVersion::V2,
        },
        network_interfaces: Vec::new(),
        ipv4_address: config.address,
        imds_compat: config.imds_compat,
    }
}

fn interface(net: &NetDevice, iothread: bool) -> NetworkInterface {
    let NetConfig {
        id,
        mac,
        mtu,
        rx_rate,
        tx_rate,
    } = &net.card;
    let mut interface = NetworkInterface {
        iface_id: id.clone(),
        host_dev_name: None,
        guest_mac: mac.map(|mac| MacAddress(mac.bytes())),
        mtu: *mtu,
        rx_rate_limiter: limits(*rx_rate),
        tx_rate_limiter: limits(*tx_rate),
        backend: Backend::Tap,
        forwards: Vec::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        hostname: None,
        queues: None,
        vhost: false,
        iothread,
    };
    match &net.network {
        Network::Tap { tap, vhost } => {
            interface.vhost = *vhost;
            // There are at most 16.
            interface.queues = u16::try_from(tap.queues).ok().filter(|queues| *queues > 1);
            // The name of a new one is the kernel's choice.
            if let TapSource::Existing(name) = &tap.source {
                interface.host_dev_name = Some(name.clone());
            }
        }
        Network::User(network) => user(network, &mut interface),
    }
    interface
}

fn user(network: &user_net::Config, interface: &mut NetworkInterface) {
    interface.backend = Backend::User;
    interface.hostname.clone_from(&network.hostname);
    interface.forwards = network.forwards.iter().map(ToString::to_string).collect();
    for rule in network.policy.rules() {
        match rule {
            Rule::Allow(target) => interface.allow.push(target.to_string()),
            Rule::AllowNone => interface.allow.push("none".into()),
            Rule::Deny(target) => interface.deny.push(target.to_string()),
        }
    }
}

fn balloon(config: &balloon::Config, iothread: bool) -> Balloon {
    let balloon::Config {
        target,
        deflate_on_oom,
        free_page_reporting,
        free_page_hinting,
        stats_interval,
    } = config;
    // Less than a second is not none.
    let seconds = stats_interval.as_secs() + u64::from(stats_interval.subsec_nanos() > 0);
    Balloon {
        amount_mib: u32::try_from(target / MIB).unwrap_or(u32::MAX),
        deflate_on_oom: *deflate_on_oom,
        stats_polling_interval_s: u16::try_from(seconds).unwrap_or(u16::MAX),
        free_page_hinting: *free_page_hinting,
        free_page_reporting: *free_page_reporting,
        iothread,
    }
}

fn limits(limit: RateLimit) -> Option<RateLimiter> {
    let bucket = |bucket: Bucket| TokenBucket {
        size: bucket.size(),
        refill_time: bucket.refill_time_ms(),
        one_time_burst: Some(bucket.one_time_burst()).filter(|burst| *burst != 0),
    };
    let limiter = RateLimiter {
        bandwidth: limit.bandwidth.map(bucket),
        ops: limit.ops.map(bucket),
    };
    (limiter != RateLimiter::default()).then_some(limiter)
}

#[cfg(test)]
#[path = "document_test.rs"]
mod tests;
