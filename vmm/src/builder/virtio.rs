//! virtio devices: from their configuration to a slot of the guest's. One arm a device.

use std::io;
use std::sync::{Arc, Mutex};

use arch::layout;
use devices::backend::tap::{self, Tap};
use devices::backend::user_backend::UserBackend;
use devices::backend::user_net::{self, UserNet};
use devices::backend::vhost_net::{self, VhostNet};
use devices::bus::Bus;
use devices::ioapic::IoApic;
use devices::mmds::{self, Mmds};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::{self, Block};
use devices::virtio::console;
use devices::virtio::mem::Mem;
use devices::virtio::net::backend::{KernelRings, Pair};
use devices::virtio::net::{self, DEFAULT_MTU, Mac, Net, NetConfig};
use devices::virtio::pmem::{self, Pmem};
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::{MmioDevice, QUEUE_NOTIFY};
use devices::virtio::vsock::{self, Vsock};
use devices::virtio::worker::{EventLoop, WorkerId};
use event_manager::SubscriberOps;
use kvm_ioctls::{IoEventAddress, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Console, host};
use crate::config::{Device, DeviceKind, NetDevice, Network};
use crate::controls::{Control, Controls, DeviceId, Registered};
use crate::event_loop::IoThread;
use crate::interrupts::Interrupts;
use crate::kvm;
use crate::stage::Stage;

/// Why a device could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Its name is another one's.
    #[error("There is a device of the same name already: {id}")]
    NameTaken {
        /// The name.
        id: DeviceId,
    },
    /// A disk.
    #[error(transparent)]
    Block(#[from] block::Error),
    /// A network card.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A tap.
    #[error(transparent)]
    Tap(#[from] tap::Error),
    /// vhost-net.
    #[error(transparent)]
    Vhost(#[from] vhost_net::Error),
    /// The host's kernel would take the guest's requests for metadata.
    #[error(
        "Network card {id} cannot serve metadata: the host's kernel serves its rings (vhost=on)"
    )]
    MetadataWithVhost {
        /// The card's name.
        id: String,
    },
    /// The virtio console.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// Sockets between guest and host.
    #[error("Cannot make the vsock device")]
    Vsock(#[from] vsock::Error),
    /// Persistent memory.
    #[error(transparent)]
    Pmem(#[from] pmem::Error),
    /// The host refused something.
    #[error("Cannot make {what}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn refused(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Makes a device, which is in `controls` from then on. If that fails, nothing of it is left.
pub(crate) fn make(
    device: &Device,
    event_loop: &Arc<dyn EventLoop>,
    controls: &Controls,
) -> Result<Registered, Error> {
    let id = device.id();
    let registration = match controls.register(id.clone()) {
        Some(registration) => registration,
        None => return Err(Error::NameTaken { id }),
    };
    // Memory that comes and goes keeps its thread waiting, for milliseconds at a time.
    let event_loop = if device.iothread || matches!(device.kind, DeviceKind::Mem(_)) {
        IoThread::start(thread_name(&id)).map_err(refused("an I/O thread"))?
    } else {
        Arc::clone(event_loop)
    };
    let (device, control) = make_one(&device.kind, event_loop)?;
    registration.set_control(control);
    Ok(Registered::new(device, registration))
}

/// The name of a device's own thread. The kernel shows its first 15 bytes.
pub(super) fn thread_name(id: &DeviceId) -> String {
    let name = match id {
        DeviceId::Disk(id) | DeviceId::Card(id) | DeviceId::Pmem(id) => id,
        DeviceId::Balloon => "balloon",
        DeviceId::Entropy => "entropy",
        DeviceId::Vsock => "vsock",
        DeviceId::Console => "console",
        DeviceId::MemoryHotplug => "memory",
    };
    // No thread's name has a zero byte.
    format!("io-{name}").replace('\0', "")
}

fn make_one(
    kind: &DeviceKind,
    event_loop: Arc<dyn EventLoop>,
) -> Result<(Box<dyn VirtioDevice>, Control), Error> {
    Ok(match kind {
        DeviceKind::Entropy(limit) => {
            let entropy = Rng::new(event_loop).map_err(refused("the entropy device"))?;
            let control = entropy.control();
            control
                .set_rate_limit(*limit)
                .map_err(refused("the entropy device"))?;
            (Box::new(entropy), Control::Entropy(control))
        }
        DeviceKind::Block(config) => {
            let (disk, control) = Block::new(config.clone(), event_loop)?;
            (Box::new(disk), Control::Disk(control))
        }
        DeviceKind::Net(net) => {
            let (card, control) = make_net(net, event_loop)?;
            (Box::new(card), control)
        }
        DeviceKind::Balloon(config) => {
            let balloon = Balloon::new(event_loop, *config).map_err(refused("the balloon"))?;
            let control = balloon.control();
            (Box::new(balloon), Control::Balloon(control))
        }
        DeviceKind::Vsock(config) => {
            let vsock = Vsock::new(config.clone(), event_loop)?;
            let control = vsock.control();
            (Box::new(vsock), Control::Vsock(control))
        }
        DeviceKind::Pmem(config) => {
            let (pmem, control) = Pmem::new(config.clone(), event_loop)?;
            (Box::new(pmem), Control::Pmem(control))
        }
        DeviceKind::Mem(config) => {
            let mem = Mem::new(*config, event_loop);
            let control = mem.control();
            (Box::new(mem), Control::Mem(control))
        }
    })
}

/// A virtio console, whose worker is on its event loop from the start, what controls it, and what it is called on the
/// loop of the stage, if it is on that one.
pub(super) fn make_console(
    console: Console,
    stage: &mut Stage,
) -> Result<(Registered, console::ConsoleControl, Option<WorkerId>), Error> {
    let id = DeviceId::Console;
    let registration = match stage.maker.controls.register(id.clone()) {
        Some(registration) => registration,
        None => return Err(Error::NameTaken { id }),
    };
    let Console {
        input,
        output,
        filter,
        size,
        rate_limit,
        iothread,
    } = console;
    let config = console::Config {
        input,
        output,
        filter,
        rate_limit,
        size,
    };
    // Neither way to attach fails: a thread of its own serves its loop already, and the machine's is
    // this thread's as yet.
    let mut console;
    let mut on_stage = None;
    if iothread {
        let own = IoThread::start(thread_name(&id)).map_err(refused("an I/O thread"))?;
        console = console::Console::new(own, config)?;
        let _ = console.attach();
    } else {
        console = console::Console::new(Arc::clone(&stage.maker.event_loop), config)?;
        let _ = console.attach_by(|worker| {
            let id = stage.manager.add_subscriber(worker);
            on_stage = Some(id);
            Ok(id)
        });
    }
    let control = console.control();
    registration.set_control(Control::Console(control.clone()));
    let console = Registered::new(Box::new(console), registration);
    Ok((console, control, on_stage))
}

fn make_net(net: &NetDevice, event_loop: Arc<dyn EventLoop>) -> Result<(Net, Control), Error> {
    let mut network_control = None;
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
                None => Mac::random().map_err(refused("a MAC address"))?,
            };
            card.mac = Some(mac);
            let config = user_net::Config {
                guest_mac: mac.bytes(),
                ..(**config).clone()
            };
            let network = UserNet::new(config).map_err(refused("the user network"))?;
            let (backend, control) =
                UserBackend::new(network).map_err(refused("the user network"))?;
            network_control = Some(control);
            vec![Pair {
                backend: Box::new(backend),
                kernel: None,
            }]
        }
    };
    let pairs = match &net.mmds {
        Some(mmds) => with_metadata(pairs, mmds, &card)?,
        None => pairs,
    };
    let (device, control) = Net::new(card, pairs, event_loop)?;
    Ok((device, Control::Card(control, network_control)))
}

