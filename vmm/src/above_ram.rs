//! What guest memory has above RAM: persistent memory, then the region that memory is plugged into, then the
//! one that persistent memory comes into while the guest runs. None of it is in the memory map that the guest boots
//! with: its drivers find it.
//!
//! All of it is guest memory for devices from the start; guest memory never changes its regions. KVM gets the slots of
//! persistent memory with those of RAM, those of the second region when its device asks for them ([`KvmSlots`]), and
//! those of the third with each file ([`Window`]).

mod state;
mod window;

use std::io;
use std::sync::Arc;

pub use state::AboveRamState;
pub(crate) use window::{Placed, Window};

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
    /// What has come while the guest runs takes all of the addresses, or of KVM's slots, for that.
    #[error(
        "There is no place for {bytes} bytes of persistent memory: there are guest addresses for {room} bytes of what \
         comes while the guest runs, in all"
    )]
    WindowFull {
        /// Bytes that are needed.
        bytes: u64,
        /// Bytes that there are, taken or not.
        room: u64,
    },
    /// A snapshot has it where it cannot be, or has other things.
    #[error("The {what} of the snapshot cannot be at {start:#x}")]
    Place {
        /// What.
        what: String,
        /// First GPA.
        start: u64,
    },
    /// A snapshot says nothing of it.
    #[error("The snapshot does not say where the {what} is")]
    NoPlace {
        /// What.
        what: String,
    },
    /// KVM refused a slot.
    #[error("KVM does not take persistent memory '{id}'")]
    Kvm {
        /// Its name.
        id: String,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// The regions, in the order of their addresses.
pub(crate) struct AboveRam {
    /// To become a part of guest memory.
    pub(crate) regions: Vec<GuestRegionMmap>,
    /// What the guest cannot write to, and where it is.
    read_only: Vec<(PmemControl, u64)>,
    /// What is there from the start, and where.
    pmem: Vec<(String, u64)>,
    /// What came while the guest of a snapshot ran, and where; then its place.
    came: Vec<(String, PmemControl, u64)>,
    placed: Vec<(String, Placed)>,
    hotplug: Option<(MemControl, u64)>,
    end: u64,
    /// Slots of KVM that come before these.
    ram_slots: usize,
    /// Where persistent memory comes, on machines where it can.
    window_start: Option<u64>,
    window: Option<Arc<Window>>,
}

impl AboveRam {
    fn empty(config: &Config) -> Self {
        Self {
            regions: Vec::new(),
            read_only: Vec::new(),
            pmem: Vec::new(),
            came: Vec::new(),
            placed: Vec::new(),
            hotplug: None,
            ram_slots: boot::ram_ranges(config.memory()).count(),
            window_start: None,
            window: None,
            end: boot::ram_end(config.memory()).max(layout::HIGH_RAM_START),
        }
    }

    /// Maps what the devices of a machine, which have been made, have above its RAM.
    pub(crate) fn map(config: &Config, controls: &Controls) -> Result<Self, Error> {
        let mut above = Self::empty(config);
        let kinds = || config.devices().iter().map(|device| &device.kind);
        for kind in kinds() {
            if let DeviceKind::Pmem(config) = kind
                && let Some(control) = controls.pmem(&config.id)
            {
                let start = above.end.next_multiple_of(mapped::ALIGNMENT);
                above.map_pmem(&config.id, &control, start)?;
            }
        }
        if kinds().any(|kind| matches!(kind, DeviceKind::Mem(_)))
            && let Some(control) = controls.memory_hotplug()
        {
            let start = above.end.next_multiple_of(mem::ALIGNMENT);
            let start = start.next_multiple_of(control.config().block());
            above.reserve_hotplug(control, start)?;
        }
        if config.pci() {
            above.reserve_window(above.end.next_multiple_of(window::ALIGNMENT));
        }
        Ok(above)
    }

    fn reserve_hotplug(&mut self, control: MemControl, start: u64) -> Result<(), Error> {
        let total = control.config().total();
        self.regions.push(memory::reserve(start, total)?);
        self.end = start + total;
        self.hotplug = Some((control, start));
        Ok(())
    }

    /// A host with a limit of addresses does without what may never be asked for.
    fn reserve_window(&mut self, start: u64) {
        if let Ok(region) = memory::reserve_read_only(start, window::SIZE) {
            self.regions.push(region);
            self.window_start = Some(start);
        }
    }

    fn map_pmem(&mut self, id: &str, control: &PmemControl, start: u64) -> Result<(), Error> {
        let region = control.map(start).map_err(|source| Error::Map {
            id: id.into(),
            source,
        })?;
        let size = control.size();
        if control.is_read_only() {
            self.read_only.push((control.clone(), start));
        }
        self.regions.push(region);
        self.pmem.push((id.into(), start));
        self.end = start + size;
        Ok(())
    }

    /// Whether a guest whose addresses have `bits` bits reaches all of it. What may come is not counted: it comes
    /// where the guest reaches it, or not at all.
    pub(crate) fn check_room(&self, bits: u32) -> Result<(), Error> {
        let end = self.end;
        if let Some(window) = &self.window {
            window.set_end(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
        }
        if 1_u64.checked_shl(bits).is_none_or(|limit| end <= limit) {
            Ok(())
        } else {
            Err(Error::Room { end, bits })
        }
    }

    /// Whether the region at `start` is one that KVM is not told of yet.
    pub(crate) fn is_later(&self, start: u64) -> bool {
        let hotplug = self.hotplug.as_ref().map(|(_, start)| *start);
        [hotplug, self.window_start].contains(&Some(start))
    }

    /// Lets what comes later have KVM's slots from `first_slot` on, of `max`: first the device that plugs memory, then
    /// persistent memory.
    pub(crate) fn connect(
        &mut self,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        first_slot: u32,
        max: usize,
    ) -> Result<(), Error> {
        let next_slot = self.connect_hotplug(vm, memory, first_slot, max)?;
        self.window = self.window_start.map(|start| {
            let slots = next_slot..u32::try_from(max).unwrap_or(u32::MAX);
            Arc::new(Window::new(vm, memory, start, slots))
        });
        self.place_what_came()
    }

    /// The first slot that is left.
    fn connect_hotplug(
        &self,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        first_slot: u32,
        max: usize,
    ) -> Result<u32, Error> {
        let Some((control, start)) = &self.hotplug else {
            return Ok(first_slot);
        };
        let (asked, max) = (u64::from(first_slot) + control.config().slots(), max as u64);
        let Some(next) = u32::try_from(asked).ok().filter(|_| asked <= max) else {
            return Err(Error::Slots { max, asked });
        };
        let slots = KvmSlots {
            first: first_slot,
            start: *start,
            len: control.config().slot(),
            vm: Arc::clone(vm),
            memory: Arc::clone(memory),
        };
        control.set_place(*start, Box::new(slots));
        Ok(next)
    }

    /// Where persistent memory comes while the guest runs.
    pub(crate) fn window(&self) -> Option<&Arc<Window>> {
        self.window.as_ref()
    }

    /// The place of persistent memory that is there when the machine is built, on a machine where it may go: to be dropped with its
    /// device.
    pub(crate) fn place(&mut self, id: &str, control: &PmemControl) -> Option<Placed> {
        if let Some(index) = self.placed.iter().position(|(name, _)| name == id) {
            return Some(self.placed.swap_remove(index).1);
        }
        let window = self.window.as_ref()?;
        let index = self.pmem.iter().position(|(name, _)| name == id)?;
        let (_, start) = self.pmem.get(index)?;
        // A slot a region, in their order.
        let slot = u32::try_from(self.ram_slots + index).ok()?;
        Some(Placed::from_the_start(window, control, *start, slot))
    }

    /// Has the guest's writes to what it can only read end somewhere.
    pub(crate) fn guard(&self, mmio: &Arc<Bus>) -> Result<(), Error> {
        if let Some(window) = &self.window {
            window.set_bus(mmio);
        }
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
#[path = "above_ram_test.rs"]
mod tests;
