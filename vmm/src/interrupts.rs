//! From an eventfd or an MSI to a vCPU's local APIC: KVM's table of GSIs, and the eventfds that it
//! listens to.
//!
//! KVM takes the table as a whole, so all of it is here: the inputs of the IOAPIC in `devices`, which
//! makes messages out of line changes, by their number; and, above them, the vectors of PCI devices.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::layout;
use devices::interrupt::{MsiMessage, MsiSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// The first GSI that is no input of any IOAPIC.
const FIRST_MSI_GSI: u32 = layout::IOAPIC_MAX_PINS;
/// The last one that KVM has: KVM_MAX_IRQ_ROUTES, less one.
const LAST_GSI: u32 = 4095;

/// Delivers interrupts to the guest.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    gsis: Mutex<Gsis>,
    /// What KVM did not take: the guest programmed a destination that does not exist.
    undelivered: AtomicU64,
}

#[derive(Default)]
struct Gsis {
    /// What is in KVM's table, or is as soon as the next change of it.
    messages: BTreeMap<u32, MsiMessage>,
    /// The table in KVM is as `messages`.
    applied: bool,
    eventfds: BTreeMap<u32, Listener>,
}

struct Listener {
    fd: Arc<EventFd>,
    /// KVM listens to it.
    listening: bool,
}

impl Interrupts {
    /// Without a GSI.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            gsis: Mutex::default(),
            undelivered: AtomicU64::new(0),
        }
    }

    /// From now on `fd` asserts `gsi`, whenever that has a message. What it is told meanwhile is
    /// delivered then.
    pub(crate) fn assert_by(&self, gsi: u32, fd: Arc<EventFd>) {
        let listener = Listener {
            fd,
            listening: false,
        };
        self.lock().eventfds.insert(gsi, listener);
    }

    /// Takes a GSI above those of the IOAPIC, which `fd` asserts from now on as with
    /// [`Interrupts::assert_by`]. None if they are all taken.
    pub(crate) fn reserve(&self, fd: Arc<EventFd>) -> Option<u32> {
        let mut gsis = self.lock();
        let taken = gsis.eventfds.range(FIRST_MSI_GSI..).map(|(gsi, _)| *gsi);
        let free = (FIRST_MSI_GSI..=LAST_GSI)
            .zip(taken.map(Some).chain(std::iter::repeat(None)))
            .find(|(gsi, taken)| Some(*gsi) != *taken)?;
        let listener = Listener {
            fd,
            listening: false,
        };
        gsis.eventfds.insert(free.0, listener);
        Some(free.0)
    }

    /// Gives a GSI back: its eventfd asserts nothing any more.
    pub(crate) fn release(&self, gsi: u32) {
        let mut gsis = self.lock();
        if let Some(listener) = gsis.eventfds.remove(&gsi)
            && listener.listening
        {
            // Fails for none that listens.
            let _ = self.vm.unregister_irqfd(&listener.fd, gsi);
        }
        // KVM forgets it with the next change of the table: that is slow, and nobody asserts it.
        gsis.messages.remove(&gsi);
    }

    /// Gives `gsi` another message, or none.
    pub(crate) fn set(&self, gsi: u32, message: Option<MsiMessage>) {
        let mut gsis = self.lock();
        let done = match message {
            Some(message) => self.route(&mut gsis, gsi, message),
            None => self.unroute(&mut gsis, gsi),
        };
        if done.is_err() {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn route(
        &self,
        gsis: &mut Gsis,
        gsi: u32,
        message: MsiMessage,
    ) -> Result<(), kvm_ioctls::Error> {
        let changed = gsis.messages.insert(gsi, message) != Some(message);
        if changed || !gsis.applied {
            self.apply(gsis)?;
        }
        match gsis.eventfds.get_mut(&gsi) {
            Some(listener) if !listener.listening => {
                // KVM looks at once whether it was written to before.
                self.vm.register_irqfd(&listener.fd, gsi)?;
                listener.listening = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn unroute(&self, gsis: &mut Gsis, gsi: u32) -> Result<(), kvm_ioctls::Error> {
        if let Some(listener) = gsis.eventfds.get_mut(&gsi) {
            // Its message may stay: the next one is likely to be the same, and the table is slow.
            if std::mem::take(&mut listener.listening) {
                self.vm.unregister_irqfd(&listener.fd, gsi)?;
            }
            return Ok(());
        }
        match gsis.messages.remove(&gsi) {
            Some(_) => self.apply(gsis),
            None => Ok(()),
        }
    }

    fn apply(&self, gsis: &mut Gsis) -> Result<(), kvm_ioctls::Error> {
        let entries: Vec<_> = gsis
            .messages
            .iter()
            .map(|(&gsi, message)| entry(gsi, message))
            .collect();
        gsis.applied = false;
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table)?;
        gsis.applied = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Gsis> {
        self.gsis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(gsi: u32, message: &MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = halves(message.address);
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    };
    entry
}

fn halves(address: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "splits it")]
    (address as u32, (address >> 32) as u32)
}

impl MsiSink for Interrupts {
    fn signal(&self, message: MsiMessage) {
        let (address_lo, address_hi) = halves(message.address);
        let msi = kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..Default::default()
        };
        // 0: blocked by the guest, below 0: no such destination. Neither is the host's business.
        if self.vm.signal_msi(msi).is_err() {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn route(&self, pin: u32, message: Option<MsiMessage>) {
        self.set(pin, message);
    }
}
