//! What guest memory has above RAM: persistent memory, then the region that memory is plugged into. Neither
//! is in the memory map that the guest boots with: its drivers find both.
//!
//! All of it is guest memory for devices from the start. KVM gets the slots of persistent memory with those of
//! RAM, and those of the other region when its device asks for them ([`KvmSlots`]).

use std::io;
use std::sync::Arc;

use arch::{boot, layout};
use devices::backend::disk::mapped;
use devices::bus::{self, Bus};
use devices::virtio::mem::{self, MemControl, MemorySlots};
use devices::virtio::pmem::PmemControl;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use crate::config::{Config, DeviceKind};
use crate::controls::Controls;
use crate::{kvm, memory};

/// Why the guest cannot have this memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused the mapping of a file.
    #[error("Cannot map persistent memory '{id}'")]
    Map {
        /// Its name.
        id: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The region.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The guest's addresses end before.
    #[error(
        "The guest's memory would end at {end:#x}, and this host's CPU gives it addresses of {bits} bits \
         only: give it less with --memory, --memory-hotplug or --pmem"
    )]
    Room {
        /// First GPA after all of it.
        end: u64,
        /// Bits of an address.
        bits: u32,
    },
    /// KVM has not so many slots.
    #[error(
        "This host's KVM has {max} memory slots, and {asked} are needed: make those of \
         --memory-hotplug larger"
    )]
    Slots {
        /// What KVM has.
        max: u64,
        /// What it would take.
        asked: u64,
    },
    /// Two things at one address: a mistake in the layout.
    #[error("Cannot put read-only memory on the bus")]
    Bus(#[from] bus::Error),
}

/// The regions, in the order of their addresses.
pub(crate) struct AboveRam {
    /// To become a part of guest memory.
    pub(crate) regions: Vec<GuestRegionMmap>,
    /// What the guest cannot write to, and where it is.
    read_only: Vec<(PmemControl, u64)>,
    hotplug: Option<(MemControl, u64)>,
    end: u64,
}

impl AboveRam {
    /// Maps what the devices of a machine, which have been made, have above its RAM.
    pub(crate) fn map(config: &Config, controls: &Controls) -> Result<Self, Error> {
        let mut above = Self {
            regions: Vec::new(),
            read_only: Vec::new(),
            hotplug: None,
            end: boot::ram_end(config.memory()).max(layout::HIGH_RAM_START),
        };
        let kinds = || config.devices().iter().map(|device| &device.kind);
        for kind in kinds() {
            if let DeviceKind::Pmem(config) = kind
                && let Some(control) = controls.pmem(&config.id)
            {
                above.map_pmem(&config.id, &control)?;
            }
        }
        if kinds().any(|kind| matches!(kind, DeviceKind::Mem(_)))
            && let Some(control) = controls.memory_hotplug()
        {
            let start = above.end.next_multiple_of(mem::ALIGNMENT);
            let start = start.next_multiple_of(control.config().block());
            let total = control.config().total();
            above.regions.push(memory::reserve(start, total)?);
            above.end = start + total;
            above.hotplug = Some((control, start));
        }
        Ok(above)
    }

    fn map_pmem(&mut self, id: &str, control: &PmemControl) -> Result<(), Error> {
        let start = self.end.next_multiple_of(mapped::ALIGNMENT);
        let region = control.map(start).map_err(|source| Error::Map {
            id: id.into(),
            source,
        })?;
        let size = control.size();
        if control.is_read_only() {
            self.read_only.push((control.clone(), start));
        }
        self.regions.push(region);
        self.end = start + size;
        Ok(())
    }

    /// Whether a guest whose addresses have `bits` bits reaches all of it.
    pub(crate) fn check_room(&self, bits: u32) -> Result<(), Error> {
        let end = self.end;
        if 1_u64.checked_shl(bits).is_none_or(|limit| end <= limit) {
            Ok(())
        } else {
            Err(Error::Room { end, bits })
        }
    }

    /// Where the region is that KVM is not told of yet.
    pub(crate) fn hotplug_start(&self) -> Option<u64> {
        self.hotplug.as_ref().map(|(_, start)| *start)
    }

    /// Lets the device that plugs memory have KVM's slots from `first_slot` on, of `max`.
    pub(crate) fn connect(
        &self,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        first_slot: u32,
        max: usize,
    ) -> Result<(), Error> {
        let Some((control, start)) = &self.hotplug else {
            return Ok(());
        };
        let (asked, max) = (u64::from(first_slot) + control.config().slots(), max as u64);
        if asked > max || u32::try_from(asked).is_err() {
            return Err(Error::Slots { max, asked });
        }
        let slots = KvmSlots {
            first: first_slot,
            start: *start,
            len: control.config().slot(),
            vm: Arc::clone(vm),
            memory: Arc::clone(memory),
        };
        control.set_place(*start, Box::new(slots));
        Ok(())
    }

    /// Has the guest's writes to what it can only read end somewhere.
    pub(crate) fn guard(&self, mmio: &Bus) -> Result<(), Error> {
        for (control, start) in &self.read_only {
            mmio.insert(*start, control.size(), control.dropped_writes())?;
        }
        Ok(())
    }
}

/// KVM's slots of the region that memory is plugged into.
struct KvmSlots {
    // Fixed configuration.
    first: u32,
    start: u64,
    len: u64,
    // Runtime glue.
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
}

impl KvmSlots {
    fn number(&self, index: usize) -> io::Result<u32> {
        let index = u32::try_from(index).map_err(io::Error::other)?;
        let number = self.first.checked_add(index);
        number.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl MemorySlots for KvmSlots {
    fn insert(&self, index: usize) -> io::Result<()> {
        let start = self.start + index as u64 * self.len;
        let number = self.number(index)?;
        kvm::insert_slot(&self.vm, &self.memory, number, start, self.len, 0).map_err(of_kvm)
    }

    fn remove(&self, index: usize) -> io::Result<()> {
        kvm::remove_slot(&self.vm, self.number(index)?).map_err(of_kvm)
    }
}

fn of_kvm(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_to_reach_all_of_it() {
        let above = AboveRam {
            regions: Vec::new(),
            read_only: Vec::new(),
            hotplug: None,
            end: 1 << 36,
        };
        above.check_room(36).unwrap();
        above.check_room(64).unwrap();
        assert!(matches!(
            above.check_room(35),
            Err(Error::Room { bits: 35, .. })
        ));
    }
}
