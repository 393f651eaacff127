//! virtio devices: from their configuration to a slot of the guest's. One arm a device.

use std::sync::{Arc, Mutex};

use arch::layout;
use devices::bus::Bus;
use devices::ioapic::IoApic;
use devices::virtio::VirtioDevice;
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::{MmioDevice, QUEUE_NOTIFY};
use devices::virtio::worker::EventLoop;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Error, host};
use crate::config::{Device, DeviceKind};
use crate::event_loop::IoThread;
use crate::interrupts::Interrupts;
use crate::kvm;

/// Makes the devices. What they need of the host is opened here.
pub(super) fn make(
    devices: &[Device],
    event_loop: &Arc<dyn EventLoop>,
) -> Result<Vec<Box<dyn VirtioDevice>>, Error> {
    let mut made = Vec::with_capacity(devices.len());
    for (index, device) in devices.iter().enumerate() {
        let event_loop = if device.iothread {
            IoThread::start(format!("io{index}")).map_err(host("an I/O thread"))?
        } else {
            Arc::clone(event_loop)
        };
        made.push(make_one(&device.kind, event_loop)?);
    }
    Ok(made)
}

fn make_one(
    kind: &DeviceKind,
    event_loop: Arc<dyn EventLoop>,
) -> Result<Box<dyn VirtioDevice>, Error> {
    Ok(match kind {
        DeviceKind::Entropy => Box::new(Rng::new(event_loop).map_err(host("the entropy device"))?),
    })
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
