//! The way from an interrupt line to a vCPU's local APIC: the IOAPIC in `devices` makes MSIs out of
//! line changes, KVM delivers them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::interrupt::{MsiMessage, MsiSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;

/// Delivers MSIs to the guest.
pub(crate) struct MsiInjector {
    vm: Arc<VmFd>,
    /// Level-triggered lines by GSI. KVM looks through its routing table for the vectors whose
    /// end-of-interrupt it has to report; edge-triggered lines need no entry.
    level_routes: Mutex<BTreeMap<u32, MsiMessage>>,
    /// MSIs that KVM did not take: the guest programmed a destination that does not exist.
    undelivered: AtomicU64,
}

impl MsiInjector {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            level_routes: Mutex::default(),
            undelivered: AtomicU64::new(0),
        }
    }
}

fn halves(address: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "splits it")]
    (address as u32, (address >> 32) as u32)
}

impl MsiSink for MsiInjector {
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
        let mut routes = self
            .level_routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = match message {
            Some(message) => routes.insert(pin, message) != Some(message),
            None => routes.remove(&pin).is_some(),
        };
        if !changed {
            return;
        }
        let entries: Vec<_> = routes
            .iter()
            .map(|(&gsi, message)| {
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
            })
            .collect();
        let applied = KvmIrqRouting::from_entries(&entries)
            .is_ok_and(|table| self.vm.set_gsi_routing(&table).is_ok());
        if !applied {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