/// Puts the metadata service on a card's link.
fn with_metadata(pairs: Vec<Pair>, mmds: &Arc<Mmds>, card: &NetConfig) -> Result<Vec<Pair>, Error> {
    if pairs.iter().any(|pair| pair.kernel.is_some()) {
        let id = card.id.clone();
        return Err(Error::MetadataWithVhost { id });
    }
    let backends = pairs.into_iter().map(|pair| pair.backend).collect();
    let guest = card.mac.map(|mac| mac.bytes());
    let mtu = card.mtu.unwrap_or(DEFAULT_MTU);
    let backends =
        mmds::wrap(backends, mmds, guest, mtu).map_err(refused("the metadata service"))?;
    let pair = |backend| Pair {
        backend,
        kernel: None,
    };
    Ok(backends.into_iter().map(pair).collect())
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
    device: Registered,
    slot: u32,
    mmio: &Bus,
    vm: &VmFd,
    interrupts: &Interrupts,
    ioapic: &Mutex<IoApic>,
    memory: &Arc<GuestMemoryMmap>,
) -> Result<(String, Arc<Mutex<MmioDevice>>), super::Error> {
    let name = device.id().to_string();
    let start = layout::VIRTIO_MMIO_START + u64::from(slot) * layout::VIRTIO_MMIO_SIZE;
    let gsi = layout::VIRTIO_MMIO_GSI + slot;
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("an eventfd"))?;
    let line = Arc::new(line);
    let device = MmioDevice::new(Box::new(device), Arc::clone(memory), Arc::clone(&line))
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
    let device = Arc::new(Mutex::new(device));
    mmio.insert(start, layout::VIRTIO_MMIO_SIZE, device.clone())?;
    Ok((name, device))
}
