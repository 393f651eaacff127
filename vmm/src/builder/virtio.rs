//! virtio devices: from their configuration to a slot of the guest's. One arm a device.

use std::sync::{Arc, Mutex};

use arch::layout;
use devices::backend::tap::Tap;
use devices::backend::user_backend::UserBackend;
use devices::backend::user_net::{self, UserNet};
use devices::backend::vhost_net::VhostNet;
use devices::bus::Bus;
use devices::ioapic::IoApic;
use devices::rate_limiter::RateLimit;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::Block;
use devices::virtio::console;
use devices::virtio::net::backend::{KernelRings, Pair};
use devices::virtio::net::{Mac, Net};
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::{MmioDevice, QUEUE_NOTIFY};
use devices::virtio::vsock::Vsock;
use devices::virtio::worker::EventLoop;
use event_manager::SubscriberOps;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Console, Error, host};
use crate::config::{Device, DeviceKind, NetDevice, Network};
use crate::controls::Controls;
use crate::event_loop::{IoThread, Manager};
use crate::interrupts::Interrupts;
use crate::kvm;

/// The devices of a machine, and how they are changed while it runs.
#[derive(Default)]
pub(super) struct Made {
    pub(super) devices: Vec<Box<dyn VirtioDevice>>,
    pub(super) controls: Controls,
}

/// Makes the devices. What they need of the host is opened here.
pub(super) fn make(devices: &[Device], event_loop: &Arc<dyn EventLoop>) -> Result<Made, Error> {
    let mut made = Made::default();
    for (index, device) in devices.iter().enumerate() {
        let event_loop = if device.iothread {
            IoThread::start(format!("io{index}")).map_err(host("an I/O thread"))?
        } else {
            Arc::clone(event_loop)
        };
        let device = make_one(&device.kind, event_loop, &mut made.controls)?;
        made.devices.push(device);
    }
    Ok(made)
}

fn make_one(
    kind: &DeviceKind,
    event_loop: Arc<dyn EventLoop>,
    controls: &mut Controls,
) -> Result<Box<dyn VirtioDevice>, Error> {
    Ok(match kind {
        DeviceKind::Entropy(limit) => {
            let entropy = Rng::new(event_loop).map_err(host("the entropy device"))?;
            let control = entropy.control();
            control
                .set_rate_limit(*limit)
                .map_err(host("the entropy device"))?;
            controls.entropy = Some(control);
            Box::new(entropy)
        }
        DeviceKind::Block(config) => {
            let (disk, control) = Block::new(config.clone(), event_loop)?;
            controls.disks.insert(config.id.clone(), control);
            Box::new(disk)
        }
        DeviceKind::Net(net) => Box::new(make_net(net, event_loop, controls)?),
        DeviceKind::Balloon(config) => {
            let balloon = Balloon::new(event_loop, *config).map_err(host("the balloon"))?;
            controls.balloon = Some(balloon.control());
            Box::new(balloon)
        }
        DeviceKind::Vsock(config) => Box::new(Vsock::new(config.clone(), event_loop)?),
    })
}

/// A virtio console, whose worker is on the machine's event loop from the start.
pub(super) fn make_console(
    console: Console,
    event_loop: &Arc<dyn EventLoop>,
    manager: &mut Manager,
) -> Result<console::Console, Error> {
    let Console {
        input,
        output,
        filter,
        size,
    } = console;
    let config = console::Config {
        input,
        output,
        filter,
        rate_limit: RateLimit::default(),
        size,
    };
    let mut console = console::Console::new(Arc::clone(event_loop), config)?;
    // Fails only where the loop is another thread's.
    let _ = console.attach_by(|worker| Ok(manager.add_subscriber(worker)));
    Ok(console)
}

fn make_net(
    net: &NetDevice,
    event_loop: Arc<dyn EventLoop>,
    controls: &mut Controls,
) -> Result<Net, Error> {
    let mut card = net.card.clone();
    let pairs = match &net.network {
        Network::Tap { tap, vhost } => {
            let tap = Tap::open(tap)?;
            // The guest has to know what its host does.
            card.mtu = card.mtu.or(Some(tap.mtu));
            tap_pairs(tap, *vhost)?
        }
        Network::User(config) => {
            let mac = match card.mac {
                Some(mac) => mac,
                None => Mac::random().map_err(host("a MAC address"))?,
            };
            card.mac = Some(mac);
            let config = user_net::Config {
                guest_mac: mac.bytes(),
                ..(**config).clone()
            };
            let network = UserNet::new(config).map_err(host("the user network"))?;
            let (backend, control) = UserBackend::new(network).map_err(host("the user network"))?;
            controls.user_networks.insert(card.id.clone(), control);
            vec![Pair {
                backend: Box::new(backend),
                kernel: None,
            }]
        }
    };
    let id = card.id.clone();
    let (device, control) = Net::new(card, pairs, event_loop)?;
    controls.cards.insert(id, control);
    Ok(device)
}

fn tap_pairs(tap: Tap, vhost: bool) -> Result<Vec<Pair>, Error> {
    tap.queues
        .into_iter()
        .map(|queue| {
            let kernel: Option<Box<dyn KernelRings>> = if vhost {
                Some(Box::new(VhostNet::open()?))
            } else {
                None
            };
            Ok(Pair {
                backend: Box::new(queue),
                kernel,
            })
        })
        .collect()
}

/// Puts a device into slot `slot` of virtio-mmio. Neither its kicks nor its interrupts pass through a
/// vCPU thread: KVM turns the ones into eventfds, and listens to the eventfds of the others.
pub(super) fn insert(
    device: Box<dyn VirtioDevice>,
    slot: u32,
    mmio: &Bus,
    vm: &VmFd,
    interrupts: &Interrupts,
    ioapic: &Mutex<IoApic>,
    memory: &Arc<GuestMemoryMmap>,
) -> Result<(), Error> {
    let start = layout::VIRTIO_MMIO_START + u64::from(slot) * layout::VIRTIO_MMIO_SIZE;
    let gsi = layout::VIRTIO_MMIO_GSI + slot;
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("an eventfd"))?;
    let line = Arc::new(line);
    let device = MmioDevice::new(device, Arc::clone(memory), Arc::clone(&line))
        .map_err(host("the queues of a device"))?;
    for (queue, kick) in (0u32..).zip(device.kick_fds()) {
        let address = IoEventAddress::Mmio(start + QUEUE_NOTIFY);
        vm.register_ioevent(kick, &address, queue)
            .map_err(kvm::refused("KVM_IOEVENTFD"))?;
    }
    interrupts.assert_by(gsi, line);
    ioapic
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .assert_by_eventfd(gsi);
    mmio.insert(
        start,
        layout::VIRTIO_MMIO_SIZE,
        Arc::new(Mutex::new(device)),
    )?;
    Ok(())
}
