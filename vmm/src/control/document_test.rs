use std::time::Duration;

use devices::backend::tap::TapConfig;
use devices::virtio::net::Mac;
use devices::virtio::pmem::PmemConfig;
use devices::virtio::vsock::VsockConfig;

use super::super::{convert, whole};
use super::*;
use crate::config::Device;

fn limit() -> RateLimit {
    RateLimit {
        bandwidth: Bucket::new(1000, 10, 7),
        ops: None,
    }
}

fn document_of(kind: DeviceKind, iothread: bool) -> VmConfig {
    let config = Config::new(2, 64 << 20).unwrap();
    let config = config.with_device(Device { kind, iothread }).unwrap();
    let boot = BootSource {
        kernel_image_path: "vmlinux".into(),
        initrd_path: None,
        boot_args: Some("quiet".into()),
    };
    let document = document(&config, boot, Some("root"));
    assert_eq!(document.machine_config.vcpu_count, 2);
    assert_eq!(document.machine_config.mem_size_mib, 64);
    assert_eq!(document.boot_source.boot_args.as_deref(), Some("quiet"));
    // It is one that can be read.
    let json = serde_json::to_vec(&document).unwrap();
    assert_eq!(VmConfig::read(&json).unwrap(), (document.clone(), vec![]));
    document
}

#[test]
fn a_drive_there_and_back_is_the_same() {
    let mut disk = BlockConfig {
        read_only: true,
        format: disk::Format::ByContent,
        engine: disk::EngineKind::Sync,
        cache: disk::Cache::Unsafe,
        overlay: disk::Overlay::File("over".into()),
        serial: Some("s".into()),
        queues: 4,
        rate: limit(),
        any_size: true,
        ..BlockConfig::new("root", "/some/image")
    };
    let document = document_of(DeviceKind::Block(disk.clone()), true);
    assert!(document.drives[0].is_root_device);
    let device = convert::drive(&document.drives[0]).unwrap();
    assert!(device.iothread);
    let DeviceKind::Block(back) = device.kind else {
        panic!("it is a disk");
    };
    assert_eq!(back, disk);

    disk.id = "other".into();
    disk.path = "image.qcow2".into();
    disk.format = disk::Format::ByName;
    disk.overlay = disk::Overlay::Temporary;
    let document = document_of(DeviceKind::Block(disk), false);
    let drive = &document.drives[0];
    assert_eq!(drive.format, DriveFormat::Qcow2);
    assert_eq!(drive.overlay, Overlay::Temp);
    assert!(!drive.is_root_device && !drive.iothread);
}

#[test]
fn a_network_is_said_as_it_is_written() {
    let network = user_net::Config {
        hostname: Some("db".into()),
        forwards: vec!["[::1]:5353:53/udp".parse().unwrap()],
        policy: user_net::policy::Policy::new(
            ["allow=10.0.0.0/8:80", "deny=10.1.0.0/16", "allow=none"]
                .map(|rule| rule.parse().unwrap())
                .into(),
        ),
        ..user_net::Config::default()
    };
    let card = NetConfig {
        id: "eth0".into(),
        mac: Some(Mac::new([6, 0, 0, 0, 0, 1]).unwrap()),
        mtu: Some(1400),
        rx_rate: limit(),
        tx_rate: RateLimit::default(),
    };
    let kind = DeviceKind::Net(NetDevice {
        card,
        network: Network::User(Box::new(network)),
        mmds: None,
    });
    let interface = document_of(kind, false).network_interfaces.remove(0);
    assert_eq!(
        interface.guest_mac.unwrap().to_string(),
        "06:00:00:00:00:01"
    );
    assert_eq!(interface.forwards, ["[::1]:5353:53/udp"]);
    assert_eq!(interface.allow, ["10.0.0.0/8:80", "none"]);
    assert_eq!(interface.deny, ["10.1.0.0/16"]);
    assert_eq!(interface.hostname.as_deref(), Some("db"));
    let rate = interface.rx_rate_limiter.as_ref().unwrap();
    assert_eq!(rate.bandwidth.unwrap().one_time_burst, Some(7));
    assert_eq!(interface.tx_rate_limiter, None);
    assert!(convert::interface(&interface, None).is_ok());
}

/// The device that a document describes, which has one.
fn device_of(document: &VmConfig) -> Device {
    let mut devices = whole::devices(document, None).unwrap();
    assert_eq!(devices.len(), 1);
    devices.remove(0)
}

#[test]
fn a_tap_there_and_back_is_the_same() {
    for (queues, vhost, iothread) in [(1, false, true), (1, true, false), (4, true, true)] {
        let tap = TapConfig {
            source: TapSource::Existing("tap0".into()),
            queues,
            mtu: None,
        };
        let card = NetConfig {
            id: "eth0".into(),
            ..NetConfig::default()
        };
        let kind = DeviceKind::Net(NetDevice {
            card,
            network: Network::Tap {
                tap: tap.clone(),
                vhost,
            },
            mmds: None,
        });
        let document = document_of(kind, iothread);
        // A client that knows nothing of several queues sees nothing of one.
        let interface = &document.network_interfaces[0];
        assert_eq!(interface.queues.is_some(), queues != 1);
        let device = device_of(&document);
        assert_eq!(device.iothread, iothread);
        let DeviceKind::Net(NetDevice { network, .. }) = device.kind else {
            panic!("it is a card");
        };
        let Network::Tap {
            tap: back,
            vhost: vhost_back,
        } = network
        else {
            panic!("it has a tap");
        };
        assert_eq!((back, vhost_back), (tap, vhost));
    }
}

#[test]
fn each_device_keeps_its_thread() {
    let kinds = [
        DeviceKind::Entropy(RateLimit::default()),
        DeviceKind::Vsock(VsockConfig {
            cid: 3,
            path: "v.sock".into(),
        }),
        DeviceKind::Balloon(balloon::Config::default()),
        DeviceKind::Pmem(PmemConfig {
            id: "p".into(),
            path: "file".into(),
            read_only: true,
            rate: RateLimit::default(),
        }),
        DeviceKind::Block(BlockConfig::new("root", "/some/image")),
        DeviceKind::Net(NetDevice {
            card: NetConfig {
                id: "eth0".into(),
                ..NetConfig::default()
            },
            network: Network::User(Box::default()),
            mmds: None,
        }),
    ];
    for kind in kinds {
        for iothread in [true, false] {
            let device = device_of(&document_of(kind.clone(), iothread));
            assert_eq!(device.iothread, iothread, "{}", device.id());
        }
    }
}

#[test]
fn the_others() {
    let document = document_of(DeviceKind::Entropy(RateLimit::default()), false);
    assert_eq!(document.entropy.unwrap().rate_limiter, None);
    let document = document_of(
        DeviceKind::Vsock(VsockConfig {
            cid: 3,
            path: "v.sock".into(),
        }),
        false,
    );
    assert_eq!(document.vsock.unwrap().uds_path, "v.sock");
    let document = document_of(
        DeviceKind::Balloon(balloon::Config {
            target: 5 << 20,
            deflate_on_oom: true,
            free_page_reporting: true,
            free_page_hinting: true,
            stats_interval: Duration::from_millis(200),
        }),
        false,
    );
    let balloon = document.balloon.unwrap();
    assert_eq!(
        (balloon.amount_mib, balloon.stats_polling_interval_s),
        (5, 1)
    );
    assert!(balloon.deflate_on_oom && balloon.free_page_reporting && balloon.free_page_hinting);
}
